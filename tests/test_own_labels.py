"""Training on a user's own labels: what a table must have, and that the model predicts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from ecdlib.base.errors import EcdError
from ecdlib.cli import app
from ecdlib.data.tables import load_structures
from ecdlib.density.io import write_chgcar, write_cube, write_npz
from ecdlib.density.store import load_densities, load_density, write_store
from ecdlib.learn.answer import answer
from ecdlib.learn.any_crystal import Learned
from ecdlib.learn.model_file import load_model
from ecdlib.learn.own_labels import FEWEST, beyond, read_labels, stretched, train_on_labels, wider
from ecdlib.learn.protocol import grouped_folds


@cache
def names() -> list[str]:
    """Of 45 small cubic crystals."""
    return [n for n, s in load_structures().items() if len(s) <= 4 and n.endswith(("_225", "_221"))][:45]


def table(**columns: Any) -> pd.DataFrame:
    """Bundled crystals with their mass density as label, which a model that sees the volume must learn."""
    density = [float(load_structures()[name].density) for name in names()]
    return pd.DataFrame({"crystal": names(), "density (g/cm3)": density} | columns)


def refused(frame: pd.DataFrame | str, tmp_path: Path, **options: str) -> str:
    path = tmp_path / "mine.csv"
    path.write_text(frame if isinstance(frame, str) else frame.to_csv(index=False))
    with pytest.raises(EcdError) as error:
        read_labels(path, **options)
    return str(error.value)


def changed(row: int, column: str, value: Any) -> pd.DataFrame:
    frame = table().astype(object)
    frame.loc[row, column] = value
    return frame


def test_a_table_is_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match="no such file"):
        read_labels(tmp_path / "no.csv")
    assert "is no table" in refused('a,b\n1,2,3\n"', tmp_path)
    assert "has no column 'K'. Name one with --column: density (g/cm3)" in refused(table(), tmp_path, column="K")
    assert "has 2 columns of numbers" in refused(table(other=1.0), tmp_path)
    assert "no number in 'density (g/cm3)' in row 5, which holds nothing." in refused(
        changed(3, "density (g/cm3)", None), tmp_path, column="density (g/cm3)"
    )
    text = refused(changed(1, "density (g/cm3)", "3.4 g"), tmp_path)
    assert "has no number in 'density (g/cm3)' in row 3, which holds '3.4 g'. Write a plain number" in text
    words = refused(table().astype(str).assign(**{"density (g/cm3)": "heavy"}), tmp_path)
    assert "in rows 2, 3, 4, 5, 6, ..., the first of which holds 'heavy'" in words
    text = refused(table(name="a salt").assign(**{"density (g/cm3)": "3.4 g"}), tmp_path)
    assert "has no column of numbers: in row 2, 'density (g/cm3)' holds '3.4 g', 'name' holds 'a salt'. Write" in text
    partly = changed(0, "density (g/cm3)", 3.4).assign(name="a salt")
    partly.loc[1:, "density (g/cm3)"] = "3.4 g"
    assert "no number in 'density (g/cm3)' in rows 3, 4, 5, 6, 7, ..., the first of which holds '3.4 g'" in refused(
        partly, tmp_path
    )
    assert "holds no crystals" in refused("file,name,y\n", tmp_path)
    assert "Add one with the labels" in refused(table()[["crystal"]], tmp_path)
    assert f"At least {FEWEST}" in refused(table()[:10], tmp_path)
    assert "same label in every row" in refused(table().assign(**{"density (g/cm3)": 2.0}), tmp_path)
    assert "unit of 'rho' is not known. Say it: --unit" in refused(
        table().rename(columns={"density (g/cm3)": "rho"}), tmp_path
    )
    assert "row 2: nowhere.cif" in refused(changed(0, "crystal", "nowhere.cif"), tmp_path, column="density (g/cm3)")
    twice = refused(changed(7, "crystal", names()[2]), tmp_path, column="density (g/cm3)")
    assert "same crystal twice, in rows 4, 9" in twice


def test_crystals_are_files_names_and_texts(tmp_path: Path) -> None:
    structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.0), ["Ca", "O"], [[0, 0, 0], [0.5, 0, 0]])
    structure.to(filename=str(tmp_path / "mine.cif"))
    other = structure.copy()
    other.scale_lattice(150.0)
    frame = table().rename(columns={"density (g/cm3)": "formation_energy"})
    frame["crystal"] = ["mine.cif", json.dumps(other.as_dict()), *names()[2:]]
    frame.to_csv(tmp_path / "mine.csv", index=False)
    data = read_labels(tmp_path / "mine.csv")
    assert data.unit == "eV/atom", "of a property that is known here"
    assert [s.composition.reduced_formula for s in data.structures[:2]] == ["CaO", "CaO"]


def test_files_of_densities_serve_like_those_of_structures(tmp_path: Path) -> None:
    stems = [name for name in names() if name in load_densities("cubic")][:4]
    write_npz(load_density(stems[0]), tmp_path / "a.npz")
    write_cube(load_density(stems[1]), tmp_path / "b.cube")
    write_chgcar(load_density(stems[2]), tmp_path / "CHGCAR")
    write_store(tmp_path / "c.h5", [load_density(stems[3])])
    files = ["a.npz", "b.cube", "CHGCAR", f"c.h5::{stems[3]}"]
    own = dict(zip(stems, files, strict=True))
    table().assign(crystal=[own.get(name, name) for name in names()]).to_csv(tmp_path / "mine.csv", index=False)
    found = read_labels(tmp_path / "mine.csv").structures
    for name in stems:
        structure = found[names().index(name)]
        known = load_structures()[name]
        assert structure.composition.reduced_formula == known.composition.reduced_formula
        assert structure.volume / len(structure) == pytest.approx(known.volume / len(known), rel=1e-3)


def test_intervals_are_as_wide_as_unseen_crystals_need() -> None:
    learned = Learned("GPa", "log")
    value = np.full(200, 10.0)
    labels = value * np.exp(np.random.default_rng(0).normal(0, 0.2, 200))
    low, high = value * np.exp(-0.2), value * np.exp(0.2)  # one standard deviation, where 1.96 are needed
    factor = wider(beyond(labels, value, low, high, learned))
    assert factor == pytest.approx(1.96, rel=0.1)
    wide = stretched(np.stack([value, low, high], axis=1), factor, learned)
    assert wide[0, 2] == pytest.approx(10 * np.exp(0.2 * factor), rel=1e-5)
    assert ((wide[:, 1] <= labels) & (labels <= wide[:, 2])).mean() == pytest.approx(0.955, abs=0.006)


def test_all_of_a_group_are_in_one_fold() -> None:
    group = np.array(["a", "b", "a", "c", "d", "b"])
    fold = grouped_folds(group, 3, 0)
    assert all(len(set(fold[group == g])) == 1 for g in "abcd")
    assert set(fold) == {0, 1, 2}


def test_a_model_of_own_labels_predicts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table().to_csv(tmp_path / "mine.csv", index=False)
    done = CliRunner().invoke(app, ["train", "--labels", str(tmp_path / "mine.csv")])
    assert done.exit_code == 0, done.output
    model = tmp_path / "mine.npz"
    own, mean = (float(word.split()[0]) for word in done.output.split("error ")[1].split("alone: ", 1))
    assert own < 0.5 * mean
    assert not (tmp_path / "mine.npz.parts").exists()
    assert load_model(model, "crystal").targets == ["density (g/cm3)"]
    new = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3), ["Mg", "O"], [[0, 0, 0], [0.5, 0, 0]])
    (record,) = answer(new, model).records
    assert record["unit"] == "g/cm3"
    assert record["low"] < record["value"] < record["high"]
    assert record["value"] == pytest.approx(float(new.density), rel=0.3)
    seen = answer(load_structures()[names()[0]], model)
    assert names()[0] in seen.notes[0], "answered by models that have not seen it"
    again = CliRunner().invoke(app, ["train", "--labels", str(tmp_path / "mine.csv")])
    assert again.exit_code != 0


@pytest.mark.slow
def test_an_interrupted_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecdlib.learn import own_labels

    table().to_csv(tmp_path / "mine.csv", index=False)
    data = read_labels(tmp_path / "mine.csv")

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(own_labels, "fit_property", broken)
        with pytest.raises(KeyboardInterrupt):
            train_on_labels(data, tmp_path / "mine.csv", tmp_path / "a.npz", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(own_labels, "crystal_features", broken)
        patch.setattr(own_labels, "PropertyModel", broken)
        found = train_on_labels(data, tmp_path / "mine.csv", tmp_path / "a.npz", progress=False)
    assert found["crystals"] == len(names())
    assert np.isfinite(found.to_numpy()).all()
