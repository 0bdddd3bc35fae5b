"""Finished fits on disk, for a sweep that is interrupted: one file each, under the digest of all that makes it."""

from __future__ import annotations

import contextlib
import logging
import zipfile
import zlib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from probe.atomic import make_folder, write_atomically
from probe.probes.fits import Fit
from probe.specs import digest

logger = logging.getLogger(__name__)

# What reading a file raises that is not as it was written.
DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
ARRAYS = ("coef", "intercept", "classes")


@cache
def code_digest() -> str:
    """Return a digest of the modules that fit, since another version of the suite makes its own fits."""
    return digest([path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))])


@dataclass
class FitCache:
    """Cache of the finished fits that go into one result.

    Args:
        folder: the folder of the fits, together with those of other results; None caches nothing.
    """

    folder: Path | None
    used: set[Path] = field(default_factory=set)

    def _path(self, name: Any) -> Path:
        assert self.folder is not None
        return self.folder / f"{digest([code_digest(), name])}.npz"

    def find(self, name: Any) -> Fit | None:
        """Return the fit under a name (all that it depends on, as JSON has it), or None if there is none."""
        if self.folder is None:
            return None
        path = self._path(name)
        self.used.add(path)
        if not path.is_file():
            return None
        try:
            # Opened here, as NumPy leaves a damaged one open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                values = {item.name: found[item.name] for item in fields(Fit)}
        except DAMAGE as err:
            logger.info("%s is damaged (%s) and is fitted again", path, err)
            return None
        return Fit(**{name: value if name in ARRAYS else value.item() for name, value in values.items()})

    def store(self, name: Any, fit: Fit) -> None:
        """Write a fit in one step. A folder that cannot be written to costs no more than the fits of a killed run."""
        if self.folder is None:
            return
        path = self._path(name)
        self.used.add(path)
        arrays = {item.name: np.asarray(getattr(fit, item.name)) for item in fields(Fit)}
        try:
            make_folder(self.folder)
            with write_atomically(path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        except OSError as err:
            logger.warning("fits are not cached in %s (%s)", self.folder, err.strerror or err)

    def clear(self) -> None:
        """Remove the fits, after the result was written."""
        for path in self.used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
