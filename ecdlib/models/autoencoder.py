"""The 3D convolutional autoencoder (LatentMatFusion paper, section 4 and Fig 4)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["zeros", "circular"]
#: For each of two fine voxels: which taps of a kernel along an axis fall on the coarse voxel before, at and after.
REPEATED = torch.tensor([[[1.0, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])


class PaddedConv3d(nn.Conv3d):
    """3×3×3 convolution that keeps the grid: beyond its faces lie zeros, or the periodic images."""

    def __init__(self, channels_in: int, channels_out: int, padding: Padding):
        super().__init__(channels_in, channels_out, 3, padding=1 if padding == "zeros" else 0)
        self.circular = padding == "circular"

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.weight, self.bias)

    def of_upsampled(self, x: Tensor) -> Tensor:
        """What it makes of ``x`` on a grid twice as fine, each voxel repeated.

        The eight fine voxels in a coarse one see the same 27 coarse ones with kernels of their own, which are sums of
        parts of this one. For the few channels of a decoder's last layer this is several times as fast.
        """
        k = torch.einsum("oixyz,pax,qby,rcz->opqriabc", self.weight, *[REPEATED.to(self.weight)] * 3)
        k = k.flatten(0, 3).contiguous(memory_format=torch.channels_last_3d)
        fine = self._convolved(x, k, None if self.bias is None else self.bias.repeat_interleave(8))
        n, (a, b, c) = len(fine), fine.shape[2:]
        fine = fine.view(n, -1, 2, 2, 2, a, b, c).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return fine.reshape(n, -1, 2 * a, 2 * b, 2 * c)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.circular:  # three times faster on a CPU than padding_mode="circular"
            for d in (2, 3, 4):
                x = torch.cat([x.narrow(d, x.shape[d] - 1, 1), x, x.narrow(d, 0, 1)], d)
        return F.conv3d(x, weight, bias, padding=self.padding)


def _block(convolution: nn.Module, channels: int, resize: nn.Module, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Convolution, ReLU, change of grid; then batch normalization and dropout, where asked for.

    ReLU and a change of grid commute: ReLU acts on the smaller one.
    """
    layers = [convolution, resize, nn.ReLU()] if isinstance(resize, nn.MaxPool3d) else [convolution, nn.ReLU(), resize]
    layers += [nn.BatchNorm3d(channels)] if batch_norm else []
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


class ChargeDensityAutoencoder(nn.Module):
    """Density on a grid of edge ``n`` to a latent of edge ``n / 2**poolings`` and back.

    The defaults are the latent of 16 channels on a grid of 16 for ``n = 128``. The text has two poolings, which do
    not lead from 128 to 16; three do, and the authors' public code has three, without batch normalization and
    dropout: 111,633 parameters.

    Args:
        poolings: 3 for the latent of 16 channels; 4 with 8 channels and 2 with 32 are those of Figs S2 and S3.
        channels: of the latent.
        padding: ``"zeros"`` as published, ``"circular"`` as a periodic field asks for.
        batch_norm: after each block.
        dropout: probability, after each block; the paper gives none.
    """

    def __init__(
        self,
        poolings: int = 3,
        channels: int = 16,
        padding: Padding = "zeros",
        batch_norm: bool = True,
        dropout: float = 0.05,
    ):
        super().__init__()
        widths = [16, *[32] * (poolings - 1)]
        down, up = [], []
        for a, b in zip([1, *widths], widths, strict=False):
            down.append(_block(PaddedConv3d(a, b, padding), b, nn.MaxPool3d(2), batch_norm, dropout))
        for a, b in zip([channels, *widths[::-1]], [*[32] * (poolings - 1), 16], strict=False):
            up.append(_block(PaddedConv3d(a, b, padding), b, nn.Upsample(scale_factor=2), batch_norm, dropout))
        self.encoder = nn.Sequential(*down, PaddedConv3d(widths[-1], channels, padding), nn.ReLU())
        self.decoder = nn.Sequential(*up, PaddedConv3d(16, 1, padding))
        for weight in self.parameters():
            if weight.ndim == 5:  # twice as fast on a CPU
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    def encode(self, x: Tensor) -> Tensor:
        """``(batch, 1, n, n, n)`` densities in e/Å³ to ``(batch, channels, m, m, m)`` latents, none negative."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if not self.training:  # one channel has this format by its strides alone; in training dropout would differ
            x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
        latent: Tensor = self.encoder(x)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Latents back to densities in e/Å³."""
        x = latent.contiguous(memory_format=torch.channels_last_3d)
        *blocks, block, last = self.decoder.children()
        for each in blocks:
            x = each(x)
        layers = list(block.children())
        if isinstance(layers[-1], nn.Dropout) and self.training:  # drops fine voxels
            found: Tensor = last(block(x))
            return found
        for layer in layers:  # normalization and what repeats voxels commute
            x = x if isinstance(layer, nn.Upsample) else layer(x)
        assert isinstance(last, PaddedConv3d)
        return last.of_upsampled(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class OnPartOfGrid(nn.Module):
    """An autoencoder on parts of grids of edge ``n`` that are zero elsewhere, with the squared error of whole grids.

    The deviation from the input is scaled so that its mean square over the part is the sum of squares over the n³
    voxels of the grid; to it comes what the network makes of :attr:`EMPTY`³ zeros, for the rest of the grid.
    """

    EMPTY = 32

    def __init__(self, autoencoder: ChargeDensityAutoencoder, n: int):
        super().__init__()
        self.autoencoder, self.n, self.share = autoencoder, n, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.share = x[0, 0].numel() / self.n**3
        found: Tensor = self.autoencoder(x)
        return found if self.share == 1 else x + self.share**0.5 * (found - x)

    def penalty(self) -> Tensor | float:
        """Mean square over the grid of what lies outside the part that was seen last.

        As in prediction: nothing but zeros would spoil the statistics of a batch normalization.
        """
        if self.share == 1:
            return 0.0
        zeros = torch.zeros(1, 1, *[self.EMPTY] * 3, device=next(self.parameters()).device)
        training = self.autoencoder.training
        self.autoencoder.eval()
        found: Tensor = self.autoencoder(zeros)
        self.autoencoder.train(training)
        return (1 - self.share) * found.square().mean()


def orientation(x: Tensor, number: int) -> Tensor:
    """One of 12 distinct orientations of a batch ``(…, n, n, n)``: each axis upwards, four quarter turns about it.

    The paper does not say which 12; single quarter turns about the axes give 10.
    """
    axis, turns = divmod(number, 4)
    *front, a, b, c = range(x.ndim)
    turned = x.permute(*front, *[(a, b, c), (b, c, a), (c, a, b)][axis])
    return torch.rot90(turned, turns, (a, b))
