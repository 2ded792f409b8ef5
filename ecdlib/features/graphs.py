"""Crystal graphs: atoms as nodes, near neighbours as edges with their distance (T. Xie, J. C. Grossman, 2018)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecdlib.base.cached import Arrays, cached
from ecdlib.base.errors import EcdError
from ecdlib.density.core import symmetry

if TYPE_CHECKING:
    from pymatgen.core import Structure

RADIUS = 8.0  #: Å, within which neighbours are looked for
NEIGHBOURS = 12  #: nearest neighbours of an atom that become edges
TIE = 0.01  #: Å: neighbours no farther than this beyond the last one belong to its shell and are kept, too


def neighbours(
    structure: Structure, ties: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The nearest neighbours of every atom of a periodic crystal, images of atoms included.

    The twelve nearest within 8 Å, as published. A shell of neighbours at one distance is kept whole where the twelfth
    lies in it: which of them come first in a list has no meaning, and symmetry-equivalent neighbours stay together.

    Args:
        structure: ordered crystal.
        ties: False cuts the last shell to get twelve, as the original code does.

    Returns:
        Atoms ``(edges,)``, their neighbours ``(edges,)`` (numbers of sites), distances ``(edges,)`` in Å; sorted by
        atom, then distance. An atom with fewer neighbours within 8 Å has fewer edges; nothing is padded.

    Raises:
        EcdError: an atom without any neighbour within 8 Å, or two atoms at the same place.
    """
    from pymatgen.optimization.neighbors import find_points_in_spheres

    positions = np.ascontiguousarray(structure.cart_coords)
    lattice = np.ascontiguousarray(structure.lattice.matrix)
    periodic = np.ones(3, dtype=np.int64)
    atom, other, image, distance = find_points_in_spheres(
        positions, positions, r=RADIUS, pbc=periodic, lattice=lattice, tol=1e-8
    )
    apart = (atom != other) | image.any(axis=1)  # not the atom itself
    atom, other, distance = atom[apart], other[apart], distance[apart]
    if len(distance) and distance.min() < 0.1:
        raise EcdError(structure.formula, "has two atoms at the same place", "Check its coordinates.")
    order = np.lexsort((distance, atom))
    atom, other, distance = atom[order], other[order], distance[order]
    count = np.bincount(atom, minlength=len(structure))
    if not count.all():
        raise EcdError(structure.formula, f"has an atom without neighbours within {RADIUS:g} Å", "Check its cell.")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    if ties:
        last = distance[first + np.minimum(count, NEIGHBOURS) - 1]
        kept = distance <= last[atom] + TIE
    else:
        kept = np.arange(len(atom)) - first[atom] < NEIGHBOURS
    return atom[kept].astype(np.int64), other[kept].astype(np.int64), distance[kept]


@dataclass(frozen=True)
class CrystalGraphs:
    """Graphs of n crystals, one behind the other; nothing is padded. Indexing with crystals' numbers gives a batch."""

    numbers: Tensor  #: ``(atoms,)`` atomic numbers
    weight: Tensor  #: ``(atoms,)`` share of the crystal's atoms that are equivalent to this one; one in sum
    atom_offset: Tensor  #: ``(n + 1,)``: crystal i has the atoms from offset i to offset i + 1
    edge_offset: Tensor  #: ``(n + 1,)``: the same for edges
    atom: Tensor  #: ``(edges,)`` number of the atom within its crystal, ascending
    other: Tensor  #: ``(edges,)`` number of its neighbour within the crystal
    distance: Tensor  #: ``(edges,)`` Å

    def __len__(self) -> int:
        return len(self.atom_offset) - 1

    def __getitem__(self, crystals: Tensor) -> CrystalGraphs:
        atoms, atom_offset = _gather(self.atom_offset, crystals)
        edges, edge_offset = _gather(self.edge_offset, crystals)
        chosen = (part[edges] for part in (self.atom, self.other, self.distance))
        return CrystalGraphs(self.numbers[atoms], self.weight[atoms], atom_offset, edge_offset, *chosen)

    def tensors(self) -> tuple[Tensor, ...]:
        """All arrays, in the order of the fields."""
        return self.numbers, self.weight, self.atom_offset, self.edge_offset, self.atom, self.other, self.distance

    def to(self, device: torch.device) -> CrystalGraphs:
        """The same graphs on a device."""
        return CrystalGraphs(*(tensor.to(device) for tensor in self.tensors()))

    def crystal_of_atoms(self) -> Tensor:
        """``(atoms,)`` number of the crystal of each atom."""
        return _repeat(self.atom_offset)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Atom and neighbour of every edge, counted through all crystals; ``(edges,)`` each."""
        shift = self.atom_offset[:-1][_repeat(self.edge_offset)]
        return self.atom + shift, self.other + shift


def _repeat(offset: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(offset) - 1, device=offset.device), offset.diff())


def _gather(offset: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the parts of a list that belong to the chosen ones, and their offsets."""
    sizes = offset.diff()[chosen]
    new = torch.cat([offset.new_zeros(1), sizes.cumsum(0)])
    indices = torch.arange(int(new[-1]), device=offset.device)
    return indices + torch.repeat_interleave(offset[chosen] - new[:-1], sizes), new


def crystal_graph(structure: Structure, ties: bool = True, distinct: bool = True, found: Any = None) -> CrystalGraphs:
    """Graph of one crystal.

    Atoms that are equivalent by symmetry have equivalent neighbours and stay alike through all convolutions, so one
    of each kind is enough: a third of all atoms. The mean over atoms becomes one with weights. A trained network then
    gives what it gives for the whole graph, as exactly as the symmetry holds; while it trains, batch normalization
    sees other averages, so that training with all atoms ends elsewhere.

    Args:
        ties: keep the last shell of neighbours whole; a graph with cut shells has no symmetry and keeps all atoms.
        distinct: False keeps all atoms.
        found: its :func:`symmetry`, if that is known already; finding it takes longer than all the rest.

    Raises:
        EcdError: see :func:`neighbours`; also a disordered crystal.
    """
    if not structure.is_ordered:
        raise EcdError(structure.formula, "is disordered (partial occupancies)", "Give ordered crystals.")
    atom, other, distance = neighbours(structure, ties)
    species = np.array(structure.atomic_numbers)
    found = (found or symmetry(structure)) if ties and distinct else None
    equivalent = np.arange(len(structure)) if found is None else found.equivalent_atoms
    first, kind, count = np.unique(equivalent, return_inverse=True, return_counts=True)
    kept = np.isin(atom, first)
    return CrystalGraphs(
        torch.from_numpy(species[first]).long(),
        torch.from_numpy(count / len(structure)).float(),
        torch.tensor([0, len(first)]),
        torch.tensor([0, int(kept.sum())]),
        torch.from_numpy(kind[atom[kept]]).long(),
        torch.from_numpy(kind[other[kept]]).long(),
        torch.from_numpy(distance[kept]).float(),
    )


def crystal_graphs(structures: Iterable[Structure], ties: bool = True, distinct: bool = True) -> CrystalGraphs:
    """Graphs of crystals, in their order (see :func:`crystal_graph`)."""
    return join([crystal_graph(structure, ties, distinct) for structure in structures])


def join(graphs: Sequence[CrystalGraphs]) -> CrystalGraphs:
    """One object of all graphs, in their order."""
    zero = torch.zeros(1, dtype=torch.long)
    empty = CrystalGraphs(zero[:0], zero[:0].float(), zero, zero, zero[:0], zero[:0], zero[:0].float())
    numbers, weight, atoms, edges, *rest = zip(*(g.tensors() for g in (empty, *graphs)), strict=True)
    offsets = (torch.cat([zero, torch.cat([o.diff() for o in part]).cumsum(0)]) for part in (atoms, edges))
    return CrystalGraphs(torch.cat(numbers), torch.cat(weight), *offsets, *(torch.cat(part) for part in rest))


def cached_graphs(structures: Sequence[Structure]) -> CrystalGraphs:
    """Graphs of crystals, made once for each content (``_build/cache``), then read."""
    digest = hashlib.sha256()
    for structure in structures:
        for part in (structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)):
            digest.update(part.tobytes())
    fields = list(CrystalGraphs.__dataclass_fields__)

    def make() -> Arrays:
        return dict(zip(fields, (t.numpy() for t in crystal_graphs(structures).tensors()), strict=True))

    found = cached("graphs", make, digest.hexdigest())
    return CrystalGraphs(*(torch.from_numpy(found[field]) for field in fields))
