"""Crystal graph convolutional neural network (T. Xie, J. C. Grossman, Phys. Rev. Lett. 120, 145301, 2018).

The CGCNN elasticity paper (section 2.2) uses it with three convolutions and two hidden layers.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.core import Element
from torch import Tensor, nn
from torch.nn import functional as F

from ecdlib.features.graphs import RADIUS, CrystalGraphs

N_ELEMENTS = 100  #: hydrogen to fermium


def _bin(value: float | None, low: float, high: float, bins: int) -> list[float]:
    """One-hot vector of the category of a value; the first or last one where it is out of range."""
    encoded = [0.0] * bins
    if value is not None and np.isfinite(value):
        encoded[int(np.clip((value - low) / (high - low) * bins, 0, bins - 1))] = 1.0
    return encoded


def _log(value: float | None) -> float | None:
    return None if value is None or not value > 0 else float(np.log(value))


def _valence_electrons(element: Element) -> int:
    """Outside the noble gas core, closed d and f shells not counted; at most 12."""
    if element.is_lanthanoid or element.is_actinoid:
        return min(12, element.Z - (54 if element.is_lanthanoid else 86))
    if element.symbol == "He":
        return 2
    return element.group if element.group <= 12 else element.group - 10


@cache
def atom_vectors() -> NDArray[np.float32]:
    """``(100, 92)``: elements 1 to 100 as nine one-hot vectors, one behind the other; unknown values are all zeros.

    Group (18 categories), period (8), electronegativity (10, from 0.5 to 4), covalent radius (10, 25 to 250 pm),
    valence electrons (12), natural logarithm of the first ionization energy in eV (10, 1.3 to 3.3), electron affinity
    (10, -3 to 3.7 eV), block (4), natural logarithm of the molar volume in cm³ (10, 1.5 to 4.3): the description of
    Xie and Grossman (supplement, Table II), with the values of pymatgen and ASE instead of their table. The categories
    are coarse: dysprosium, holmium and erbium fall into the same ones and are one element to the network.

    >>> atom_vectors().shape
    (100, 92)
    """
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remark on each value that is unknown
        for z in range(1, N_ELEMENTS + 1):
            e = Element.from_Z(z)
            row = [float(e.group == group) for group in range(1, 19)] + [float(e.row == row) for row in range(1, 9)]
            row += _bin(e.X, 0.5, 4.0, 10) + _bin(100 * covalent_radii[z], 25, 250, 10)
            row += [float(_valence_electrons(e) == n) for n in range(1, 13)]
            row += _bin(_log(e.ionization_energies[0] if e.ionization_energies else None), 1.3, 3.3, 10)
            row += _bin(e.electron_affinity, -3, 3.7, 10) + [float(e.block == block) for block in "spdf"]
            row += _bin(_log(e.molar_volume), 1.5, 4.3, 10)
            rows.append(row)
    return np.array(rows, dtype=np.float32)


class GaussianDistances(nn.Module):
    """Distances as values of Gaussians whose centres stand every 0.2 Å from 0 to 8 Å; the width is the step."""

    centres: Tensor

    def __init__(self, step: float = 0.2):
        super().__init__()
        self.step = step
        self.register_buffer("centres", torch.arange(0, RADIUS + step / 2, step), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """``(edges,)`` Å to ``(edges, 41)``."""
        exponent = ((distance[:, None] - self.centres) / self.step) ** 2
        return torch.exp(-exponent.clamp(max=40))  # e^-40 is nothing; smaller numbers make products ten times slower


class GraphConvolution(nn.Module):
    """v_i ← softplus(v_i + BN Σ_j σ(f_ij) ⊙ softplus(s_ij)), (f_ij, s_ij) = BN((v_i ⊕ v_j ⊕ u_ij) W + b).

    Eq 5 of Xie and Grossman, with the two batch normalizations of their code. The product with W is the sum of three:
    those with v_i and v_j are made once an atom, not once an edge. In training, the statistics of the normalization are
    over the atoms and edges that the graph holds: one of each kind by symmetry.
    """

    def __init__(self, width: int, edge_width: int):
        super().__init__()
        self.of_atom = nn.Linear(width, 2 * width)
        self.of_other = nn.Linear(width, 2 * width, bias=False)
        self.of_edge = nn.Linear(edge_width, 2 * width, bias=False)
        self.norm_edges, self.norm_atoms = nn.BatchNorm1d(2 * width), nn.BatchNorm1d(width)

    def forward(self, atoms: Tensor, edges: Tensor, atom: Tensor, other: Tensor) -> Tensor:
        """``(atoms, width)`` and ``(edges, edge_width)`` to ``(atoms, width)``."""
        z = self.of_edge(edges) + self.of_atom(atoms)[atom] + self.of_other(atoms)[other]
        gate, core = self.norm_edges(z).chunk(2, dim=1)
        message = torch.sigmoid(gate) * F.softplus(core)
        gathered = torch.zeros_like(atoms).index_add_(0, atom, message)
        return F.softplus(atoms + self.norm_atoms(gathered))


class CGCNN(nn.Module):
    """Crystal graphs to ``(crystals, targets)``: embedding, graph convolutions, mean over atoms, hidden layers."""

    one_thread = True
    vectors: Tensor

    def __init__(
        self,
        targets: int = 1,
        width: int = 64,
        convolutions: int = 3,
        hidden: int = 128,
        layers: int = 2,
        vectors: NDArray[np.float32] | None = None,  # those that it was trained with, if not today's
    ):
        super().__init__()
        known = atom_vectors() if vectors is None else vectors
        by_number = np.concatenate([np.zeros((1, 92), np.float32), known])
        self.register_buffer("vectors", torch.from_numpy(by_number), persistent=False)
        self.embedding = nn.Linear(92, width)
        self.distances = GaussianDistances()
        edge_width = len(self.distances.centres)
        self.convolutions = nn.ModuleList(GraphConvolution(width, edge_width) for _ in range(convolutions))
        sizes = [width] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], targets)

    def forward(self, graphs: CrystalGraphs) -> Tensor:
        """Graphs of n crystals to ``(n, targets)``."""
        atom, other = graphs.edges()
        edges = self.distances(graphs.distance)
        atoms = self.embedding(self.vectors[graphs.numbers])
        for convolution in self.convolutions:
            atoms = convolution(atoms, edges, atom, other)
        shares = graphs.weight[:, None] * atoms
        mean = atoms.new_zeros(len(graphs), atoms.shape[1]).index_add_(0, graphs.crystal_of_atoms(), shares)
        crystals = F.softplus(mean)
        for layer in self.hidden:
            crystals = F.softplus(layer(crystals))
        out: Tensor = self.out(crystals)
        return out
