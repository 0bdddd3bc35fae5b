"""Cache of finished fits on disk, so that an interrupted sweep can be resumed.

Each fit is one file. Its name is a digest of everything that the fit depends on.
"""

from __future__ import annotations

import contextlib
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from probe.atomic import make_folder, write_atomically
from probe.probes.fits import Fit
from probe.specs import digest

logger = logging.getLogger(__name__)

# Errors that reading a damaged file can raise.
DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
ARRAYS = ("coef", "intercept", "classes")

FitKey = Mapping[str, Any]


@cache
def code_digest() -> str:
    """Return a digest of the source code of `probe.probes`. Fits by different code are not reused."""
    return digest([path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))])


@dataclass
class FitCache:
    """Cache of the finished fits of one result.

    Args:
        folder: where fits are stored, shared by all results; None disables the cache.
        used: paths of the fits that this result has looked up or stored, which `clear` removes.
    """

    folder: Path | None
    used: set[Path] = field(default_factory=set)

    def _path(self, key: FitKey) -> Path:
        assert self.folder is not None
        return self.folder / f"{digest([code_digest(), key])}.npz"

    def find(self, key: FitKey) -> Fit | None:
        """Return the cached fit for a key, or None if there is none or its file is damaged."""
        if self.folder is None:
            return None
        path = self._path(key)
        self.used.add(path)
        if not path.is_file():
            return None
        try:
            # The file is opened here because `np.load` does not close a damaged file that it opened itself.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {item.name: arrays[item.name] for item in fields(Fit)}
        except DAMAGE as err:
            logger.info("%s is damaged (%s); fitting again", path, err)
            return None
        return Fit(**{name: value if name in ARRAYS else value.item() for name, value in values.items()})

    def store(self, key: FitKey, fit: Fit) -> None:
        """Write a fit to its file atomically.

        If the folder is not writable, log a warning and continue. Only a killed run then has to repeat its fits.
        """
        if self.folder is None:
            return
        path = self._path(key)
        self.used.add(path)
        arrays = {item.name: np.asarray(getattr(fit, item.name)) for item in fields(Fit)}
        try:
            make_folder(self.folder)
            with write_atomically(path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as err:
            logger.warning(
                "cannot cache fits in %s (%s); an interrupted run will repeat its fits",
                self.folder,
                err.strerror or err,
            )

    def clear(self) -> None:
        """Remove the cached fits of this result. Call this after the result is written."""
        for path in self.used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
