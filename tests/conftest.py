"""Small fixtures: fields known everywhere, crystals of many lattices, direct sums to compare with."""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ECD_WORKER"):
    os.environ.setdefault(_variable, "1")  # two test processes share two cores: neither starts others for its work

from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from ecdlib.base.errors import EcdError  # noqa: E402
from ecdlib.density.core import ChargeDensity  # noqa: E402

hypothesis.settings.register_profile("ecdlib", deadline=None, max_examples=20, derandomize=True, database=None)
hypothesis.settings.load_profile("ecdlib")

Array = np.ndarray[Any, Any]
A = 4.0  # Å

#: Cell, species and positions of small crystals, primitive unless the name says otherwise.
CRYSTALS: dict[str, tuple[Any, tuple[str, ...], Any]] = {
    "simple cubic": (A * np.eye(3), ("Po",), [[0, 0, 0]]),
    "CsCl": (A * np.eye(3), ("Cs", "Cl"), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "fcc": (A / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]), ("Cu",), [[0, 0, 0]]),
    "rocksalt": (A / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]), ("Na", "Cl"), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "zincblende": (A / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]), ("Zn", "S"), [[0, 0, 0], [0.25] * 3]),
    "diamond": (A / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]), ("Si", "Si"), [[0, 0, 0], [0.25] * 3]),
    "bcc": (A / 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1.0]]), ("Fe",), [[0, 0, 0]]),
    "hexagonal": (
        np.array([[3, 0, 0], [-1.5, 1.5 * 3**0.5, 0], [0, 0, 5.0]]),
        ("Mg", "Mg"),
        [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
    ),
    "rhombohedral": (
        np.array([[2, 0, 1.5], [-1, 3**0.5, 1.5], [-1, -(3**0.5), 1.5]]),
        ("Bi", "Bi"),
        [[0.23, 0.23, 0.23], [0.77, 0.77, 0.77]],
    ),
    "tetragonal": (np.diag([3.0, 3.0, 4.0]), ("Ti", "Al"), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "base-centred": (np.array([[1.5, -2.2, 0], [1.5, 2.2, 0], [0, 0, 4.1]]), ("Ga",), [[0, 0, 0]]),
    "monoclinic": (np.array([[3, 0, 0], [0, 4, 0], [-0.7, 0, 3.5]]), ("Li", "H"), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "triclinic": (
        np.array([[3, 0.1, -0.3], [0.4, 3.3, 0.2], [-0.5, 0.7, 3.7]]),
        ("Li", "H"),
        [[0.1, 0, 0], [0.4, 0.5, 0.6]],
    ),
    "supercell of fcc": (
        A / 2 * np.array([[0, 1, 1], [1, 0, 1], [2, 2, 0.0]]),
        ("Cu", "Cu"),
        [[0, 0, 0], [0, 0, 0.5]],
    ),
}


@dataclass(frozen=True)
class Waves:
    """A real periodic field made of a few plane waves, so that it is known at every point."""

    modes: Array  #: (k, 3) integers
    amplitudes: Array  #: (k,)
    phases: Array  #: (k,)
    mean: float

    def __call__(self, points: Array) -> Array:
        """Values at fractional coordinates ``(..., 3)``."""
        return self.mean + np.cos(2 * np.pi * points @ self.modes.T + self.phases) @ self.amplitudes

    def on(self, shape: tuple[int, ...]) -> Array:
        """Values on a grid without endpoint."""
        return self(points_of(shape))


def points_of(shape: tuple[int, ...]) -> Array:
    """Fractional coordinates ``(nx, ny, nz, 3)`` of the voxels of a grid."""
    return np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), -1)


@pytest.fixture(scope="session")
def fractional() -> Callable[[tuple[int, ...]], Array]:
    """Fractional coordinates of a grid's voxels, by its shape."""
    return points_of


@pytest.fixture(scope="session")
def waves() -> Callable[..., Waves]:
    """``waves(reach, seed)``: positive field of 12 random waves with components of at most ``reach``."""

    def make(reach: int, seed: int = 0) -> Waves:
        rng = np.random.default_rng(seed)
        modes = rng.integers(-reach, reach + 1, (12, 3))
        amplitudes = rng.uniform(0.2, 1, 12)
        return Waves(modes, amplitudes, rng.uniform(0, 2 * np.pi, 12), 1.1 * float(amplitudes.sum()))

    return make


@pytest.fixture(scope="session")
def trigonometric() -> Callable[[Array, Array], Array]:
    """Periodic trigonometric interpolation of a grid at fractional points ``(..., 3)``, mode by mode.

    The term at the Nyquist frequency of an even grid is half +n/2 and half -n/2: nothing else keeps a real field real.
    """

    def interpolate(values: Array, points: Array) -> Array:
        coefficients = np.fft.fftn(values) / values.size
        flat = points.reshape(-1, 3)
        kernels = []
        for axis, n in enumerate(values.shape):
            modes = np.arange(-(n // 2), n // 2 + 1)
            weight = np.where(np.abs(modes) * 2 == n, 0.5, 1.0)
            kernels.append(weight * np.exp(2j * np.pi * np.outer(flat[:, axis], modes)))
            coefficients = coefficients.take(modes % n, axis)
        result = np.einsum("abc,pa,pb,pc->p", coefficients, *kernels, optimize=True)
        assert np.abs(result.imag).max() < 1e-9 * max(1, np.abs(result.real).max())
        return result.real.reshape(points.shape[:-1])

    return interpolate


@pytest.fixture(scope="session")
def crystal() -> Callable[..., ChargeDensity]:
    """``crystal(kind, values)``: a density on one of the small crystals; ``values`` may be a shape (random field)."""

    def make(kind: str, values: Any, seed: int = 0, **more: Any) -> ChargeDensity:
        if isinstance(values, tuple):
            values = np.random.default_rng(seed).uniform(0.1, 2, values)
        lattice, species, positions = CRYSTALS[kind]
        return ChargeDensity(values, lattice, species, np.array(positions, dtype=float), name=kind, **more)

    return make


@pytest.fixture(scope="session")
def gpaw() -> str:
    """A Python that can import GPAW."""
    from ecdlib.dft.compute import find_gpaw_python

    try:
        return find_gpaw_python()
    except EcdError:
        pytest.skip("no Python with GPAW here (Debian: apt-get install gpaw gpaw-data)")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills once for all processes of the tests."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if several else factory.getbasetemp()) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            folder.mkdir()
            make(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small crystal graph networks: ``r.npz`` holds what they are worth, ``model.npz`` the trained ensemble."""
    from ecdlib.learn import elasticity
    from ecdlib.learn.elasticity import CgcnnParameters

    def make(folder: Path) -> None:
        p = CgcnnParameters(epochs=1, sample=60, folds="all", members=2)
        result = elasticity.run_elasticity(p, folder / "r.npz", progress=False)
        elasticity.train_ensemble(p, result, folder / "model.npz")

    return once(tmp_path_factory, "tiny-ensemble", make)
