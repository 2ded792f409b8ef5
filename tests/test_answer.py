"""Whatever is given is answered: a density or a structure, of any lattice, known or new."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_folder
from ecdlib.data.structures import read_structure
from ecdlib.data.tables import load_crystals, load_structures
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import write_chgcar
from ecdlib.density.store import load_density
from ecdlib.density.superpose import structure_of, superpose
from ecdlib.features import sevennet
from ecdlib.learn.answer import _left_out, answer, density_share, predictions, read_crystal, structure_model
from ecdlib.learn.any_crystal import from_moduli

NEW = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.1), ["Sc", "Te"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def values(records):
    return {r["property"]: r["value"] for r in records}


def test_the_files_say_what_they_hold(tmp_path):
    silicon = load_structures()["Si_227"]
    silicon.to(str(tmp_path / "POSCAR"))
    silicon.to(str(tmp_path / "si.cif"))
    write_chgcar(load_density("LiH_225"), tmp_path / "LiH.vasp")
    assert isinstance(read_crystal(tmp_path / "POSCAR"), Structure)
    assert isinstance(read_crystal(tmp_path / "si.cif"), Structure)
    assert isinstance(read_crystal(tmp_path / "LiH.vasp"), ChargeDensity), "a grid behind the atoms"
    assert isinstance(read_crystal("LiH_225"), ChargeDensity)
    assert isinstance(read_crystal(NEW), Structure)
    with pytest.raises(EcdError, match="no such file"):
        read_crystal(tmp_path / "nothing.cif")


def test_a_structure_is_answered_whatever_its_cell_and_orientation():
    first = values(answer(NEW).records)
    assert {"bulk modulus", "shear modulus", "debye temperature", "formation energy", "band gap", "C44"} <= set(first)
    primitive = NEW.get_primitive_structure()
    turned = Structure(
        Lattice(primitive.lattice.matrix @ Rotation.from_euler("xyz", [0.3, 1.1, -0.4]).as_matrix().T),
        primitive.species,
        primitive.frac_coords + 0.123,
    )
    for name, value in values(answer(turned).records).items():
        assert value == pytest.approx(first[name], rel=2e-2, abs=2e-3), name


def test_moduli_and_what_follows_from_them_agree():
    model = structure_model()
    found = model.predict([NEW]).iloc[0]
    K, G = (np.array([found[t, "value"]]) for t in ("bulk_modulus", "shear_modulus"))
    by_formula = from_moduli(K, G, np.array([NEW.density]), np.array([NEW.volume / len(NEW)]))
    for name, value in by_formula.items():
        learned = name in model.learned  # Poisson's ratio, as that is better than the formula
        assert found[name, "value"] == pytest.approx(float(value[0]), rel=0.2 if learned else 1e-6)
        assert found[name, "low"] < found[name, "value"] < found[name, "high"]


def test_a_training_crystal_gets_what_models_say_that_have_not_seen_it():
    done = answer(read_structure("Si_227"))
    assert "Si_227 is one of its training crystals" in done.notes[0]
    assert values(done.records)["bulk modulus"] == pytest.approx(
        structure_model().out_of_fold("Si_227").loc["bulk_modulus", "value"]
    )
    assert answer(NEW).records[0]["seen"] == ""


@pytest.mark.parametrize("inputs", ["structure", "structure+potential"])
def test_intervals_hold_out_of_fold_in_every_crystal_system(inputs):
    model, labels = structure_model(inputs), load_crystals()
    rows = model.arrays["bulk_modulus/rows"]
    names, found = model.arrays["names"][rows], model.arrays["bulk_modulus/out of fold"]
    truth = labels.loc[names, "bulk_modulus"].to_numpy()
    inside = (found[:, 1] <= truth) & (truth <= found[:, 2])
    assert inside.mean() == pytest.approx(0.95, abs=0.006)
    for system in labels["crystal_system"].unique():
        mine = (labels.loc[names, "crystal_system"] == system).to_numpy()
        if mine.sum() >= 100:
            assert inside[mine].mean() == pytest.approx(0.95, abs=0.01), system


def test_a_density_that_is_not_cubic_is_answered_from_its_structure():
    density = load_density("Be_194")
    done = answer(density)
    assert "not cubic" in done.notes[0]
    assert values(done.records)["bulk modulus"] == pytest.approx(load_crystals().loc["Be_194", "bulk_modulus"], rel=0.2)
    assert not {"C11", "C12", "C44"} & set(values(done.records)), "a structure alone does not fix its orientation"


def test_superposed_atoms_are_answered_as_the_structure_that_they_are():
    assert values(answer(superpose(NEW)).records) == pytest.approx(values(answer(NEW).records), rel=1e-6)


def test_an_element_that_no_training_crystal_holds_is_said():
    strange = Structure(Lattice.cubic(3.9), ["Rn"], [[0, 0, 0]])
    assert any("no training crystal holds Rn" in w for w in answer(strange).records[0]["warnings"])
    with pytest.raises(EcdError, match="Cm"):
        answer(Structure(Lattice.cubic(3.9), ["Cm"], [[0, 0, 0]]))


def test_a_model_of_densities_is_not_asked_about_structures():
    with pytest.raises(EcdError, match="model of densities"):
        answer(NEW, "density-gpr")
    with pytest.raises(EcdError, match="model of densities"):
        answer(load_density("LiH_225"), "density-gpr", potential=True)


def test_a_training_crystal_needs_no_potential_to_be_answered_with_it():
    alone, both = (values(answer(read_structure("GeO2_136"), potential=p).records) for p in (False, True))
    assert alone["bulk modulus"] != both["bulk modulus"]
    assert {"C11", "C12", "C44"} <= set(both), "the potential's tensor knows the orientation"
    from_python = predictions("GeO2_136", potential=True).set_index("property")["value"]
    assert from_python["C11"] == both["C11"]
    density = answer(load_density("LiH_225"), potential=True)
    models = {r["property"]: r["model"] for r in density.records}
    assert models["total energy"] == "density-gpr-portable"
    assert models["bulk modulus"] == "crystal-potential and density-gpr-portable"


@pytest.mark.parametrize("inputs", ["structure", "structure+potential"])
def test_density_and_structure_together_are_better_than_either(inputs):
    density, structure = _left_out(inputs)
    share, width = density_share(inputs)
    value = share * density["value"] + (1 - share) * structure["value"]
    errors = [(v - density["truth"]).abs().mean() for v in (value, density["value"], structure["value"])]
    assert errors[0] < min(errors[1:])
    assert 0 < share < 0.5
    miss = density["truth"] - value
    bound = width * np.where(miss < 0, structure["value"] - structure["low"], structure["high"] - structure["value"])
    assert (miss.abs() <= bound).mean() == pytest.approx(0.95, abs=0.005)


def test_what_a_conversion_costs_is_in_the_interval_of_the_bulk_modulus():
    own = read_crystal(data_folder() / "vasp" / "CHGCAR.NaCl.gz")
    found = next(r for r in answer(own).records if r["property"] == "bulk modulus")
    assert found["conversion_std"] > 0
    assert "Na 1 to 7" in found["conversion"]
    width = density_share("structure")[1]
    alone = next(r for r in answer(structure_of(own)).records if r["property"] == "bulk modulus")
    assert found["high"] - found["value"] > width * (alone["high"] - alone["value"])


def test_a_potential_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sevennet._potential.cache_clear()
    with pytest.raises(EcdError, match=r'sevennet: needs sevenn. pip install "ecdlib\[potential\]"'):
        answer(NEW, potential=True)


@pytest.mark.slow
def test_a_new_crystal_with_its_tensor():
    pytest.importorskip("sevenn", reason="the extra [potential] is not installed")
    alone, both = (values(answer(NEW, potential=p).records) for p in (False, True))
    assert both["bulk modulus"] == pytest.approx(alone["bulk modulus"], rel=0.5)
    assert both["bulk modulus"] != alone["bulk modulus"]
    assert both["C11"] > both["C12"]
