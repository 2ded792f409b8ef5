"""Crystals that no list holds: what was computed of them, and that nobody has seen them."""

import json

import numpy as np
import pytest
from ase.units import GPa
from pymatgen.analysis.eos import EOS
from pymatgen.core import Composition

from ecdlib.base.resources import data_file
from ecdlib.data.tables import load_crystals, load_matbench_elasticity, load_structures
from ecdlib.density.store import load_densities
from ecdlib.learn.answer import structure_model
from ecdlib.learn.new_crystals import load_new_crystals


@pytest.mark.filterwarnings("ignore:No Pauling")
def test_no_formula_stands_in_a_list():
    known = {*load_crystals()["formula"], *load_matbench_elasticity()["formula"]}
    known |= {s.composition.reduced_formula for s in load_structures().values()}
    known = {Composition(formula).reduced_formula for formula in known}
    new = load_new_crystals()
    assert not known & {Composition(formula).reduced_formula for formula in new["formula"]}
    assert not structure_model().trained_on & set(new.index)


def test_each_density_holds_the_valence_electrons_of_a_cubic_crystal_at_its_lattice_constant():
    new, densities = load_new_crystals(), load_densities("new")
    assert densities.names == list(new.index)
    for name in new.index[::8]:
        density = densities[name]
        assert density.n_electrons == pytest.approx(round(density.n_electrons), abs=1e-3)
        dataset = density.symmetry(1e-2)
        assert dataset.number == int(name.split("_")[1])
        assert np.linalg.norm(dataset.std_lattice[0]) == pytest.approx(new.loc[name, "a"], rel=1e-5)


def test_labels_agree_with_an_independent_fit_of_the_energies_alone():
    points = json.loads(data_file("new_crystals.json").read_text())["points"]
    new = load_new_crystals()
    ratio = []
    for name in new.index:
        volume, energy, _ = np.transpose(points[name])
        found = EOS("birch_murnaghan").fit(volume, energy)
        ratio.append(found.b0 / GPa / new.loc[name, "bulk_modulus"])
        assert found.v0 == pytest.approx(new.loc[name, "a"] ** 3 / cells(name), rel=0.01)
    assert np.median(np.abs(np.array(ratio) - 1)) < 0.02


def cells(name: str) -> int:
    """Primitive cells in the cubic one."""
    return 4 if name.endswith(("_216", "_225")) else 1
