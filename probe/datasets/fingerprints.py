"""What tells, without reading every image, whether the images of a dataset are those of another time.

Ids and labels say which images there are; this says that what is in them has not been replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def of_files(folder: Path, names: Iterable[str | Path]) -> str:
    """Hex SHA-256 over names, sizes and times of change of files below a folder; a missing one is as if empty.

    A file that was replaced has another time, one that was moved with its folder has not.
    """
    sha = hashlib.sha256()
    for name in names:
        try:
            found = (folder / name).stat()
            size, changed = found.st_size, found.st_mtime_ns
        except OSError:  # which reading it will say
            size, changed = 0, 0
        sha.update(f"{name}\t{size}\t{changed}\n".encode(errors="surrogateescape"))  # names need not be text
    return sha.hexdigest()


def of_array(array: np.ndarray) -> str:
    """Hex SHA-256 over shape, dtype and bytes of an array."""
    sha = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
