"""Attention 3D CNN on latents and composition (LatentMatFusion paper, section 6 and Fig 7)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ecdlib.models.autoencoder import PaddedConv3d, Padding


class ChannelAttention(nn.Module):
    """Each channel weighted by what a small network makes of the averages of all channels."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        inner = channels // reduction
        self.gate = nn.Sequential(nn.Linear(channels, inner), nn.SiLU(), nn.Linear(inner, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weighted: Tensor = x * self.gate(x.mean((2, 3, 4)))[:, :, None, None, None]
        return weighted


class SpatialAttention(nn.Module):
    """Each voxel weighted by a convolution of the mean and the maximum over channels."""

    def __init__(self, padding: Padding):
        super().__init__()
        self.convolution = PaddedConv3d(2, 1, padding)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.convolution(summary))


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalization and Swish, both attentions, and the way around them."""

    def __init__(self, channels_in: int, channels: int, padding: Padding):
        super().__init__()
        self.body = nn.Sequential(
            PaddedConv3d(channels_in, channels, padding),
            nn.BatchNorm3d(channels),
            nn.SiLU(),
            PaddedConv3d(channels, channels, padding),
            nn.BatchNorm3d(channels),
            ChannelAttention(channels),
            SpatialAttention(padding),
        )
        self.shortcut = nn.Conv3d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.body(x) + self.shortcut(x))


def _dense(inputs: int, width: int, layers: int, dropout: float) -> list[nn.Module]:
    """Fully connected layers, each with batch normalization, Swish and dropout."""
    widths = [inputs, *[width] * layers]
    return [
        part
        for a, b in pairwise(widths)
        for part in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.SiLU(), nn.Dropout(dropout))
    ]


class AttentionCNN(nn.Module):
    """Latents through residual blocks with attention, composition features through a perceptron, then one head.

    Without composition features it is the density-only network (Fig S4), without latents the MAGPIE-only network
    (Fig S5). The paper prints no widths; those here are chosen for about a thousand crystals.

    Args:
        channels, edge: of the latents; ``channels=0`` for none.
        n_other: composition features; 0 for none.
        width: channels of the blocks; the composition branch has twice as many units.
        padding: as in the autoencoder that made the latents.
        dropout: probability.
        branch_layers: dense layers that the composition passes.
        head_layers: dense layers of the head, the last one included; the paper has one to three.
        head_width: units of its hidden ones.
    """

    def __init__(
        self,
        channels: int,
        edge: int,
        n_other: int,
        width: int = 32,
        padding: Padding = "circular",
        dropout: float = 0.2,
        branch_layers: int = 1,
        head_layers: int = 2,
        head_width: int = 64,
    ):
        super().__init__()
        self.shape = (channels, edge, edge, edge)
        self.n_latent = channels * edge**3
        if channels:
            self.volume = nn.Sequential(ResidualBlock(channels, width, padding), ResidualBlock(width, width, padding))
        if n_other:
            self.composition = nn.Sequential(*_dense(n_other, 2 * width, branch_layers, dropout))
        joined = (width if channels else 0) + (2 * width if n_other else 0)
        hidden = _dense(joined, head_width, head_layers - 1, dropout)
        self.head = nn.Sequential(*hidden, nn.Linear(head_width if hidden else joined, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, latents + other features)``, standardized, to ``(batch, 1)``."""
        parts = []
        if self.n_latent:
            parts.append(self.volume(x[:, : self.n_latent].reshape(-1, *self.shape)).mean((2, 3, 4)))
        if x.shape[1] > self.n_latent:
            parts.append(self.composition(x[:, self.n_latent :]))
        predicted: Tensor = self.head(torch.cat(parts, 1))
        return predicted
