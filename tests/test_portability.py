"""One crystal in two conventions: the pairs, honest predictions from them, and what a conversion costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file, data_folder, load_manifest
from ecdlib.data.properties import PROPERTIES
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density
from ecdlib.density.store import DensityStore, load_densities
from ecdlib.density.valence import Valence, recognize, target_electrons
from ecdlib.features.collection import FeatureSettings, featurize, statistics
from ecdlib.learn import lean
from ecdlib.learn.conversion_cost import PARTS, cost, movement
from ecdlib.learn.domain import DEFAULT_MODEL, Domain
from ecdlib.learn.known_models import facts
from ecdlib.learn.lean import TrainingParameters, channel_settings, run_lean, stack_channels, table2_errors
from ecdlib.learn.portability import (
    LEFT_OUT,
    Route,
    calibrations,
    changed_elements,
    conversion,
    has_d_electrons,
    pair_has_d_electrons,
    pair_names,
    spectra_apart,
)
from ecdlib.learn.predict import Predictor, conversion_lines, load_predictors, predict
from ecdlib.learn.result import Result, shipped_results

Array = np.ndarray
NACL = data_folder() / "vasp" / "CHGCAR.NaCl.gz"


def parameters(**given: object) -> TrainingParameters:
    return TrainingParameters.checked({"model": "density-gpr", "convention": "portable", **given})


@pytest.fixture(scope="module")
def portable() -> list[Predictor]:
    found = load_predictors()
    assert all(p.model.portable for p in found)
    return found


def of_unknown_potentials(density: ChargeDensity) -> ChargeDensity:
    """The density as if another code had made it: only the electrons of its potentials are known."""
    return replace(density, convention=None, valence=recognize(density).electrons)


# The pairs


def test_the_elements_that_change_are_those_with_other_electrons() -> None:
    for density in load_densities("pairs"):
        electrons = recognize(density).electrons
        other = {e for e, n in electrons.items() if n != target_electrons(e, "gpaw")}
        assert set(changed_elements(density.name)) == other != set()
        assert set(changed_elements(density.name)) <= set(density.species)


def test_calibrations_come_from_compounds_in_which_nothing_else_changes() -> None:
    found = calibrations()
    changing = {e for name in pair_names() for e in changed_elements(name)}
    assert set(found) == changing - set(LEFT_OUT)
    assert set(LEFT_OUT) < changing
    sizes = load_densities("pairs").table["n_atoms"]
    for element, (name, numbers) in found.items():
        assert changed_elements(name) == (element,)
        assert np.isfinite(numbers).all()
        alike = [n for n in pair_names() if changed_elements(n) == (element,)]
        assert sizes[name] == sizes[alike].min()


def test_pairs_for_each_route() -> None:
    everything = load_densities("pairs").names
    assert pair_names() == pair_names("shells") == pair_names("as computed") == everything
    calibrated = pair_names("calibrated")
    assert [n for n in everything if n in calibrated] == calibrated
    left = set(everything) - set(calibrated)
    assert left == {n for n in everything if {e.symbol for e in Composition(n.split("_")[0])} & set(LEFT_OUT)}
    assert len(left) == 30


def test_what_the_routes_know_of_a_density() -> None:
    density = load_densities("pairs")["AlIr_221"]
    own, nothing = conversion(density, "radial functions")
    assert (own.electrons, own.gpaw, nothing) == ({"Al": 3, "Ir": 9}, True, {})
    shells, nothing = conversion(density, "shells")
    assert (shells.electrons, shells.gpaw, nothing) == (own.electrons, False, {})
    calibrated, numbers = conversion(density, "calibrated")
    assert (calibrated, numbers) == (shells, {"Ir": calibrations()["Ir"][1]})


def test_each_route_knows_more_than_the_one_before() -> None:
    routes: tuple[Route, ...] = ("as computed", "shells", "calibrated")
    apart = np.array([[spectra_apart(name, route) for route in routes] for name in pair_names("calibrated")[::3]])
    assert (np.diff(np.median(apart, axis=0)) < 0).all()
    assert (apart[:, 1] < apart[:, 0] / 5).all()
    assert np.median(apart[:, 2]) < 0.003


def test_potentials_with_d_electrons_are_a_class_of_their_own() -> None:
    assert not has_d_electrons({"Na": 7, "Cl": 7, "Ga": 3, "Te": 6})
    assert has_d_electrons({"Na": 7, "Ga": 13})
    assert has_d_electrons({"Al": 3, "Sc": 3})
    without = {e for name in pair_names() if not pair_has_d_electrons(name) for e in changed_elements(name)}
    assert without == {"Na", "Mg"}
    assert pair_has_d_electrons("BeTe_216")  # the d shell of its other set
    assert not pair_has_d_electrons("MgAu_221")  # that of gold is in both densities


# Features and training


def test_features_in_a_convention() -> None:
    density, small = load_densities("pairs")["NaCl_225"], {"size": 5, "voxel": 1.0}
    rows = {c: featurize(density, FeatureSettings(**small, convention=c))[1] for c in ("computed", "gpaw", "chemical")}
    assert [rows[c]["electrons"] for c in rows] == pytest.approx([8, 14, 8], abs=1e-3)
    assert [rows[c]["electrons_after"] for c in rows] == pytest.approx([8, 14, 8], abs=1e-3)
    assert rows["gpaw"]["convention"] == "gpaw, smoothed 0.3 Å"
    chosen = statistics(density, FeatureSettings(**small, convention="gpaw"))
    own = statistics(load_densities("cubic")["NaCl_225"], FeatureSettings(**small, convention="gpaw"))
    raw = statistics(density, FeatureSettings(**small))
    assert np.allclose(chosen["autocorrelation"], own["autocorrelation"], rtol=5e-3)
    assert not np.allclose(raw["autocorrelation"], own["autocorrelation"], rtol=0.1)


def test_names_and_channels_of_portable_models() -> None:
    p = parameters()
    assert p.file_name == "density-gpr-portable--bulk_modulus--seed0.npz"
    assert parameters(augment=True).file_name == "density-gpr-portable-augmented--bulk_modulus--seed0.npz"
    assert [s.convention for s in channel_settings(p)] == ["gpaw", "chemical"]
    assert [s.convention for s in channel_settings(parameters(convention="computed"))] == ["computed"]
    channels = [{"autocorrelation": np.full((3, 4), n), "quantiles": np.ones((3, 12))} for n in (0.0, 1.0)]
    assert stack_channels("density-gpr", channels).shape == (3, 32)
    assert stack_channels("octahedral-a", channels).shape == (3, 2, 4)
    assert stack_channels("octahedral-a", channels[:1]).shape == (3, 4)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"augment": True, "convention": "computed"}, "augment=true: needs converted densities of the pairs"),
        ({"augment": True, "crystals": 60}, "augment=true: needs converted densities of the pairs"),
        ({"model": "zhao"}, "convention=portable model=zhao: do not fit together"),
        ({"model": "magpie-forest"}, "convention=portable model=magpie-forest: do not fit together"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(EcdError, match=problem):
        run_lean(parameters(**given), tmp_path / "r.npz", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("augment", [False, True])
def test_pairs_are_predicted_by_models_that_have_not_seen_the_crystal_in_any_convention(
    augment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature is the number of its crystal, with a half for the converted densities of the pairs."""
    names = list(load_cubic_targets().index)
    number = np.arange(len(names), dtype=float)[:, None]
    others = {r: np.array([[names.index(n) + 0.5] for n in pair_names(r)]) for r in ("shells", "radial functions")}
    seen: list[set[float]] = []
    labels: dict[float, set[float]] = {}

    class Spy:
        def fit(self, X: Array, y: Array) -> Spy:
            self.rank = len(seen)
            seen.append(set(X[:, 0]))
            for x, value in zip(X[:, 0], y, strict=True):
                labels.setdefault(float(np.floor(x)), set()).add(float(value))
            return self

        def predict(self, X: Array) -> Array:
            return np.full(len(X), float(self.rank))

    monkeypatch.setattr(lean, "inputs", lambda *_: number)
    monkeypatch.setattr(lean, "pair_inputs", lambda _: others)
    monkeypatch.setattr(lean, "build", lambda *_: Spy())
    result = run_lean(parameters(protocol="10-fold", augment=augment), tmp_path / "r.npz", progress=False)
    stored = {key.removeprefix("pairs/"): v for key, v in result.more.items() if key.startswith("pairs/")}
    assert set(stored) == set(others)
    for route, predicted in stored.items():
        assert predicted.shape == (99, 1)
        for x, rank in zip(others[route][:, 0], predicted[:, 0], strict=True):
            assert not {x, np.floor(x)} & seen[int(rank)]
            assert result.crossed[int(x), 0] == rank
    halves = [len({x for x in each if x % 1}) for each in seen]
    assert min(halves) > 60 if augment else max(halves) == 0
    assert all(len(values) == 1 for values in labels.values())
    assert (movement(result, "bulk_modulus") == 0).all(axis=None)


@pytest.mark.slow
def test_two_channels_from_the_density_to_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecdlib.base.cached.CACHE", tmp_path)
    p = parameters(crystals=60, size=7, voxel=1.0, protocol="split")
    result = run_lean(p, tmp_path / "r.npz", progress=False)
    assert set(result.more) == {"validated", "losses"}  # there are too few crystals for the pairs
    assert table2_errors(result, "bulk_modulus")["train"] < 0.5 * result.truth.std()
    (predictor,) = load_predictors(str(tmp_path / "r.npz"))
    name = str(result.names[result.tested()][0])
    (record,) = predict(load_densities("cubic")[name], [predictor])
    assert record["value"] == pytest.approx(float(result.fitted[0][result.tested()][0, 0]), rel=1e-3)
    assert record["conversion_std"] == 0
    with pytest.raises(EcdError, match="without the pairs"):  # what a conversion costs is not known
        predict(replace(read_density(NACL), potentials=None), [predictor])
    assert predict(read_density(NACL), [predictor])[0]["conversion_std"] > 0  # of VASP's potentials it is


# What ships


def moved(results: dict[str, Result], name: str, target: str, route: Route) -> float:
    return float(movement(results[f"{name}--{target}--seed0"], target)[route].abs().mean())


def test_predictions_hardly_move_once_the_valence_is_converted() -> None:
    plain, converted = shipped_results("results"), shipped_results("portable")
    assert moved(plain, "density-gpr", "bulk_modulus", "as computed") > 15
    assert moved(plain, "density-gpr", "total_energy", "as computed") > 1
    for model in ("density-gpr-portable", "density-gpr-portable-augmented", "pca-gpr-portable"):
        assert moved(converted, model, "bulk_modulus", "radial functions") < 2
        assert moved(converted, model, "bulk_modulus", "calibrated") < 2
        assert moved(converted, model, "bulk_modulus", "shells") < 7
        assert moved(converted, model, "total_energy", "radial functions") < 0.1
    for e in converted.values():
        assert e.meta["parameters"]["convention"] == "portable"
        stored = {key.removeprefix("pairs/"): v for key, v in e.more.items() if key.startswith("pairs/")}
        assert {r: len(v) for r, v in stored.items()} == {"shells": 99, "calibrated": 69, "radial functions": 99}
        assert all(np.isfinite(v).all() for v in stored.values())


def test_nothing_is_lost_by_the_portable_model() -> None:
    plain, converted = shipped_results("results"), shipped_results("portable")
    for target in lean.BOTH:
        a = table2_errors(plain[f"density-gpr--{target}--seed0"], target)["10-fold"]
        b = table2_errors(converted[f"density-gpr-portable--{target}--seed0"], target)["10-fold"]
        assert b < 1.1 * a


def test_sodium_chloride_of_vasp_is_that_of_the_label(portable: list[Predictor]) -> None:
    records = predict(read_density(NACL), portable)
    labels = load_cubic_targets().loc["NaCl_225"]
    for r in records:
        assert r["value"] == pytest.approx(labels[r["property"].replace(" ", "_")], rel=0.1)
        assert r["warnings"] == []
        assert r["std"] > r["conversion_std"] > 0
        assert "Na 1 to 7 electrons" in r["conversion"]
        assert r["conversion"].endswith("; with the numbers of VASP's PBE potentials: Na, Cl")
    (line,) = conversion_lines(records)
    assert line.startswith("CHGCAR.NaCl.gz: valence Na 1, Cl 7 (known from its number of electrons)")
    assert f"{records[0]['conversion_std']:.2g} GPa (bulk modulus)" in line


@pytest.mark.parametrize("name", ["FeNi3_221", "Na2Te_225"])
def test_stored_predictions_from_the_other_density_follow_from_the_weights(
    name: str, portable: list[Predictor]
) -> None:
    other = load_densities("pairs")[name]
    for density, route in ((other, "radial functions"), (of_unknown_potentials(other), "shells")):
        for p, record in zip(portable, predict(density, portable), strict=True):
            assert isinstance(p.model, lean.LeanModel)
            result = p.model.result
            assert result.fold[list(result.names).index(name)] == 0  # by the model whose weights ship
            stored = float(result.more[f"pairs/{route}"][pair_names().index(name), 0])
            assert record["value"] == pytest.approx(stored, rel=1e-4)


def between_codes(p: Predictor) -> float:
    """Root mean square of what a prediction moves from our density to VASP's by whole shells, of NaCl and Li."""
    ours, moves = DensityStore(data_file("vasp/gpaw.h5")), []
    for name in ours.names:
        theirs = p.predict(p.model.features(read_density(data_file(f"vasp/CHGCAR.{name}.gz")), calibration={}))[0]
        own = predict(ours[name], [p])[0]["value"]
        moves.append(theirs / own - 1 if PROPERTIES[p.target].positive else theirs - own)
    return float(np.sqrt(np.mean(np.square(moves))))


def test_a_conversion_costs_what_it_does_to_the_pairs_of_its_class(portable: list[Predictor]) -> None:
    bulk, energy = portable
    standard = recognize(load_densities("cubic")["NaCl_225"])
    assert bulk.cost(standard, 20.0) == energy.cost(standard, -3.0) == 0
    salts = [n for n in pair_names() if not pair_has_d_electrons(n)]
    moved = energy.model.movement("total_energy")
    other_code = replace(recognize(read_density(NACL)), potentials=None)
    shells, calibrated = (float((moved[route][salts] ** 2).mean() ** 0.5) for route in ("shells", "calibrated"))
    codes = between_codes(energy)
    assert energy.cost(other_code, -3.0) == pytest.approx(np.hypot(shells, codes))
    both = {"Na": (0.0, 0.0), "Cl": (0.0, 0.0)}
    assert energy.cost(other_code, -3.0, {"Na": both["Na"]}) == energy.cost(other_code, -3.0)  # chlorine is as it was
    assert energy.cost(other_code, -3.0, both) == pytest.approx(np.hypot(calibrated, codes))
    assert energy.cost(other_code, -6.0) == energy.cost(other_code, -3.0)
    assert bulk.cost(other_code, 40.0) == pytest.approx(2 * bulk.cost(other_code, 20.0))
    for p, value in ((bulk, 100.0), (energy, -4.0)):
        known = recognize(load_densities("pairs")["Ir_225"])
        assert 0 < p.cost(known, value) < p.cost(replace(known, gpaw=False), value)


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "fusion-lightgbm", "fusion-attention"])
def test_what_is_known_of_the_models_of_the_wheel_is_what_is_computed(name: str) -> None:
    for p in load_predictors(name):
        known = facts(p.model.source)
        assert p.domain == Domain.of(p.model.trained_on)
        assert set(known["costs"][p.target]) == {" ".join(map(str, part)) for part in PARTS}
    for part in PARTS[4:]:
        assert cost(p.model, p.target, part) == pytest.approx(cost(p.model, p.target, part, known=False), rel=1e-4)


def test_of_a_changed_model_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = load_predictors(DEFAULT_MODEL)[0].model.source
    assert facts(str(tmp_path / "mine.npz")) == {}
    changed = {name: {**entry, "sha256": "other"} for name, entry in load_manifest().items()}
    monkeypatch.setattr("ecdlib.learn.known_models.load_manifest", lambda: changed)
    assert facts(source) == {}


@pytest.mark.parametrize("name", ["fusion-lightgbm", "fusion-attention"])
def test_fusion_models_convert_without_smoothing(name: str) -> None:
    """What the model's file says of a pair, computed again."""
    pair, predictors = "NaI_225", load_predictors(name)
    own, other = load_densities("cubic")[pair], load_densities("pairs")[pair]
    as_own = Valence({e: target_electrons(e, "gpaw") for e in own.species}, True, "")
    cases = {
        "own": (own, None),
        "as computed": (other, as_own),
        "shells": (of_unknown_potentials(other), None),
        "calibrated": (other, *conversion(other, "calibrated")),
        "radial functions": (other, None),
    }
    found = {key: predictors[0].model.features(*case) for key, case in cases.items()}
    for p in predictors:
        stored = p.model.pairs(p.target).loc[pair]  # type: ignore[attr-defined]
        for key in cases:
            assert p.predict(found[key])[0] == pytest.approx(stored[key], rel=1e-4)
    assert np.array_equal(found["own"], predictors[0].model.features(own))


@pytest.mark.parametrize("name", ["fusion-lightgbm", "fusion-attention"])
def test_what_a_conversion_costs_the_fusion_models(name: str) -> None:
    other_code = replace(recognize(read_density(NACL)), potentials=None)
    standard = recognize(load_densities("cubic")["NaCl_225"])
    for p in load_predictors(name):
        pairs = p.model.pairs(p.target)  # type: ignore[attr-defined]
        assert np.isfinite(pairs[["own", "as computed", "shells", "radial functions"]]).all(axis=None)
        assert pairs["calibrated"].notna().sum() == 69
        moved = pairs.drop(columns="own").sub(pairs["own"], axis=0)
        mean = moved.abs().mean()
        assert mean["calibrated"] < mean["as computed"] / 5
        assert mean["radial functions"] < mean["as computed"] / 10
        assert mean["shells"] < mean["as computed"] / 3
        positive = PROPERTIES[p.target].positive
        moves = moved["shells"] / (pairs["own"] if positive else 1)
        salts = ~pairs.index.map(pair_has_d_electrons)
        expected = np.hypot(float((moves[salts] ** 2).mean() ** 0.5), between_codes(p)) * (50 if positive else 1)
        assert p.cost(other_code, 50.0) == pytest.approx(expected)
        assert p.cost(other_code, 50.0) > 0
        assert p.cost(standard, 50.0) == 0
