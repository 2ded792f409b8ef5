"""The data that ship with the project: densities, crystals, labels, VASP fixtures. Each load checks the file's hash."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import platform
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from ecdlib.density import ChargeDensity
from ecdlib.errors import EcdError, atomic_write
from ecdlib.store import DensityStore, sha256

#: Root of the checkout: holds data/, notebooks/ and book/.
ROOT = Path(__file__).resolve().parent.parent
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
#: Crystal systems from low to high symmetry, and the last space group of each.
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
LAST_GROUPS = (2, 15, 74, 142, 167, 194, 230)


def data_folder() -> Path:
    """Folder of the bundled data: ``$ECDLIB_DATA`` or ``data/`` of the checkout."""
    return Path(os.environ.get("ECDLIB_DATA", ROOT / "data"))


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    return sha256(path)


def data_file(name: str) -> Path:
    """Path of a bundled file, its SHA-256 compared with ``data/manifest.json``.

    Raises:
        EcdError: the file is missing, is not in the manifest, or its hash differs.
    """
    folder = data_folder()
    remedy = "Restore it with: git checkout -- data"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError as error:
        remedy = "Work in a clone of the repository, or set ECDLIB_DATA to its data folder."
        raise EcdError(folder, "holds no manifest.json", remedy) from error
    except ValueError as error:
        raise EcdError(folder / "manifest.json", "is not valid JSON", remedy) from error
    path = folder / name
    if name not in manifest:
        raise EcdError(path, "is not among the bundled files", f"Known: {', '.join(sorted(manifest))}.")
    if not path.is_file():
        raise EcdError(path, "is missing", remedy)
    stat = path.stat()
    found = _digest(path, stat.st_size, stat.st_mtime_ns)
    if found != manifest[name]["sha256"]:
        raise EcdError(
            path,
            f"has changed: {stat.st_size} bytes with SHA-256 {found[:12]}…, not {manifest[name]['bytes']} with "
            f"{manifest[name]['sha256'][:12]}…",
            remedy,
        )
    return path


def data_hashes() -> dict[str, str]:
    """SHA-256 of every bundled file, from the manifest."""
    manifest: dict[str, dict[str, Any]] = json.loads((data_folder() / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest.items()}


def bundled_in(folder: str) -> list[str]:
    """Names, without suffix, of the bundled files in a folder of the data."""
    return sorted(Path(name).stem for name in data_hashes() if name.startswith(f"{folder}/"))


def cached_array(name: str, depends_on: list[Any], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """An array that is computed once for each value of ``depends_on`` (kept in ``_build/cache``), then read."""
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    path = ROOT / "_build" / "cache" / f"{name}-{key}.npy"
    if not path.is_file():
        with atomic_write(path) as temporary, open(temporary, "wb") as f:
            np.save(f, make())
    values: NDArray[Any] = np.load(path)
    return values


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_versions() -> dict[str, str]:
    """Versions of what computes the book's numbers."""
    names = ["numpy", "scipy", "finufft", "SimpleITK", "spglib", "pymatgen", "matminer", "scikit-learn", "scikit-image"]
    names += ["torch", "lightgbm", "optuna", "shap", "matplotlib", "plotly"]
    found = {"python": platform.python_version()} | {name: version(name) for name in names}
    try:
        return found | {"xgboost": version("xgboost-cpu")}  # its name on Linux
    except PackageNotFoundError:
        return found | {"xgboost": version("xgboost")}


def load_densities(which: Literal["cubic", "general", "pairs"] = "cubic") -> DensityStore:
    """Bundled valence densities (GPAW, PBE), computed for this project.

    Args:
        which: ``"cubic"`` 892 cubic crystals; ``"general"`` 96 others; ``"pairs"`` 14 of the cubic ones with another
            number of valence electrons for one element.

    Raises:
        EcdError: see :func:`data_file`.
    """
    return DensityStore(data_file(f"ecd_{which}.h5"))


def load_density(name: str) -> ChargeDensity:
    """One bundled density by name, e.g. ``"Fe3SnC_221"``.

    Raises:
        EcdError: no bundled crystal of that name.
    """
    for store in (load_densities("cubic"), load_densities("general")):
        if name in store:
            return store[name]
    raise EcdError(name, "no bundled density of that name", "`ecd data` lists them; a file needs its full path.")


def crystal_system(spacegroup: int) -> str:
    """Of a space group number.

    >>> [crystal_system(n) for n in (2, 15, 74, 142, 167, 194, 230)]
    ['triclinic', 'monoclinic', 'orthorhombic', 'tetragonal', 'trigonal', 'hexagonal', 'cubic']
    """
    return SYSTEMS[int(np.searchsorted(LAST_GROUPS, spacegroup))]


def load_crystals() -> pd.DataFrame:
    """Labels of 6,059 crystals of the Materials Project, indexed by name (``formula_spacegroup``).

    Columns: material_id, formula, spacegroup, crystal_system, n_sites; bulk_modulus, shear_modulus, youngs_modulus
    (GPa), poisson_ratio, debye_temperature (K); cohesive_energy, formation_energy, total_energy (eV/atom); band_gap
    (eV); original_split (train, val, test).
    """
    return pd.read_csv(data_file("mp_crystals.csv"), index_col="name")


def load_cubic_targets() -> pd.DataFrame:
    """What the bundled cubic crystals are labelled with, indexed by name.

    Columns: formula, spacegroup, bulk_modulus (GPa, Materials Project), total_energy (eV/atom, GPAW, relative to the
    atoms of its data sets).
    """
    table = load_densities("cubic").table
    return table[["formula", "spacegroup"]].assign(
        bulk_modulus=load_crystals()["bulk_modulus"], total_energy=table["energy"] / table["n_atoms"]
    )


def load_structures() -> dict[str, Structure]:
    """Crystal structures: 6,059 by the names of :func:`load_crystals`, 1,943 binary ones by material id.

    They are read once and shared: copy one before you change it.
    """
    files = [data_file(name) for name in ("mp_structures.json.xz", "mp_binary_structures.json.xz")]
    return dict(_structures(*((path, path.stat().st_mtime_ns) for path in files)))


@lru_cache(maxsize=1)
def _structures(*files: tuple[Path, int]) -> dict[str, Structure]:
    raw: dict[str, Any] = {}
    for path, _ in files:
        with lzma.open(path, "rt") as f:
            raw |= json.load(f)
    return {name: Structure(e["lattice"], e["species"], e["frac_coords"]) for name, e in raw.items()}


def load_matbench_elasticity() -> pd.DataFrame:
    """Matbench v0.1 elasticity: 10,987 entries with log10 K and log10 G (GPa), official folds, CGCNN's predictions."""
    return pd.read_csv(data_file("matbench_elasticity.csv"))
