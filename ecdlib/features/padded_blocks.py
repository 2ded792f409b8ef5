"""Densities on padded grids, of which only the surroundings of the crystal are held (LatentMatFusion paper, 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ecdlib.density.core import Floats


@dataclass(frozen=True)
class PaddedBlocks:
    """Densities in a corner of grids of zeros, for a network; chosen ones are cut to the cube that they need.

    A density fills about a twentieth of the paper's grid of 128 voxels an edge. With a margin it is a seventh, from
    which a network learns; :class:`ecdlib.models.autoencoder.OnPartOfGrid` sees to the rest, which is empty.
    """

    blocks: tuple[Tensor, ...]  #: ``(a, b, c)``, e/Å³
    edge: int  #: of the whole grid
    margin: int = 16  #: zeros beyond each block that are kept
    multiple: int = 16  #: what the edge of a cube is divisible by

    @classmethod
    def of(cls, blocks: Sequence[Floats], edge: int, multiple: int) -> PaddedBlocks:
        """From arrays."""
        tensors = (torch.from_numpy(np.asarray(block, dtype=np.float32)) for block in blocks)
        return cls(tuple(tensors), edge, multiple=multiple)

    @classmethod
    def empty(cls, shapes: Sequence[Sequence[int]], edge: int, multiple: int) -> PaddedBlocks:
        """Without values, for the sizes of their cubes."""
        return cls(tuple(torch.empty(*shape, device="meta") for shape in shapes), edge, multiple=multiple)

    @property
    def share(self) -> float:
        """Of the voxels of the whole grids that is in the cubes, in the mean."""
        return float(((self.edges / self.edge) ** 3).mean())

    @property
    def edges(self) -> Tensor:
        """Edge of the cube that each one needs, ``(n,)``."""
        needed = torch.tensor([max(block.shape) + self.margin for block in self.blocks])
        return (-(-needed // self.multiple) * self.multiple).clamp(max=self.edge)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Cubes ``(n, 1, m, m, m)`` of the largest edge that one of them needs."""
        numbers = chosen.tolist()
        m = int(self.edges[chosen.cpu()].max())
        ends = ([end for n in reversed(self.blocks[i].shape) for end in (0, m - n)] for i in numbers)
        return torch.stack([F.pad(self.blocks[i], end)[None] for i, end in zip(numbers, ends, strict=True)])

    def batches(self, order: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
        """Batches of those that need cubes of about the same edge, in random order.

        Args:
            order: random numbers of all.
            generator: of random numbers.
        """
        alike = order[self.edges[order].argsort(stable=True)].split(size)
        return [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]

    def tensors(self) -> list[Tensor]:
        """What tells them from others."""
        return list(self.blocks)

    def to(self, device: torch.device) -> PaddedBlocks:
        """On another device."""
        return PaddedBlocks(tuple(block.to(device) for block in self.blocks), self.edge, self.margin, self.multiple)
