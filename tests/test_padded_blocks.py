"""Padded grids of which a network sees only the surroundings of the crystal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecdlib.density.store import load_density
from ecdlib.features.common_grid import bundled_blocks, bundled_names, padded_block, padded_grid
from ecdlib.features.padded_blocks import PaddedBlocks
from ecdlib.models.autoencoder import ChargeDensityAutoencoder, OnPartOfGrid

EDGE = 64
NAMES = ("LiH_225", "TiAl_123", "AlCu3_225", "MgO_225", "NaCl_225")


@pytest.fixture
def blocks() -> PaddedBlocks:
    return PaddedBlocks.of([padded_block(load_density(name), EDGE) for name in NAMES], EDGE, 8)


def test_a_cube_is_a_part_of_the_grid_and_the_rest_is_empty(blocks: PaddedBlocks) -> None:
    for i, name in enumerate(NAMES):
        cube, grid = blocks[torch.tensor([i])][0, 0].numpy(), padded_grid(load_density(name), EDGE)
        m = len(cube)
        assert cube.shape == (m, m, m)
        assert m % 8 == 0
        assert m == int(blocks.edges[i]) < EDGE
        np.testing.assert_array_equal(cube, grid[:m, :m, :m].astype(np.float32))
        assert cube.sum() == pytest.approx(grid.sum(), rel=1e-6)
        assert not cube[m - blocks.margin :].any(), "zeros all around"


def test_batches_are_of_like_size_and_hold_each_once(blocks: PaddedBlocks) -> None:
    generator = torch.Generator().manual_seed(1)
    many = PaddedBlocks(blocks.blocks * 20, EDGE, multiple=8)
    batches = many.batches(torch.randperm(len(many), generator=generator), 10, generator)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(many)))
    edges = torch.stack([many.edges[batch] for batch in batches])
    assert (edges.min(1).values == edges.max(1).values).sum() >= len(batches) - 2
    assert edges[:, 0].diff().min() < 0, "not from small to large"


def test_the_error_is_that_of_the_whole_grid(blocks: PaddedBlocks) -> None:
    """Of a network that answers zero with zero, which one without biases does."""
    torch.manual_seed(0)
    network = ChargeDensityAutoencoder(batch_norm=False, dropout=0).eval()
    for name, values in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(values)
    part, wide = OnPartOfGrid(network, EDGE), PaddedBlocks(blocks.blocks, EDGE, margin=EDGE, multiple=8)
    with torch.no_grad():
        whole = wide[torch.arange(len(NAMES))]
        assert whole.shape == (len(NAMES), 1, EDGE, EDGE, EDGE)
        expected = (network(whole) - whole).square().mean((1, 2, 3, 4))
        for i in range(len(NAMES)):
            cube = blocks[torch.tensor([i])]
            assert cube.numel() < whole[i].numel()
            assert float((part(cube) - cube).square().mean()) == pytest.approx(float(expected[i]), rel=0.02)
            assert part.penalty() == 0


def test_what_a_network_makes_of_nothing_counts_over_the_rest_of_the_grid(blocks: PaddedBlocks) -> None:
    torch.manual_seed(0)
    network = ChargeDensityAutoencoder(batch_norm=False, dropout=0).eval()
    part, wide = OnPartOfGrid(network, EDGE), PaddedBlocks(blocks.blocks, EDGE, margin=EDGE, multiple=8)
    with torch.no_grad():
        network.decoder[-1].bias.fill_(0.5)
        for i in range(len(NAMES)):
            one = torch.tensor([i])
            cube, whole = blocks[one], wide[one]
            found = float((part(cube) - cube).square().mean() + part.penalty())
            assert found == pytest.approx(float((network(whole) - whole).square().mean()), rel=0.02)


def test_bundled_blocks_are_those_of_the_densities() -> None:
    names, blocks = bundled_names(), bundled_blocks(16)
    assert len(blocks) == len(names)
    for name in NAMES:
        if name in names:
            expected = padded_block(load_density(name), 16).astype(np.float32)
            np.testing.assert_array_equal(blocks[names.index(name)], expected)
    assert sum(name in names for name in NAMES) > 2


def test_nothing_does_not_spoil_the_batch_normalization(blocks: PaddedBlocks) -> None:
    torch.manual_seed(0)
    part = OnPartOfGrid(ChargeDensityAutoencoder(), EDGE).train()
    part(blocks[torch.tensor([0, 3])])
    before = {name: values.clone() for name, values in part.named_buffers()}
    with torch.no_grad():
        assert float(part.penalty()) > 0
    assert all(torch.equal(values, before[name]) for name, values in part.named_buffers())
    assert part.autoencoder.training
