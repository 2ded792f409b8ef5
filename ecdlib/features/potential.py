"""What a foundation potential says of a crystal: an adapter to elastic tensors that were computed with it.

Tensors by SevenNet-l3i5 are bundled (``data/potential``). The potential was trained on relaxations
of the Materials Project, the crystals here among them, but on no elastic constant. It has seen their energies, so that
neither its energies nor its atomic features may be inputs of a model of energies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecdlib.base.resources import data_file, read_once
from ecdlib.density.core import Floats

#: Elements of a symmetric 6x6 tensor that are stored.
TRIANGLE = np.triu_indices(6)
#: The potential calls some crystals unstable: eigenvalues of a tensor count as at least this much, GPa, ...
FLOOR = 1.0
#: ... and as at least this share of the largest one.
FLOOR_SHARE = 0.02


@dataclass(frozen=True)
class PotentialTensors:
    """Results of a potential for ``n`` crystals, each at its given geometry; Voigt order xx yy zz yz xz xy."""

    names: NDArray[np.str_]  #: ``(n,)``
    clamped: Floats  #: ``(n, 6, 6)`` stiffness in the IEEE frame, GPa, engineering shear; atoms move with the cell
    relaxed: Floats  #: ``(n, 6, 6)`` the same with relaxed atoms
    stress: Floats  #: ``(n, 6)`` residual stress, GPa, tension positive
    softest: Floats  #: ``(n,)`` smallest optic force constant, eV/Å²; NaN where symmetry lets no atom relax
    atomic: Floats  #: ``(n, 128)`` mean and standard deviation, over atoms, of the 64 scalars before the energy


@read_once
def load_potential() -> PotentialTensors:
    """Of bundled structures, by the names of :func:`ecdlib.data.tables.load_structures`.

    5,917 of the 6,059 labelled crystals, and Matbench's binary crystals of at most ten atoms.
    """
    parts = []
    for name in ("sevennet_l3i5", "sevennet_l3i5_binary"):
        with np.load(data_file(f"potential/{name}.npz"), allow_pickle=False) as z:
            parts.append({key: z[key] for key in z.files})
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def full(triangle: NDArray[Any]) -> Floats:
        tensor = np.zeros((len(triangle), 6, 6))
        tensor[:, *TRIANGLE] = triangle
        tensor[:, *TRIANGLE[::-1]] = triangle
        return tensor

    numbers = {name: arrays[name].astype(np.float64) for name in ("stress", "softest", "atomic")}
    return PotentialTensors(arrays["name"], full(arrays["clamped"]), full(arrays["relaxed"]), **numbers)


def tensor_features(potential: PotentialTensors) -> Floats:
    """Logarithms of a potential's moduli and what else its tensors say, whatever the orientation of the crystal.

    Of the clamped and of the relaxed tensor: bulk and shear modulus after Voigt and Reuss and the six eigenvalues
    (in Kelvin's notation, where they are invariants), as ln(GPa); then arsinh of the residual pressure, ln(0.1 GPa +
    von Mises stress), arsinh of the softest optic force constant (eV/Å²; 4 where there is none), and whether there
    is one.

    A tensor that is not positive definite has no Reuss averages: all that is taken from it is taken after its
    eigenvalues were raised to :data:`FLOOR` or to :data:`FLOOR_SHARE` of the largest.

    Returns:
        ``(n, 24)``.
    """
    columns: list[Any] = []
    kelvin = np.sqrt(np.outer([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]))
    for tensor in (potential.clamped, potential.relaxed):
        values, vectors = np.linalg.eigh(tensor * kelvin)
        values = np.maximum(values, np.maximum(FLOOR, FLOOR_SHARE * values[:, -1:]))
        for power in (1, -1):  # Voigt's averages are those of the stiffness, Reuss's those of the compliance
            C = np.einsum("nik,nk,njk->nij", vectors, values**power, vectors)
            bulk = C[:, :3, :3].sum((1, 2)) / 9
            shear = (np.trace(C, axis1=1, axis2=2) - 3 * bulk) / 10
            columns += [np.log(bulk), np.log(shear)] if power > 0 else [-np.log(9 * bulk), -np.log(4 * shear)]
        columns += list(np.log(values).T)
    s, pressure = potential.stress, potential.stress[:, :3].mean(1)
    von_mises = np.sqrt(1.5 * ((s[:, :3] - pressure[:, None]) ** 2).sum(1) + 3 * (s[:, 3:] ** 2).sum(1))
    relaxes = np.isfinite(potential.softest)
    columns += [np.arcsinh(pressure), np.log(0.1 + von_mises)]
    columns += [np.arcsinh(np.where(relaxes, potential.softest, 4.0)), relaxes]
    return np.stack(columns, axis=1)


def potential_features(potential: PotentialTensors) -> dict[str, Floats]:
    """Blocks of features of each crystal.

    Returns:
        ``"tensor"``, see :func:`tensor_features` ``(n, 24)``; ``"frame"``, signed square roots of C11, C12 and C44 of
        the relaxed tensor in the IEEE frame ``(n, 3)``; ``"atomic"`` ``(n, 128)``.
    """
    constants = potential.relaxed[:, [0, 0, 3], [0, 1, 3]]
    frame = np.sign(constants) * np.sqrt(np.abs(constants))
    return {"tensor": tensor_features(potential), "frame": frame, "atomic": potential.atomic}
