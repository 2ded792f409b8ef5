"""Errors of densities that have gone through a latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_density
from ecdlib.features.common_grid import Route, on_grid
from ecdlib.learn.autoencoder import Autoencoder, AutoencoderParameters
from ecdlib.learn.reconstruction import lost_atoms, near_nuclei, reconstruction_errors

NAMES = ("NaCl_225", "AlCu3_225", "LiH_225")


class Scales(Autoencoder):
    """Stands for a network: what comes back is what was given, times a factor."""

    factor = 1.0

    def encode(self, grids: Floats) -> Floats:
        return self.factor * grids

    def decode(self, latents: Floats) -> Floats:
        return latents


def through(route: Route, factor: float) -> tuple[list[ChargeDensity], Any]:
    p = AutoencoderParameters(route=route, edge=64)
    trained = Scales({}, {"parameters": p.model_dump(), "provenance": {}})
    object.__setattr__(trained, "factor", factor)
    densities = [load_density(name) for name in NAMES]
    return densities, reconstruction_errors(trained, densities, (on_grid(d, p.edge, p.route) for d in densities))


@pytest.mark.parametrize("route", ["padded", "periodic"])
def test_what_comes_back_unchanged_has_the_error_of_the_grid_alone(route: Route) -> None:
    densities, found = through(route, 1.0)
    assert list(found.index) == list(NAMES)
    assert (found[["grid_mse", "grid_mae", "lost"]] == 0).all(axis=None)
    np.testing.assert_allclose(found["relative"], found["bare"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found["electrons"], 0, atol=1e-6)
    assert found["metals"].tolist() == [False, True, False]
    np.testing.assert_allclose(found["mean"], [d.n_electrons / d.volume for d in densities], rtol=1e-9)


@pytest.mark.parametrize("route", ["padded", "periodic"])
def test_what_comes_back_with_a_third_has_lost_two_thirds(route: Route) -> None:
    densities, found = through(route, 1 / 3)
    np.testing.assert_allclose(found["electrons"], -200 / 3, rtol=1e-6)
    assert found["lost"].tolist() == found["atoms"].tolist()
    for density, atoms in zip(densities, found["atoms"], strict=True):
        assert atoms % len(density.species) == 0, "of the conventional cell, on the periodic route"
    assert (found["relative"] > 60).all()


def test_the_electrons_of_an_atom_are_counted_around_its_nucleus() -> None:
    """Of one Gaussian in a corner of the cell, by its formula."""
    n, a, width = 40, 4.0, 0.3
    x = np.minimum(np.arange(n), n - np.arange(n)) * a / n
    line = np.exp(-((x / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    values = line[:, None, None] * line[None, :, None] * line
    density = ChargeDensity(values, a * np.eye(3), ("H",), [[0, 0, 0]], name="Gaussian")
    from scipy.stats import chi

    ((inside,),) = near_nuclei(density)
    assert inside == pytest.approx(chi(3).cdf(1 / width), rel=0.01)
    assert lost_atoms(density, density.step("thinner", values=values / 3)).all()
    assert not lost_atoms(density, density).any()
