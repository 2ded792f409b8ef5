"""Preprocessing of a density (Lean CNN paper, section 2.2): conventional cell, negative charge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ecdlib.base.errors import EcdError
from ecdlib.density.core import ChargeDensity, Floats

Complexes = NDArray[np.complexfloating[Any]]


def conventional_cell(density: ChargeDensity, symprec: float = 1e-2) -> tuple[Floats, Floats]:
    """The conventional cell of the crystal, found by spglib.

    Returns:
        ``T`` (3, 3): conventional vectors = ``T @ density.lattice`` (integers, unless the input is a supercell), and
        the conventional lattice (3, 3) in Å in the standard orientation, lower triangular: a along x, b in the
        xy plane. Lengths and angles are those of the input, not idealized.

    Raises:
        EcdError: no symmetry found (atoms on top of each other).
    """
    found = density.symmetry(symprec)
    if found is None:
        raise EcdError(density.name, "no crystal symmetry found", "Check the atomic positions: do two coincide?")
    T = np.linalg.inv(found.transformation_matrix).T
    if np.abs(T - T.round()).max() < 1e-6:
        T = T.round()
    r: Floats = np.linalg.qr((T @ density.lattice).T)[1]  # lattice = r.T times a rotation
    return T, r.T * np.sign(np.diag(r))


def fast_length(minimum: float) -> int:
    """Smallest FFT-friendly multiple of 4 that is at least ``minimum`` (special positions such as 1/4 stay on it)."""
    n = max(4, 4 * int(np.ceil(minimum / 4 - 1e-9)))
    while scipy.fft.next_fast_len(n) != n:
        n += 4
    return n


def conventional_grid(density: ChargeDensity, lattice: Floats) -> tuple[int, int, int]:
    """Grid of the conventional cell that keeps the input's resolution.

    It holds every plane wave of the largest sphere that fits the input's reciprocal grid.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(density.lattice), axis=0)  # distances of lattice planes, Å
    spacing = (heights / density.shape).max()
    nx, ny, nz = (fast_length(length / spacing) for length in np.linalg.norm(lattice, axis=1))
    return nx, ny, nz


def _fourier(density: ChargeDensity, T: Floats, grid: tuple[int, int, int]) -> tuple[Floats, float]:
    """Values on the new grid by moving each plane wave ``m`` to ``T m``; and the share of power that did not fit."""
    coefficients = scipy.fft.rfftn(density.values.astype(np.float64), norm="forward", workers=1)
    m = [np.fft.fftfreq(n, 1 / n) for n in density.shape[:2]] + [np.arange(density.shape[2] // 2 + 1)]
    for axis, n in enumerate(density.shape):
        if n % 2 == 0:  # the Nyquist plane stands for +n/2 and -n/2: half of it to each
            nyquist = coefficients.take(n // 2, axis) / 2
            coefficients[(*[slice(None)] * axis, n // 2)] = nyquist
            if axis < 2:  # the last axis holds +n/2 only; its mirror image is added below, as for every wave
                coefficients = np.insert(coefficients, n // 2, nyquist, axis=axis)
                m[axis] = np.insert(m[axis], n // 2, n // 2)
    axes = [k.reshape([-1 if i == a else 1 for i in range(3)]) for a, k in enumerate(m)]
    power = np.abs(coefficients) ** 2
    power[:, :, 1:] *= 2
    h = [sum(t * axis for t, axis in zip(row, axes, strict=True)) for row in T]
    fits: Any = power > 1e-32 * power.max()
    for hi, n in zip(h, grid, strict=True):
        whole = hi.round()
        fits = fits & (np.abs(hi - whole) < 1e-6) & (np.abs(whole) <= n // 2)
    lost = float(power[~fits].sum() / power.sum())
    h0, h1, h2 = (np.broadcast_to(hi, fits.shape)[fits].round().astype(np.int32) for hi in h)
    values = coefficients[fits]
    spectrum = np.zeros(grid[0] * grid[1] * (grid[2] // 2 + 1), dtype=complex)
    inner = np.broadcast_to(axes[2] > 0, fits.shape)[fits]  # m_z = 0 holds both signs of a wave already
    for sign, keep in ((1, h2 >= 0), (-1, inner & (h2 <= 0))):
        a, b, c = sign * h0[keep], sign * h1[keep], sign * h2[keep]
        flat = (a % grid[0] * grid[1] + b % grid[1]) * (grid[2] // 2 + 1) + c
        np.add.at(spectrum, flat, values[keep] if sign == 1 else values[keep].conj())
    full = spectrum.reshape(grid[0], grid[1], -1)
    if grid[2] % 2 == 0:
        full[:, :, -1] *= 2  # waves at +n/2 and -n/2 share this plane, and only one of each pair was added
    return scipy.fft.irfftn(full, s=grid, norm="forward", overwrite_x=True, workers=1), lost


def _trilinear(density: ChargeDensity, T: Floats, grid: tuple[int, int, int]) -> Floats:
    """Values on the new grid by SimpleITK's trilinear interpolation, on the input with a periodic halo."""
    import SimpleITK as sitk  # slow to import, and seldom needed

    shape = np.array(density.shape)
    to_input = T.T * shape[:, None]  # voxel coordinates of the input from conventional fractional coordinates
    corners = np.indices((2, 2, 2)).reshape(3, -1)
    low = np.floor((to_input @ corners).min(1)).astype(int) - 1
    high = np.ceil((to_input @ corners).max(1)).astype(int) + 1
    halo = density.values[np.ix_(*(np.arange(a, b + 1) % n for a, b, n in zip(low, high, shape, strict=True)))]
    image = sitk.GetImageFromArray(halo.T)  # SimpleITK indexes arrays z, y, x
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((to_input / np.array(grid)[None, :]).ravel().tolist())
    affine.SetTranslation((-low).astype(float).tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in grid])
    resampler.SetTransform(affine)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetNumberOfThreads(1)
    return np.ascontiguousarray(sitk.GetArrayFromImage(resampler.Execute(image)).T)


def to_conventional(
    density: ChargeDensity,
    method: Literal["fourier", "trilinear"] = "fourier",
    grid: tuple[int, int, int] | None = None,
) -> ChargeDensity:
    """Density on the conventional cell (Lean CNN paper, 2.2.1).

    Args:
        method: ``"fourier"`` moves each plane wave to its place in the conventional cell, exact for a band-limited
            density (electrons to machine precision); ``"trilinear"`` is the paper's SimpleITK interpolation.
        grid: voxels along the conventional vectors; by default the input's resolution is kept.

    Returns:
        The density in the standard orientation (a along x, b in the xy plane), origin unchanged. The input itself
        if it is that already. The last entry of ``history`` says which share of the spectral power did not fit.

    Raises:
        EcdError: no crystal symmetry found.
    """
    T, lattice = conventional_cell(density)
    if grid is None and np.array_equal(T, np.eye(3)):
        return density if np.allclose(lattice, density.lattice, atol=1e-9) else density.step("turned", lattice=lattice)
    grid = grid or conventional_grid(density, lattice)
    if method == "trilinear":
        values, what = _trilinear(density, T, grid), "trilinear"
    else:
        values, lost = _fourier(density, T, grid)
        what = f"Fourier, {lost:.1e} of the spectral power outside the new grid"
    reach = range(-int(np.abs(T).sum(1).max().round()), int(np.abs(T).sum(1).max().round()) + 1)
    shifts = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 3)
    inverse = np.linalg.inv(T)
    positions: list[Floats] = []
    species: list[str] = []
    for symbol, position in zip(density.species, density.positions, strict=True):
        images = (position + shifts) @ inverse
        images = images[((images > -1e-6) & (images < 1 - 1e-6)).all(1)]
        for image in images:
            delta = np.array([p for p, s in zip(positions, species, strict=True) if s == symbol]).reshape(-1, 3) - image
            if not len(delta) or np.abs(delta - delta.round()).max(1).min() > 1e-3:
                positions.append(image)
                species.append(symbol)
    return density.step(
        f"conventional cell {'x'.join(map(str, grid))} ({what})",
        values=values,
        lattice=lattice,
        species=tuple(species),
        positions=np.array(positions),
    )


def resample(values: Floats, shape: Sequence[int]) -> Floats:
    """A periodic field on another grid: plane waves are kept, dropped where the new grid cannot hold them.

    Example:
        >>> wave = np.cos(2 * np.pi * np.arange(4) / 4)[:, None, None] * np.ones((1, 2, 2))
        >>> resample(wave, (8, 2, 2))[:, 0, 0].round(3)
        array([ 1.   ,  0.707,  0.   , -0.707, -1.   , -0.707, -0.   ,  0.707])
    """
    from scipy.signal import resample as along  # slow to import

    resampled = np.asarray(values, dtype=np.float64)
    for axis, n in enumerate(shape):
        if n != resampled.shape[axis]:
            resampled = along(resampled, int(n), axis=axis)
    return resampled


def supercell(density: ChargeDensity, repeats: tuple[int, int, int]) -> ChargeDensity:
    """The same crystal in a cell that is ``repeats`` times as long along each vector."""
    shifts = np.indices(repeats).reshape(3, -1).T
    return density.step(
        f"supercell {'x'.join(map(str, repeats))}",
        values=np.tile(density.values, repeats),
        lattice=density.lattice * np.array(repeats)[:, None],
        species=tuple(s for s in density.species for _ in shifts),
        positions=((density.positions[:, None] + shifts) / repeats).reshape(-1, 3),
    )


def compare_conversions(density: ChargeDensity) -> dict[str, Any]:
    """What the paper checks of the conversion (2.2.1), for the exact and for its trilinear route on one grid.

    Returns:
        ``converted`` (False if the cell is conventional already); electrons per input cell, peak and minimum (e/Å³)
        before and for each route; ``lost_power``, what the exact route's grid misses of the mean square (Parseval);
        and ``rms_trilinear``, the trilinear field's deviation from the exact one in units of the density's own.
    """
    row: dict[str, Any] = {
        "name": density.name,
        "electrons": density.n_electrons,
        "peak": float(density.values.max()),
        "minimum": float(density.values.min()),
    }
    exact = to_conventional(density)
    row["converted"] = not np.array_equal(conventional_cell(density)[0], np.eye(3))
    trilinear = to_conventional(density, "trilinear", exact.shape) if row["converted"] else exact
    power = (density.values.astype(np.float64) ** 2).mean()
    row["lost_power"] = float(abs(1 - (exact.values.astype(np.float64) ** 2).mean() / power))
    for route, result in (("fourier", exact), ("trilinear", trilinear)):
        row[f"electrons_{route}"] = result.n_electrons * density.volume / result.volume
        row[f"peak_{route}"] = float(result.values.max())
        row[f"minimum_{route}"] = float(result.values.min())
    row["rms_trilinear"] = float((trilinear.values - exact.values).std() / exact.values.std())
    return row
