"""Settings of Pillow for the whole process while images are read: its limit of pixels and its warnings.

Pillow refuses an image of more than twice `Image.MAX_IMAGE_PIXELS`, because a small file can declare an image that
fills the memory. The variable `PROBE_MAX_IMAGE_PIXELS` allows more.

Pillow's warnings about a file, such as damaged EXIF data, are dropped, because the pixels of the RGB image stay the
same. Errors of libtiff matter: Pillow continues with the pixels that were decoded, and libtiff writes a line to stderr
that does not name the file. These errors are collected for each image.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from PIL import Image, _imaging

from probe.errors import DatasetError

LIMIT = "PROBE_MAX_IMAGE_PIXELS"
IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of `warnings.filters`

_lock = threading.Lock()
_settings = ExitStack()  # of the process, held while at least one thread reads
_num_reading = 0
_of_thread = threading.local()


@contextmanager
def reading() -> Iterator[list[str]]:
    """Read an image under these settings, in any thread. The yielded list collects libtiff's errors.

    Raises:
        DatasetError: `PROBE_MAX_IMAGE_PIXELS` is not a number.
    """
    global _num_reading
    limit = _read_limit()
    with _lock:
        if _num_reading == 0:
            _settings.enter_context(_set(limit))
        _num_reading += 1
    _of_thread.remarks = remarks = list[str]()
    try:
        yield remarks
    finally:
        del _of_thread.remarks
        with _lock:
            _num_reading -= 1
            if _num_reading == 0:
                _settings.close()


def refused_for_size(err: BaseException) -> tuple[str, str] | None:
    """Return the reason and the remedy if Pillow refused an image for its size; None for other errors."""
    if not isinstance(err, Image.DecompressionBombError):
        return None
    pixels, limit = (int(number) for number in re.findall(r"[0-9]+", str(err))[:2])
    return f"it has {pixels:,} pixels, and the limit is {limit:,}", f"set {LIMIT}={pixels} to read it"


def _read_limit() -> int | None:
    text = os.environ.get(LIMIT, "")
    if text and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise DatasetError(f"{LIMIT} is {text!r}; give a number of pixels, such as 500000000, or unset it")
    return int(text) if text else None


@contextmanager
def _set(limit: int | None) -> Iterator[None]:
    before, restore = Image.MAX_IMAGE_PIXELS, _catch_libtiff()
    logger = logging.getLogger("PIL.TiffImagePlugin")  # logs the errors that it raises
    was_disabled, logger.disabled = logger.disabled, True
    # This filter stays: `warnings.catch_warnings` also restores the filters that other threads have changed meanwhile.
    if IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=IGNORE_PILLOW[3].pattern)
    if limit is not None:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)  # Pillow refuses images of more than twice this number
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
        logger.disabled = was_disabled
        restore()


def _take_error(module: bytes | None, text: bytes | None, _: object) -> None:
    """Collect an error of libtiff: the reporting function, and a format string whose values are left out."""
    remarks = getattr(_of_thread, "remarks", None)
    if remarks is not None:
        said = [part.decode("utf-8", "replace") for part in (module, text) if part]
        remarks.append(": ".join(said).partition("%")[0].strip(" ,;(\"'"))


# libtiff stores only the address, so this function object must live as long as the process.
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_take_error)
_ADDRESS = ctypes.cast(_CALLBACK, ctypes.c_void_p).value


def _catch_libtiff() -> Callable[[], object]:
    """Make libtiff pass its errors to `_take_error`, if its functions are found; return a function that undoes this."""
    set_handler = _libtiff_function()
    if set_handler is None:
        return lambda: None
    before = set_handler(_ADDRESS)
    return lambda: set_handler(before)


@cache
def _libtiff_function() -> Any:
    """Return the function that sets libtiff's error handler, or None if Pillow hides it, as on Windows."""
    try:
        function = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return function
