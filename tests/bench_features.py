"""Benchmark (not a test): a density of 80^3 voxels to its 51^3 features, against what one would use instead.

All on one core, in one run: ``make bench``. Each peer gets the autocorrelation (or its Fourier coefficients) and fills
the same grid; the time includes that. Prints a table and writes ``_build/bench.json``.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import finufft
import numpy as np
import scipy.fft
import SimpleITK as sitk
from pyrho.pgrid import PGrid
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from ecdlib.base.resources import data_file
from ecdlib.book.runs import BUILD
from ecdlib.density.cell import to_conventional
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.negative import redistribute_negative_charge
from ecdlib.density.store import DensityStore, load_density
from ecdlib.density.valence import SMOOTHING, Valence, to_convention
from ecdlib.features.autocorrelation import autocorrelation, standardized_autocorrelation
from ecdlib.features.collection import featurize_collection

SIZE, VOXEL = 51, 0.2
X = VOXEL * np.arange(-(SIZE // 2), SIZE // 2 + 1)
POINTS = np.stack(np.meshgrid(X, X, X, indexing="ij"), -1).reshape(-1, 3)


def seconds(function: Callable[[], object], budget: float = 3.0) -> float:
    """Best time of one call, repeated for about ``budget`` seconds (at least three times)."""
    function()
    times, until = [], time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def coefficients(density: ChargeDensity) -> Floats:
    """Full Fourier coefficients of the autocorrelation, lowest mode first."""
    spectrum = np.abs(scipy.fft.fftn(np.sqrt(density.values), workers=1)) ** 2 / density.values.size**2
    return np.fft.fftshift(spectrum)


def by_finufft(density: ChargeDensity, eps: float) -> Floats:
    phases = np.ascontiguousarray((2 * np.pi * POINTS @ np.linalg.inv(density.lattice) + np.pi) % (2 * np.pi) - np.pi)
    modes = coefficients(density).astype(complex)
    return finufft.nufft3d2(*np.ascontiguousarray(phases.T), modes, eps=eps, isign=1, nthreads=1).real


def by_direct_sum(density: ChargeDensity, points: Floats) -> Floats:
    """Every mode for every point, vectorized over modes."""
    modes = coefficients(density)
    m = [np.arange(n) - n // 2 for n in density.shape]
    u = 2 * np.pi * points @ np.linalg.inv(density.lattice)
    result = np.empty(len(points))
    for i, (a, b, c) in enumerate(u):
        phase = (a * m[0])[:, None, None] + (b * m[1])[None, :, None] + (c * m[2])[None, None, :]
        result[i] = (modes * np.cos(phase)).sum()
    return result


def by_pyrho(density: ChargeDensity) -> Floats:
    """mp-pyrho regrids onto a cube of 2 x 5 Å (without its endpoint) after Fourier upsampling by 2."""
    grid = PGrid(autocorrelation(density), density.lattice)
    box = (SIZE - 1) * VOXEL * np.eye(3) @ np.linalg.inv(density.lattice)
    return grid.get_transformed(box, (SIZE - 1,) * 3, origin=(-5.0 / density.lattice[0, 0],) * 3, up_sample=2).grid_data


def by_simpleitk(density: ChargeDensity) -> Floats:
    """SimpleITK's trilinear interpolation of the autocorrelation with a periodic halo."""
    field, step = autocorrelation(density), density.lattice[0, 0] / density.shape[0]
    halo = int(np.ceil(X[-1] / step)) + 1
    indices = np.arange(-halo, halo + 1) % density.shape[0]
    image = sitk.GetImageFromArray(field[np.ix_(indices, indices, indices)].T)
    image.SetSpacing([step] * 3)
    image.SetOrigin([-halo * step] * 3)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([SIZE] * 3)
    resampler.SetOutputOrigin([X[0]] * 3)
    resampler.SetOutputSpacing([VOXEL] * 3)
    resampler.SetNumberOfThreads(1)
    return sitk.GetArrayFromImage(resampler.Execute(image)).T


def whole_set() -> None:
    """All bundled crystals: the whole pipeline on two processes, and the negative charge alone on one core."""
    sources = [data_file(f"ecd_{which}.h5") for which in ("cubic", "general")]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = featurize_collection(sources, Path(folder) / "features.h5", workers=2, progress=False)
        seconds_all = time.perf_counter() - start
    peak = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"\n{len(table)} bundled crystals, file to features, 2 processes: {seconds_all:.1f} s, ", end="")
    print(f"at most {peak[0]:.2f} GiB here and {peak[1]:.2f} GiB in a worker")
    spent, moved = 0.0, 0
    for store in map(DensityStore, sources):
        for density in store:
            start = time.perf_counter()
            moved += redistribute_negative_charge(density).clusters > 0
            spent += time.perf_counter() - start
    print(f"negative charge of these crystals (primitive cells, {moved} with negative wells), one core: {spent:.1f} s")


def conversion() -> None:
    """Another valence convention for NaCl on 80^3, beside smoothing alone by scipy's periodic Gaussian filter."""
    density = to_conventional(load_density("NaCl_225"), grid=(80, 80, 80))
    as_vasp = Valence({"Na": 1, "Cl": 7}, False, "")
    width = SMOOTHING / np.linalg.norm(density.lattice[0]) * 80
    whole = seconds(lambda: to_convention(density, "gpaw", as_vasp))
    alone = seconds(lambda: gaussian_filter(density.values.astype(np.float64), width, mode="wrap"))
    print(
        f"\nvalence convention of NaCl, 80^3 and 8 atoms, one core: {whole:.4f} s, {1 / whole:.3g} crystals/s; ", end=""
    )
    print(f"scipy's gaussian_filter, smoothing alone: {alone:.4f} s, ratio {alone / whole:.2g}")


def main() -> None:
    density = to_conventional(load_density("Fe3SnC_221"), grid=(80, 80, 80))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    exact = standardized_autocorrelation(density, SIZE, VOXEL)
    spread = exact.std()
    rows: list[tuple[str, float, float]] = []

    def add(name: str, function: Callable[[], Floats], reference: Floats = exact) -> None:
        rows.append(
            (name, seconds(function), float(np.abs(function().reshape(reference.shape) - reference).max() / spread))
        )

    with threadpool_limits(1):
        add("ecdlib (exact, double)", lambda: standardized_autocorrelation(density, SIZE, VOXEL))
        add("finufft, 1e-12", lambda: by_finufft(density, 1e-12))
        add("finufft, 1e-6", lambda: by_finufft(density, 1e-6))
        add("mp-pyrho get_transformed", lambda: by_pyrho(density), exact[:-1, :-1, :-1])
        add("SimpleITK trilinear", lambda: by_simpleitk(density))
        few = POINTS[:: len(POINTS) // 20][:20]
        start = time.perf_counter()
        direct = by_direct_sum(density, few)
        whole = (time.perf_counter() - start) / len(few) * len(POINTS)
    difference = np.abs(direct - exact.reshape(-1)[:: len(POINTS) // 20][:20]).max() / spread
    rows.append((f"direct sum (from {len(few)} of {len(POINTS)} points)", whole, float(difference)))
    ours = rows[0][1]
    print(
        f"{'80^3 -> 51^3 at 0.2 Å, one core':38s}"
        f" {'seconds':>10s} {'crystals/s':>11s} {'ratio':>9s} {'largest error':>14s}"
    )
    for name, t, error in rows:
        print(f"{name:38s} {t:10.4f} {1 / t:11.3g} {t / ours:9.3g} {error:14.1e}")
    conversion()
    whole_set()
    BUILD.mkdir(exist_ok=True)
    names = ("name", "seconds", "largest_error")
    (BUILD / "bench.json").write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
