"""What the calculation adds: deformation densities, the folds of the studies, and what is concluded from them."""

from itertools import combinations

import numpy as np
import pytest

from ecdlib.density.store import load_densities, load_selection
from ecdlib.features.deformation import deformation, deformation_features, state_features
from ecdlib.features.potential import load_potential
from ecdlib.learn.inputs import (
    INPUTS,
    TARGETS,
    Reduced,
    StudyParameters,
    crystal_classes,
    elements_of,
    errors_of,
    fit_and_predict,
    fits_of,
    gain,
    potential_alone,
    prototype,
    study_names,
    study_truth,
    thinned,
)
from ecdlib.learn.protocol import Fit
from ecdlib.learn.result import Result, shipped_results


@pytest.fixture(scope="module")
def cubic():
    return load_densities("cubic")


def test_a_deformation_is_neutral_and_the_same_in_both_conventions(cubic):
    for name in ("NaCl_225", "GaAs_216"):  # Ga 3d is counted by one convention and not by the other
        ours, chemical = (deformation(cubic[name], c) for c in ("gpaw", "chemical"))
        assert abs(ours.mean()) < 1e-5
        assert np.abs(ours).max() > 0.01
        assert np.abs(ours - chemical).max() < 1e-6


def test_in_silicon_charge_moves_into_the_bond(cubic):
    silicon = cubic["Si_227"]
    change = deformation(silicon)
    n = np.array(change.shape)
    bond, hollow = silicon.positions[:2].mean(0), np.full(3, 0.5)  # the hollow is the empty tetrahedral place
    at = [change[tuple(np.round(x * n).astype(int) % n)] for x in (bond, hollow)]
    assert at[0] > 0.05 > 0 > at[1]


def test_features_of_a_change_do_not_depend_on_the_cell_or_the_orientation(cubic):
    density = cubic["NaCl_225"]
    change = deformation(density)
    features = deformation_features(change, density.lattice)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert np.allclose(deformation_features(change, density.lattice @ turn), features, atol=1e-6)
    doubled = deformation_features(np.tile(change, (2, 1, 1)), density.lattice * np.array([[2], [1], [1]]))
    assert np.allclose(doubled[:-12], features[:-12], atol=1e-3)
    assert features[0] == pytest.approx(np.log(np.sqrt(4 * np.pi) * (change**2).mean()) / 2, abs=1e-4)


def test_states_differ_by_what_the_calculation_did(cubic):
    states = state_features(cubic["MgO_225"])
    assert {k: v.shape for k, v in states.items()} == {
        **dict.fromkeys(("superposed", "self-consistent"), (266,)),
        **dict.fromkeys(("deformation", "fluctuation"), (133,)),
    }
    assert 0.01 < np.abs(states["superposed"] - states["self-consistent"]).max() < 5


def test_no_held_out_formula_takes_part():
    held = {name.split("_")[0] for name in load_selection("held-out")}
    for which in ("cubic-892", "all", "vasp"):
        names = study_names(which)
        assert len(set(names)) == len(names) > 700
        assert not held & {name.split("_")[0] for name in names}


@pytest.mark.parametrize("scheme", ["random", "prototypes", "pairs", "elements"])
def test_what_is_left_out_is_nowhere_in_training(scheme):
    names = study_names("cubic-892")
    fits = fits_of(names, StudyParameters(scheme=scheme))
    tested = sum(f.test.astype(int) for f in fits)
    elements, prototypes = [set(elements_of(name)) for name in names], [prototype(name) for name in names]
    single = np.array([len(e) < 2 for e in elements])
    assert (tested[~single] == 1).all()
    assert (tested[single] == (scheme != "pairs")).all()
    for f in fits:
        assert not (f.train & f.test).any()
        train, test = np.flatnonzero(f.train), np.flatnonzero(f.test)
        if scheme == "prototypes":
            assert not {prototypes[i] for i in train} & {prototypes[i] for i in test}
        elif scheme != "random":
            size = 2 if scheme == "pairs" else 1
            seen = {part for i in train for part in combinations(sorted(elements[i]), size)}
            assert all(set(combinations(sorted(elements[i]), size)) - seen for i in test)


def test_smaller_trainings_lie_within_larger_ones():
    fits = fits_of(study_names("cubic-892"), StudyParameters())
    few, many = thinned(fits, 100, 0)[3], thinned(fits, 400, 0)[3]
    assert (few.train.sum(), many.train.sum()) == (100, 400)
    assert not (few.train & ~many.train).any()
    assert (few.test == fits[3].test).all()


def test_everything_is_fitted_to_the_training_part():
    rng = np.random.default_rng(0)
    blocks = {"composition": rng.normal(size=(120, 132)), "volume": rng.normal(size=(120, 1))}
    truth = np.abs(np.stack([blocks["volume"][:, 0] * 50 + 100] * 3, axis=1))
    test = np.arange(120) >= 90
    said = fit_and_predict(blocks, INPUTS["composition + volume"], truth, Fit("f", ~test, test), 60, 3, 0)
    assert np.isnan(said[~test]).all()
    assert np.abs(said - truth)[test].mean() < 0.5 * np.abs(truth - truth.mean(0))[test].mean()
    other = {k: np.where(test[:, None] & (np.arange(120)[:, None] > 100), 99.0, v) for k, v in blocks.items()}
    again = fit_and_predict(other, INPUTS["composition + volume"], truth, Fit("f", ~test, test), 60, 3, 0)
    assert np.allclose(again[90:101], said[90:101])  # a test crystal does not change what is said of another
    assert len(set(Reduced(blocks, ("composition", "volume")).groups)) == 2


def test_a_gain_is_that_of_pairs():
    rng = np.random.default_rng(1)
    hard = rng.exponential(10, 400)
    truth = np.zeros((400, 3))
    more = {"superposed": np.stack([hard + 1 + rng.normal(0, 0.1, 400)] * 3, 1), "composition": np.stack([hard] * 3, 1)}
    nowhere = np.full_like(truth, np.nan)
    role = np.zeros((1, 400), np.int8)
    r = Result(np.arange(400).astype(str), truth, role, nowhere[None], nowhere, role[0], {"targets": TARGETS}, more)
    found = gain(r, "superposed", "composition", "bulk_modulus")
    assert found["gain"] == pytest.approx(1, abs=0.05)
    assert found["standard_error"] == pytest.approx(0.1 / 20, rel=0.2)
    assert found["verdict"] == "helps"
    assert gain(r, "composition", "superposed", "bulk_modulus")["verdict"] == "hurts"
    assert gain(r, "superposed", "superposed", "bulk_modulus")["verdict"] == "undecided"
    assert (errors_of(r, "mean", "bulk_modulus") == 0).all()


def test_classes_of_crystals():
    classes = crystal_classes(["NaCl_225", "MgO_225", "Al_225", "Fe_229", "GaAs_216"])
    assert list(classes.index[classes["oxides"]]) == ["MgO_225"]
    assert list(classes.index[classes["halides"]]) == ["NaCl_225"]
    assert list(classes.index[classes["magnetic"]]) == ["Fe_229"]
    assert list(classes.index[classes["metals only"]]) == ["Al_225", "Fe_229"]
    assert not (classes["d metals"] & classes["no d metals"]).any()


def test_shipped_studies_are_of_todays_crystals_and_labels():
    studies = shipped_results("inputs")
    for study in studies.values():
        which = study.meta["parameters"]["crystals"]
        assert list(study.names) == study_names(which)
        assert np.array_equal(study.truth, study_truth(list(study.names)), equal_nan=True)
        assert "uncommitted" not in study.meta["provenance"]["commit"]


def test_the_potential_alone_is_its_hill_average():
    potential = load_potential()
    C = potential.relaxed[list(potential.names).index("Si_227")]
    bulk, shear = (C[0, 0] + 2 * C[0, 1]) / 3, (C[0, 0] - C[0, 1]) / 2
    voigt, reuss = (2 * shear + 3 * C[3, 3]) / 5, 5 * shear * C[3, 3] / (3 * shear + 2 * C[3, 3])
    assert potential_alone(["Si_227"])[0] == pytest.approx([bulk, (voigt + reuss) / 2], rel=5e-3)
