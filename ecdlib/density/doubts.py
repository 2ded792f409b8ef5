"""What speaks against a density that can be read: it does not fit its own atoms."""

from __future__ import annotations

import numpy as np

from ecdlib.base.errors import EcdError
from ecdlib.density.core import ChargeDensity
from ecdlib.density.store import voxel_orbits
from ecdlib.density.superpose import misfit

#: Of :func:`misfit`: what no sound density exceeds. Of the 1,224 bundled ones the largest is 0.12 (Al), of those that
#: were converted to the chemical valence 0.18; with two axes interchanged 97 % are above, with all values moved by 5 %
#: of the file or more 99 %, with all atoms moved 99.9 %.
MISFIT = 0.2
#: Of :func:`asymmetry`: the bundled densities, VASP's too, are below 0.0001.
ASYMMETRY = 0.01


def asymmetry(density: ChargeDensity) -> float:
    """Largest difference of a density from its mean over equivalent voxels, as a fraction of the peak.

    Equivalent are those that the symmetry of the atoms maps onto each other; operations that do not map the grid onto
    itself are left out. 0 without symmetry.
    """
    found = density.symmetry(1e-3)
    if found is None or len(found.rotations) == 1:
        return 0.0
    orbit, _ = voxel_orbits(found.rotations, found.translations, density.shape)
    flat = np.asarray(density.values, dtype=np.float64).ravel()
    mean = np.bincount(orbit, flat) / np.bincount(orbit)
    return float(np.abs(mean[orbit] - flat).max() / np.abs(flat).max())


def doubts(density: ChargeDensity) -> list[str]:
    """A line for each sign that a density does not fit its atoms; empty if there is none, or none can be known."""
    found = []
    try:
        apart = misfit(density) if density.species else 0.0
    except EcdError:  # an element without form factors
        apart = 0.0
    check = "check axes, units and positions, and whether values were lost or moved"
    if apart > MISFIT:
        what = f"{100 * apart:.0f} % of it is not a superposition of atoms; at most {100 * MISFIT:.0f} % is usual"
        found.append(f"the density does not fit its atoms ({what}): {check}")
    elif (broken := asymmetry(density)) > ASYMMETRY:
        what = f"by {100 * broken:.2g} % of its peak; at most {100 * ASYMMETRY:g} % is usual"
        found.append(f"the density does not have the symmetry of its atoms ({what}): {check}")
    return found
