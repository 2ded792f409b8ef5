"""Objects of other libraries in and out, and features as their transformers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.common import VolumetricData
from pymatgen.io.vasp import Chgcar
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import ecdlib as ecd
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import ROOT, data_folder
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import BOHR
from ecdlib.features.crystal import crystal_features, log_invariants
from ecdlib.features.potential import load_potential, tensor_features
from ecdlib.features.transformers import Features
from ecdlib.learn.model_file import load_model

SPIN = str(data_folder() / "vasp" / "CHGCAR.Li_spin.gz")
TRANSFORMERS = [
    ecd.Autocorrelation(size=5),
    ecd.Quantiles(),
    ecd.Descriptors(),
    ecd.Invariants(),
    ecd.Composition(),
    ecd.CrystalFeatures(),
    ecd.Latents(),
]
named = pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda t: type(t).__name__)


def test_a_chgcar_of_pymatgen_is_the_density_that_our_reader_finds() -> None:
    theirs, ours = Chgcar.from_file(SPIN), ecd.read(SPIN)
    density = ecd.ChargeDensity.from_pymatgen(theirs)
    assert np.allclose(density.values, ours.values, rtol=1e-6)
    assert density.n_electrons == pytest.approx(ours.n_electrons, rel=1e-6)
    back = density.to_pymatgen()
    assert np.allclose(back.data["total"], theirs.data["total"])
    assert np.array_equal(back.data["diff"], theirs.data["diff"]), "spin comes along"
    assert set(back.data_aug) == set(theirs.data_aug)


def test_the_unit_of_volumetric_data_is_said_or_noticed() -> None:
    density = ecd.read("LiH_225")
    cube = VolumetricData(density.structure, {"total": density.values * BOHR**3})
    with pytest.raises(EcdError, match="Check the units"):
        ecd.ChargeDensity.from_pymatgen(cube)
    same = ecd.ChargeDensity.from_pymatgen(cube, unit="e/bohr3")
    assert np.allclose(same.values, density.values)


def test_atoms_of_one_element_are_together_in_a_chgcar() -> None:
    density = ecd.ChargeDensity(
        np.full((4, 4, 4), 4 / 64), 4 * np.eye(3), ("Na", "Cl", "Na"), [[0, 0, 0], [0.5] * 3, [0.5, 0, 0]]
    )
    assert [site.specie.symbol for site in density.to_pymatgen().structure] == ["Cl", "Na", "Na"]


def test_ase_there_and_back() -> None:
    density = ecd.read("TiAl_123")
    atoms, values = density.to_ase()
    back = ecd.ChargeDensity.from_ase(atoms, values)
    assert np.array_equal(back.values, density.values)
    assert np.allclose(back.lattice, density.lattice)
    assert back.species == density.species
    assert np.allclose(back.positions, density.positions)
    values[:] = 0
    assert density.values.max() > 0, "the density keeps its own numbers"
    assert ecd.read(atoms).composition == density.structure.composition


@named
def test_columns_have_names_and_rows_are_independent(transformer: Features) -> None:
    crystals = [ecd.read("LiH_225"), ecd.read("Al_225")]
    plain = transformer.fit_transform(crystals)
    names = transformer.get_feature_names_out()
    assert plain.shape == (2, len(set(names)))
    assert np.array_equal(transformer.transform(crystals[::-1]), plain[::-1])
    frame = clone(transformer).set_output(transform="pandas").fit_transform(crystals)
    assert list(frame.columns) == list(names)
    assert np.array_equal(frame.to_numpy(), plain)


@named
def test_a_column_of_structures_is_featurized_as_matminer_does(transformer: Features) -> None:
    structures = [ecd.read(name).structure for name in ("LiH_225", "Al_225")]
    frame = pd.DataFrame({"structure": structures}, index=["a", "b"])
    found = transformer.featurize_dataframe(frame, "structure", pbar=False)
    assert list(found.columns) == ["structure", *transformer.feature_labels()]
    assert np.array_equal(found.loc["b"].iloc[1:].to_numpy(float), transformer.transform(structures)[1])


def test_crystal_features_are_the_blocks_of_the_model_of_structures() -> None:
    structure = ecd.read("NaCl_225").structure
    blocks = crystal_features([structure])
    frame = ecd.CrystalFeatures().set_output(transform="pandas").transform([structure])
    assert frame.shape[1] == sum(block.shape[1] for block in blocks.values())
    assert np.array_equal(frame.filter(like="bonds ").to_numpy(), blocks["bonds"])


def test_invariants_of_superposed_atoms_with_and_without_a_grid_agree() -> None:
    structure = ecd.read("NaCl_225").structure
    superposed, (alone,) = ecd.superpose(structure), ecd.Invariants().transform([structure])
    assert np.array_equal(ecd.Invariants().transform([superposed])[0], alone), "they say no more than the structure"
    assert np.allclose(log_invariants(ecd.density_invariants(superposed))[:31], alone[:31], atol=0.02)


def test_latents_do_not_depend_on_the_cell_and_name_their_values() -> None:
    density = ecd.read("NaCl_225")
    plain, whole = ecd.Latents(), ecd.Latents(pool=False)
    (found,) = plain.transform([density])
    assert np.allclose(plain.transform([to_conventional(density)])[0], found, rtol=1e-3, atol=1e-4)
    latent = load_model("periodic-16", "autoencoder").latent(density)
    values = whole.set_output(transform="pandas").transform([density]).iloc[0]
    assert values["latent 3 (1,0,2)"] == latent[3, 1, 0, 2]
    assert found[list(plain.get_feature_names_out()).index("latent max 3")] == latent[3].max()
    vasp = ecd.read(str(data_folder() / "vasp" / "CHGCAR.NaCl.gz"))
    spread = np.abs(plain.transform([ecd.read("LiF_225")])[0] - found).mean()
    assert np.abs(plain.transform([vasp])[0] - found).mean() < spread / 5, "converted first"


def test_columns_of_the_potential_are_those_of_its_tensors() -> None:
    potential, names = load_potential(), list(ecd.PotentialTensor().get_feature_names_out())
    found = tensor_features(potential)
    assert len(set(names)) == len(names) == found.shape[1]
    row = int(np.flatnonzero(potential.names == "NaCl_225")[0])
    C = potential.clamped[row]
    assert np.exp(found[row, names.index("clamped ln K_V")]) == pytest.approx(C[:3, :3].sum() / 9, rel=1e-3)
    pressure = potential.stress[row, :3].mean()
    assert found[row, names.index("arsinh pressure")] == pytest.approx(np.arcsinh(pressure))


#: Checks of scikit-learn that do not hold, beside those that transform numbers.
REFUSED = {
    "check_mixin_order": "matminer's base class has its own order of bases",
    "check_estimator_sparse_tag": "nothing is fitted, so that fit refuses no input",
}


def test_the_page_names_what_is_refused() -> None:
    page = (ROOT / "book" / "library.md").read_text()
    assert all(f"`{name}`" in page for name in REFUSED)


@named
def test_what_check_estimator_refuses(transformer: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks make arrays of numbers; told that these are welcome, all fail that transform them, and no other."""

    def tags(self: Features) -> Any:
        found = own(self)
        found.input_tags.two_d_array = True
        return found

    own = Features.__sklearn_tags__
    monkeypatch.setattr(Features, "__sklearn_tags__", tags)
    checks = check_estimator(clone(transformer), on_skip=None, on_fail=None)
    failed = {c["check_name"]: c["exception"] for c in checks if c["status"] == "failed"}
    of_numbers = {name for name, error in failed.items() if isinstance(error, EcdError)}
    assert set(failed) - of_numbers == set(REFUSED)
    assert all(re.search("neither a structure|no such file", str(failed[name])) for name in of_numbers)
    passed = {c["check_name"] for c in checks if c["status"] == "passed"}
    assert {"check_parameters_default_constructible", "check_set_params", "check_estimator_repr"} <= passed
    assert len(passed) > 15


def test_unasked_scikit_learn_does_not_try() -> None:
    with pytest.warns(SkipTestWarning, match="Can't test estimator Quantiles"):
        check_estimator(ecd.Quantiles())


def test_ten_lines() -> None:
    """What the library is for; the cross-validation on part of the crystals, and on a coarser grid."""
    rho = ecd.read("LiH_225")
    table = ecd.predict(rho)
    assert {"property", "value", "std", "unit", "conversion"} <= set(table.columns)
    assert "bulk modulus" in set(table["property"])
    data = ecd.load("cubic")
    assert len(data.densities) == len(data) == len(data["bulk_modulus"])
    assert data.densities.names == list(data["bulk_modulus"].index)
    model = make_pipeline(ecd.Autocorrelation(11), PCA(3), Ridge())
    some = slice(0, 12)
    crystals: Any = [data.densities[i] for i in range(12)]
    scores = cross_val_score(model, crystals, data["bulk_modulus"].iloc[some], cv=3, scoring="r2")
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_a_pipeline_reads_densities_as_it_needs_them() -> None:
    data = ecd.load("general")
    known = data["bulk_modulus"].notna().to_numpy()
    assert known.all()
    scores = cross_val_score(
        make_pipeline(ecd.Autocorrelation(21), PCA(10), Ridge()), data.densities, np.log(data["bulk_modulus"]), cv=5
    )
    assert scores.mean() > 0.2


def test_an_ordered_structure_is_needed() -> None:
    half = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    with pytest.raises(EcdError, match="disordered"):
        ecd.Invariants().transform([half])
