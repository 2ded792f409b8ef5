"""Boosted trees as arrays: predictions without the library that grew them, which takes half a second to import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ecdlib.density.core import Floats

#: Samples that are asked at once, so that memory is bounded.
CHUNK = 1000


def tree_array(text: str) -> NDArray[np.float32]:
    """What predictions need of LightGBM's text of regression trees (``Booster.model_to_string``).

    Features in single precision go to the same sides: a threshold becomes the largest number of single precision that
    does not exceed it. The values of the leaves are rounded to single precision.

    Returns:
        Of each tree's splits the feature and the threshold, up to which a sample goes left, the next split on the left
        and on the right, or the leaf ``i`` as ``-1 - i``; and the values of its leaves: ``(5, trees, leaves)``.
    """
    names = ("split_feature", "threshold", "left_child", "right_child", "leaf_value")
    trees = [
        dict(line.split("=", 1) for line in tree.splitlines() if "=" in line)
        for tree in text.partition("end of trees")[0].split("\nTree=")[1:]
    ]
    words = [[tree.get(name, "").split() for tree in trees] for name in names]
    found = np.zeros((len(names), len(trees), max(map(len, words[-1]))))
    found[2:4] = -1  # a tree without a split is its first leaf
    for part, rows in zip(found, words, strict=True):
        for values, row in zip(part, rows, strict=True):
            values[: len(row)] = row
    single = found.astype(np.float32)
    single[1] = np.where(single[1] > found[1], np.nextafter(single[1], np.float32(-np.inf)), single[1])
    return single


def predict_trees(trees: NDArray[np.float32], X: NDArray[np.float32]) -> Floats:
    """Sum of the trees for samples ``(n, features)``, ``(n,)``.

    Args:
        trees: see :func:`tree_array`.
    """
    first, threshold, leaf = np.arange(trees.shape[1]) * trees.shape[2], trees[1].ravel(), trees[4].ravel()
    feature, left, right = (trees[i].astype(np.int64).ravel() for i in (0, 2, 3))
    found = np.empty(len(X))
    for start in range(0, len(X), CHUNK):
        x = X[start : start + CHUNK]
        at = np.tile(first, len(x))  # where each sample stands in each tree
        row = np.repeat(np.arange(len(x)) * x.shape[1], len(first))
        reached = np.empty(at.size, dtype=np.int64)
        under_way, tree = np.arange(at.size), at
        while under_way.size:
            below = np.where(x.ravel()[row + feature[at]] <= threshold[at], left[at], right[at])
            ended = below < 0
            reached[under_way[ended]] = tree[ended] - 1 - below[ended]
            under_way, row, tree = (each[~ended] for each in (under_way, row, tree))
            at = tree + below[~ended]
        found[start : start + CHUNK] = leaf[reached].reshape(len(x), -1).sum(1, dtype=np.float64)
    return found
