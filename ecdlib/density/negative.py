"""No negative charge: the redistribution of the Lean CNN paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ecdlib.density.core import ChargeDensity


@dataclass(frozen=True)
class Redistribution:
    """What :func:`redistribute_negative_charge` did."""

    density: ChargeDensity
    clusters: int  #: connected regions of negative voxels
    layers: int  #: layers of voxels the deepest cluster needed
    moved: float  #: electrons moved to fill the negative regions


_FACES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def _neighbours(flat: NDArray[np.intp], shape: tuple[int, int, int]) -> NDArray[np.intp]:
    """Flat indices ``(6, n)`` of the face neighbours across periodic boundaries."""
    xyz = np.stack(np.unravel_index(flat, shape))
    around = (xyz[None] + _FACES[:, :, None]) % np.array(shape)[None, :, None]
    return np.ravel_multi_index((around[:, 0], around[:, 1], around[:, 2]), shape)


def _merge(n: int, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    """Component number of each of n items linked by the pairs (a, b)."""
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.intp)


def _clusters(negative: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number 0..k-1 of the periodic face-connected cluster of each negative voxel, -1 elsewhere."""
    label, n = ndimage.label(negative)
    pairs = []
    for axis in range(3):
        first, last = label.take(0, axis).ravel(), label.take(-1, axis).ravel()
        both = (first > 0) & (last > 0)
        pairs.append(np.stack([first[both], last[both]]) - 1)
    a, b = np.concatenate(pairs, axis=1)
    return np.append(_merge(n, a, b), -1)[label.ravel() - 1]


def redistribute_negative_charge(density: ChargeDensity) -> Redistribution:
    """Fill negative regions from the layers around them (Lean CNN paper, 2.2.2).

    Each cluster of negative voxels (connected by faces, across cell boundaries) takes the charge of the positive
    voxels in the layer just outside it. While a layer holds no more than is missing it is emptied and the next one
    is taken; of the first layer that holds more, the remainder is shared out evenly over its positive voxels. The
    charge of a cluster with its layers is conserved. All clusters grow layer by layer together, and clusters whose
    layers meet while both still miss charge go on as one: the paper leaves that case open, and this way the result
    does not depend on an order and keeps the crystal's symmetry.

    Returns:
        The non-negative density with the number of clusters and layers and the charge moved.
    """
    if density.values.min() >= 0:
        whole = density.step("no negative charge", values=density.values.astype(np.float64))
        return Redistribution(whole, 0, 0, 0.0)
    flat = density.values.astype(np.float64).ravel()
    cluster = _clusters((flat < 0).reshape(density.shape))
    frontier = np.flatnonzero(cluster >= 0)
    n = int(cluster.max()) + 1
    missing = -np.bincount(cluster[frontier], flat[frontier], minlength=n)
    moved = float(missing.sum()) * density.voxel_volume
    flat[frontier] = 0.0
    layers, clusters = 0, n
    while frontier.size:
        layers += 1
        around = _neighbours(frontier, density.shape).ravel()
        grower = np.tile(cluster[frontier], 6)
        outside = cluster[around] != grower
        around, grower = around[outside], grower[outside]
        # Clusters meet where they want the same voxel or where one already owns what the other wants.
        order = np.argsort(around, kind="stable")
        around, grower = around[order], grower[order]
        same = np.flatnonzero(around[1:] == around[:-1])
        owned = np.flatnonzero(cluster[around] >= 0)
        left = np.concatenate([grower[same], grower[owned]])
        right = np.concatenate([grower[same + 1], cluster[around[owned]]])
        if (left != right).any():
            component = _merge(n, left, right)
            missing = np.bincount(component, missing)
            cluster = np.append(component, -1)[cluster]
            grower, n = component[grower], len(missing)
        first = np.append(True, around[1:] != around[:-1]) & (cluster[around] < 0)
        layer, owner = around[first], grower[first]
        cluster[layer] = owner
        held = np.bincount(owner, flat[layer], minlength=n)
        positive = np.bincount(owner, flat[layer] > 0, minlength=n)
        done = held > missing
        share = np.where(done, (held - missing) / np.maximum(positive, 1), 0.0)
        flat[layer] = np.where(flat[layer] > 0, share[owner], 0.0)
        missing = np.where(done, 0.0, missing - held)
        cluster[np.append(done, False)[cluster]] = -1  # a filled cluster is ordinary density again
        frontier = layer[~done[owner]]
    result = density.step(f"negative charge redistributed ({moved:.3g} electrons)", values=flat.reshape(density.shape))
    return Redistribution(result, clusters, layers, moved)
