"""Attention 3D CNN on latents and composition (LatentMatFusion paper, section 6 and Fig 7)."""

from __future__ import annotations

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


class AttentionCNN(nn.Module):
    """Latents through residual blocks with attention, composition features through a perceptron, then one head.

    Without composition features it is the density-only network (Fig S4), without latents the MAGPIE-only network
    (Fig S5). The paper prints no widths; those here are chosen for about a thousand crystals.

    Args:
        channels, edge: of the latents; ``channels=0`` for none.
        n_other: composition features; 0 for none.
        width: channels of the blocks, and units of the dense layers.
        padding: as in the autoencoder that made the latents.
        dropout: probability.
    """

    def __init__(
        self,
        channels: int,
        edge: int,
        n_other: int,
        width: int = 32,
        padding: Padding = "circular",
        dropout: float = 0.2,
    ):
        super().__init__()
        self.shape = (channels, edge, edge, edge)
        self.n_latent = channels * edge**3
        if channels:
            self.volume = nn.Sequential(ResidualBlock(channels, width, padding), ResidualBlock(width, width, padding))
        if n_other:
            self.composition = nn.Sequential(
                nn.Linear(n_other, 2 * width), nn.BatchNorm1d(2 * width), nn.SiLU(), nn.Dropout(dropout)
            )
        joined = (width if channels else 0) + (2 * width if n_other else 0)
        self.head = nn.Sequential(
            nn.Linear(joined, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, latents + other features)``, standardized, to ``(batch, 1)``."""
        parts = []
        if self.n_latent:
            parts.append(self.volume(x[:, : self.n_latent].reshape(-1, *self.shape)).mean((2, 3, 4)))
        if x.shape[1] > self.n_latent:
            parts.append(self.composition(x[:, self.n_latent :]))
        predicted: Tensor = self.head(torch.cat(parts, 1))
        return predicted
