"""Symmetry-reduced store: one value per symmetry-distinct voxel, for any crystal and space group.

Layout of the HDF5 file for n crystals (arrays named ``*_offset`` have n + 1 entries):

=====================  ==========================================================================================
name, formula          (n,) text
spacegroup             (n,) number of the geometry at hand
cell                   (n, 3, 3) Å, rows are vectors
grid                   (n, 3) voxels
energy                 (n,) eV per cell, NaN where unknown
n_electrons            (n,) nominal number of valence electrons
magnetic_moment        (n,) Bohr magnetons per cell
atom_offset            positions (atoms, 3) fractional, numbers (atoms,)
op_offset              rotations (ops, 3, 3), translations (ops, 3): symmetry operations on fractional coordinates
value_offset           values (m,) e/Å³, of each symmetry-distinct voxel, in increasing order of the smallest flat
                       index (C order) of its orbit
=====================  ==========================================================================================

The first 512 bytes (HDF5's user block) hold the SHA-256 of all that follows; the bundled stores have none.

File attributes: ``method`` (how computed) and ``convention`` (whose valence electrons).
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecdlib.base.elements import symbol
from ecdlib.base.errors import DAMAGED, EcdError, atomic_write, check_input
from ecdlib.base.resources import data_file, load_manifest, sha256
from ecdlib.density.core import MOST_VOXELS, ChargeDensity, Floats

Ints = NDArray[np.integer[Any]]


def _factors(maps: Ints, grid: Ints) -> list[Ints]:
    """Few of the maps whose products, each taken once or not at all in this order, are all of them.

    The minimum over a group of n maps takes one step for each of them: about log2(n) instead of n.
    """
    M, s = maps[:, :, :3], maps[:, :, 3]
    products = np.concatenate([M[:, None] @ M, (M[:, None] @ s[..., None]) + s[:, None, :, None]], axis=3)
    listed = np.concatenate([np.eye(3, 4, dtype=np.int64)[None], maps, products.reshape(-1, 3, 4)]) % grid[:, None]
    weights = np.random.default_rng(0).integers(2**62, size=12)  # equal maps, equal sums
    number = np.unique(listed.reshape(-1, 12) @ weights, return_inverse=True)[1]
    own, table = number[1 : len(maps) + 1], number[len(maps) + 1 :].reshape(len(maps), len(maps))
    covered, factors = np.arange(number.max() + 1) == number[0], list[Ints]()
    while not covered[own].all():
        reached = np.tile(covered, (len(maps), 1))
        reached[np.arange(len(maps)), own] = True
        reached[np.arange(len(maps)), table[covered[own]]] = True
        best = int(reached.sum(1).argmax())
        covered = reached[best]
        factors.append(maps[best])
    return factors


@lru_cache(maxsize=16)  # crystals of one space group and grid share the map; at most 16 x 5 MB
def _orbits(operations: bytes, grid: tuple[int, int, int]) -> tuple[Ints, Ints]:
    """Orbit number of each voxel, and the first voxel of each orbit, under integer voxel maps ``x -> M x + s``."""
    maps = np.frombuffer(operations, dtype=np.int64).reshape(-1, 3, 4)
    nx, ny, nz = grid
    smallest = np.arange(nx * ny * nz, dtype=np.int32).reshape(grid)
    axes = [np.arange(n).reshape([-1 if i == a else 1 for i in range(3)]) for a, n in enumerate(grid)]
    for M in _factors(maps, np.array(grid)):
        flat: Any = 0
        for row, n, stride in zip(M, grid, (ny * nz, nz, 1), strict=True):
            terms = [m * axis for m, axis in zip(row, axes, strict=False) if m]
            image = (sum(terms[1:], terms[0]) + row[3]) % n  # broadcasts over the axes this row mixes
            flat = flat + (image * stride).astype(np.int32)
        smallest = np.minimum(smallest, smallest.ravel()[flat])
    first = np.flatnonzero(smallest.ravel() == np.arange(smallest.size))
    number = np.empty(smallest.size, dtype=np.int32)
    number[first] = np.arange(first.size)
    return number[smallest.ravel()], first


def voxel_orbits(rotations: Ints, translations: Floats, grid: Sequence[int]) -> tuple[Ints, Ints]:
    """Group the voxels of a grid into symmetry orbits.

    Operations that do not map the grid onto itself are left out (those that do form a group).

    Args:
        rotations: ``(ops, 3, 3)`` integers, on fractional coordinates.
        translations: ``(ops, 3)`` fractional.
        grid: voxels along each cell vector.

    Returns:
        The orbit number of each voxel ``(nx*ny*nz,)`` and the flat index of each orbit's first voxel.
    """
    n = np.asarray(grid)
    M = np.asarray(rotations) * n[:, None] / n[None, :]
    s = np.asarray(translations) * n
    fits = (np.abs(M - M.round()).max((1, 2)) < 1e-9) & (np.abs(s - s.round()).max(1) < 1e-4)
    maps = np.concatenate([M[fits].round(), (s[fits].round() % n)[:, :, None]], axis=2).astype(np.int64)
    nx, ny, nz = map(int, n)
    return _orbits(maps.tobytes(), (nx, ny, nz))


def symmetry_reduce(density: ChargeDensity, tolerance: float = 1e-4) -> tuple[Ints, Floats, Floats, float]:
    """The symmetry operations that a density obeys and its value on each orbit of voxels.

    Operations come from the atoms (spglib). If the density disagrees with them by more than ``tolerance`` (spin
    order, a grid that does not fit), none is used and every voxel is kept.

    Args:
        tolerance: largest difference from the orbit's mean, as a fraction of the peak; 0 keeps only what is
            bitwise symmetric.

    Returns:
        rotations ``(ops, 3, 3)``, translations ``(ops, 3)``, values (e/Å³) and the largest error made, as a
        fraction of the peak.
    """
    found = density.symmetry(1e-3)
    identity = (np.eye(3, dtype=np.int8)[None], np.zeros((1, 3)))
    flat = density.values.ravel()
    peak = float(np.abs(flat).max())
    candidates = [identity] if found is None else [(found.rotations, found.translations), identity]
    for rotations, translations in candidates:
        orbit, first = voxel_orbits(rotations, translations, density.shape)
        values = flat[first]
        if len(first) < flat.size and not np.array_equal(values[orbit], flat):
            values = (np.bincount(orbit, flat) / np.bincount(orbit)).astype(flat.dtype)
        error = float(np.abs(values[orbit] - flat).max()) / peak
        if error <= tolerance:
            break
    return rotations, translations, values, error


_SEAL = 512  # bytes before the HDF5 part: SHA-256 of all that follows


def _seal(digest: str) -> bytes:
    return digest.encode().ljust(_SEAL, b"\0")


@lru_cache(maxsize=64)
def _intact(path: Path, size: int, modified: int) -> bool:
    """Whether a store is as it was written (HDF5 may hang on a damaged one).

    The bundled stores have no seal: their hash stands in the manifest.
    """
    with open(path, "rb") as f:
        if f.read(_SEAL).startswith(b"\x89HDF"):
            return sha256(path) in {entry["sha256"] for entry in load_manifest().values()}
        f.seek(0)
        return f.read(_SEAL) == _seal(hashlib.file_digest(f, "sha256").hexdigest())


class DensityStore:
    """Read access to a symmetry-reduced store; indexing by name gives a :class:`ChargeDensity`.

    The file is opened for each read: handles do not survive a fork.

    Example:
        >>> from ecdlib.density.store import load_densities
        >>> load_densities("cubic")["Fe3SnC_221"]
        ChargeDensity(Fe3SnC_221: Fe3SnC, 40x40x40, 58.84 Å³, 42.000 electrons)

    Raises:
        EcdError: not a store, damaged, or a name that is not in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = check_input(path)
        try:
            stat = self.path.stat()
            if not _intact(self.path, stat.st_size, stat.st_mtime_ns):
                raise ValueError("checksum")
            with h5py.File(self.path) as h:
                grid, cell = h["grid"][:], h["cell"][:]
                self._offsets = {key: h[f"{key}_offset"][:] for key in ("atom", "op", "value")}
                self.convention: str | None = h.attrs.get("convention") or None
                self.method: str | None = h.attrs.get("method")
                #: One row per crystal: formula, spacegroup, n_atoms, grid, volume (Å³), n_electrons, energy (eV per
                #: cell), magnetic_moment; indexed by name.
                self.table = pd.DataFrame(
                    {
                        "formula": h["formula"].asstr()[:],
                        "spacegroup": h["spacegroup"][:],
                        "n_atoms": np.diff(self._offsets["atom"]),
                        "grid": [tuple(map(int, g)) for g in grid],
                        "volume": np.abs(np.linalg.det(cell)),
                        "n_electrons": h["n_electrons"][:],
                        "energy": h["energy"][:],
                        "magnetic_moment": h["magnetic_moment"][:],
                    },
                    index=pd.Index(h["name"].asstr()[:], name="name"),
                )
        except DAMAGED as error:
            raise EcdError(self.path, "is not a readable density store", "Fetch or write it again.") from error
        self._row = {name: i for i, name in enumerate(self.table.index)}

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, name: object) -> bool:
        return name in self._row

    @property
    def names(self) -> list[str]:
        """Names of all crystals, in order."""
        return list(self._row)

    @property
    def fastest(self) -> list[str]:
        """Names of all crystals, in an order that reads fast: those of one grid and space group share their orbits."""
        return list(self.table.sort_values(["grid", "spacegroup"], kind="stable").index)

    def select(self, names: Sequence[str]) -> DensityStore:
        """The same store with some of its crystals only, in the order given.

        Raises:
            EcdError: a name that is not in it.
        """
        for name in names:
            self._checked(name)
        part = copy.copy(self)
        part.table = self.table.loc[list(names)]
        part._row = {name: self._row[name] for name in names}
        return part

    def _checked(self, name: str) -> int:
        if name not in self._row:
            raise EcdError(f"{self.path}::{name}", "no such crystal in this store", "`.names` lists what it holds.")
        return self._row[name]

    def __getitem__(self, name: str | int) -> ChargeDensity:
        name = name if isinstance(name, str) else self.names[name]
        i = self._checked(name)

        def part(offset: str, key: str) -> Any:
            return h[key][self._offsets[offset][i] : self._offsets[offset][i + 1]]

        try:
            with h5py.File(self.path) as h:
                grid, cell = tuple(map(int, h["grid"][i])), h["cell"][i]
                if not 0 < math.prod(grid) <= MOST_VOXELS or min(grid) < 2:
                    raise ValueError("grid")
                rotations, translations = part("op", "rotations"), part("op", "translations")
                positions, numbers = part("atom", "positions"), part("atom", "numbers")
                values = part("value", "values")
            orbit, first = voxel_orbits(rotations, translations, grid)
            if len(first) != len(values):
                raise ValueError("number of values")
            species = tuple(symbol(int(z)) for z in numbers)
        except DAMAGED as error:
            remedy = "Fetch or write the store again."
            raise EcdError(f"{self.path}::{name}", "this entry is damaged", remedy) from error
        return ChargeDensity(values[orbit].reshape(grid), cell, species, positions, name, self.convention)

    def __iter__(self) -> Iterator[ChargeDensity]:
        return (self[name] for name in self._row)


def write_store(
    path: str | os.PathLike[str],
    densities: Iterable[ChargeDensity],
    *,
    energy: Mapping[str, float] | None = None,
    magnetic_moment: Mapping[str, float] | None = None,
    method: str = "",
    tolerance: float = 1e-4,
) -> pd.DataFrame:
    """Write densities to a symmetry-reduced store (float32), one at a time: memory holds the reduced values only.

    Args:
        energy, magnetic_moment: by name, eV and Bohr magnetons per cell.
        method: how the densities were computed.
        tolerance: see :func:`symmetry_reduce`; what is not that symmetric is stored in full.

    Returns:
        One row per crystal: ``voxels``, ``stored`` (values kept), ``error`` (largest, as a fraction of the peak).

    Raises:
        EcdError: two entries of one name, mixed valence conventions, or a folder that cannot be written.
    """
    scalars: dict[str, list[Any]] = {k: [] for k in ("name", "formula", "spacegroup", "cell", "grid", "n_electrons")}
    lists: dict[str, list[Any]] = {k: [] for k in ("positions", "numbers", "rotations", "translations", "values")}
    conventions, report = set(), []
    for density in densities:
        if density.name in scalars["name"]:
            raise EcdError(density.name, "two entries with this name", "Give each density its own name.")
        rotations, translations, values, error = symmetry_reduce(density, tolerance)
        found = density.symmetry(1e-3)
        for key, scalar in (
            ("name", density.name),
            ("formula", density.formula),
            ("spacegroup", 1 if found is None else found.number),
            ("cell", density.lattice),
            ("grid", density.shape),
            ("n_electrons", round(density.n_electrons)),
        ):
            scalars[key].append(scalar)
        for key, array in (
            ("positions", density.positions),
            ("numbers", np.array(density.numbers, dtype=np.int16)),
            ("rotations", np.asarray(rotations, dtype=np.int8)),
            ("translations", translations),
            ("values", values.astype(np.float32)),
        ):
            lists[key].append(array)
        conventions.add(density.convention or "")
        report.append((density.name, density.values.size, len(values), error))
    if len(conventions) > 1:
        raise EcdError(path, f"densities of {len(conventions)} valence conventions", "Write one store for each.")
    if not report:
        raise EcdError(path, "nothing to write", "Give at least one density.")
    names = scalars["name"]
    image = io.BytesIO()  # HDF5 itself crashes where a disk is full
    with h5py.File(image, "w", userblock_size=_SEAL) as h:
        for key in ("name", "formula"):
            h.create_dataset(key, data=scalars[key], dtype=h5py.string_dtype())
        for key, dtype in (("spacegroup", "i4"), ("cell", "f8"), ("grid", "i4"), ("n_electrons", "i4")):
            h[key] = np.array(scalars[key], dtype=dtype)
        h["energy"] = np.array([(energy or {}).get(n, np.nan) for n in names])
        h["magnetic_moment"] = np.array([(magnetic_moment or {}).get(n, 0.0) for n in names])
        for offset, like in (("atom", "numbers"), ("op", "rotations"), ("value", "values")):
            h[f"{offset}_offset"] = np.cumsum([0, *map(len, lists[like])])
        for key, arrays in lists.items():
            h.create_dataset(key, data=np.concatenate(arrays), compression="gzip", compression_opts=9, shuffle=True)
        h.attrs["convention"] = conventions.pop()
        h.attrs["method"] = method
    content = image.getbuffer()[_SEAL:]
    with atomic_write(path) as temporary, open(temporary, "wb") as f:
        f.write(_seal(hashlib.sha256(content).hexdigest()))
        f.write(content)
    return pd.DataFrame(report, columns=["name", "voxels", "stored", "error"]).set_index("name")


_SELECTED = {"cubic": "cubic-892", "general": "general-96"}


def open_store(path: str | os.PathLike[str]) -> DensityStore:
    """A store, of which one copy is kept as long as its file does not change: to be read, not to be altered.

    Raises:
        EcdError: see :class:`DensityStore`.
    """
    path = check_input(path)
    return _opened(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: Path, size: int, modified: int) -> DensityStore:
    return DensityStore(path)


def load_selection(name: str) -> list[str]:
    """Names of a selection of the bundled densities, in a fixed order (``data/selections.json``).

    ``cubic-892`` and ``general-96`` (together ``densities-988``) are the sets that most results of the book are made
    of; ``lean`` holds all of space groups 216, 221 and 225; ``held-out``, a tenth of all, is for tests of models that
    were fitted without them.

    Raises:
        EcdError: no such selection.
    """
    selections = json.loads(data_file("selections.json").read_text())
    if name not in selections:
        raise EcdError(name, "no such selection of densities", f"Choose one of: {', '.join(selections)}.")
    return list(selections[name]["names"])


def load_densities(
    which: Literal["cubic", "general", "cubic-all", "general-all", "pairs", "new"] = "cubic",
) -> DensityStore:
    """Bundled valence densities (GPAW, PBE), computed for this project.

    Args:
        which: ``"cubic-all"`` 958 cubic crystals; ``"general-all"`` 167 others; ``"cubic"`` and ``"general"`` the
            selections ``cubic-892`` and ``general-96`` of them (see :func:`load_selection`); ``"pairs"`` 99 of the
            cubic ones with another number of valence electrons for some elements; ``"new"`` those of
            :func:`ecdlib.learn.new_crystals.load_new_crystals`, which take part in no training.

    Raises:
        EcdError: see :func:`data_file`.

    Example:
        >>> store = load_densities("cubic")
        >>> len(store), store["LiH_225"].formula, store.table.loc["LiH_225", "spacegroup"].item()
        (892, 'LiH', 225)
    """
    store = open_store(data_file(f"ecd_{which.removesuffix('-all')}.h5"))
    return store.select(load_selection(_SELECTED[which])) if which in _SELECTED else store


def load_density(name: str) -> ChargeDensity:
    """One bundled density by name, e.g. ``"Fe3SnC_221"``.

    Raises:
        EcdError: no bundled crystal of that name.
    """
    for store in (load_densities("cubic-all"), load_densities("general-all")):
        if name in store:
            return store[name]
    raise EcdError(name, "no bundled density of that name", "`ecd data` lists them; a file needs its full path.")
