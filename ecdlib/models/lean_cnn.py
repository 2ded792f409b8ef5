"""The lean CNNs of the Lean CNN paper (Table 1, Fig 4): convolutions only, then a global average."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Convolution:
    """One layer of Table 1, printed there as kernel@channels/stride."""

    kernel: int
    channels: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.kernel}@{self.channels}" + (f"/{self.stride}" if self.stride > 1 else "")


#: Models A, B and C as the paper lists them; the last layer's channels are the targets (C: both at once).
ARCHITECTURES: dict[str, tuple[Convolution, ...]] = {
    "A": (Convolution(5, 64, 2), Convolution(3, 32), Convolution(3, 16), Convolution(3, 8), Convolution(1, 1)),
    "B": (
        Convolution(5, 128, 2),
        Convolution(3, 64),
        Convolution(3, 32),
        Convolution(3, 16),
        Convolution(3, 8),
        Convolution(1, 1),
    ),
    "C": (Convolution(5, 64, 2), Convolution(3, 32), Convolution(3, 16), Convolution(3, 8), Convolution(1, 2)),
}


class LeanCNN(nn.Module):
    """Lean CNN on standardized autocorrelations.

    Every convolution has a bias and is zero-padded to keep the grid (the standard grid is a window, not a period); each
    hidden one is followed by a PReLU with one slope per channel and by dropout over whole channels; the last one is
    averaged over the grid. This reproduces the printed parameter counts of A (80,825) and C (80,834); B has 310,265 by
    the same rule, 64 more than printed.

    Args:
        architecture: name in :data:`ARCHITECTURES`.
        dropout: probability; the paper uses dropout without giving a value.
        in_channels: 1 for the autocorrelation of √ρ.
    """

    def __init__(self, architecture: str = "A", dropout: float = 0.0, in_channels: int = 1):
        super().__init__()
        layers: list[nn.Module] = []
        *hidden, last = ARCHITECTURES[architecture]
        channels = in_channels
        for c in hidden:
            layers += [nn.Conv3d(channels, c.channels, c.kernel, c.stride, padding=c.kernel // 2)]
            layers += [nn.PReLU(c.channels), nn.Dropout3d(dropout)]
            channels = c.channels
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels, last.channels, last.kernel))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, size, size, size)`` -> ``(batch, targets)``."""
        return self.layers(x).mean((2, 3, 4))


def count_parameters(model: nn.Module) -> int:
    """Number of fittable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
