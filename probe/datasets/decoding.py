"""Settings of Pillow that hold for the whole process, while images are read: its limit of pixels and its warnings.

Pillow refuses an image of more than twice `Image.MAX_IMAGE_PIXELS`, since a small file can claim to be an image that
fills the memory. The variable `PROBE_MAX_IMAGE_PIXELS` allows more.

What Pillow warns of while it reads a file, such as damaged EXIF data, changes no pixel of an RGB image, so that its
warnings are dropped. An error of libtiff matters: Pillow goes on with the pixels that were decoded, and libtiff writes
a line to stderr that names no file. These errors are collected for each image.
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

_lock = threading.Lock()
_settings = ExitStack()  # of the process, from when the first of several threads begins to read to when the last ends
_num_reading = 0
_of_thread = threading.local()


@contextmanager
def reading() -> Iterator[list[str]]:
    """Read an image under these settings, in any thread; what libtiff says of it is in the list.

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
    """Return what is wrong with an image that Pillow refuses for its size, and what to do; None for other errors."""
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
    logger = logging.getLogger("PIL.TiffImagePlugin")  # which also logs what it raises
    was_disabled, logger.disabled = logger.disabled, True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if limit is not None:
            Image.MAX_IMAGE_PIXELS = -(-limit // 2)  # Pillow refuses what has more than twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
            logger.disabled = was_disabled
            restore()


def _take_error(module: bytes | None, text: bytes | None, _: object) -> None:
    """Take an error of libtiff: who says it, and a text with `%` for values, which are left out."""
    remarks = getattr(_of_thread, "remarks", None)
    if remarks is not None:
        said = [part.decode("utf-8", "replace") for part in (module, text) if part]
        remarks.append(": ".join(said).partition("%")[0].strip(" ,;(\"'"))


# libtiff keeps the address alone, so that the function it belongs to must live as long as the process.
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_take_error)
_ADDRESS = ctypes.cast(_CALLBACK, ctypes.c_void_p).value


def _catch_libtiff() -> Callable[[], object]:
    """Have libtiff hand its errors to `_take_error`, where its functions are found; return what undoes that."""
    set_handler = _libtiff_function()
    if set_handler is None:
        return lambda: None
    before = set_handler(_ADDRESS)
    return lambda: set_handler(before)


@cache
def _libtiff_function() -> Any:
    """Return the function that sets libtiff's handler of errors, or None, as on Windows, where Pillow hides it."""
    try:
        function = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return function
