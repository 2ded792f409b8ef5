"""Predictions: the same for every description of a crystal, with warnings where it is unlike the training set."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecdlib import cli
from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file, data_folder
from ecdlib.data.tables import load_cubic_targets
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density
from ecdlib.density.store import load_density
from ecdlib.density.valence import to_convention
from ecdlib.learn.domain import Domain
from ecdlib.learn.predict import Predictor, load_predictors, predict

NACL = str(data_folder() / "vasp" / "CHGCAR.NaCl.gz")
FIELDS = ["file", "property", "value", "std", "unit", "conversion", "conversion_std", "warnings"]


@pytest.fixture(scope="module")
def predictors() -> list[Predictor]:
    return load_predictors()


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain.of(tuple(load_cubic_targets().index))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ecd", "predict", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_records_are_complete_and_a_training_crystal_comes_back(predictors: list[Predictor]) -> None:
    records = predict(load_density("NaCl_225"), predictors)
    assert [list(r) for r in records] == [FIELDS] * 2
    assert [(r["property"], r["unit"]) for r in records] == [("bulk modulus", "GPa"), ("total energy", "eV/atom")]
    labels = load_cubic_targets().loc["NaCl_225"]
    for r in records:
        assert abs(r["value"] - labels[r["property"].replace(" ", "_")]) < 3 * r["std"]
        assert r["std"] > 0
        assert r["warnings"] == []
        assert (r["conversion_std"], r["conversion"]) == (0, "valence Na 7, Cl 7, as in our data")


def test_every_shipped_prediction_follows_from_the_shipped_weights(predictors: list[Predictor]) -> None:
    for p in [*predictors, *load_predictors("density-gpr"), *load_predictors("octahedral-a")]:
        for name in ("LiH_225", "Fe3SnC_221"):
            stored = float(p.model.result.fitted[0, list(p.model.result.names).index(name), 0])
            (record,) = predict(load_density(name), [p])
            assert record["value"] == pytest.approx(stored, rel=2e-3, abs=2e-3)


def test_prediction_does_not_depend_on_cell_or_origin(predictors: list[Predictor]) -> None:
    density = load_density("LiH_225")
    shift = (3, 5, 7)
    moved = replace(
        density,
        values=np.roll(density.values, shift, (0, 1, 2)),
        positions=density.positions + np.array(shift) / density.shape,
    )
    reference = [r["value"] for r in predict(density, predictors)]
    for other in (moved, to_conventional(density)):
        assert [r["value"] for r in predict(other, predictors)] == pytest.approx(reference, rel=1e-4)


def test_training_densities_fit_their_own_domain(domain: Domain) -> None:
    assert domain.valence["Na"] == 7
    assert domain.valence["Cl"] == 7
    assert len(domain.valence) == 62
    assert 2 < domain.a[0] < 4 < 10 < domain.a[1] < 13
    for name in ("NaCl_225", "Fe3SnC_221", "Si_227", "AgAsF6_225"):
        assert domain.warnings(load_density(name)) == []


def test_another_valence_convention_is_noticed(domain: Domain) -> None:
    (warning,) = domain.warnings(read_density(NACL))
    assert "holds 8.0 valence electrons, training densities of this crystal 14" in warning
    assert domain.warnings(read_density(NACL), converted=True) == []


def test_other_ways_of_being_unlike_the_training_set(domain: Domain) -> None:
    (warning,) = domain.warnings(load_density("Be_194"))
    assert "space group 194 is not cubic" in warning
    lih = load_density("LiH_225")
    wide = replace(lih, lattice=lih.lattice * 4, values=lih.values / 64)
    assert [w for w in domain.warnings(wide) if "lattice parameter 16." in w]
    exotic = replace(lih, species=("Po", "H"))
    assert domain.warnings(exotic)[0] == "no training crystal holds Po"
    bare = ChargeDensity(lih.values, lih.lattice, (), np.empty((0, 3)))
    assert domain.warnings(bare)


def test_a_cubic_model_refuses_other_crystals() -> None:
    with pytest.raises(EcdError, match="space group 194 is not cubic, but the model is"):
        predict(load_density("Be_194"), load_predictors("octahedral-a"))


def test_models_that_cannot_predict_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match="no such trained model"):
        load_predictors("nothing")
    with pytest.raises(EcdError, match="holds no weights"):
        load_predictors("magpie-forest")
    with pytest.raises(EcdError, match="does not predict from densities"):
        load_predictors("cgcnn")
    with pytest.raises(EcdError, match="is not a readable model"):
        load_predictors(str(tmp_path / "missing.npz"))
    for model, key in (
        ("octahedral-a--bulk_modulus--100--seed0", "convolutions.1.values"),
        ("density-gpr--bulk_modulus--seed0", "z"),
    ):
        with np.load(data_file(f"results/{model}.npz")) as z:
            arrays = dict(z)
        arrays[f"state/{key}"] = arrays[f"state/{key}"][:5]
        np.savez(tmp_path / "cut.npz", **arrays)
        with pytest.raises(EcdError, match="weights do not fit"):
            predict(load_density("LiH_225"), load_predictors(str(tmp_path / "cut.npz")))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    assert run(monkeypatch, NACL, "LiH_225", "--json", "--csv", str(table)) == 0
    records = json.loads(capsys.readouterr().out)
    assert {r["property"] for r in records if r["model"].endswith("density-gpr-portable")} == {
        "bulk modulus",
        "total energy",
    }
    assert {"shear modulus", "debye temperature", "band gap"} <= {
        r["property"] for r in records if r["model"] == "crystal"
    }
    assert list(records[0])[: len(FIELDS)] == FIELDS
    assert records[0]["file"] == NACL
    written = pd.read_csv(table)
    assert list(written.columns) == list(records[0])
    assert np.allclose(written["value"], [r["value"] for r in records])
    assert run(monkeypatch, "nowhere/CHGCAR", "LiH_225") == 2
    printed = capsys.readouterr()
    assert "LiH_225" in printed.out
    assert printed.err == "ecd: nowhere/CHGCAR: no such file. Check the path.\n"
    assert run(monkeypatch, NACL, "--valence", "Na=1,Cl=7") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{NACL}: valence Na 1, Cl 7 (known from its POTCAR, header or --valence)" in printed.out
    assert "Of this uncertainty, " in printed.out
    assert run(monkeypatch, NACL, "--model", "density-gpr") == 0
    printed = capsys.readouterr()
    assert "another valence convention" in printed.err
    assert "--model density-gpr-portable converts it" in printed.err
    assert "come from the conversion" not in printed.out
    assert run(monkeypatch, NACL, "--valence", "Na=3,Cl=7") == 2
    printed = capsys.readouterr()
    assert printed.err == "ecd: Na=3: no set of whole shells holds that many electrons. Possible: 1, 7, 9.\n"


def test_a_converted_density_is_not_given_to_a_model_on_raw_ones() -> None:
    smoothed = to_convention(load_density("NaCl_225"))
    for model in ("density-gpr", "octahedral-a", "density-gpr-portable", "fusion-lightgbm"):
        with pytest.raises(EcdError, match=r"NaCl_225: has (already )?been converted .*gpaw, smoothed 0\.3 Å"):
            predict(smoothed, load_predictors(model))
