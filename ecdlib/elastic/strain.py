"""Elastic constants from the energies of strained cells: counting them, straining cells, fitting energies.

Three deformations of a cubic crystal, each with one strain δ. F is the deformation gradient in the cubic axes, V the
volume and P the pressure of the unstrained cell:

- volume: F = (1 + 3δ)^(1/3) 1, ΔE/V = -3 P δ + 9/2 K δ² with K = (C11 + 2 C12)/3;
- tetragonal: F = diag((1 + δ)^(-1/2), (1 + δ)^(-1/2), 1 + δ), ΔE/V = 3/4 (C11 - C12) δ²;
- shear: F_12 = F_21 = δ, F_33 = 1/(1 - δ²), ΔE/V = 2 C44 δ².

The last two keep the volume, so that a pressure does not enter. Source: M. J. Mehl, J. E. Osburn, D. A.
Papaconstantopoulos, B. M. Klein, Phys. Rev. B 41, 10311 (1990), https://doi.org/10.1103/PhysRevB.41.10311, whose
shear is x = 2δ; the notation is that of J. F. Nye, Physical Properties of Crystals (Oxford University Press, 1985).

For any other crystal F = 1 + ε, where one or two of the six components of ε in Voigt's notation are δ and the rest are
zero: ΔE/V = Σ_i σ_i δ + ½ Σ_ij C_ij δ², both sums over these components, with the stress σ of the unstrained cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import spglib
from ase.units import GPa
from numpy.typing import ArrayLike, NDArray

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import data_file
from ecdlib.density.core import spglib_errors_handled
from ecdlib.elastic.moduli import poisson_ratio, youngs_modulus

Floats = NDArray[np.float64]
Mode = Literal["volume", "tetragonal", "shear"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: Components of a strain in Voigt's order.
COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")
#: The 21 deformations that a triclinic crystal needs: each component, and each pair of them.
DEFORMATIONS = (*COMPONENTS, *("+".join(pair) for pair in combinations(COMPONENTS, 2)))

#: ΔE/V = FACTORS[mode] × (K, C11 - C12, C44) × δ².
FACTORS: dict[Mode, float] = {"volume": 4.5, "tetragonal": 0.75, "shear": 2.0}


def independent_constants(rotations: ArrayLike) -> int:
    """How many elastic constants the symmetry leaves free: 3 for a cubic crystal to 21 for a triclinic one.

    The dimension of the symmetric 6 × 6 matrices that a point group leaves as they are, (1/n) Σ_R (χ(R)² + χ(R²))/2
    with the character of strains χ(R) = (tr(R)² + tr(R²))/2. Source: Nye, chapter VIII, has the same numbers.

    Args:
        rotations: (n, 3, 3), all operations of the point group (or each equally often), in any basis.

    Raises:
        EcdError: no rotations, or not a group.

    >>> independent_constants([np.eye(3)]), independent_constants([np.eye(3), np.diag([-1, 1, -1])])
    (21, 13)
    """
    R = np.asarray(rotations, dtype=float)
    if R.ndim != 3 or R.shape[1:] != (3, 3) or not len(R):
        raise EcdError("rotations", f"have the shape {R.shape}, not (n, 3, 3)", "Give a point group's operations.")

    def strains(r: Floats) -> Floats:
        return (np.trace(r, axis1=1, axis2=2) ** 2 + np.trace(r @ r, axis1=1, axis2=2)) / 2

    count = float(np.mean(strains(R) ** 2 + strains(R @ R)) / 2)
    if abs(count - round(count)) > 1e-6:
        raise EcdError("rotations", "are not a group", "Give all operations of the point group.")
    return round(count)


@cache
def spacegroup_constants(number: int) -> int:
    """Independent elastic constants of a crystal in the space group ``number`` (1 to 230).

    Raises:
        EcdError: no such space group.

    >>> [spacegroup_constants(n) for n in (225, 194, 167, 148, 139, 88, 62, 14, 2)]
    [3, 5, 6, 7, 6, 7, 9, 13, 21]
    """
    if number not in range(1, 231):
        raise EcdError(number, "is not a space group", "Their numbers are 1 to 230.")
    return independent_constants(_rotations()[number])


@cache
def _rotations() -> dict[int, Any]:
    """Rotations of each space group, from spglib's tables."""
    with spglib_errors_handled():
        types = ((hall, spglib.get_spacegroup_type(hall)) for hall in range(530, 0, -1))
        settings = {found.number: hall for hall, found in types if found is not None}
        tables = ((number, spglib.get_symmetry_from_database(hall)) for number, hall in settings.items())
        return {number: table["rotations"] for number, table in tables if table is not None}


def cubic_strains(mode: str, delta: ArrayLike) -> Floats:
    """Deformation gradients in the cubic axes, (..., 3, 3) for ``delta`` of the shape (...); see the module.

    Raises:
        EcdError: no such deformation, or a strain that turns the cell inside out.

    >>> np.linalg.det(cubic_strains("shear", [-0.1, 0.1])).round(12).tolist()
    [1.0, 1.0]
    """
    d = np.asarray(delta, dtype=float)
    if mode not in MODES:
        raise EcdError(mode, "no such deformation", f"Choose one of: {', '.join(MODES)}.")
    limit = 1 / 3 if mode == "volume" else 1.0
    if not (np.isfinite(d).all() and (abs(d) < limit).all()):
        raise EcdError("strain", f"is not within ±{limit:.2g} for the deformation '{mode}'", "Give small strains.")
    F = np.zeros((*d.shape, 3, 3))
    if mode == "volume":
        F[..., [0, 1, 2], [0, 1, 2]] = np.cbrt(1 + 3 * d)[..., None]
    elif mode == "tetragonal":
        F[..., [0, 1], [0, 1]] = (1 + d[..., None]) ** -0.5
        F[..., 2, 2] = 1 + d
    else:
        F[..., [0, 1], [0, 1]] = 1
        F[..., [0, 1], [1, 0]] = d[..., None]
        F[..., 2, 2] = 1 / (1 - d**2)
    return F


def general_strains(mode: str, delta: ArrayLike) -> Floats:
    """Deformation gradients of one of the 21 deformations, (..., 3, 3) for ``delta`` of the shape (...).

    Args:
        mode: one of :data:`DEFORMATIONS`, a component of strain or two joined by ``+``.
        delta: the value of each component; of a shear, the change of the angle, so that F_ij = F_ji = δ/2.

    Raises:
        EcdError: no such deformation, or a strain of 50 % or more.

    >>> general_strains("xx+yz", 0.01).tolist()
    [[1.01, 0.0, 0.0], [0.0, 1.0, 0.005], [0.0, 0.005, 1.0]]
    """
    d = np.asarray(delta, dtype=float)
    if mode not in DEFORMATIONS:
        raise EcdError(mode, "no such deformation", f"Choose one of: {', '.join(DEFORMATIONS)}.")
    if not (abs(d) < 0.5).all():
        raise EcdError("strain", f"is not within ±0.5 for the deformation '{mode}'", "Give small strains.")
    return np.eye(3) + d[..., None, None] * _strain(mode)


def _strain(mode: str) -> Floats:
    """(3, 3), the strain of a deformation for δ = 1."""
    e = np.zeros((3, 3))
    for component in mode.split("+"):
        i, j = ("xyz".index(axis) for axis in component)
        e[i, j] += 0.5
        e[j, i] += 0.5
    return e


def independent_deformations(rotations: ArrayLike) -> tuple[str, ...]:
    """The first of :data:`DEFORMATIONS` whose energies determine all elastic constants of a crystal.

    As many as :func:`independent_constants`. The second-order energy is linear in C, and only that part of ε ⊗ ε counts
    which the point group leaves as it is: a deformation is taken if this part does not follow from those before.

    Args:
        rotations: (n, 3, 3), all operations of the point group, in the axes of the strain (Cartesian).

    Raises:
        EcdError: see :func:`independent_constants`; axes in which the operations are no rotations.

    >>> independent_deformations([np.eye(3), np.diag([-1, 1, -1])])[6:]
    ('xx+yy', 'xx+zz', 'xx+xz', 'yy+zz', 'yy+xz', 'zz+xz', 'yz+xy')
    """
    count = independent_constants(rotations)
    R = np.asarray(rotations, dtype=float)
    if not np.allclose(R @ np.swapaxes(R, 1, 2), np.eye(3), atol=1e-4):
        raise EcdError("rotations", "are not orthogonal matrices", "Give them in Cartesian axes.")
    taken: list[str] = []
    parts = np.empty((0, 81))
    for mode in DEFORMATIONS:
        e = R @ _strain(mode) @ np.swapaxes(R, 1, 2)
        part = np.einsum("nij,nkl->ijkl", e, e).reshape(1, 81) / len(R)
        if np.linalg.matrix_rank(np.vstack([parts, part]), tol=1e-3) > len(parts):
            parts = np.vstack([parts, part])
            taken.append(mode)
    assert len(taken) == count
    return tuple(taken)


def strained_cell(cell: ArrayLike, mode: str, delta: ArrayLike) -> Floats:
    """Cell vectors (rows, Å) after the deformation: (3, 3) and strains (...) give (..., 3, 3).

    For the deformations of a cubic crystal the cell must be given in the cubic axes. Fractional coordinates stay as
    they are.

    Args:
        mode: one of :data:`MODES` or of :data:`DEFORMATIONS`.

    Raises:
        EcdError: see :func:`cubic_strains` and :func:`general_strains`, or a cell without volume.
    """
    vectors = np.asarray(cell, dtype=float)
    if vectors.shape != (3, 3) or not abs(np.linalg.det(vectors)) > 1e-6:
        raise EcdError("cell", "is not a matrix of three independent vectors", "Give (3, 3), Å, vectors as rows.")
    strains = cubic_strains(mode, delta) if mode in MODES else general_strains(mode, delta)
    return vectors @ np.swapaxes(strains, -1, -2)


@dataclass(frozen=True)
class CubicConstants:
    """Elastic constants of a cubic crystal, GPa; ``pressure`` of the unstrained cell, GPa; ``residual`` of each fit,
    the root of the mean square, eV per cell."""

    c11: float
    c12: float
    c44: float
    pressure: float
    residual: dict[Mode, float]

    @property
    def stiffness(self) -> Floats:
        """(6, 6), GPa, in the order xx, yy, zz, yz, xz, xy."""
        C = np.diag([self.c11 - self.c12] * 3 + [self.c44] * 3)
        C[:3, :3] += self.c12
        return C

    @property
    def zener(self) -> float:
        """2 C44 / (C11 - C12); 1 if the crystal is equally stiff in all directions."""
        return 2 * self.c44 / (self.c11 - self.c12)


def cubic_constants(
    delta: ArrayLike, energies: Mapping[Mode, ArrayLike], volume: float, degree: int = 2
) -> CubicConstants:
    """Elastic constants from the curvature of a polynomial fitted to the energies of each deformation at no strain.

    Args:
        delta: (n,), strains.
        energies: for each of the three deformations (n,), eV per cell.
        volume: of the unstrained cell, Å³.
        degree: of the polynomials.

    Raises:
        EcdError: a deformation is missing, shapes do not fit, fewer strains than coefficients, a volume that is not
            positive, numbers that are not finite.
    """
    d = np.asarray(delta, dtype=float)
    missing = [mode for mode in MODES if mode not in energies]
    if missing:
        raise EcdError("energies", f"of {', '.join(missing)} are missing", "Give all three deformations.")
    E = [np.asarray(energies[mode], dtype=float) for mode in MODES]
    if d.ndim != 1 or any(e.shape != d.shape for e in E):
        raise EcdError("energies", "are not as many as the strains", "Give one for each strain.")
    if not (np.isfinite([d, *E]).all() and np.isfinite(volume) and volume > 0):
        raise EcdError("energies", "or strains are not finite, or the volume is not positive", "Check the input.")
    if degree < 2 or len(np.unique(d)) <= degree:
        problem = f"{len(np.unique(d))} strains do not determine a curvature from degree {degree}"
        raise EcdError("fit", problem, "Take degree 2 or more, and more strains than that.")
    y = np.stack(E, axis=1)
    scale = abs(d).max()  # fitted in δ / scale, for the sake of rounding
    coefficients = np.polynomial.polynomial.polyfit(d / scale, y - y.mean(0), degree)
    rest = y - y.mean(0) - np.polynomial.polynomial.polyval(d / scale, coefficients).T
    K, difference, c44 = (
        float(c / (scale**2 * FACTORS[mode] * volume * GPa)) for mode, c in zip(MODES, coefficients[2], strict=True)
    )
    return CubicConstants(
        c11=K + 2 * difference / 3,
        c12=K - difference / 3,
        c44=c44,
        pressure=float(-coefficients[1, 0] / (3 * scale * volume * GPa)),
        residual=dict(zip(MODES, np.sqrt((rest**2).mean(0)).tolist(), strict=True)),
    )


def voigt_reuss_hill(C: ArrayLike) -> dict[str, Any]:
    """Moduli of a polycrystal from the stiffness of its grains, after Voigt (equal strain), Reuss (equal stress), Hill.

    With the compliance S = C⁻¹: 9 K_V = Σ C_ij (i, j ≤ 3), 1/K_R = Σ S_ij (i, j ≤ 3),
    15 G_V = (C11 + C22 + C33) - (C12 + C13 + C23) + 3 (C44 + C55 + C66),
    15/G_R = 4 (S11 + S22 + S33) - 4 (S12 + S13 + S23) + 3 (S44 + S55 + S66); K and G are the means.
    Source: R. Hill, Proc. Phys. Soc. A 65, 349 (1952).

    Args:
        C: (..., 6, 6), GPa, in the order xx, yy, zz, yz, xz, xy.

    Returns:
        ``K_voigt``, ``K_reuss``, ``K``, ``G_voigt``, ``G_reuss``, ``G``; Young's modulus ``E`` = 9 K G / (3 K + G), all
        in GPa; Poisson ratio ``nu`` = (3 K - 2 G) / (6 K + 2 G). Each of the shape (...), a number for one matrix.

    Raises:
        EcdError: not (..., 6, 6), not symmetric, or not positive definite: no stable crystal.

    >>> moduli = voigt_reuss_hill(np.diag([2, 2, 2, 1, 1, 1]))
    >>> {name: round(moduli[name], 6) for name in ("K", "G", "E", "nu")}
    {'K': 0.666667, 'G': 1.0, 'E': 2.0, 'nu': 0.0}
    """
    stiffness = np.asarray(C, dtype=float)
    if stiffness.shape[-2:] != (6, 6) or not np.isfinite(stiffness).all():
        raise EcdError("stiffness", "is not a finite 6 × 6 matrix", "Give it in Voigt's notation, GPa.")
    if not np.allclose(stiffness, np.swapaxes(stiffness, -1, -2), rtol=1e-6):
        raise EcdError("stiffness", "is not symmetric", "Average it with its transpose, if the difference is noise.")
    if not (np.linalg.eigvalsh(stiffness) > 0).all():
        raise EcdError("stiffness", "is not positive definite: no stable crystal", "Check how it was computed.")
    compliance = np.linalg.inv(stiffness)

    def sums(matrix: Floats) -> tuple[Floats, Floats, Floats]:
        """Of the diagonal for stretches, of what lies above it, of the diagonal for shears."""
        diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
        above = matrix[..., 0, 1] + matrix[..., 0, 2] + matrix[..., 1, 2]
        return diagonal[..., :3].sum(-1), above, diagonal[..., 3:].sum(-1)

    c, c_above, c_shear = sums(stiffness)
    s, s_above, s_shear = sums(compliance)
    K_voigt, K_reuss = (c + 2 * c_above) / 9, 1 / (s + 2 * s_above)
    G_voigt, G_reuss = (c - c_above + 3 * c_shear) / 15, 15 / (4 * s - 4 * s_above + 3 * s_shear)
    K, G = (K_voigt + K_reuss) / 2, (G_voigt + G_reuss) / 2
    moduli = {
        "K_voigt": K_voigt,
        "K_reuss": K_reuss,
        "K": K,
        "G_voigt": G_voigt,
        "G_reuss": G_reuss,
        "G": G,
        "E": youngs_modulus(K, G),
        "nu": poisson_ratio(K, G),
    }
    return {name: np.asarray(v)[()] if stiffness.ndim > 2 else float(v) for name, v in moduli.items()}


def load_strains(name: str) -> dict[str, Any]:
    """The bundled calculations of one crystal, e.g. ``"LiH_225"``, made by ``data/make/elastic_strains.py``.

    Returns:
        ``settings``: ``crystal``, ``cell`` (3, 3) Å, ``symbols``, ``positions``, ``kpts``, ``gpts``, ``strains``,
        ``recipe``. ``calculations``: for each ``mode``, ``strain``, ``repeat``, ``energy`` (eV per cell),
        ``irreducible_kpoints``, ``seconds`` (wall, whole process), ``cpu_seconds`` (whole process) and
        ``start_seconds`` (the part of it before GPAW was imported and ready). The mode of the unstrained cell is
        ``none``, that of the primitive one ``density``. Of a crystal that is not cubic also ``relaxations``: the same,
        and ``unrelaxed`` (eV per cell, before the atoms moved), ``first_seconds`` (processor time until then),
        ``largest_force`` (eV/Å, then), ``force_evaluations``, ``positions`` after it, ``stress`` (eV/Å³, Voigt's order)
        and ``stress_seconds``. ``provenance``.

    Raises:
        EcdError: none of that name.
    """
    record: dict[str, Any] = json.loads(data_file(f"elastic/{name}.json").read_text(encoding="utf-8"))
    return record


def strain_energies(record: Mapping[str, Any]) -> tuple[Floats, dict[Mode, Floats]]:
    """Strains (n,) and for each deformation (n,) energies (eV per cell) of a record.

    The unstrained cell is in all three.

    Raises:
        EcdError: the calculations are not finished.
    """
    found = {(c["mode"], c["strain"]): c["energy"] for c in record["calculations"]}
    strains = record["settings"]["strains"]
    try:
        values = {m: np.array([found[m if d else "none", d] for d in strains], dtype=float) for m in MODES}
    except KeyError as error:
        problem = f"lacks the calculation {error.args[0]}"
        raise EcdError(
            record["settings"]["crystal"], problem, "Finish it with data/make/elastic_strains.py."
        ) from error
    return np.array(strains, dtype=float), values
