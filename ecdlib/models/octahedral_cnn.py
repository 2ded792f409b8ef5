"""Leaner than lean: a lean CNN with the symmetry of the cube built in, evaluated where voxels differ.

The autocorrelation of a crystal of Laue class m-3m has all 48 symmetries of the cube. A network that respects them has
kernels tied over the orbits of their voxels: 10 values instead of 125 for 5^3, 4 instead of 27 for 3^3. Then every
feature map has the symmetry too, and it is enough to compute it at one voxel of each orbit: 455 of 26^3.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecdlib.features.autocorrelation import cubic_orbits
from ecdlib.models.lean_cnn import ARCHITECTURES, whitening


def neighbour_sums(size: int, kernel: int, stride: int) -> list[scipy.sparse.csr_matrix]:
    """For each orbit of the kernel, the matrix that sums the neighbours of that orbit.

    Row: distinct voxel of the layer's output; column: distinct voxel of its input ``(size, size, size)``; zeros are
    padded outside. With these, a convolution with a tied kernel is ``sum_o S_o @ x @ w_o``.
    """
    of_input, of_kernel = cubic_orbits(size), cubic_orbits(kernel).ravel()
    out_size = (size - 1) // stride + 1
    _, first = np.unique(cubic_orbits(out_size), return_index=True)
    rows = np.stack(np.unravel_index(first, (out_size,) * 3), -1) * stride
    offsets = np.indices((kernel,) * 3).reshape(3, -1).T - kernel // 2
    shape = len(rows), int(of_input.max()) + 1
    sums = []
    for orbit in range(int(of_kernel.max()) + 1):
        neighbours = rows[:, None] + offsets[of_kernel == orbit]
        row, which = np.nonzero(((neighbours >= 0) & (neighbours < size)).all(-1))
        column = of_input[tuple(neighbours[row, which].T)]
        sums.append(scipy.sparse.csr_matrix((np.ones(len(row)), (row, column)), shape))
    return sums


def _torch(matrix: Any) -> Tensor:
    matrix = matrix.tocsr()
    start, column, value = (torch.from_numpy(np.array(a)) for a in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():  # sparse CSR is in beta, says torch
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(start, column, value.float(), size=matrix.shape, check_invariants=False)


class _SumOfProducts(torch.autograd.Function):
    """``sum_o S_o @ x @ w_o`` for x ``(voxels, batch, in)``, w ``(orbits, in, out)``; S is the S_o side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, sums: Tensor, transposed: Tensor) -> Tensor:
        flat, (orbits, _, out) = x.flatten(0, 1), w.shape
        products = x.new_empty(orbits, len(flat), out)
        for product, matrix in zip(products, w, strict=True):
            torch.mm(flat, matrix, out=product)
        ctx.save_for_backward(flat, w)
        ctx.transposed, ctx.batch = transposed, x.shape[1]
        return (sums @ products.view(orbits * len(x), -1)).view(len(sums), x.shape[1], out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (flat, w), gradient = ctx.saved_tensors, gradients[0]
        products = (ctx.transposed @ gradient.reshape(len(gradient), -1)).view(len(w), len(flat), -1)
        of_w = torch.stack([flat.T @ product for product in products])
        of_x = products[0] @ w[0].T
        for product, matrix in zip(products[1:], w[1:], strict=True):
            of_x.addmm_(product, matrix.T)
        return of_x.view(-1, ctx.batch, w.shape[1]), of_w, None, None


class OctahedralConv3d(nn.Module):
    """Convolution whose kernel is constant on the orbits of the octahedral group.

    The free values are scaled so that a fresh layer has the output variance of a fresh ``nn.Conv3d`` of that size.

    Args:
        size: edge of the input grid.
    """

    orbit: Tensor
    sums: Tensor
    transposed: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, size: int):
        super().__init__()
        orbit = torch.from_numpy(cubic_orbits(kernel).copy())
        self.register_buffer("orbit", orbit, persistent=False)
        self.kernel, self.stride = kernel, stride
        bound = (in_channels * kernel**3) ** -0.5
        self.values = nn.Parameter(torch.empty(out_channels, in_channels, int(orbit.max()) + 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))
        parts = neighbour_sums(size, kernel, stride)
        # few channels in: sum first, (orbits * voxels) rows; else multiply first, (orbits * voxels) columns
        matrix = scipy.sparse.vstack(parts) if in_channels < out_channels else scipy.sparse.hstack(parts)
        self.register_buffer("sums", _torch(matrix), persistent=False)
        self.register_buffer("transposed", _torch(matrix.T), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The full kernel ``(out, in, k, k, k)``."""
        return self.values[:, :, self.orbit]

    def neighbours(self, x: Tensor) -> Tensor:
        """Sums over the neighbours of each orbit: ``(voxels, batch, in)`` -> ``(voxels out, batch, in, orbits)``."""
        orbits = self.values.shape[2]
        sums = self.sums @ x.reshape(len(x), -1)
        return sums.view(orbits, -1, *x.shape[1:]).movedim(0, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Distinct voxels ``(voxels, batch, in)`` -> ``(voxels out, batch, out)``."""
        if self.values.shape[1] < self.values.shape[0]:
            return self.neighbours(x).flatten(2) @ self.values.flatten(1).T + self.bias
        if self.kernel == 1:
            return x @ self.values[:, :, 0].T + self.bias
        product: Tensor = _SumOfProducts.apply(x, self.values.permute(2, 1, 0).contiguous(), self.sums, self.transposed)
        return product + self.bias


class OctahedralCNN(nn.Module):
    """A lean CNN (Table 1) with octahedral kernels; Model A has 11,641 parameters instead of 80,825.

    For autocorrelations of Laue class m-3m; those of m-3 (space groups 195-206) enter averaged over the 48
    orientations (:func:`cubic_average`).

    Args:
        architecture: name in :data:`ecdlib.models.lean_cnn.ARCHITECTURES`.
        dropout: probability, over whole channels.
        in_channels: number of correlations given.
        size: edge of the standard grid.
    """

    one_thread = True
    whiten: Tensor
    centre: Tensor
    share: Tensor

    def __init__(self, architecture: str = "A", dropout: float = 0.0, in_channels: int = 1, size: int = 51):
        super().__init__()
        convolutions, channels, self.size = [], in_channels, size
        edge = size
        for c in ARCHITECTURES[architecture]:
            convolutions.append(OctahedralConv3d(channels, c.channels, c.kernel, c.stride, edge))
            channels, edge = c.channels, (edge - 1) // c.stride + 1
        self.convolutions = nn.ModuleList(convolutions)
        self.activations = nn.ModuleList([nn.PReLU(c.channels) for c in ARCHITECTURES[architecture][:-1]])
        self.dropout = dropout
        counts = np.bincount(cubic_orbits(edge).ravel())
        self.register_buffer("share", torch.from_numpy((counts / counts.sum()).astype(np.float32)), persistent=False)
        n = in_channels * convolutions[0].values.shape[2]
        self.register_buffer("whiten", torch.eye(n))
        self.register_buffer("centre", torch.zeros(n))

    def precondition(self, x: Tensor) -> None:
        """Give the first layer coordinates in which its input, over ``x (n, ..., voxels)``, is white.

        The network can represent the same functions with as many parameters; only the path of the optimizer
        changes. Neighbouring voxels of an autocorrelation are so alike that it hardly gets anywhere without this. For
        a fresh network only.
        """
        first: Any = self.convolutions[0]
        patches = first.neighbours(self._distinct(x)).flatten(2).flatten(0, 1)
        weights = torch.from_numpy(np.bincount(cubic_orbits((self.size - 1) // first.stride + 1).ravel()))
        whiten, centre = whitening(patches, weights.repeat_interleave(len(x)).to(x.device))
        self.whiten.copy_(whiten)
        self.centre.copy_(centre)
        with torch.no_grad():  # each of the few white inputs counts as much as all voxels of a kernel did together
            first.values.mul_((first.kernel**3 / first.values.shape[2]) ** 0.5)

    def _distinct(self, x: Tensor) -> Tensor:
        """``(batch, voxels)`` or ``(batch, in, voxels)`` -> ``(voxels, batch, in)``."""
        return (x[:, None] if x.ndim == 2 else x).permute(2, 0, 1)

    def kernels(self) -> list[tuple[Tensor, Tensor]]:
        """Full kernels ``(out, in, k, k, k)`` and biases of the equivalent ordinary convolutions."""
        convolutions: list[Any] = list(self.convolutions)
        first = convolutions[0]
        values = (first.values.flatten(1) @ self.whiten).view_as(first.values)
        bias = first.bias - values.flatten(1) @ self.centre
        return [(values[:, :, first.orbit], bias)] + [(c.weight, c.bias) for c in convolutions[1:]]

    def _whole(self, x: Tensor) -> Tensor:
        for n, (weight, bias) in enumerate(self.kernels()):
            if n:
                x = F.dropout3d(self.activations[n - 1](x), self.dropout, self.training)
            c: Any = self.convolutions[n]
            x = F.conv3d(x, weight, bias, c.stride, padding=c.kernel // 2)
        return x.mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Distinct values ``(batch, k)`` or ``(batch, in, k)`` -> ``(batch, targets)``.

        The values are those of :func:`cubic_average` (k = 3,276 for a grid of 51). A whole grid
        ``(batch, in, size, size, size)`` is convolved in the ordinary way and gives the same.
        """
        if x.ndim == 5:
            return self._whole(x)
        with torch.autocast(x.device.type, enabled=False):  # torch has no sparse products in lower precision
            return self._few(self._distinct(x))

    def _few(self, x: Tensor) -> Tensor:
        first: Any = self.convolutions[0]
        x = (first.neighbours(x).flatten(2) - self.centre) @ (first.values.flatten(1) @ self.whiten).T + first.bias
        activations: list[Any] = list(self.activations)
        for activation, convolution in zip(activations, list(self.convolutions)[1:], strict=True):
            x = F.prelu(x.flatten(0, 1), activation.weight).view_as(x)
            if self.training and self.dropout:
                x = x * F.dropout(torch.ones_like(x[:1]), self.dropout)
            x = convolution(x)
        return torch.tensordot(self.share, x, 1)
