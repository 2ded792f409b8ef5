"""Benchmark (not a test): the crystal graph network here and as a stack of torch_geometric's CGConv, one core.

``make bench``. Both see the same crystals and the same edges, in batches of 64; embedding, pooling and hidden layers
are alike, so that the convolutions make the difference. CGConv normalizes atoms only, ours also edges, as published.
Prints crystals per second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import CGConv, global_mean_pool

from ecdlib.base.errors import atomic_write
from ecdlib.book.runs import BUILD
from ecdlib.data.tables import load_structures
from ecdlib.features.graphs import CrystalGraphs, crystal_graphs
from ecdlib.models.cgcnn import CGCNN, GaussianDistances, atom_vectors


class Peer(nn.Module):
    """CGCNN made of torch_geometric's layers."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.register_buffer("vectors", torch.from_numpy(atom_vectors()))
        self.embedding, self.distances = nn.Linear(92, width), GaussianDistances()
        self.convolutions = nn.ModuleList(CGConv(width, 41, batch_norm=True) for _ in range(3))
        self.hidden = nn.ModuleList([nn.Linear(width, 128), nn.Linear(128, 128)])
        self.out = nn.Linear(128, 2)

    def forward(self, graphs: CrystalGraphs) -> Tensor:
        atom, other = graphs.edges()
        x, edges = self.embedding(self.vectors[graphs.numbers - 1]), self.distances(graphs.distance)
        for convolution in self.convolutions:
            x = F.softplus(convolution(x, torch.stack([other, atom]), edges))
        x = F.softplus(global_mean_pool(x, graphs.crystal_of_atoms()))
        for layer in self.hidden:
            x = F.softplus(layer(x))
        return self.out(x)


def crystals_per_second(step: Callable[[CrystalGraphs], object], graphs: CrystalGraphs, batches: int = 20) -> float:
    """Best of three passes over ``batches`` batches of 64."""
    parts = torch.randperm(len(graphs), generator=torch.manual_seed(0)).split(64)[:batches]
    step(graphs[parts[0]])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for part in parts:
            step(graphs[part])
        times.append(time.perf_counter() - start)
    return 64 * batches / min(times)


def main() -> None:
    torch.set_num_threads(1)
    structures = list(load_structures().values())
    start = time.perf_counter()
    graphs = crystal_graphs(structures)
    rows = {"graphs": {"crystals/s": len(structures) / (time.perf_counter() - start)}}
    for name, network in (("CGCNN", CGCNN(2)), ("torch_geometric CGConv", Peer())):
        optimizer = torch.optim.Adam(network.parameters())

        def train(batch: CrystalGraphs, network: nn.Module = network, adam: torch.optim.Adam = optimizer) -> None:
            adam.zero_grad()
            (network(batch) ** 2).mean().backward()
            adam.step()

        rows[f"{name}, training"] = {"crystals/s": crystals_per_second(train, graphs)}
        network.eval()
        with torch.no_grad():
            rows[f"{name}, inference"] = {"crystals/s": crystals_per_second(network, graphs)}
    for name, row in rows.items():
        print(f"{name:40s} {row['crystals/s']:8.0f} crystals/s")
    with atomic_write(BUILD / "bench_graphs.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
