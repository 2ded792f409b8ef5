"""Elastic tensors from a structure by the foundation potential SevenNet-l3i5, computed here (an optional extra).

SevenNet-l3i5 is an E(3)-equivariant interatomic potential (Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024),
https://doi.org/10.1021/acs.jctc.4c00190), trained on relaxations of the Materials Project. Network and weights are
under the MIT licence and stay in the package ``sevenn``: ``pip install "ecdlib[potential]"``.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import spglib
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Element, Structure
from tqdm import tqdm

from ecdlib.base.errors import EcdError
from ecdlib.density.core import Floats, symmetry_dataset
from ecdlib.features.potential import PotentialTensors

MODEL = "7net-l3i5"
CUTOFF = 5.0  #: Å, of the potential
STRAIN = 0.005  #: of central differences
STEP = 0.01  #: Å, of central differences
SOFT = 0.05  #: eV/Å²: softer modes do not relax, since the potential does not hold them
GPA = 160.21766208  #: of 1 eV/Å³
#: Atoms of the largest primitive cell that is taken: as many as the bundled tensors have.
MAX_ATOMS = 30
#: Bonds that are evaluated at once; each takes about 0.25 MB.
BUDGET = {"cpu": 500, "cuda": 20_000}
#: On one core, for each atom of an evaluation.
SECONDS = 0.05
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class _Cell:
    """A primitive cell of ``n`` atoms with what is to be evaluated of it."""

    structure: Structure
    edges: NDArray[np.int64]  #: (2, e) from atom, to atom
    vectors: Floats  #: (e, 3) Å
    rotations: Floats  #: (k, 3, 3) Cartesian, of the symmetry operations
    images: NDArray[np.int64]  #: (k, n) where they take the atoms
    moved: NDArray[np.int64]  #: atoms to displace: the distinct ones, none if each atom is a centre of inversion

    @property
    def evaluations(self) -> int:
        return 13 + 6 * len(self.moved)

    def configurations(self) -> tuple[Floats, Floats]:
        """Deformations ``(c, 3, 3)`` and displacements ``(c, n, 3)``: none, 12 strains, 6 of each moved atom."""
        n = len(self.structure)
        strains = np.zeros((6, 3, 3))
        for strain, (a, b) in zip(strains, VOIGT, strict=True):
            strain[a, b] += STRAIN / 2
            strain[b, a] += STRAIN / 2
        steps = np.zeros((len(self.moved), 3, n, 3))
        for step, atom in zip(steps, self.moved, strict=True):
            step[range(3), atom, range(3)] = STEP
        F, U = np.zeros((self.evaluations, 3, 3)), np.zeros((self.evaluations, n, 3))
        F[1:13:2], F[2:13:2] = strains, -strains
        U[13::2], U[14::2] = steps.reshape(-1, n, 3), -steps.reshape(-1, n, 3)
        return F + np.eye(3), U


def check_crystal(structure: Structure, name: str) -> None:
    """Whether the potential can be asked about a crystal.

    Raises:
        EcdError: ``sevenn`` is not installed, an element that the potential does not know, more than :data:`MAX_ATOMS`
            atoms in the primitive cell, or no two atoms within each other's reach.
    """
    _prepare(structure, name)


def ieee_tensor(tensor: Any, structure: Structure) -> Floats:
    """A stiffness tensor in the IEEE frame of its crystal (IEEE Standard on Piezoelectricity, 176-1987; pymatgen).

    Args:
        tensor: ``(6, 6)``, in the frame of ``structure``.

    Returns:
        ``(6, 6)``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rotation = ElasticTensor.get_ieee_rotation(structure)
        except ValueError:  # cell vectors of one length cannot be put in order
            apart = structure.copy().apply_strain([0, 1e-6, 2e-6])
            rotation = ElasticTensor.get_ieee_rotation(apart)
        return np.asarray(ElasticTensor.from_voigt(tensor).rotate(rotation, tol=1e-2).voigt)


def potential_tensors(
    structures: Sequence[Structure], names: Sequence[str] | None = None, progress: bool = True
) -> PotentialTensors:
    """What SevenNet-l3i5 says of crystals at their given geometry, by central differences of stresses and forces.

    Of each primitive cell are evaluated: the crystal as it is, 12 strains of ±0.5 %, and, unless every atom is a centre
    of inversion, displacements of ±0.01 Å of its symmetry-distinct atoms. With the stiffness C0 at clamped atoms, the
    forces Λ = ∂F/∂ε and the force constants Φ = -∂F/∂u, the relaxed stiffness is C0 - Λᵀ Φ⁺ Λ / V, where Φ⁺ leaves out
    the acoustic modes and those softer than 0.05 eV/Å². Evaluations of many crystals run in one batch, on a GPU if
    there is one, else on torch's threads: a few seconds for a small cell.

    Args:
        structures: ordered crystals; the residual stress is in the frame of the primitive cell.
        names: of the crystals, in the result and in messages; their formulas if left out.
        progress: show a progress bar of evaluations.

    Raises:
        EcdError: see :func:`check_crystal`; before anything is computed.
    """
    if names is None:
        names = [s.composition.reduced_formula for s in structures]
    cells = [_prepare(s, name) for s, name in zip(structures, names, strict=True)]
    parts: list[list[Any]] = [[] for _ in cells]
    total = sum(c.evaluations for c in cells)
    with tqdm(total=total, unit=" evaluations", desc="SevenNet", disable=not progress) as bar:
        for batch in _batches(cells, BUDGET[_potential()[1]]):
            for (i, start, end), found in zip(batch, _evaluate([(cells[i], a, b) for i, a, b in batch]), strict=True):
                parts[i].append(found)
                bar.update(end - start)
    rows = [
        _tensors(cell, *(np.concatenate(x) for x in zip(*found, strict=True)))
        for cell, found in zip(cells, parts, strict=True)
    ]
    columns = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    return PotentialTensors(np.array(names, dtype=str), *columns)


@functools.cache
def _potential() -> tuple[Any, str, frozenset[int]]:
    """The network, the device that it is on, and the atomic numbers that it knows."""
    if importlib.util.find_spec("sevenn") is None:
        raise EcdError("sevennet", "needs sevenn", 'pip install "ecdlib[potential]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sevenn.util import load_checkpoint

        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = load_checkpoint(MODEL).build_model().to(device).eval()
    network.set_is_batch_data(True)
    return network, device, frozenset(network.type_map)


def _prepare(structure: Structure, name: str) -> _Cell:
    """The standardized primitive cell (spglib, 0.01 Å) with its bonds and symmetry; see :func:`check_crystal`."""
    known, remedy = _potential()[2], "Leave the potential out."
    if unknown := [e.symbol for e in structure.elements if e.Z not in known]:
        raise EcdError(name, f"SevenNet does not know {', '.join(unknown)}", remedy)
    lattice, positions, numbers = _primitive(structure)
    if (n := len(numbers)) > MAX_ATOMS:
        hours = (13 + 6 * n) * n * SECONDS / 3600
        problem = f"has {n} atoms in its primitive cell (up to {hours:.1f} h); at most {MAX_ATOMS} are taken"
        raise EcdError(name, problem, remedy)
    i, j, vectors = primitive_neighbor_list("ijD", [True] * 3, lattice, positions @ lattice, CUTOFF)
    if not len(i):
        raise EcdError(name, f"has no two atoms within {CUTOFF:g} Å", remedy)
    found = symmetry_dataset((lattice, positions, numbers), 1e-4)
    rotations, translations = (
        (np.eye(3)[None], np.zeros((1, 3))) if found is None else (found.rotations, found.translations)
    )
    apart = (positions @ rotations.transpose(0, 2, 1) + translations[:, None])[:, :, None] - positions
    distances = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=-1) + 1e3 * (numbers[:, None] != numbers)
    images = distances.argmin(-1)
    cartesian = lattice.T @ rotations @ np.linalg.inv(lattice.T)
    centres = (images == np.arange(len(numbers)))[(rotations == -np.eye(3)).all((1, 2))].any(0)
    moved = np.flatnonzero(images.min(0) == np.arange(len(numbers)))
    crystal = Structure(lattice, [Element.from_Z(int(z)) for z in numbers], positions)
    return _Cell(crystal, np.stack([i, j]), vectors, cartesian, images, moved[:0] if centres.all() else moved)


def _primitive(structure: Structure) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Lattice, fractional positions and atomic numbers."""
    cell: Any = structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        with suppress(spglib.SpglibError):
            cell = spglib.find_primitive(cell, symprec=1e-2) or cell
    lattice, positions, numbers = map(np.asarray, cell)
    return lattice, positions, numbers


def _batches(cells: Sequence[_Cell], budget: int) -> Iterator[list[tuple[int, int, int]]]:
    """Number of the cell, first and last configuration, of what is evaluated at once."""
    batch: list[tuple[int, int, int]] = []
    room = budget
    for i, cell in enumerate(cells):
        start, bonds = 0, cell.edges.shape[1]
        while start < cell.evaluations:
            end = min(cell.evaluations, start + max(1, room // bonds))
            batch.append((i, start, end))
            room -= (end - start) * bonds
            start = end
            if room < budget / 10:
                yield batch
                batch, room = [], budget
    if batch:
        yield batch


def _evaluate(batch: Sequence[tuple[_Cell, int, int]]) -> Iterator[tuple[Any, Any, Any]]:
    """Forces ``(c, n, 3)`` in eV/Å, stress ``(c, 6)`` in GPa and scalars ``(c, n, 64)`` of each entry."""
    import sevenn._keys as key
    import torch

    network, device, _ = _potential()
    edges, vectors, numbers, atoms, volumes = [], [], [], [], []
    first = 0
    for cell, start, end in batch:
        F, U = (x[start:end] for x in cell.configurations())
        c, n = U.shape[:2]
        i, j = cell.edges
        edges.append((cell.edges[:, None] + first + n * np.arange(c)[:, None]).reshape(2, -1))
        vectors.append((cell.vectors @ F + U[:, j] - U[:, i]).reshape(-1, 3))
        numbers += list(cell.structure.atomic_numbers) * c
        atoms += [n] * c
        volumes += [cell.structure.volume] * c
        first += c * n

    def tensor(x: Any, kind: Any = torch.int64) -> Any:
        return torch.as_tensor(np.asarray(x), dtype=kind, device=device)

    data = {
        key.ATOMIC_NUMBERS: tensor(numbers),
        key.NODE_FEATURE: tensor(numbers),
        key.POS: tensor(np.zeros((first, 3)), torch.float32),
        key.EDGE_IDX: tensor(np.concatenate(edges, 1)),
        key.EDGE_VEC: tensor(np.concatenate(vectors), torch.float32),
        key.BATCH: tensor(np.repeat(np.arange(len(atoms)), atoms)),
        key.NUM_ATOMS: tensor(atoms),
        key.CELL_VOLUME: tensor(volumes, torch.float32),
        key.INFO: {},
    }
    out = network(data)
    force, stress, scalars = (
        out[k].detach().cpu().numpy() for k in (key.PRED_FORCE, key.PRED_STRESS, key.NODE_FEATURE)
    )
    stress = -GPA * stress[:, [0, 1, 2, 4, 5, 3]].astype(float)
    a = b = 0
    for cell, start, end in batch:
        n, c = len(cell.structure), end - start
        yield force[a : a + c * n].reshape(c, n, 3), stress[b : b + c], scalars[a : a + c * n].reshape(c, n, -1)
        a, b = a + c * n, b + c


def _tensors(cell: _Cell, forces: Floats, stress: Floats, scalars: Floats) -> tuple[Any, ...]:
    """Clamped and relaxed tensor, residual stress, softest force constant and atomic features of a crystal."""
    n, forces = len(cell.structure), forces.astype(float)
    clamped = (stress[1:13:2] - stress[2:13:2]).T / (2 * STRAIN)
    clamped = relaxed = (clamped + clamped.T) / 2
    softest = np.nan
    if len(cell.moved):
        pull = (forces[1:13:2] - forces[2:13:2]).reshape(6, -1).T / (2 * STRAIN)
        values, modes = np.linalg.eigh(_force_constants(cell, (forces[14::2] - forces[13::2]) / (2 * STEP)))
        optic = (modes.reshape(n, 3, -1).sum(0) ** 2).sum(0) / n < 0.5
        held = optic & (values > SOFT)
        pull = modes[:, held].T @ pull
        relaxed = clamped - (pull.T / values[held]) @ pull / cell.structure.volume * GPA
        softest = values[optic].min()
    tensors = (ieee_tensor(x, cell.structure) for x in (clamped, relaxed))
    return *tensors, stress[0], softest, np.r_[scalars[0].mean(0), scalars[0].std(0)]


def _force_constants(cell: _Cell, found: Floats) -> Floats:
    """Symmetric ``(3 n, 3 n)`` from those of the moved atoms, ``(3 moved, n, 3)``, by all symmetry operations."""
    n = len(cell.structure)
    full = np.zeros((n, 3, n, 3))
    for R, image in zip(cell.rotations, cell.images, strict=True):
        for atom, constants in zip(cell.moved, found.reshape(-1, 3, n, 3), strict=True):
            full[image[atom], :, image] += np.einsum("ai,icj,bj->cab", R, constants, R)
    full /= (cell.images[:, cell.moved, None] == np.arange(n)).sum((0, 1))[:, None, None, None]
    symmetric: Floats = (full + full.transpose(2, 3, 0, 1)) / 2
    return symmetric.reshape(3 * n, 3 * n)
