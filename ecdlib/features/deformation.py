"""What a self-consistent calculation changes: one crystal before and after its electrons rearrange, and the change.

The density of superposed free atoms is known from the structure. Subtracted from the self-consistent density it leaves
the deformation density δρ = ρ - ρ_atoms, all that the calculation adds (P. Coppens, *X-Ray Charge Densities and
Chemical Bonding*, Oxford University Press 1997, chapter 5). Shells that a valence convention adds or leaves out are
those of the free atom in both densities, so that δρ does not depend on the convention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
from pymatgen.core import Lattice, Structure
from tqdm import tqdm

from ecdlib.base.cached import Arrays, cached
from ecdlib.density.cell import resample
from ecdlib.density.core import ChargeDensity, Floats
from ecdlib.density.store import load_densities
from ecdlib.density.superpose import superpose
from ecdlib.density.valence import Target, to_convention
from ecdlib.features.autocorrelation import QUANTILES
from ecdlib.features.crystal import ISOTROPIC, density_features
from ecdlib.features.invariants import CONVENTIONS, power_invariants

#: e/Å³: deformations below it count linearly, those above by their logarithm.
SMALL = 0.01
#: Fields of which features are taken: both densities, their difference, and, as a control, the superposed density
#: without its mean, with the features of the difference.
STATES = ("superposed", "self-consistent", "deformation", "fluctuation")


def deformation(density: ChargeDensity, convention: Target = "gpaw") -> Floats:
    """δρ of a self-consistent density, smoothed as :func:`ecdlib.density.valence.to_convention` does.

    Returns:
        e/Å³ on the grid of the density; its mean is 0, but for what the density's own number of electrons is off.

    Raises:
        EcdError: see :func:`ecdlib.density.valence.recognize` and :func:`ecdlib.density.superpose.superpose`.

    Example:
        In silicon the calculation moves up to 0.09 e/Å³ into the bonds, and the cell stays neutral.

        >>> change = deformation(load_densities("cubic")["Si_227"])
        >>> round(float(change.max()), 3), bool(abs(change.mean()) < 1e-6)
        (0.095, True)
    """
    after = to_convention(density, convention)
    before = resample(superpose(structure_of(density), convention).values, after.shape)
    return np.asarray(after.values - before)


def structure_of(density: ChargeDensity) -> Structure:
    """Lattice and atoms of a density."""
    return Structure(Lattice(density.lattice), density.species, density.positions)


def deformation_features(change: Floats, lattice: Floats) -> Floats:
    """Rotation-invariant 2-point statistics of δρ, or of another field without a mean, and its quantiles.

    p_0 of such a field changes its sign with r, so that logarithms do not serve. All p_l(r) are taken in
    units of p_0(0) = √(4π) <δρ²>.

    Returns:
        ln √<δρ²>, then √(p_l(r)/p_0(0)), without what vanishes at r = 0, and arsinh(quantile/:data:`SMALL`):
        ``(1 + 30 + 90 + 12,)``.
    """
    power = np.abs(scipy.fft.fftn(change, workers=1) / change.size) ** 2
    strong = power > 1e-9 * power.max()
    modes = np.stack(np.meshgrid(*(scipy.fft.fftfreq(n, 1 / n) for n in change.shape), indexing="ij"), axis=-1)
    p = power_invariants(modes[strong] @ (2 * np.pi * np.linalg.inv(lattice).T), power[strong])
    unit = max(float(p[0, 0]), 1e-12)
    shape = np.sqrt(np.concatenate([p[0, 1:], p[1:, 1:].ravel()]) / unit + ISOTROPIC)
    return np.concatenate([[np.log(unit) / 2], shape, np.arcsinh(np.quantile(change, QUANTILES) / SMALL)])


def state_features(density: ChargeDensity) -> dict[str, Floats]:
    """Features of one crystal in each of its :data:`STATES`.

    Args:
        density: self-consistent, of any code and convention that is recognized.

    Returns:
        ``"superposed"`` and ``"self-consistent"`` ``(266,)``: ln of the invariants and quantiles of
        :func:`ecdlib.features.crystal.density_features` in both conventions; ``"deformation"`` and ``"fluctuation"``
        ``(133,)``.
    """
    structure = structure_of(density).get_reduced_structure()  # the grid of the quantiles depends on the cell
    densities = {
        "superposed": [superpose(structure, convention) for convention in CONVENTIONS],
        "self-consistent": [to_convention(density, convention) for convention in CONVENTIONS],
    }
    found = {
        state: np.concatenate([block for d in both for block in density_features(d).values()])
        for state, both in densities.items()
    }
    atoms = densities["superposed"][0]
    differences = {
        "deformation": (deformation(density), density.lattice),
        "fluctuation": (atoms.values - atoms.values.mean(), atoms.lattice),
    }
    return found | {state: deformation_features(*field) for state, field in differences.items()}


def bundled_state_features(names: Sequence[str], progress: bool = True) -> dict[str, Floats]:
    """:func:`state_features` of bundled crystals, ``(n, k)`` each; computed once (``_build/cache``)."""

    def make() -> Arrays:
        stores = [load_densities("cubic-all"), load_densities("general-all")]
        densities = (
            next(s[name] for s in stores if name in s) for name in tqdm(names, "Features", disable=not progress)
        )
        rows = [state_features(density) for density in densities]
        return {state: np.stack([row[state] for row in rows]).astype(np.float32) for state in STATES}

    return cached("states", make, tuple(names))
