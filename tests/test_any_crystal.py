"""Models of any crystal: the Gaussian process, its stack with trees, features that they take, and what follows."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import spglib
from conftest import CRYSTALS
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Lattice, Structure
from scipy.optimize import check_grad
from scipy.spatial.transform import Rotation
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from ecdlib.base.resources import data_file
from ecdlib.data.tables import load_structures
from ecdlib.density.core import SYMPREC, symmetry
from ecdlib.density.superpose import superpose
from ecdlib.features.bonds import REACH, SHELLS, _elements, bond_statistics
from ecdlib.features.crystal import joined_features, log_invariants, log_quantiles, structure_features
from ecdlib.features.invariants import CONVENTIONS, density_invariants, structure_invariants
from ecdlib.features.potential import PotentialTensors, load_potential, tensor_features
from ecdlib.learn.any_crystal import (
    LEARNED,
    Answers,
    beside_pydemi,
    derive,
    element_energies,
    errors,
    from_moduli,
    load_pydemi,
    load_targets,
    scaled,
    unscaled,
)
from ecdlib.learn.crystal_model import standard
from ecdlib.learn.model_file import load_model
from ecdlib.models import group_gpr
from ecdlib.models.group_gpr import GroupGPR
from ecdlib.models.stacked import BlockScaler, StackedModel
from ecdlib.models.trees import predict_trees, tree_array


def crystal(name: str) -> Structure:
    lattice, species, positions = CRYSTALS[name]
    return Structure(Lattice(lattice), species, positions)


def sample(n: int = 60, seed: int = 0) -> tuple[Any, Any]:
    X = np.random.default_rng(seed).normal(size=(n, 4))
    return X, np.sin(X[:, 0]) + 0.3 * X[:, 1] + 0.05 * np.random.default_rng(seed + 1).normal(size=n)


def test_process_equals_that_of_scikit_learn_at_the_same_hyperparameters() -> None:
    X, y = sample()
    model = GroupGPR([0, 0, 1, 1], freedom=None).fit(X, y)
    v, *lengths, noise = np.exp(model.hyperparameters_)
    kernel = ConstantKernel(v) * Matern(np.repeat(lengths, 2), nu=2.5) + WhiteKernel(noise)
    z = (y - np.median(y)) / y.std()
    reference = GaussianProcessRegressor(kernel, optimizer=None, alpha=0).fit(X, z)
    asked = sample(10, 5)[0]
    mean, std = reference.predict(asked, return_std=True)
    found, spread = model.predict(asked, return_std=True)
    np.testing.assert_allclose(found, mean * y.std() + np.median(y), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(spread, std * y.std(), rtol=1e-5)


def test_gradient_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = sample(25)
    seen: list[Any] = []
    monkeypatch.setattr(group_gpr, "minimize", lambda f, start, **_: seen.append(f) or type("Found", (), {"x": start}))
    groups, weights = np.array([0, 0, 1, 2]), np.linspace(1, 4, 25)
    group_gpr._maximize(group_gpr._start(groups), X, y, groups, weights, 1)
    at = np.array([0.3, 0.2, 0.7, 1.1, -2.0])
    assert check_grad(lambda t: seen[0](t)[0], lambda t: seen[0](t)[1], at) < 1e-4


def test_predictions_of_left_out_folds_equal_those_of_refits() -> None:
    X, y = sample()
    fold = np.arange(60) % 4
    model = GroupGPR([0, 0, 1, 1], freedom=None).fit(X, y)
    mean, std = model.cross_predict(fold)
    v, *lengths, noise = np.exp(model.hyperparameters_)
    kernel = ConstantKernel(v) * Matern(np.repeat(lengths, 2), nu=2.5) + WhiteKernel(noise)
    z, rest = (y - model.offset_) / model.unit_, fold != 1
    refit = GaussianProcessRegressor(kernel, optimizer=None, alpha=0).fit(X[rest], z[rest])
    expected, spread = refit.predict(X[~rest], return_std=True)
    np.testing.assert_allclose(mean[~rest], expected * model.unit_ + model.offset_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(std[~rest], spread * model.unit_, rtol=1e-5)


def test_outliers_are_given_little_weight() -> None:
    X, y = sample(200)
    y[:6] += 3
    normal, robust = (GroupGPR(np.zeros(4, int), freedom=f, reweighted=2).fit(X, y) for f in (None, 4))
    assert robust.noise_weights_[:6].min() > 10
    assert np.median(robust.noise_weights_) < 1.2
    asked, expected = sample(100, 7)
    error = [np.abs(m.predict(asked) - expected).mean() for m in (normal, robust)]
    assert error[1] < 0.8 * error[0]


def test_process_is_an_estimator_of_scikit_learn() -> None:
    model = clone(GroupGPR((0, 0, 1, 1), subset=30))
    assert model.get_params()["subset"] == 30
    X, y = sample()
    assert model.fit(X, y).score(X, y) > 0.9


def test_stack_is_not_worse_than_the_process_and_its_intervals_hold() -> None:
    X, y = sample(300)
    blocks = {"size": X[:, :2], "tensor": X[:, 2:]}
    model = StackedModel(list(blocks)).fit(blocks, y, np.arange(300) % 5)
    assert np.abs(y - model.left_out).mean() <= np.abs(y - model.process_left_out).mean()
    value, spread = model.predict(blocks_of(sample(400, 9)[0]))
    truth = sample(400, 9)[1]
    assert np.abs(truth - value).mean() < 0.15
    assert 0.9 < (np.abs(truth - value) <= model.factor * spread).mean() <= 1


def blocks_of(X: Any) -> dict[str, Any]:
    return {"size": X[:, :2], "tensor": X[:, 2:]}


def test_scaled_blocks_are_uncorrelated_and_their_spreads_even_out() -> None:
    rng = np.random.default_rng(0)
    blocks = {"bonds": rng.normal(size=(200, 5)) @ rng.normal(size=(5, 30)), "size": rng.normal(3, 7, (200, 2))}
    scaler = BlockScaler(["bonds", "size"]).fit(blocks)
    X = scaler.transform(blocks)
    assert X.shape == (200, 7)
    assert list(scaler.groups) == [0] * 5 + [1] * 2
    standard = (blocks["bonds"] - blocks["bonds"].mean(0)) / blocks["bonds"].std(0)
    variances = np.linalg.svd(standard, compute_uv=False)[:5] ** 2 / 200
    np.testing.assert_allclose(X[:, :5].T @ X[:, :5] / 200, np.diag(np.sqrt(variances / variances[0])), atol=1e-6)


@pytest.mark.parametrize("name", ["zincblende", "triclinic", "hexagonal"])
def test_invariants_of_a_structure_are_those_of_its_superposed_density(name: str) -> None:
    structure = crystal(name)
    on_grid = density_invariants(superpose(structure, "chemical"))
    np.testing.assert_allclose(structure_invariants(structure, "chemical"), on_grid, atol=1e-5 * on_grid.max())


def test_features_do_not_depend_on_cell_orientation_or_origin() -> None:
    structure = crystal("monoclinic")
    expected = structure_features(structure)
    turned = Structure(
        Lattice(structure.lattice.matrix @ Rotation.random(random_state=1).as_matrix()),
        structure.species,
        np.add(structure.frac_coords, [0.1, 0.2, 0.3]),
    )
    repeated = structure.make_supercell([[1, 0, 0], [1, 1, 0], [0, 0, 2]], in_place=False)
    for other in (turned, repeated):
        found = structure_features(other)
        for name, values in expected.items():
            # the grid of the quantiles lies elsewhere: their extremes move a little
            np.testing.assert_allclose(found[name], values, atol=0.2 if "quantiles" in name else 2e-3, err_msg=name)


@pytest.mark.parametrize("name", ["zincblende", "triclinic", "hexagonal"])
def test_features_of_both_conventions_are_those_of_each_alone(name: str) -> None:
    structure = crystal(name)
    found, reduced = structure_features(structure), structure.get_reduced_structure()
    for convention in CONVENTIONS:
        p, quantiles = structure_invariants(reduced, convention), log_quantiles(superpose(reduced, convention))
        np.testing.assert_allclose(found[f"invariants {convention}"], log_invariants(p), rtol=1e-9)
        np.testing.assert_allclose(found[f"quantiles {convention}"], quantiles, rtol=1e-6)
    np.testing.assert_allclose(found["bonds"], bond_statistics(reduced), rtol=1e-9, atol=1e-9)


def test_features_are_those_that_the_shipped_model_was_trained_on() -> None:
    model = load_model("crystal")
    names, structures = model.arrays["names"].tolist(), load_structures()
    some = list(range(0, len(names), 700))
    prepared = [model.prepare(structures[names[row]]) for row in some]
    rows = joined_features([p.features for p in prepared], [p.cell.composition.reduced_formula for p in prepared])
    np.testing.assert_allclose(model.scaler.transform(rows), model.arrays["X"][some], rtol=2e-3, atol=2e-3)


def test_bonds_are_a_sum_over_neighbours() -> None:
    structure = crystal("rocksalt")
    counts = bond_statistics(structure).reshape(len(SHELLS), -1)[:, 0]
    direct = np.zeros(len(SHELLS))
    radii = _elements()[1]
    for site in structure:
        for other in structure.get_neighbors(site, 9.0):
            x = other.nn_distance / (radii[site.specie.Z - 1] + radii[other.specie.Z - 1])
            direct += [np.exp(-(((x - c) / w) ** 2) / 2) / 2 if x < REACH else 0 for c, w in SHELLS]
    np.testing.assert_allclose(counts, direct, rtol=1e-6)


def tensors(C: Any) -> PotentialTensors:
    n = len(C)
    return PotentialTensors(np.arange(n).astype(str), C, C, np.zeros((n, 6)), np.full(n, np.nan), np.zeros((n, 128)))


def test_tensor_features_are_the_moduli_in_any_frame() -> None:
    A = np.random.default_rng(0).normal(size=(6, 6))
    C = 5 * (A @ A.T) + np.diag([90, 90, 90, 40, 40, 40])
    tensor = ElasticTensor.from_voigt(C)
    turned = tensor.rotate(Rotation.random(random_state=2).as_matrix(), tol=1e-3).voigt
    found = tensor_features(tensors(np.stack([C, turned])))
    moduli = np.log([tensor.k_voigt, tensor.g_voigt, tensor.k_reuss, tensor.g_reuss])
    np.testing.assert_allclose(found[0, :4], moduli, rtol=1e-9)
    np.testing.assert_allclose(found[1], found[0], atol=1e-7)


def test_unstable_tensors_have_finite_features() -> None:
    C = np.diag([100.0, 100, 100, -20, 0, 30])
    assert np.isfinite(tensor_features(tensors(C[None]))).all()
    potential = load_potential()
    assert len(set(potential.names)) == len(potential.names) == 5917 + 1031
    assert set(potential.names) <= set(load_structures())
    assert np.isfinite(tensor_features(potential)).all()


def test_scales_are_inverted() -> None:
    y = np.array([-3.0, 0.2, 40.0])
    for name, learned in LEARNED.items():
        allowed = y if learned.signed else y[1:]
        back = unscaled(scaled(allowed, learned), learned)
        np.testing.assert_allclose(back, np.clip(allowed, 0, 1) if learned.probability else allowed, err_msg=name)


def test_what_follows_from_moduli_is_what_pymatgen_says() -> None:
    K, G = 100.0, 45.0
    structure = crystal("zincblende")
    C = np.diag([K + 4 * G / 3] * 3 + [G] * 3) + np.pad(np.full((3, 3), K - 2 * G / 3) * (1 - np.eye(3)), (0, 3))
    tensor = ElasticTensor.from_voigt(C)
    volume = structure.volume / len(structure)
    found = from_moduli(*(np.array([x]) for x in (K, G, float(structure.density), volume)))
    assert found["youngs_modulus"][0] == pytest.approx(tensor.y_mod / 1e9, rel=1e-6)
    assert found["thermal_conductivity_cahill"][0] == pytest.approx(tensor.cahill_thermalcond(structure), rel=2e-3)
    assert found["thermal_conductivity_clarke"][0] == pytest.approx(tensor.clarke_thermalcond(structure), rel=2e-3)
    assert found["sound_velocity_transverse"][0] == pytest.approx(tensor.trans_v(structure), rel=2e-3)


def test_energies_of_elements_are_found_among_outliers() -> None:
    rng = np.random.default_rng(0)
    shares, energies = rng.dirichlet(np.ones(5), 200), rng.normal(size=5)
    difference = shares @ energies
    difference[:10] += 3
    np.testing.assert_allclose(element_energies(shares, difference), energies, atol=1e-3)


def test_errors_are_absolute_logarithmic_or_squared() -> None:
    truth, value = np.array([2.0]), np.array([1.0])
    assert errors("bulk_modulus", truth, value)[0] == 1
    assert errors("refractive_index", truth, value)[0] == pytest.approx(np.log(2))
    assert errors("is_metal", np.array([1.0]), np.array([0.7]))[0] == pytest.approx(0.09)


def test_intervals_of_derived_properties_hold_among_training_crystals(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(400)]
    table = {"size": np.log(np.column_stack([rng.uniform(10, 20, 400), rng.uniform(3, 9, 400)])), "name": names}
    monkeypatch.setattr("ecdlib.learn.any_crystal.crystal_table", lambda: table)
    truth = {m: rng.uniform(40, 200, 400) for m in "KG"}
    guess = {m: y * np.exp(0.1 * rng.normal(size=400)) for m, y in truth.items()}
    frames = [
        pd.DataFrame({"value": v, "low": 0.85 * v, "high": 1.15 * v}, index=pd.Index(names)) for v in guess.values()
    ]
    labels = pd.DataFrame(from_moduli(truth["K"], truth["G"], *np.exp(table["size"]).T[::-1]), index=pd.Index(names))
    for name, answers in derive(*(Answers(f, f) for f in frames), labels).items():
        part = answers.predicted
        held = (part["low"] <= labels[name]) & (labels[name] <= part["high"])
        assert held.mean() == pytest.approx(0.95, abs=0.01), name


def test_trees_as_arrays_say_the_same_as_the_library_that_grew_them() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 6)).astype(np.float32)
    y = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2])
    grown = {"verbosity": -1, "num_iterations": 40, "num_threads": 1}
    booster = lightgbm.train(grown, lightgbm.Dataset(X, y))
    found = predict_trees(tree_array(booster.model_to_string()), X)
    np.testing.assert_allclose(found, booster.predict(X), rtol=1e-5, atol=1e-5)
    constant = lightgbm.train(grown, lightgbm.Dataset(X[:30], np.full(30, 2.5)))  # trees without a split
    np.testing.assert_allclose(predict_trees(tree_array(constant.model_to_string()), X), 2.5, rtol=1e-6)


def test_a_part_of_a_scaling_scales_alike() -> None:
    rng = np.random.default_rng(0)
    blocks = {"size": rng.normal(size=(50, 2)), "tensor": rng.normal(size=(50, 3)), "elements": rng.random((50, 4))}
    whole = BlockScaler(list(blocks)).fit(blocks)
    some = whole.part(["elements", "tensor"])
    columns = whole.columns(["elements", "tensor"])
    np.testing.assert_array_equal(some.transform(blocks), whole.transform(blocks)[:, columns])
    alone = BlockScaler(["elements", "tensor"]).fit(blocks)
    np.testing.assert_array_equal(some.transform(blocks), alone.transform(blocks))
    assert len(np.unique(some.groups)) == len(np.unique(alone.groups)) == some.groups.max() + 1


def test_shipped_predictions_answer_every_test_crystal_of_pydemi() -> None:
    predictions = pd.read_csv(data_file("results/pydemi_split.csv.xz"))
    assert (predictions.groupby(["property", "inputs"])["value"].count() == 606).all()
    pydemi = load_pydemi()
    assert set(predictions["material_id"]) == set(pydemi.loc[pydemi["split"] == "test", "material_id"])
    table = beside_pydemi(predictions).set_index(["property", "inputs"])
    assert len(table) == 44
    assert table.loc[("bulk_modulus", "structure"), "pydemi"] == pytest.approx(7.53, abs=0.01)
    bounded = predictions.dropna(subset=["low"])
    assert ((bounded["low"] <= bounded["value"]) & (bounded["value"] <= bounded["high"])).all()


def test_labels_are_named_once() -> None:
    assert load_targets().columns.is_unique


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
def test_the_standard_cell_is_that_of_spglib_for_every_centring() -> None:
    seen = set()
    for name, structure in list(load_structures().items())[::97]:
        found = symmetry(structure)
        given = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
        cell, positions, numbers = spglib.standardize_cell(given, to_primitive=True, symprec=SYMPREC)
        ours, theirs = standard(structure, found), Structure(cell, numbers, positions)
        np.testing.assert_allclose(ours.lattice.matrix, theirs.lattice.matrix, atol=1e-6, err_msg=name)
        apart = ours.lattice.get_all_distances(ours.frac_coords, theirs.frac_coords)
        alike = np.array(ours.atomic_numbers)[:, None] == np.array(theirs.atomic_numbers)
        assert (((apart < 1e-4) & alike).sum(1) == 1).all(), name
        seen.add(found.international[0])
    assert seen >= {"P", "C", "I", "F", "R"}
