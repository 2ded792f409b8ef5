"""Elastic tensors of a potential: the differences and the relaxation, with springs; and SevenNet, where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Lattice, Structure
from scipy.optimize import root
from scipy.spatial.transform import Rotation

from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_structures
from ecdlib.density.core import symmetry
from ecdlib.features import sevennet
from ecdlib.features.potential import FLOOR_SHARE, PotentialTensors, load_potential, tensor_features
from ecdlib.features.sevennet import GPA, VOIGT, check_crystal, ieee_tensor, potential_tensors

#: One crystal of each system; atoms can relax in all but the first.
CRYSTALS = {
    name: Structure.from_spacegroup(group, lattice, species, positions)
    for name, group, lattice, species, positions in (
        ("YAg", "Pm-3m", Lattice.cubic(3.62), ["Y", "Ag"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        ("GaP", "P6_3mc", Lattice.hexagonal(3.84, 6.33), ["Ga", "P"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]]),
        ("HfTe2", "P-3m1", Lattice.hexagonal(3.96, 6.65), ["Hf", "Te"], [[0, 0, 0], [1 / 3, 2 / 3, 0.25]]),
        ("ScAg2", "I4/mmm", Lattice.tetragonal(3.6, 9.0), ["Sc", "Ag"], [[0, 0, 0], [0, 0, 0.33]]),
        ("CaGa", "Cmcm", Lattice.orthorhombic(4.2, 11.4, 4.4), ["Ca", "Ga"], [[0, 0.36, 0.25], [0, 0.07, 0.25]]),
        ("AgO", "C2/m", Lattice.monoclinic(5.6, 3.2, 5.9, 119), ["Ag", "O"], [[0, 0, 0], [0.28, 0, 0.8]]),
        ("CSiAl", "P1", Lattice.from_parameters(3.1, 3.6, 4.2, 81, 98, 104), ["C", "Si", "Al"],
         [[0, 0, 0], [0.41, 0.52, 0.37], [0.68, 0.13, 0.81]]),
    )
}  # fmt: skip


def turned(structure: Structure, seed: int = 3) -> tuple[Structure, Any]:
    R = Rotation.random(random_state=seed).as_matrix()
    return Structure(structure.lattice.matrix @ R.T, structure.species, structure.frac_coords), R


def springs(cell: Any, F: Any, U: Any) -> tuple[Any, Any]:
    """Forces and stress of a network of springs between all neighbours that are relaxed in the undeformed crystal."""
    i, j = cell.edges
    d = cell.vectors @ F + U[j] - U[i]
    rest, r = (np.linalg.norm(x, axis=1)[:, None] for x in (cell.vectors, d))
    tension = 30 * np.exp(-rest) * (r - rest) * d / r
    forces = np.zeros_like(U)
    np.add.at(forces, i, tension)
    stress = tension.T @ d / (2 * cell.structure.volume) * GPA
    return forces, np.array([stress[a, b] for a, b in VOIGT])


@pytest.fixture
def spring_potential(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(batch: Sequence[tuple[Any, int, int]]) -> Iterator[tuple[Any, Any, Any]]:
        for cell, start, end in batch:
            found = [springs(cell, F, U) for F, U in zip(*(x[start:end] for x in cell.configurations()), strict=True)]
            forces, stresses = (np.array(x) for x in zip(*found, strict=True))
            yield forces, stresses, np.zeros((*forces.shape[:2], 64))

    monkeypatch.setattr(sevennet, "_evaluate", evaluate)
    monkeypatch.setattr(sevennet, "_potential", lambda: (None, "cpu", frozenset(range(1, 84))))


@pytest.mark.usefixtures("spring_potential")
@pytest.mark.parametrize("name", CRYSTALS)
def test_tensors_of_springs_are_those_of_borns_formula_and_of_relaxation_by_steps(name: str) -> None:
    found = potential_tensors([CRYSTALS[name]], [name], progress=False)
    cell = sevennet._prepare(CRYSTALS[name], name)
    r2 = (cell.vectors**2).sum(1)
    dd = np.stack([cell.vectors[:, a] * cell.vectors[:, b] for a, b in VOIGT])
    born = (dd * 30 * np.exp(-np.sqrt(r2)) / r2) @ dd.T / (2 * cell.structure.volume) * GPA
    np.testing.assert_allclose(found.clamped[0], ieee_tensor(born, cell.structure), atol=2e-3 * born.max())

    relaxed = np.zeros((6, 6))
    shape = len(cell.structure), 3
    F, U = cell.configurations()
    for v in range(6):
        ends = []
        for k in (1 + 2 * v, 2 + 2 * v):
            still = root(lambda u, F=F[k]: springs(cell, F, u.reshape(shape))[0].ravel(), U[k].ravel(), method="lm")
            ends.append(springs(cell, F[k], still.x.reshape(shape))[1])
        relaxed[:, v] = (ends[0] - ends[1]) / (2 * sevennet.STRAIN)
    np.testing.assert_allclose(found.relaxed[0], ieee_tensor(relaxed, cell.structure), atol=5e-3 * born.max())
    assert np.isfinite(found.softest[0]) == (name != "YAg")
    if name in ("GaP", "HfTe2", "CSiAl"):
        assert np.abs(relaxed - born).max() > 0.02 * born.max()


@pytest.mark.usefixtures("spring_potential")
def test_symmetry_and_batches_change_the_effort_only(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = list(CRYSTALS.values())
    short = potential_tensors(crystals, list(CRYSTALS), progress=False)
    effort = sum(sevennet._prepare(s, "").evaluations for s in crystals)
    monkeypatch.setattr(sevennet, "symmetry_dataset", lambda *_: None)
    monkeypatch.setattr(sevennet, "BUDGET", {"cpu": 500})
    assert sum(sevennet._prepare(s, "").evaluations for s in crystals) > effort
    for i, s in enumerate(crystals):
        long = potential_tensors([s], progress=False)
        np.testing.assert_allclose(long.relaxed[0], short.relaxed[i], atol=1e-3)
        np.testing.assert_allclose(long.clamped[0], short.clamped[i], atol=1e-6)


@pytest.mark.usefixtures("spring_potential")
@pytest.mark.parametrize("name", ["GaP", "AgO"])
def test_orientation_and_supercell_change_nothing(name: str) -> None:
    given = CRYSTALS[name]
    found = potential_tensors([given, turned(given)[0], given * (1, 2, 1)], progress=False)
    for other in (1, 2):
        np.testing.assert_allclose(found.relaxed[other], found.relaxed[0], atol=1e-4)
    assert list(found.names) == [given.composition.reduced_formula] * 3


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_ieee_frame_turns_with_the_crystal(name: str) -> None:
    lattice, positions, numbers = sevennet._primitive(CRYSTALS[name])
    given = Structure(lattice, numbers, positions)
    A = np.random.default_rng(0).normal(size=(6, 6))
    tensor = ElasticTensor.from_voigt(A @ A.T)
    L = given.lattice.matrix.T
    operations = [L @ W @ np.linalg.inv(L) for W in symmetry(given).rotations]
    tensor = sum((tensor.rotate(R, tol=1e-2) for R in operations[1:]), tensor) / len(operations)
    other, R = turned(given)
    expected = ieee_tensor(ElasticTensor(tensor).voigt, given)
    np.testing.assert_allclose(
        ieee_tensor(ElasticTensor(tensor).rotate(R, tol=1e-3).voigt, other), expected, atol=1e-3 * A.max() ** 2
    )


def test_cell_vectors_of_one_length_have_an_ieee_frame() -> None:
    given = Structure(Lattice.orthorhombic(4, 4, 5), ["Cu", "O"], [[0, 0, 0], [0.3, 0, 0]])
    tensor = np.diag([1.0, 2, 3, 4, 5, 6])
    found = ieee_tensor(tensor, given)
    np.testing.assert_allclose(np.sort(np.diag(found)), np.diag(tensor), atol=1e-4)


def test_what_the_potential_cannot_be_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sevennet, "_potential", lambda: (None, "cpu", frozenset({14})))
    with pytest.raises(EcdError, match=r"^a.cif: SevenNet does not know Po\. Leave the potential out\.$"):
        check_crystal(Structure(3 * np.eye(3), ["Po"], [[0, 0, 0]]), "a.cif")
    with pytest.raises(EcdError, match=r"^b: has no two atoms within 5 Å\."):
        check_crystal(Structure(6 * np.eye(3), ["Si"], [[0, 0, 0]]), "b")
    many = Structure(Lattice.cubic(9), ["Si"] * 40, np.random.default_rng(0).random((40, 3)))
    with pytest.raises(EcdError, match=r"^c: has 40 atoms in its primitive cell \(up to .* h\); at most 30 are taken"):
        potential_tensors([many], ["c"])


def test_the_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sevennet, "_potential", sevennet._potential.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EcdError, match=r'^sevennet: needs sevenn\. pip install "ecdlib\[potential\]"$'):
        potential_tensors([CRYSTALS["YAg"]])


def test_an_unstable_tensor_counts_as_one_at_the_floor() -> None:
    def tensors(C: Any) -> PotentialTensors:
        return PotentialTensors(
            np.array(["x"]), C[None], C[None], np.zeros((1, 6)), np.full(1, np.nan), np.zeros((1, 1))
        )

    soft, floor = np.diag([200.0, 150, 100, -20, 40, 30]), np.diag([200.0, 150, 100, 100 * FLOOR_SHARE, 40, 30])
    np.testing.assert_allclose(tensor_features(tensors(soft)), tensor_features(tensors(floor)), rtol=1e-12)


@pytest.fixture(scope="module")
def answers() -> PotentialTensors:
    pytest.importorskip("sevenn", reason='sevenn is not installed: pip install "ecdlib[potential]"')
    names = ["Si_227", "YAg_221", "HfTe2_164", "GaP_186"]
    return potential_tensors([load_structures()[name] for name in names], names, progress=False)


@pytest.mark.slow
def test_relaxation_softens_the_shear_of_silicon(answers: PotentialTensors) -> None:
    clamped, relaxed = answers.clamped[0], answers.relaxed[0]
    assert relaxed[3, 3] == pytest.approx(57.3, abs=0.3)
    assert clamped[3, 3] > relaxed[3, 3] + 10
    np.testing.assert_allclose(relaxed[:3, :3], clamped[:3, :3], atol=0.2)


@pytest.mark.slow
def test_tensors_are_the_bundled_ones(answers: PotentialTensors) -> None:
    bundled = load_potential()
    at = [list(bundled.names).index(name) for name in answers.names]
    for key, noise in {"clamped": 0.1, "relaxed": 0.1, "stress": 2e-3, "softest": 2e-3, "atomic": 5e-3}.items():
        np.testing.assert_allclose(getattr(answers, key), getattr(bundled, key)[at], rtol=2**-11, atol=noise)


@pytest.mark.slow
def test_sevennet_knows_no_orientation_and_no_supercell(answers: PotentialTensors) -> None:
    given = load_structures()["HfTe2_164"]
    found = tensor_features(potential_tensors([turned(given)[0], given * (2, 1, 1)], progress=False))
    np.testing.assert_allclose(found, tensor_features(answers)[[2, 2]], atol=5e-3)
