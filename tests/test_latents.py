"""Latents: the common grid knows no cell, circular padding commutes with shifts, databases survive the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from typer.testing import CliRunner

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file
from ecdlib.cli import app
from ecdlib.density.cell import resample, supercell, to_conventional
from ecdlib.density.core import ChargeDensity
from ecdlib.density.io import read_density
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import bundled_names, common_cell, on_grid, padded_grid
from ecdlib.learn.autoencoder import (
    AutoencoderParameters,
    pooled,
    shipped_autoencoders,
    train_autoencoder,
)
from ecdlib.learn.latents import load_latents, write_latents
from ecdlib.learn.model_file import load_model
from ecdlib.models.autoencoder import ChargeDensityAutoencoder, Padding, orientation
from ecdlib.models.lean_cnn import count_parameters
from ecdlib.models.torch_regressor import TrainingSettings, fit

SMALL = ["NaCl_225", "Fe3SnC_221", "CaMg2_194", "VB_63"]


@pytest.mark.parametrize("name", SMALL)
def test_the_common_grid_conserves_electrons(name: str) -> None:
    density = load_density(name)
    cell = common_cell(density, 32)
    assert cell.shape == (32, 32, 32)
    assert cell.n_electrons / cell.volume == pytest.approx(density.n_electrons / density.volume, rel=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_the_common_grid_does_not_know_the_cell(name: str) -> None:
    """The same values come out, at most in another choice among the axes and origins that the symmetry leaves open."""
    density = load_density(name)
    reference = np.sort(common_cell(density, 24).values, axis=None)
    for other in (to_conventional(density), supercell(density, (2, 1, 1)), supercell(density, (1, 2, 2))):
        found = np.sort(common_cell(other, 24).values, axis=None)
        np.testing.assert_allclose(found, reference, atol=2e-3 * density.values.max())


def test_a_moved_origin_comes_back_to_one_that_the_space_group_allows() -> None:
    density = load_density("Fe3SnC_221")
    moved = density.step(
        "moved",
        values=np.roll(density.values, (3, 5, 9), (0, 1, 2)),
        positions=density.positions + np.array([3, 5, 9]) / 40,
    )
    found, reference = common_cell(moved, 20).values, common_cell(density, 20).values
    shifts = [(a, b, c) for a in (0, 10) for b in (0, 10) for c in (0, 10)]
    nearest = min(np.abs(np.roll(found, s, (0, 1, 2)) - reference).max() for s in shifts)
    assert nearest < 5e-3 * reference.max()


def test_supercells_hold_the_same_crystal() -> None:
    density = load_density("CaMg2_194")
    larger = supercell(density, (2, 1, 3))
    assert larger.n_electrons == pytest.approx(6 * density.n_electrons)
    assert larger.structure.get_primitive_structure().matches(density.structure)


def test_padding_at_full_size_changes_nothing() -> None:
    density = load_density("NaCl_225")
    grid = padded_grid(density, 128)
    a, b, c = density.shape
    np.testing.assert_array_equal(grid[:a, :b, :c], density.values)
    assert np.count_nonzero(grid) <= density.values.size
    half = padded_grid(density, 64)
    assert half.sum() * 8 == pytest.approx(grid.sum(), rel=1e-6)


def test_resampling_up_and_down_is_the_identity() -> None:
    field = np.random.default_rng(0).normal(size=(9, 11, 7))
    np.testing.assert_allclose(resample(resample(field, (12, 15, 20)), (9, 11, 7)), field, atol=1e-12)


@pytest.mark.parametrize(("channels", "poolings", "numbers"), [(8, 4, 4096), (16, 3, 65536), (32, 2, 1048576)])
def test_latents_have_the_published_sizes(channels: int, poolings: int, numbers: int) -> None:
    model = ChargeDensityAutoencoder(poolings, channels).to("meta")
    x = torch.empty(1, 1, 128, 128, 128, device="meta")
    assert model.encode(x).numel() == numbers
    assert model(x).shape == x.shape


def test_without_batch_normalization_the_network_is_that_of_the_public_code() -> None:
    assert count_parameters(ChargeDensityAutoencoder(batch_norm=False)) == 111_633


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_only_circular_padding_commutes_with_shifts(padding: str) -> None:
    torch.manual_seed(0)
    model = ChargeDensityAutoencoder(padding=padding).eval()  # type: ignore[arg-type]
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        a = model.encode(x.roll((8, 16, 24), (2, 3, 4)))
        b = model.encode(x).roll((1, 2, 3), (2, 3, 4))
    assert torch.allclose(a, b, atol=1e-6) == (padding == "circular")


@pytest.mark.parametrize("padding", ["circular", "zeros"])
@pytest.mark.parametrize(("batch_norm", "dropout"), [(True, 0.05), (False, 0.0)])
def test_the_last_layer_on_the_coarse_grid_is_that_on_the_fine_one(
    padding: Padding, batch_norm: bool, dropout: float
) -> None:
    torch.manual_seed(0)
    model = ChargeDensityAutoencoder(3, 16, padding, batch_norm, dropout)
    latent = torch.rand(2, 16, 2, 4, 6)
    for training in (True, False):
        model.train(training)
        found = []
        for decode in (model.decode, model.decoder):
            torch.manual_seed(1)  # of the dropout
            with torch.no_grad():
                found.append(decode(latent))
        assert torch.allclose(*found, atol=1e-6)


def test_twelve_orientations_are_distinct_proper_rotations() -> None:
    axes = torch.stack(torch.meshgrid(*[torch.arange(3.0)] * 3, indexing="ij")) - 1  # coordinates as three fields
    rotations = set()
    for number in range(12):
        turned = orientation(axes, number).reshape(3, -1)
        matrix = (turned @ axes.reshape(3, -1).T / 18).round().int()
        assert round(float(torch.linalg.det(matrix.float()))) == 1
        rotations.add(tuple(matrix.flatten().tolist()))
    assert len(rotations) == 12


def test_early_stopping_keeps_the_best_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    y, noise = x @ torch.randn(5, 1), torch.randn(20, 1) * 3
    model = torch.nn.Linear(5, 1)
    settings = TrainingSettings(epochs=200, batch_size=10, learning_rate=0.05, first_cycle=200, patience=5)
    held = (x[:20], y[:20] + noise)
    losses = fit(model, x[20:], y[20:], settings, validation=held, device="cpu", progress=False)
    assert len(losses.validation) < 200
    with torch.no_grad():
        reached = float(((model(held[0]) - held[1]) ** 2).mean())
    assert reached == pytest.approx(min(losses.validation), rel=1e-5)
    assert len(losses.validation) - 1 - int(np.argmin(losses.validation)) == 5


@pytest.mark.slow
def test_training_an_autoencoder_lowers_its_loss_and_is_repeatable(tmp_path: Path) -> None:
    p = AutoencoderParameters(edge=16, epochs=2, crystals=60, turned="crystal")
    first = train_autoencoder(p, tmp_path / "a.npz", progress=False)
    second = train_autoencoder(p, tmp_path / "b.npz", progress=False)
    assert first.losses[-1] < first.losses[0]
    np.testing.assert_array_equal(first.validation, second.validation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    np.testing.assert_array_equal(train_autoencoder(p, tmp_path / "a.npz").losses, first.losses)
    with pytest.raises(EcdError, match="was made with other parameters"):
        train_autoencoder(p.model_copy(update={"seed": 1}), tmp_path / "a.npz", progress=False)


@pytest.mark.parametrize("name", shipped_autoencoders())
def test_shipped_autoencoders_do_what_their_losses_say(name: str) -> None:
    trained = load_model(name)
    p = trained.parameters
    grids = np.stack([on_grid(load_density(n), p.edge, p.route) for n in SMALL[:2]])
    back = trained.decode(trained.encode(grids))
    lost = ((back - grids) ** 2).mean((1, 2, 3)) / (grids**2).mean((1, 2, 3))
    assert lost.max() < (0.1 if p.route == "periodic" else 0.8), "of the mean square"
    assert trained.validation.min() < trained.validation[0]
    assert "uncommitted" not in trained.meta["provenance"]["commit"]


def test_a_missing_autoencoder_is_named() -> None:
    with pytest.raises(EcdError, match="no such trained model"):
        load_model("periodic-17")
    with pytest.raises(EcdError, match="is a model of kind 'elasticity model', not 'autoencoder'"):
        load_model("cgcnn", "autoencoder")


def test_pooled_latents_do_not_know_positions() -> None:
    latents = np.random.default_rng(0).random((3, 16, 4, 4, 4))
    assert pooled(latents).shape == (3, 48)
    np.testing.assert_allclose(pooled(latents), pooled(np.roll(latents, (1, 2, 3), (2, 3, 4))))


def test_the_latent_database_holds_all_bundled_crystals_as_they_are() -> None:
    database = load_latents()
    assert list(database.table.index) == bundled_names()
    for name in SMALL:
        original = common_cell(load_density(name), None)
        decoded = database.decode(name)
        assert decoded.shape == original.shape
        assert decoded.n_electrons == pytest.approx(original.n_electrons, rel=1e-6)
        assert decoded.structure.matches(original.structure)
        latent = database.autoencoder.latent(load_density(name))
        assert database.nearest(latent, 1).index[0] == name
        np.testing.assert_allclose(database.latents[database.row(name)], latent, rtol=2e-3, atol=2e-3)
    with pytest.raises(EcdError, match="not in the latent database"):
        database.decode("Unobtainium_1")


def test_own_densities_go_into_a_database_and_come_back_as_a_chgcar(tmp_path: Path) -> None:
    out, chgcar = tmp_path / "mine.npz", tmp_path / "CHGCAR"
    vasp = str(data_file("vasp/CHGCAR.NaCl.gz"))
    done = CliRunner().invoke(app, ["encode", vasp, "-o", str(out)])
    assert done.exit_code == 0, done.output
    name = str(load_latents(out).table.index[0])
    done = CliRunner().invoke(app, ["decode", name, str(chgcar), "--database", str(out)])
    assert done.exit_code == 0, done.output
    again = read_density(chgcar)
    assert again.formula == "NaCl"
    assert again.n_electrons == pytest.approx(4 * 8, rel=1e-4)


def test_what_cannot_be_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EcdError, match="periodic route"):
        write_latents(tmp_path / "a.npz", [load_density("NaCl_225")], load_model("padded-16"))
    with pytest.raises(EcdError, match="no densities"):
        write_latents(tmp_path / "a.npz", [], load_model("periodic-16"))
    whole = data_file("latents.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EcdError, match="not a readable latent database"):
        load_latents(tmp_path / "cut.npz")
    mixed = [load_density("NaCl_225"), replace(load_density("Fe3SnC_221"), convention="other")]
    with pytest.raises(EcdError, match="several valence conventions"):
        write_latents(tmp_path / "a.npz", mixed, load_model("periodic-16"))
    with pytest.raises(EcdError, match="two densities with this name"):
        write_latents(tmp_path / "a.npz", [load_density("NaCl_225")] * 2, load_model("periodic-16"))
    assert [f.name for f in tmp_path.iterdir()] == ["cut.npz"]


def test_files_of_one_name_in_many_folders_keep_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "CHGCAR.gz").write_bytes(data_file("vasp/CHGCAR.NaCl.gz").read_bytes())
    files = [str(tmp_path / folder / "CHGCAR.gz") for folder in ("a", "b")]
    done = CliRunner().invoke(app, ["encode", *files, "-o", str(tmp_path / "mine.npz")])
    assert done.exit_code == 0, done.output
    assert list(load_latents(tmp_path / "mine.npz").table.index) == files


def test_a_decoded_density_is_not_written_under_the_name_of_a_store(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["decode", "NaCl_225", str(tmp_path / "out.h5")])
    assert isinstance(done.exception, EcdError)
    assert not list(tmp_path.iterdir())


def test_a_crystal_without_symmetry_still_has_a_latent() -> None:
    lattice, species, positions = CRYSTALS["triclinic"]
    values = 1 + 0.1 * np.cos(2 * np.pi * np.indices((12, 12, 12))[0] / 12)
    density = ChargeDensity(values, lattice, species, positions)
    assert load_model("periodic-16").latent(density).shape == (16, 4, 4, 4)


def test_provenance_of_the_database_is_that_of_its_autoencoder() -> None:
    meta = load_latents().autoencoder.meta
    assert json.dumps(meta) == json.dumps(load_model("periodic-16").meta)
