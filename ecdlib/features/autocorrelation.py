"""2-point autocorrelations of a density (Lean CNN paper, section 3.1), their interpolation, and 1-point statistics."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ecdlib.base.errors import EcdError
from ecdlib.density.core import ChargeDensity, Floats

Field = Literal["sqrt", "density"]


def power_spectrum(density: ChargeDensity, field: Field) -> Floats:
    """Fourier coefficients of the autocorrelation, |F|² / N², on the half spectrum ``(nx, ny, nz//2 + 1)``."""
    values = density.values.astype(np.float64, copy=False)
    if field == "sqrt":
        if values.min() < 0:
            raise EcdError(
                density.name,
                f"the density is negative in places (down to {values.min():.3g} e/Å³), it has no square root",
                "Apply redistribute_negative_charge first.",
            )
        values = np.sqrt(values)
    spectrum = scipy.fft.rfftn(values, workers=1)
    power = spectrum.real**2
    power += spectrum.imag**2
    power /= float(values.size) ** 2
    return power


def autocorrelation(density: ChargeDensity, field: Field = "sqrt") -> Floats:
    """Periodic 2-point autocorrelation on the density's own grid (Lean CNN paper, Eq. 2).

    f_r = (1/|S|) F⁻¹[F(√ρ) F*(√ρ)], the mean over s of √ρ(s) √ρ(s + r).

    Args:
        field: ``"sqrt"``, so that f_0 is the mean density; or ``"density"`` for the correlation of ρ itself.

    Returns:
        ``(nx, ny, nz)`` in e/Å³ (e²/Å⁶ for ``"density"``); r = 0 at index (0, 0, 0).

    Raises:
        EcdError: negative values where the square root is asked for.

    Example:
        A density that alternates between 1 and 4 along x: √ρ is 1, 2, so f is (1 + 4)/2 or 1·2.

        >>> import numpy as np
        >>> values = np.tile(np.array([1.0, 4.0])[:, None, None], (1, 2, 2))
        >>> autocorrelation(ChargeDensity(values, np.eye(3), (), np.empty((0, 3))))[:, 0, 0]
        array([2.5, 2. ])
    """
    return scipy.fft.irfftn(power_spectrum(density, field) * density.values.size, s=density.shape, workers=1)


def standardized_autocorrelation(
    density: ChargeDensity, size: int = 51, voxel: float = 0.2, field: Field = "sqrt"
) -> Floats:
    """Autocorrelation on a fixed Cartesian grid, by trigonometric interpolation (Lean CNN paper, 3.1).

    The grid holds the vectors r with components -h..h, h = (size - 1)/2 * voxel; the paper's 51 and 0.2 Å give ±5 Å.
    The interpolation is the periodic trigonometric one, exact to rounding, on any lattice: three matrix products
    where the lattice is lower triangular (as :func:`ecdlib.density.cell.to_conventional` gives it), finufft at 1e-13
    elsewhere.

    Args:
        size: odd number of voxels along each axis.
        voxel: voxel width in Å.
        field: as in :func:`autocorrelation`.

    Returns:
        ``(size, size, size)``, r = 0 in the centre, f(r) = f(-r).

    Raises:
        EcdError: an even size, a width that is not positive, or negative density.
    """
    if size < 1 or size % 2 == 0:
        raise EcdError(f"size={size}", "the grid needs an odd size, with r = 0 in its centre", "Try 51.")
    if not voxel > 0:
        raise EcdError(f"voxel={voxel}", "the voxel width must be positive", "Try 0.2 (Å).")
    power, modes = _trim(*symmetric_modes(power_spectrum(density, field), density.shape))
    reciprocal = 2 * np.pi * np.linalg.inv(density.lattice)  # phase = r @ reciprocal @ m
    x = voxel * np.arange(-(size // 2), size // 2 + 1)
    z = x[size // 2 :]  # the other half follows from f(r) = f(-r)
    triangular = np.abs(np.triu(reciprocal, 1)).max() < 1e-9 * np.abs(reciprocal).max()
    half = (_separable if triangular else _nonuniform)(power, modes, reciprocal, x, z)
    return np.concatenate([half[::-1, ::-1, :0:-1], half], axis=2)


def symmetric_modes(power: Floats, shape: tuple[int, int, int]) -> tuple[Floats, list[Floats]]:
    """Coefficients on modes -n/2..n/2 (z: 0..n/2), so that the real part of their sum is the field.

    The Nyquist term of an even grid is shared by +n/2 and -n/2; modes with z > 0 stand for their mirror image too.
    """
    power[:, :, 1:] *= 2
    modes = [np.fft.fftfreq(n, 1 / n) for n in shape[:2]] + [np.arange(shape[2] // 2 + 1.0)]
    for axis, n in enumerate(shape):
        if n % 2 == 0:
            power.swapaxes(0, axis)[n // 2] /= 2
            if axis < 2:
                power = np.insert(power, n // 2, power.take(n // 2, axis), axis=axis)
                modes[axis] = np.insert(modes[axis], n // 2, n // 2)
    return power, modes


def _trim(power: Floats, modes: list[Floats]) -> tuple[Floats, list[Floats]]:
    """Leave out the outermost modes while all that is left out is below 1e-16 of f_0 (they add less than rounding)."""
    for axis in range(3):
        profile = power.sum(axis=tuple({0, 1, 2} - {axis}))
        order = np.argsort(np.abs(modes[axis]))
        outside = np.cumsum(profile[order][::-1])[::-1]
        keep = np.sort(order[outside > 3e-17 * profile.sum()])
        power, modes[axis] = power.take(keep, axis), modes[axis][keep]
    return power, modes


def _separable(power: Floats, modes: list[Floats], reciprocal: Floats, x: Floats, z: Floats) -> Floats:
    """Sum over modes axis by axis; on a lower triangular lattice each step mixes in only axes already done."""
    m1, m2, m3 = modes
    n1, n2, n = len(m1), len(m2), len(x)

    def wave(m: Floats, g: float, r: Floats) -> NDArray[np.complexfloating[Any]]:
        return np.exp(1j * np.outer(m, g * r))

    kernel = wave(m3, reciprocal[2, 2], z)
    rows = power.reshape(-1, len(m3))
    a = np.empty((n1 * n2, len(z)), dtype=complex)
    a.real, a.imag = rows @ kernel.real, rows @ kernel.imag
    a.shape = n1, n2, len(z)
    if reciprocal[2, 0] or reciprocal[2, 1]:
        a *= wave(m1, reciprocal[2, 0], z)[:, None, :] * wave(m2, reciprocal[2, 1], z)[None, :, :]
    b = wave(m2, reciprocal[1, 1], x).T @ a  # (n1, y, z)
    if reciprocal[1, 0]:
        b *= wave(m1, reciprocal[1, 0], x)[:, :, None]
    last, b = wave(m1, reciprocal[0, 0], x).T, b.reshape(n1, -1)
    return (last.real @ b.real - last.imag @ b.imag).reshape(n, n, len(z))


def _nonuniform(power: Floats, modes: list[Floats], reciprocal: Floats, x: Floats, z: Floats) -> Floats:
    """The same sum on any lattice by a type-2 nonuniform FFT."""
    reach = [int(np.abs(m).max()) for m in modes]
    full = np.zeros([2 * r + 1 for r in reach], dtype=complex)
    index = [m.astype(int) + r for m, r in zip(modes, reach, strict=True)]
    full[np.ix_(*index)] = power
    points = np.stack(np.meshgrid(x, x, z, indexing="ij"), -1).reshape(-1, 3) @ reciprocal
    phases = np.ascontiguousarray((points.T + np.pi) % (2 * np.pi) - np.pi)
    import finufft

    values = finufft.nufft3d2(*phases, full, eps=1e-13, isign=1, nthreads=1)
    return values.real.reshape(len(x), len(x), len(z))


#: Shares of the cell at which :func:`density_quantiles` reads the density.
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


def density_quantiles(density: ChargeDensity) -> Floats:
    """1-point statistics: the densities below which given shares of the cell lie (:data:`QUANTILES`).

    The 2-point autocorrelation keeps the mean of the density, but not how much of the cell is nearly empty.

    Returns:
        ``(12,)`` in e/Å³, from the smallest voxel to the largest.

    Example:
        >>> import numpy as np
        >>> values = np.arange(1000.0).reshape(10, 10, 10)
        >>> density_quantiles(ChargeDensity(values, np.eye(3), (), np.empty((0, 3))))[[0, 5, 11]]
        array([  0. , 499.5, 999. ])
    """
    values = np.sort(density.values.ravel().astype(np.float32))
    at = np.array(QUANTILES) * (values.size - 1)
    low = at.astype(int)
    high = np.minimum(low + 1, values.size - 1)
    return values[low] + (at - low) * (values[high] - values[low])


@lru_cache(maxsize=8)
def cubic_orbits(size: int) -> NDArray[np.intp]:
    """Orbit number of each voxel of a centred ``(size, size, size)`` grid under the 48 operations of the cube.

    The centre is a voxel for an odd size, a corner of voxels for an even one. Orbits are numbered in order of the
    largest, then the middle, then the smallest of the components' sizes. Read-only.
    """
    distance = np.abs(2 * np.arange(size) - (size - 1))
    components = np.sort(np.stack(np.meshgrid(distance, distance, distance, indexing="ij"), -1), axis=-1)
    _, orbit = np.unique(components @ [1, size, size**2], return_inverse=True)
    orbit = orbit.reshape(size, size, size)
    orbit.flags.writeable = False
    return orbit


def cubic_average(features: Floats) -> Floats:
    """Values of the symmetry-distinct voxels under m-3m, each the mean over its orbit.

    The autocorrelation of a crystal of Laue class m-3m has all 48 symmetries, so nothing is lost; for others
    (m-3, not cubic) the 48 orientations are averaged.

    Args:
        features: ``(..., size, size, size)`` centred on r = 0, as :func:`standardized_autocorrelation` gives.

    Returns:
        ``(..., k)`` with k = h(h + 1)(h + 2)/6, h = (size + 1)/2 (3,276 for 51), in order of increasing |r| components.
    """
    size = features.shape[-1]
    orbit = cubic_orbits(size).ravel()
    sums = np.stack([np.bincount(orbit, row) for row in features.reshape(-1, size**3)])
    return (sums / np.bincount(orbit)).reshape(*features.shape[:-3], -1)
