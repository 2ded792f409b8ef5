"""Append the crystals of one density store to another: what made the bundled stores of densities grow.

Run it in a checkout::

    python data/make/merge_stores.py data/ecd_cubic.h5 more.h5

Arrays are joined as they are, so that no value changes. What was there comes first, in its order. The hash and the
size in ``data/manifest.json`` follow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np

from ecdlib.base.errors import EcdError, atomic_write
from ecdlib.base.resources import sha256

OFFSETS = ("atom_offset", "op_offset", "value_offset")


def merge(path: Path, more: Path) -> None:
    """Append ``more`` to the store at ``path``.

    Raises:
        EcdError: a crystal that is in both, or densities that were computed otherwise.
    """
    with h5py.File(path) as a, h5py.File(more) as b:
        if a.attrs["method"] != b.attrs["method"]:
            raise EcdError(more, "its densities were computed otherwise", f"Merge only: {a.attrs['method']}.")
        if twice := set(a["name"].asstr()) & set(b["name"].asstr()):
            raise EcdError(more, f"{path.name} holds {', '.join(sorted(twice))} already", "Leave them out.")
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as h:
            for key, first in a.items():
                if key in OFFSETS:
                    h[key] = np.concatenate([first[:], first[-1] + b[key][1:]])
                elif h5py.check_string_dtype(first.dtype):
                    h.create_dataset(key, data=[*first.asstr(), *b[key].asstr()], dtype=h5py.string_dtype())
                else:
                    both = np.concatenate([first[:], b[key][:]]).astype(first.dtype)
                    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True} if first.chunks else {}
                    h.create_dataset(key, data=both, **packed)
            h.attrs.update(a.attrs)


def main(path: Path, more: Path) -> None:
    merge(path, more)
    manifest = json.loads(Path("data/manifest.json").read_text())
    manifest[path.name] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    Path("data/manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
