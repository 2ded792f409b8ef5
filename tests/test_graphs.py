"""Crystal graphs and the network on them: periodicity, symmetry, and another implementation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from torch.nn import functional as F

from ecdlib.base.errors import EcdError
from ecdlib.data.tables import load_structures
from ecdlib.features.graphs import NEIGHBOURS, RADIUS, CrystalGraphs, cached_graphs, crystal_graphs, neighbours
from ecdlib.models.cgcnn import CGCNN, GraphConvolution, atom_vectors

SOME = ["NaCl_225", "Fe3SnC_221", "CaMg2_194", "K3BiTe3_198"]


def network(targets: int = 2) -> CGCNN:
    torch.manual_seed(0)
    made = CGCNN(targets)
    for parameter in made.buffers():  # statistics of normalization that do something
        if parameter.dtype.is_floating_point and parameter.ndim == 1 and len(parameter) in (64, 128):
            parameter += 0.3 * torch.rand_like(parameter)
    return made.eval()


def predict(*structures: Structure) -> np.ndarray:
    with torch.no_grad():
        return network()(crystal_graphs(structures)).numpy()


@pytest.mark.parametrize("name", SOME)
def test_neighbours_are_those_of_ase(name: str) -> None:
    structure = load_structures()[name]
    atom, other, distance = neighbours(structure)
    i, j, d = neighbor_list("ijd", AseAtomsAdaptor.get_atoms(structure), RADIUS)
    for site in range(len(structure)):
        own = np.sort(distance[atom == site])
        theirs = np.sort(d[i == site])
        assert np.allclose(own, theirs[: len(own)], atol=1e-6)
        assert len(own) >= NEIGHBOURS
        assert theirs[len(own)] > own[-1] + 1e-3, "the last shell is whole"
        ours = sorted(zip(other[atom == site].tolist(), distance[atom == site].round(3).tolist(), strict=True))
        within = (i == site) & (d <= own[-1] + 1e-6)
        assert ours == sorted(zip(j[within].tolist(), d[within].round(3).tolist(), strict=True))


def test_shells_of_rocksalt() -> None:
    salt = load_structures()["NaCl_225"]
    atom, other, distance = neighbours(salt)
    a = float(salt.volume / len(salt) * 8) ** (1 / 3)
    for site in range(2):
        shells, sizes = np.unique(distance[atom == site].round(4), return_counts=True)
        assert np.allclose(shells, [a / 2, a / 2**0.5], atol=1e-3)
        assert sizes.tolist() == [6, 12], "twelve would cut the second shell, whose twelve are alike"
        near = [salt[int(i)].specie for i in other[atom == site]]
        assert sum(specie != salt[site].specie for specie in near) == 6
    cut = neighbours(salt, ties=False)
    assert np.bincount(cut[0]).tolist() == [12] * len(salt)


@given(seed=st.integers(0, 10**6))
def test_a_prediction_does_not_depend_on_how_the_crystal_is_described(seed: int) -> None:
    rng = np.random.default_rng(seed)
    structure = load_structures()["CaMg2_194"]
    order = rng.permutation(len(structure))
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    other = Structure(
        structure.lattice.matrix @ turned,
        [structure[i].specie for i in order],
        structure.frac_coords[order] + rng.uniform(size=3),
    )
    supercell = structure.copy()
    supercell.make_supercell(np.eye(3, dtype=int) + np.triu(rng.integers(-1, 2, (3, 3)), 1) + np.diag([1, 0, 0]))
    first, *rest = predict(structure, other, supercell)
    assert np.allclose(rest, first, atol=1e-4)


def test_a_cut_shell_makes_the_prediction_depend_on_the_description() -> None:
    fcc = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    rocksalt = Structure(Lattice.cubic(5.4), ["Na", "K", "Na", "Na", *["Cl"] * 4], [*fcc, *(np.array(fcc) + 0.5)])
    shifted = [
        Structure(rocksalt.lattice, rocksalt.species, rocksalt.frac_coords + shift)
        for shift in ([0, 0, 0], [0.31, 0.57, 0.83], [0.7, 0.1, 0.4], [0.2, 0.9, 0.6])
    ]
    with torch.no_grad():
        whole, cut = (network()(crystal_graphs(shifted, ties)) for ties in (True, False))
    assert (whole - whole[0]).abs().max() < 1e-5
    assert (cut - cut[0]).abs().max() > 1e-4, "which neighbours of a shell are kept depends on the origin"


@pytest.mark.parametrize("name", [*SOME, "BaTiO3_221"])
def test_one_atom_of_each_kind_is_enough(name: str) -> None:
    structure = load_structures()[name]
    small, large = crystal_graphs([structure]), crystal_graphs([structure], distinct=False)
    assert len(small.numbers) < len(large.numbers) == len(structure)
    assert torch.isclose(small.weight.sum(), torch.tensor(1.0))
    with torch.no_grad():
        assert torch.allclose(network()(small), network()(large), atol=1e-4)


def test_batches_are_the_crystals_one_by_one() -> None:
    graphs = crystal_graphs([load_structures()[name] for name in SOME])
    with torch.no_grad():
        together = network()(graphs)
        chosen = network()(graphs[torch.tensor([2, 0, 2])])
        alone = torch.cat([network()(crystal_graphs([load_structures()[name]])) for name in SOME])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(chosen, together[[2, 0, 2]], atol=1e-5)
    assert (
        graphs[torch.tensor([1])].numbers.tolist()
        == graphs.numbers[graphs.atom_offset[1] : graphs.atom_offset[2]].tolist()
    )


@pytest.mark.slow
def test_the_convolution_is_that_of_torch_geometric() -> None:
    """Without the normalization of edges, which theirs does not have, and with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import CGConv
    torch.manual_seed(1)
    graphs = crystal_graphs([load_structures()[name] for name in SOME])
    atom, other = graphs.edges()
    atoms, edges = torch.randn(len(graphs.numbers), 8), torch.rand(len(atom), 5)
    ours, theirs = GraphConvolution(8, 5).eval(), CGConv(8, 5)
    ours.norm_edges, ours.norm_atoms = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        for half, linear in ((slice(0, 8), theirs.lin_f), (slice(8, 16), theirs.lin_s)):
            parts = [m.weight[half] for m in (ours.of_atom, ours.of_other, ours.of_edge)]
            linear.weight.copy_(torch.cat(parts, 1))
            linear.bias.copy_(ours.of_atom.bias[half])
        expected = F.softplus(theirs(atoms, torch.stack([other, atom]), edges))
        assert torch.allclose(ours(atoms, edges, atom, other), expected, atol=1e-5)


def test_the_size_of_the_published_network() -> None:
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in CGCNN(1).named_children()}
    edge = (2 * 64 + 41) * 128 + 128 + 2 * 128 + 2 * 64
    assert sizes["embedding"] == 92 * 64 + 64
    assert sizes["convolutions"] == 3 * edge
    assert sizes["hidden"] == 64 * 128 + 128 + 128 * 128 + 128


def test_atom_vectors_tell_elements_apart() -> None:
    vectors = atom_vectors()
    assert vectors.shape == (100, 92)
    assert set(np.unique(vectors)) == {0.0, 1.0}
    alike: dict[bytes, list[str]] = {}
    for z in range(1, 101):
        alike.setdefault(vectors[z - 1].tobytes(), []).append(Element.from_Z(z).symbol)
    assert [group for group in alike.values() if len(group) > 1] == [["Dy", "Ho", "Er"]], "as the docstring says"


def test_cache_holds_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecdlib.base.cached.CACHE", tmp_path)
    structures = [load_structures()[name] for name in SOME]
    made, read = cached_graphs(structures), cached_graphs(structures)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    for a, b, c in zip(made.tensors(), read.tensors(), crystal_graphs(structures).tensors(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    cached_graphs(structures[:2])
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_crystals_that_are_no_graph() -> None:
    with pytest.raises(EcdError, match="without neighbours within 8"):
        crystal_graphs([Structure(Lattice.cubic(20), ["Ar"], [[0, 0, 0]])])
    with pytest.raises(EcdError, match="two atoms at the same place"):
        crystal_graphs([Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.001]])])
    with pytest.raises(EcdError, match="disordered"):
        crystal_graphs([Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])])
    assert len(crystal_graphs([])) == 0
    assert isinstance(crystal_graphs([]), CrystalGraphs)
