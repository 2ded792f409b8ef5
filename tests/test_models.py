"""Published parameter counts, and what symmetry makes free."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecdlib.artifacts import load_artifacts
from ecdlib.correlations import cubic_orbits, standardized_autocorrelation
from ecdlib.datasets import load_density
from ecdlib.errors import EcdError
from ecdlib.models.lean_cnn import LeanCNN, count_parameters
from ecdlib.models.octahedral_cnn import OctahedralCNN, octant
from ecdlib.preprocess import redistribute_negative_charge, to_conventional


def test_published_parameter_counts() -> None:
    _, _, a, b, c = load_artifacts()["lean-table1"].numbers or []
    assert count_parameters(LeanCNN("A")) == a
    assert count_parameters(LeanCNN("C")) == c
    assert count_parameters(LeanCNN("B")) == b + 64  # the print leaves out 64 slopes


def test_octahedral_kernels_have_10_and_4_values_and_model_a_11641() -> None:
    assert [cubic_orbits(k).max() + 1 for k in (1, 3, 5)] == [1, 4, 10]
    assert count_parameters(OctahedralCNN("A")) == 11_641


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    density = redistribute_negative_charge(to_conventional(load_density("Fe3SnC_221"))).density
    return standardized_autocorrelation(density)


@pytest.mark.parametrize("architecture", ["A", "B"])
def test_octant_gives_what_the_whole_grid_gives(features: np.ndarray, architecture: str) -> None:
    torch.manual_seed(0)
    model = OctahedralCNN(architecture).double().eval()
    with torch.no_grad():
        whole = model(torch.from_numpy(features)[None, None], octant=False)
        eighth = model(torch.from_numpy(octant(features))[None, None])
    assert torch.allclose(whole, eighth, rtol=1e-10, atol=0)


def test_network_is_invariant_under_the_48_operations_of_any_input() -> None:
    torch.manual_seed(0)
    model = OctahedralCNN("A").double().eval()
    x = torch.rand(1, 1, 19, 19, 19, dtype=torch.float64)
    with torch.no_grad():
        reference = model(x, octant=False)
        for axes in ((2, 3, 4), (2, 4, 3), (3, 2, 4), (3, 4, 2), (4, 2, 3), (4, 3, 2)):
            for flip in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
                turned = x.permute(0, 1, *axes).flip(flip)
                assert torch.allclose(model(turned, octant=False), reference, rtol=1e-10, atol=0)


def test_tied_kernels_equal_an_ordinary_network_with_the_same_weights(features: np.ndarray) -> None:
    torch.manual_seed(0)
    tied = OctahedralCNN("A").double().eval()
    plain = LeanCNN("A").double().eval()
    with torch.no_grad():
        targets = [m for m in plain.layers if isinstance(m, torch.nn.Conv3d)]
        for source, target in zip(tied.convolutions, targets, strict=True):
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
        x = torch.from_numpy(features)[None, None]
        assert torch.allclose(plain(x), tied(x, octant=False), rtol=1e-10, atol=0)


def test_octant_refuses_what_has_not_the_symmetry(features: np.ndarray) -> None:
    skew = features.copy()
    skew[30, 25, 25] += 0.01 * features.max()
    with pytest.raises(EcdError, match="m-3m"):
        octant(skew)
    with pytest.raises(EcdError, match="4 k \\+ 3"):
        octant(features[1:-1, 1:-1, 1:-1])
