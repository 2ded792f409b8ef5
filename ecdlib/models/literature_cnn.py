"""The two networks on the raw density that the Lean CNN paper compares with (Table 1), as far as its table fixes them.

Printed are kernels and channels of the convolutions (each followed by 2^3 max pooling) and the widths of the fully
connected layers. Not printed are the edge of the density grid, on which the first of these depends, padding and
activations: convolutions here keep the grid, ReLU follows every hidden layer.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class _DensityCNN(nn.Module):
    def __init__(
        self, kernels: tuple[int, ...], channels: tuple[int, ...], widths: tuple[int, ...], size: int, dropout: float
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for k, (a, b) in zip(kernels, pairwise((1, *channels)), strict=True):
            keep = nn.ConstantPad3d(((k - 1) // 2, k // 2) * 3, 0.0)
            layers += [keep, nn.Conv3d(a, b, k), nn.ReLU(), nn.MaxPool3d(2)]
        layers += [nn.Flatten()]
        flattened = channels[-1] * (size // 2 ** len(kernels)) ** 3
        for a, b in pairwise((flattened, *widths)):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, size, size, size)`` -> ``(batch, 1)``."""
        out: Tensor = self.layers(x)
        return out


class Zhao(_DensityCNN):
    """Zhao et al. as listed in Table 1: 5@32, 2@64, 3@64, then 1000, 128, 64, 32 and one output."""

    def __init__(self, size: int = 24, dropout: float = 0.0):
        super().__init__((5, 2, 3), (32, 64, 64), (1000, 128, 64, 32), size, dropout)


class Mirzaee(_DensityCNN):
    """Mirzaee et al. as listed in Table 1: 3@16, 3@32, 3@64, then 2048 and 1024 and, here, one output.

    The listed 11200 is taken as the number of inputs to the 2048, which follows from their grid.
    """

    def __init__(self, size: int = 24, dropout: float = 0.0):
        super().__init__((3, 3, 3), (16, 32, 64), (2048, 1024), size, dropout)
