"""The INCAR beside this file, for GPAW 22.8: relax a crystal, write its density.

    python3 gpaw_recipe.py POSCAR density.cube

Only settings are translated: potentials and grids of the two codes differ, and
so do their densities.
"""

import sys

from ase.constraints import ExpCellFilter
from ase.io import read, write
from ase.optimize import BFGS
from ase.units import Bohr
from gpaw import GPAW, PW

CUTOFF = 500.0  # eV, ENCUT
SPACING = 0.1  # 1/Å with the factor 2π, KSPACING
COMMON = {
    "mode": PW(CUTOFF),
    "xc": "PBE",
    "kpts": {"density": 1 / SPACING, "gamma": True},  # KGAMMA
    "convergence": {"energy": 1e-5},  # EDIFF; here per valence electron
}


def relax(atoms):
    """Step 1: positions, shape and volume (ISIF = 3, EDIFFG = -1E-3)."""
    # ISMEAR = 0, SIGMA = 0.05
    gaussian = {"name": "methfessel-paxton", "width": 0.05, "order": 0}
    atoms.calc = GPAW(**COMMON, occupations=gaussian)
    BFGS(ExpCellFilter(atoms)).run(fmax=1e-3)


def density(atoms):
    """Step 2: all-electron density in e/Å³ (AECCAR0 + AECCAR2)."""
    tetrahedra = {"name": "improved-tetrahedron-method"}  # ISMEAR = -5
    atoms.calc = GPAW(**COMMON, occupations=tetrahedra)
    atoms.get_potential_energy()
    return atoms.calc.get_all_electron_density(gridrefinement=2)


if __name__ == "__main__":
    crystal = read(sys.argv[1], format="vasp")
    relax(crystal)
    # cube files hold e/bohr³
    write(sys.argv[2], crystal, data=density(crystal) * Bohr**3)
