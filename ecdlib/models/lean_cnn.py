"""The lean CNNs of the Lean CNN paper (Table 1, Fig 4): convolutions only, then a global average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecdlib.features.autocorrelation import cubic_orbits


@dataclass(frozen=True)
class Convolution:
    """One layer of Table 1, printed there as kernel@channels/stride."""

    kernel: int
    channels: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.kernel}@{self.channels}" + (f"/{self.stride}" if self.stride > 1 else "")


_DEEPER = (Convolution(5, 128, 2), Convolution(3, 64), Convolution(3, 32), Convolution(3, 16), Convolution(3, 8))
_LEAN = (Convolution(5, 64, 2), Convolution(3, 32), Convolution(3, 16), Convolution(3, 8))

#: Models A, B and C as the paper lists them; the last layer's channels are the targets (C: both at once). The larger
#: Model C, whose layers the paper does not print, has those of Model B.
ARCHITECTURES: dict[str, tuple[Convolution, ...]] = {
    "A": (*_LEAN, Convolution(1, 1)),
    "B": (*_DEEPER, Convolution(1, 1)),
    "C": (*_LEAN, Convolution(1, 2)),
    "larger C": (*_DEEPER, Convolution(1, 2)),
}


def whitening(patches: Tensor, weights: Tensor, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Matrix and centre that make the rows of ``patches (m, f)`` white: ``(patches - centre) @ matrix.T``.

    Args:
        weights: ``(m,)`` how often each row counts.
        floor: directions with a variance below this share of the largest one stay smaller than the others.
    """
    share = weights.double() / weights.sum()
    centre = share @ patches.double()
    difference = patches.double() - centre
    variances, directions = torch.linalg.eigh((difference * share[:, None]).T @ difference)
    scale = (variances + floor * variances[-1]).rsqrt()
    return (directions * scale).T.to(patches.dtype), centre.to(patches.dtype)


class WhitenedConv3d(nn.Conv3d):
    """Convolution with its kernel in coordinates in which its input can be white (see :func:`whitening`)."""

    whiten: Tensor
    centre: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        n = in_channels * kernel**3
        self.register_buffer("whiten", torch.eye(n))
        self.register_buffer("centre", torch.zeros(n))

    def patches(self, x: Tensor, every: int = 1) -> Tensor:
        """What the kernel sees of the padded input at every so many positions, ``(batch, m, m, m, features)``."""
        k, pad = self.kernel_size[0], self.kernel_size[0] // 2
        p = F.pad(x, (pad,) * 6)
        for axis in (2, 3, 4):
            p = p.unfold(axis, k, every * self.stride[0])
        return p.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)

    def white_patches(self, x: Tensor) -> Tensor:
        """The same in coordinates in which it can be white, in the precision of ``x``."""
        return (self.patches(x) - self.centre) @ self.whiten.T

    def of_patches(self, white: Tensor) -> Tensor:
        """What the layer makes of :meth:`white_patches`."""
        kernel = self.weight.flatten(1)
        return F.linear(white, F.pad(kernel, (0, white.shape[-1] - kernel.shape[1])), self.bias).permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """As an ordinary convolution with the equivalent kernel and bias, always in single precision.

        Large terms cancel: what counts of an autocorrelation is small beside its mean.
        """
        assert self.bias is not None
        cudnn = torch.backends.cudnn
        exact = cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=False)
        with torch.autocast(x.device.type, enabled=False), exact:
            kernel = self.weight.flatten(1) @ self.whiten
            bias = self.bias - kernel @ self.centre
            return F.conv3d(x.to(kernel.dtype), kernel.view_as(self.weight), bias, self.stride, self.padding)


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
        size: edge of the standard grid, to unfold distinct values.
    """

    orbits: Tensor

    def __init__(self, architecture: str = "A", dropout: float = 0.0, in_channels: int = 1, size: int = 51):
        super().__init__()
        layers: list[nn.Module] = []
        *hidden, last = ARCHITECTURES[architecture]
        channels = in_channels
        for c in hidden:
            if layers:
                layers += [nn.Conv3d(channels, c.channels, c.kernel, c.stride, padding=c.kernel // 2)]
            else:
                layers += [WhitenedConv3d(channels, c.channels, c.kernel, c.stride)]
            layers += [nn.PReLU(c.channels), nn.Dropout3d(dropout)]
            channels = c.channels
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels, last.channels, last.kernel))
        self.register_buffer("orbits", torch.from_numpy(cubic_orbits(size).copy()), persistent=False)

    @property
    def _first(self) -> WhitenedConv3d:
        first = self.layers[0]
        assert isinstance(first, WhitenedConv3d)
        return first

    def precondition(self, x: Tensor) -> None:
        """Give the first layer coordinates in which its input, over ``x``, is white (sampled on up to 64 of ``x``).

        See :meth:`ecdlib.models.octahedral_cnn.OctahedralCNN.precondition`.
        """
        first = self._first
        some = self._grid(x[:: max(1, len(x) // 64)])
        rows = torch.cat([first.patches(one[None], every=2).flatten(0, 3) for one in some])
        whiten, centre = whitening(rows, torch.ones(len(rows), device=rows.device))
        first.whiten.copy_(whiten)
        first.centre.copy_(centre)

    @torch.no_grad()
    def prepare(self, x: Tensor, precision: torch.dtype) -> Tensor:
        """What of the first layer has no free parameters, for a training that sees each sample hundreds of times.

        These are the white patches of all samples, some hundred times as large as their distinct values.

        Returns:
            ``(n, m, m, m, features)``, on the device of ``x``, which :meth:`forward` takes as well; the features are
            filled up with zeros to a multiple of eight, as a GPU's matrix units like it.
        """
        first = self._first
        fill = (0, -len(first.centre) % 8)
        return torch.cat([F.pad(first.white_patches(self._grid(few)).to(precision), fill) for few in x.split(16)])

    def _is_prepared(self, x: Tensor) -> bool:
        """Whether ``x`` holds patches: a grid has its samples' channels second, and as many voxels along each axis."""
        return x.ndim == 5 and x.shape[-1] != x.shape[-2]

    def _grid(self, x: Tensor) -> Tensor:
        """Distinct values unfolded to ``(batch, in_channels, size, size, size)``; a whole grid as it is."""
        return x if x.ndim == 5 else (x[:, None] if x.ndim == 2 else x)[:, :, self.orbits]

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, size, size, size)`` -> ``(batch, targets)``.

        Also from distinct values ``(batch, k)`` or ``(batch, in_channels, k)``, or from what :meth:`prepare` returns.
        """
        first = self._first
        out: Tensor = first.of_patches(x) if self._is_prepared(x) else first(self._grid(x))
        for layer in list(self.layers)[1:]:
            out = layer(out)
        return out.mean((2, 3, 4), dtype=torch.float32 if out.dtype == torch.bfloat16 else None)


def count_parameters(model: nn.Module) -> int:
    """Number of fittable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
