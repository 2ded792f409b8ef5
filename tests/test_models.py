"""Published parameter counts, and what symmetry makes free."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matminer.featurizers.composition import ElementProperty
from pymatgen.core import Composition
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from ecdlib.base.errors import EcdError
from ecdlib.book.artifacts import load_artifacts
from ecdlib.data.tables import load_crystals
from ecdlib.density.cell import to_conventional
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import load_density
from ecdlib.features.autocorrelation import cubic_average, cubic_orbits, standardized_autocorrelation
from ecdlib.features.composition import magpie_features, magpie_labels
from ecdlib.learn.lean import TrainingParameters, build
from ecdlib.models import MODELS
from ecdlib.models.density_gpr import DensityGPR
from ecdlib.models.lean_cnn import LeanCNN, count_parameters, whitening
from ecdlib.models.literature_cnn import Mirzaee, Zhao
from ecdlib.models.octahedral_cnn import OctahedralCNN, neighbour_sums


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
def test_distinct_voxels_give_what_the_whole_grid_gives(features: np.ndarray, architecture: str) -> None:
    torch.manual_seed(0)
    model = OctahedralCNN(architecture).double().eval()
    distinct = torch.from_numpy(cubic_average(features))[None]
    model.precondition(distinct)
    with torch.no_grad():
        whole = model(torch.from_numpy(features)[None, None])
        few = model(distinct)
    assert torch.allclose(whole, few, rtol=1e-6, atol=0)  # the shares of the average are single precision


@pytest.mark.parametrize("channels", [1, 2])
def test_a_lean_network_gives_the_same_from_patches_that_were_prepared(features: np.ndarray, channels: int) -> None:
    torch.manual_seed(0)
    model = LeanCNN("A", in_channels=channels, size=25).double().eval()
    distinct = torch.from_numpy(cubic_average(features[1::2, 1::2, 1::2]))  # every other voxel
    distinct = distinct * torch.rand(4, channels, 1, dtype=torch.float64)
    model.precondition(distinct)
    with torch.no_grad():
        assert torch.allclose(model(model.prepare(distinct, torch.float64)), model(distinct), rtol=1e-6, atol=1e-9)


def test_gradients_on_distinct_voxels_are_those_of_the_whole_grid() -> None:
    torch.manual_seed(0)
    model = OctahedralCNN("A", size=11).double()
    distinct = torch.rand(3, int(cubic_orbits(11).max()) + 1, dtype=torch.float64)
    gradients = []
    for x in (distinct, distinct[:, None, torch.from_numpy(cubic_orbits(11).copy())]):
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)


def test_every_neighbour_is_summed_once() -> None:
    for size, kernel, stride in ((51, 5, 2), (26, 3, 1), (7, 1, 1)):
        sums = neighbour_sums(size, kernel, stride)
        inside = np.array(sum(s.sum(axis=1) for s in sums)).ravel()
        assert inside.max() == kernel**3  # away from the border
        assert inside.min() == ((kernel + 1) // 2) ** 3 or stride > 1  # in the corner
        assert sums[0].shape == (cubic_orbits((size - 1) // stride + 1).max() + 1, cubic_orbits(size).max() + 1)


def test_network_is_invariant_under_the_48_operations_of_any_input() -> None:
    torch.manual_seed(0)
    model = OctahedralCNN("A").double().eval()
    x = torch.rand(1, 1, 19, 19, 19, dtype=torch.float64)
    with torch.no_grad():
        reference = model(x)
        for axes in ((2, 3, 4), (2, 4, 3), (3, 2, 4), (3, 4, 2), (4, 2, 3), (4, 3, 2)):
            for flip in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
                turned = x.permute(0, 1, *axes).flip(flip)
                assert torch.allclose(model(turned), reference, rtol=1e-10, atol=0)


def test_tied_kernels_equal_an_ordinary_network_with_the_same_weights(features: np.ndarray) -> None:
    torch.manual_seed(0)
    tied = OctahedralCNN("A").double().eval()
    plain = LeanCNN("A").double().eval()
    with torch.no_grad():
        targets = [m for m in plain.layers if isinstance(m, torch.nn.Conv3d)]
        for (weight, bias), target, slopes in zip(tied.kernels(), targets, [*tied.activations, None], strict=True):
            target.weight.copy_(weight)
            target.bias.copy_(bias)
            assert slopes is None or (slopes.weight == 0.25).all()
        distinct = torch.from_numpy(cubic_average(features))[None]
        assert torch.allclose(plain(distinct), tied(distinct), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [LeanCNN, OctahedralCNN])
def test_whitening_changes_the_coordinates_and_not_the_function(kind: type[LeanCNN | OctahedralCNN]) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, int(cubic_orbits(11).max()) + 1, dtype=torch.float64).cumsum(1)
    plain, white = kind("A", size=11).double(), kind("A", size=11).double()
    white.precondition(x)
    octahedral = isinstance(white, OctahedralCNN)
    first = white.convolutions[0] if octahedral else white.layers[0]
    weight = first.values if octahedral else first.weight
    matrix, centre = (white.whiten, white.centre) if octahedral else (first.whiten, first.centre)
    with torch.no_grad():
        for (name, target), source in zip(white.state_dict().items(), plain.state_dict().values(), strict=True):
            if not name.endswith(("whiten", "centre")):
                target.copy_(source)
        kernel = weight.flatten(1).clone()
        weight.copy_((kernel @ torch.linalg.inv(matrix)).view_as(weight))
        first.bias.add_(kernel @ centre)
        assert torch.allclose(plain(x), white(x), rtol=1e-8, atol=1e-12)
    assert count_parameters(plain) == count_parameters(white)


def test_whitened_rows_are_white() -> None:
    torch.manual_seed(0)
    rows = torch.randn(500, 4, dtype=torch.float64) @ torch.diag(torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)) + 7
    matrix, centre = whitening(rows, torch.ones(500), floor=0)
    white = (rows - centre) @ matrix.T
    assert torch.allclose(white.T @ white / 500, torch.eye(4, dtype=torch.float64), atol=1e-10)


def test_literature_networks_have_the_size_that_their_page_says() -> None:
    assert count_parameters(Zhao(24)) == 1_998_633
    assert count_parameters(Mirzaee(24)) == 69_664 + 1728 * 2048 + 2048 + 2048 * 1024 + 1024 + 1025
    assert Zhao(24)(torch.rand(2, 1, 24, 24, 24)).shape == (2, 1)


def test_magpie_features_do_not_depend_on_how_a_formula_is_written() -> None:
    a, b, c = magpie_features(["NaCl", "Na2Cl2", "XeF2"])
    assert len(a) == 132
    assert np.allclose(a, b)
    assert np.isfinite(c).all()  # a property missing for Xe is filled in


def test_magpie_features_are_those_of_matminer() -> None:
    formulas = load_crystals()["formula"].iloc[::60].tolist()
    theirs = ElementProperty.from_preset("magpie", impute_nan=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pymatgen, on elements without some property
        expected = [theirs.featurize(Composition(formula)) for formula in formulas]
    np.testing.assert_allclose(magpie_features(formulas), expected, rtol=1e-12, atol=1e-9)
    assert magpie_labels() == theirs.feature_labels()


@pytest.mark.parametrize("name", MODELS)
def test_models_keep_the_contract_of_scikit_learn(name: str) -> None:
    """They can be cloned, their parameters can be read and set, and they can be cross-validated."""
    rng, about = np.random.default_rng(0), MODELS[name]
    target = "both" if about.targets > 1 else "bulk_modulus"
    p = TrainingParameters(model=name, target=target, size=9, grid=8, epochs=2)
    X: Any = rng.random((60, int(cubic_orbits(9).max()) + 13)).cumsum(1)
    if about.inputs == ("density",):
        X = rng.random((60, 1, 8, 8, 8))
    elif about.inputs == ("composition",):
        X = np.array(["NaCl", "MgO", "LiF", "CaO"] * 15)
    elif "quantiles" not in about.inputs:
        X = X[:, :-12]
    y = rng.uniform(10, 200, (60, about.targets)).squeeze()
    model = build(p, progress=False)
    again = clone(model)
    assert type(again) is type(model)
    assert repr(again.get_params()) == repr(model.get_params())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remarks on noise without a pattern
        assert np.isfinite(cross_val_score(model, X, y, cv=2)).all()
        predicted = again.fit(X, y).predict(X)
    assert np.shape(predicted) == y.shape
    assert not hasattr(model, "state")  # clones were fitted, not the model itself
    if state := getattr(again, "state", None):
        restored = clone(again).restore(state)
        assert np.array_equal(restored.predict(X), predicted)


def test_a_model_that_is_none_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(EcdError, match=", ".join(f"'{name}'" for name in [*MODELS][:-1])):
        TrainingParameters.checked({"model": "leanest"})


def test_gaussian_process_agrees_with_scikit_learn_and_survives_storage() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rng = np.random.default_rng(0)
    X = np.exp(rng.normal(size=(60, 30)) @ np.diag(np.linspace(1, 0.1, 30)))
    y = np.exp(np.log(X[:, 0]) + 0.5 * np.log(X[:, -1]) + 0.05 * rng.normal(size=60)) * 50
    model = DensityGPR(5, log_target=True).fit(X[:40], y[:40])
    value, std = model.predict(X[40:], return_std=True)
    variance, *lengths, noise = np.exp(model.state["hyperparameters"])
    kernel = ConstantKernel(variance) * Matern([lengths[0]] * 5 + [lengths[1]] * 12, nu=2.5) + WhiteKernel(noise)
    peer = GaussianProcessRegressor(kernel, optimizer=None).fit(model.state["training"], model.state["z"])
    mean, spread = peer.predict(np.hstack(model._groups(X[40:])), return_std=True)
    s = model.state
    assert np.allclose(np.log(value), mean * s["unit"] + s["offset"])
    log_spread = spread * s["unit"]
    assert np.allclose(std, value * np.exp(log_spread**2 / 2) * np.sqrt(np.expm1(log_spread**2)))
    best = -peer.log_marginal_likelihood(kernel.theta)
    for shift in np.vstack([np.eye(4), -np.eye(4)]) * 0.05:  # the fitted hyperparameters are a minimum
        assert -peer.log_marginal_likelihood(kernel.theta + _spread(shift)) > best - 1e-6
    again = DensityGPR(log_target=True).restore(dict(model.state))
    assert np.array_equal(again.predict(X[40:]), value)


def _spread(shift: np.ndarray) -> np.ndarray:
    """A shift of (variance, two lengths, noise) for a kernel with 5 + 12 lengths."""
    return np.r_[shift[0], [shift[1]] * 5, [shift[2]] * 12, shift[3]]


def test_gaussian_process_does_not_depend_on_the_unit_of_the_target() -> None:
    rng = np.random.default_rng(1)
    X, y = np.exp(rng.normal(size=(30, 20))), rng.uniform(10, 300, 30)
    for log, scale in ((True, 1000.0), (False, 96.485)):
        a, b = (DensityGPR(4, log).fit(X[:20], y[:20] * factor).predict(X[20:]) for factor in (1.0, scale))
        assert np.allclose(a * scale, b, rtol=1e-3)


@pytest.mark.parametrize(("kind", "first"), [(LeanCNN, 64 * 125), (OctahedralCNN, 64 * 10)])
def test_networks_of_two_channels(kind: type[LeanCNN | OctahedralCNN], first: int) -> None:
    """The first layer has as many kernels again; distinct values and the whole grid give the same."""
    assert count_parameters(kind("A", in_channels=2)) == count_parameters(kind("A")) + first
    torch.manual_seed(0)
    model = kind("A", size=11, in_channels=2).double().eval()
    distinct = torch.rand(3, 2, int(cubic_orbits(11).max()) + 1, dtype=torch.float64).cumsum(2)
    model.precondition(distinct)
    with torch.no_grad():
        few = model(distinct)
        whole = model(distinct[:, :, torch.from_numpy(cubic_orbits(11).copy())])
        swapped = model(distinct.flip(1))
    assert few.shape == (3, 1)
    assert torch.allclose(few, whole, rtol=1e-6, atol=0)
    assert not torch.allclose(few, swapped, rtol=1e-3)


def channels_of_random_statistics(n: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two channels ``(n, 30)``, and a target that needs both."""
    rng = np.random.default_rng(2)
    a, b = (np.exp(rng.normal(size=(n, 30)) @ np.diag(np.linspace(1, 0.1, 30))) for _ in range(2))
    return a, b, 50 * a[:, 0] * b[:, 0] ** 0.7 * np.exp(0.02 * rng.normal(size=n))


def test_the_same_density_twice_tells_the_gaussian_process_no_more_than_once() -> None:
    a, _, y = channels_of_random_statistics()
    one = DensityGPR(5, log_target=True).fit(a[:40], y[:40])
    s = dict(one.state)
    variance, *lengths, noise = s["hyperparameters"]
    twice = {name: np.concatenate([s[name]] * 2) for name in ("centre", "components", "mean", "scale")}
    wider = [length + np.log(2) / 2 for length in lengths]  # each of the two groups counts half
    twice |= {
        "hyperparameters": np.array([variance, *wider, *wider, noise]),
        "training": np.hstack([s["training"]] * 2),
    }
    two = DensityGPR(log_target=True, channels=2).restore({**s, **twice})
    for x, z in zip(one.predict(a, return_std=True), two.predict(np.hstack([a, a]), return_std=True), strict=True):
        assert np.allclose(x, z, rtol=1e-6)


def test_a_gaussian_process_of_two_channels_uses_both_and_survives_storage() -> None:
    a, b, y = channels_of_random_statistics(90)
    both = np.hstack([a, b])
    two = DensityGPR(5, log_target=True, channels=2).fit(both[:70], y[:70])
    assert len(two.state["hyperparameters"]) == 1 + 4 + 1
    error = {}
    for name, X, channels in (("a", a, 1), ("b", b, 1), ("both", both, 2)):
        predicted = DensityGPR(5, True, channels).fit(X[:70], y[:70]).predict(X[70:])
        error[name] = np.abs(np.log(predicted / y[70:])).mean()
    assert error["both"] < 0.7 * min(error["a"], error["b"])
    again = DensityGPR(log_target=True, channels=2).restore(dict(two.state))
    assert np.array_equal(again.predict(both[70:]), two.predict(both[70:]))


def test_every_model_on_correlations_takes_two_channels() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 2, int(cubic_orbits(9).max()) + 1)).cumsum(2), rng.random(40)
    for name, model in MODELS.items():
        if model.inputs != ("autocorrelation",) or model.targets > 1:
            continue
        p = TrainingParameters(model=name, convention="portable", size=9, epochs=1)
        estimator = model.build(p)
        if hasattr(estimator, "progress"):
            estimator.progress = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's remarks on noise without a pattern
            predicted = estimator.fit(X, y).predict(X)
        assert np.asarray(predicted).reshape(-1).shape == (40,), name
