"""Leaner than lean: a lean CNN with the symmetry of the cube built in, evaluated on one octant.

The autocorrelation of a crystal of Laue class m-3m has all 48 symmetries of the cube. A network that respects them has
kernels tied over the orbits of their voxels: 10 values instead of 125 for 5^3, 4 instead of 27 for 3^3. Then every
feature map has the symmetry too, so one octant of it (26^3 of 51^3 voxels) determines the rest.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecdlib.correlations import cubic_orbits
from ecdlib.density import Floats
from ecdlib.errors import EcdError
from ecdlib.models.lean_cnn import ARCHITECTURES


class OctahedralConv3d(nn.Module):
    """Convolution whose kernel is constant on the orbits of the octahedral group.

    The free values are scaled so that a fresh layer has the output variance of a fresh ``nn.Conv3d`` of that size.
    """

    orbit: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        orbit = torch.from_numpy(cubic_orbits(kernel).copy())
        self.register_buffer("orbit", orbit, persistent=False)
        self.kernel, self.stride = kernel, stride
        bound = (in_channels * kernel**3) ** -0.5
        self.values = nn.Parameter(torch.empty(out_channels, in_channels, int(orbit.max()) + 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    @property
    def weight(self) -> Tensor:
        """The full kernel ``(out, in, k, k, k)``."""
        return self.values[:, :, self.orbit]

    def forward(self, x: Tensor, octant: bool) -> Tensor:
        """Convolve a whole grid, or its octant with the mirror image at the inner faces and zeros at the outer ones.

        On an octant, a layer of stride 2 takes the grid as symmetric about its first voxel (r = 0, reflection) and
        leaves one that is symmetric about the face before its first voxel (replication), as do all later layers.
        """
        pad = self.kernel // 2
        if not octant or not pad:
            return F.conv3d(x, self.weight, self.bias, self.stride, padding=pad)
        # with stride 2 the first output sits one voxel from r = 0 and reaches one voxel beyond it
        x = F.pad(x, (1, 0) * 3, mode="reflect") if self.stride == 2 else F.pad(x, (pad, 0) * 3, mode="replicate")
        return F.conv3d(F.pad(x, (0, pad) * 3), self.weight, self.bias, self.stride)


class OctahedralCNN(nn.Module):
    """A lean CNN (Table 1) with octahedral kernels; Model A has 11,641 parameters instead of 80,825.

    For autocorrelations of Laue class m-3m only (space groups 195-206 are m-3: average their features first).

    Args:
        architecture: name in :data:`ecdlib.models.lean_cnn.ARCHITECTURES`; its first layer must have 5^3 kernels and
            stride 2, all others 3^3 or 1^3 and stride 1.
        dropout: probability, over whole channels.
        in_channels: number of correlations given.
    """

    def __init__(self, architecture: str = "A", dropout: float = 0.0, in_channels: int = 1):
        super().__init__()
        convolutions, channels = [], in_channels
        for c in ARCHITECTURES[architecture]:
            convolutions.append(OctahedralConv3d(channels, c.channels, c.kernel, c.stride))
            channels = c.channels
        self.convolutions = nn.ModuleList(convolutions)
        self.activations = nn.ModuleList([nn.PReLU(c.channels) for c in ARCHITECTURES[architecture][:-1]])
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor, octant: bool = True) -> Tensor:
        """``(batch, in_channels, n, n, n)`` -> ``(batch, targets)``.

        Args:
            octant: ``x`` holds the octant x, y, z >= 0 (n = 26 for a standard grid of 51) instead of the whole grid.
        """
        for convolution, activation in zip(self.convolutions, self.activations, strict=False):
            x = self.dropout(activation(convolution(x, octant)))
        return self.convolutions[-1](x, octant).mean((2, 3, 4))


def octant(features: Floats) -> Floats:
    """The octant x, y, z >= 0 of standardized autocorrelations: ``(..., size, size, size)`` -> ``(..., h, h, h)``.

    h = (size + 1)/2.

    Raises:
        EcdError: a size for which the stride-2 layer does not meet the mirror plane symmetrically, or features without
            the symmetry of m-3m (to 1e-5 of their largest value).
    """
    size = features.shape[-1]
    if size % 4 != 3:
        raise EcdError(f"size={size}", "an octant with stride 2 needs a size of 4 k + 3", "Take 51, as the paper does.")
    limit = 1e-5 * np.abs(features).max()
    turned = [np.flip(features, -1), np.flip(features, -2), np.flip(features, -3)]
    turned += [features.swapaxes(-1, -2), features.swapaxes(-2, -3)]
    if any(np.abs(features - other).max() > limit for other in turned):
        raise EcdError(
            "autocorrelation", "lacks the symmetry of Laue class m-3m", "Use a model for any symmetry, or average it."
        )
    h = size // 2
    return np.ascontiguousarray(features[..., h:, h:, h:])
