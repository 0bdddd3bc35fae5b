"""Freed memory that the C library does not return to the system, but uses for the next buffers.

A batch of images needs buffers of many megabytes for a moment each. By default glibc returns large buffers to the
system as soon as they are freed. The system then clears the memory of every new buffer, page by page, which can take
as long as the computation on the CPU. `benchmarks/heap.py` measures the difference, see `results/speed/heap.md`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
_LARGEST = (1 << 31) - 1
# By default glibc increases both limits as a program frees large buffers, up to these.
_DEFAULT_MMAP_THRESHOLD = 32 << 20
_DEFAULT_TRIM_THRESHOLD = 64 << 20
_DEFAULT_MMAP_MAX = 1 << 16
# Variables by which a user has set the limits, see mallopt(3).
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory for further buffers inside the block, and return it to the system at the end.

    The peak of the memory can grow by a third, because a freed buffer does not always fit the next one. Without glibc,
    and if environment variables set its limits, nothing happens.
    """
    if not is_adjustable():
        yield
        return
    libc = ctypes.CDLL(None)
    # A large `_MMAP_THRESHOLD` would have the same effect, but older versions of glibc reject values above 32 MB.
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def is_adjustable() -> bool:
    """Return True if this process uses glibc, and no environment variable sets its limits."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return False
    return bool(version) and not any(name in os.environ for name in _VARIABLES)
