"""The one list of properties."""

from __future__ import annotations

#: Labelled properties and units. LatentMatFusion calls the cohesive energy (free atoms) a formation energy; the true
#: one is the last.
PROPERTIES = {
    "bulk_modulus": "GPa",
    "youngs_modulus": "GPa",
    "shear_modulus": "GPa",
    "cohesive_energy": "eV/atom",
    "debye_temperature": "K",
    "formation_energy": "eV/atom",
}
