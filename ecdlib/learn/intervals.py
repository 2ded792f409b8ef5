"""Intervals that hold in each group of crystals, not only on average.

The half-width of an interval is a spread, which the model states for each crystal, times the product of the factors of
the groups that the crystal belongs to. The factors are such that in each group the intervals hold the same share of
the crystals, each predicted by models that have not seen it: conformal prediction within groups (V. Vovk, A. Gammerman
and G. Shafer, *Algorithmic Learning in a Random World*, Springer 2005, section 4.5), here for groups that overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ecdlib.data.tables import SYSTEMS, crystal_system
from ecdlib.density.core import Floats

#: Half of a 95 % interval in standard deviations, where a model states only those.
NORMAL = 1.96
OXYGEN = 8
#: Cr, Mn, Fe, Co, Ni.
MAGNETIC = (24, 25, 26, 27, 28)
#: H, B to F, Si to Cl, Ge to Br, Te, I, At, noble gases.
NOT_METALS = (1, 2, *range(5, 11), *range(14, 19), *range(32, 37), 52, 53, 54, 85, 86)
#: Groups that a crystal may belong to; those of no other are not listed.
GROUPS = (*SYSTEMS, "oxides", "metals only", "magnetic elements")
#: Crystals that a group must have.
SMALLEST_GROUP = 100


def membership(space_groups: Sequence[int], shares: Floats) -> NDArray[np.bool_]:
    """Which crystals belong to which of :data:`GROUPS`, ``(n, groups)``.

    Args:
        space_groups: numbers ``(n,)``; 0, where no symmetry is found, counts as triclinic.
        shares: of the elements among the atoms ``(n, elements)``, from hydrogen.
    """
    systems = np.array([crystal_system(max(int(number), 1)) for number in space_groups])
    holds = np.asarray(shares) > 0
    other = [n - 1 for n in NOT_METALS if n <= holds.shape[1]]
    columns = [systems == system for system in SYSTEMS]
    columns += [holds[:, OXYGEN - 1], ~holds[:, other].any(1), holds[:, [n - 1 for n in MAGNETIC]].any(1)]
    return np.stack(columns, axis=1)


def group_factors(ratio: Floats, member: NDArray[np.bool_], coverage: float) -> Floats:
    """Logarithms of the factors of each group, and last of the factor of all crystals; ``(groups + 1,)``.

    Args:
        ratio: distance of each truth from its prediction, in spreads ``(n,)``.
        member: see :func:`membership`. Groups of fewer than :data:`SMALLEST_GROUP` crystals get a factor of 1.
        coverage: share of the crystals that intervals shall hold.
    """
    logs = np.zeros(member.shape[1] + 1)
    logs[-1] = np.log(np.quantile(ratio, coverage))
    large = np.flatnonzero(member.sum(0) >= SMALLEST_GROUP)
    for _ in range(100):
        steps = [0.0]
        for g in large:
            mine = member[:, g]
            steps.append(float(np.log(np.quantile(ratio[mine] / factors_of(logs, member[mine]), coverage))))
            logs[g] += 0.7 * steps[-1]
        if np.abs(steps).max() < 2e-3:
            break
    return logs


def factors_of(logs: Floats, member: NDArray[np.bool_]) -> Floats:
    """Half-width of each crystal's interval, in spreads ``(n,)``."""
    return np.asarray(np.exp(member @ logs[:-1] + logs[-1]))


def group_coverage(inside: NDArray[np.bool_], member: NDArray[np.bool_]) -> dict[str, tuple[float, int]]:
    """Share of the crystals whose truth lies inside their interval, and their number, for each group that is large."""
    counts = {name: int(mine.sum()) for name, mine in zip(GROUPS, member.T, strict=True)}
    shares = {name: float(inside[mine].mean()) for name, mine in zip(GROUPS, member.T, strict=True) if mine.any()}
    large = {name: (shares[name], n) for name, n in counts.items() if n >= SMALLEST_GROUP}
    return {"all": (float(inside.mean()), len(inside))} | large
