"""Arrays from .npz files, checked against the file before memory is taken for them."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of all arrays of one file.
LARGEST = 2**30
#: Bytes that one packed byte can become (deflate); more is promised by a damaged file only.
EXPANSION = 1100


def read_arrays(source: str | os.PathLike[str] | IO[bytes]) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz, no pickled ones.

    Args:
        source: path, or a binary stream that can be sought in.

    Raises:
        one of :data:`ecdlib.base.errors.DAMAGED`: missing or damaged, or arrays of more than :data:`LARGEST` bytes.
    """
    with open(source, "rb") if isinstance(source, str | os.PathLike) else source as stream:
        size, total = stream.seek(0, os.SEEK_END), 0
        stream.seek(0)
        with zipfile.ZipFile(stream) as members:
            for member in members.infolist():
                with members.open(member) as content:
                    version = np.lib.format.read_magic(content)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, kind = read(content)
                bytes_ = math.prod(shape) * kind.itemsize
                if min(shape, default=0) < 0 or bytes_ > min(member.file_size, EXPANSION * size):
                    raise ValueError(f"{member.filename} is shorter than its header says")
                total += bytes_
        if total > LARGEST:
            raise ValueError(f"holds {total / 2**30:.1f} GiB of arrays, more than the limit of {LARGEST / 2**30:g} GiB")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as z:
            return {key: z[key] for key in z.files}
