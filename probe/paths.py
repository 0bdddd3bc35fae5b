"""Folders: an argument takes precedence over an environment variable, which takes precedence over the default."""

from __future__ import annotations

import os
from pathlib import Path

from probe.errors import FolderError


def data_dir(given: str | Path | None = None) -> Path:
    """Return the folder of datasets, torchvision's `root`: argument, `PROBE_DATA_DIR`, `~/.cache/probe/data`."""
    return _choose(given, "PROBE_DATA_DIR", "~/.cache/probe/data")


def weights_dir(given: str | Path | None = None) -> Path:
    """Return the folder of checkpoints: argument, `PROBE_WEIGHTS_DIR`, `~/.cache/clip`, as the reference `clip`."""
    return _choose(given, "PROBE_WEIGHTS_DIR", "~/.cache/clip")


def cache_dir(given: str | Path | None = None) -> Path:
    """Return the folder of features: argument, `PROBE_CACHE_DIR`, `~/.cache/probe/features`."""
    return _choose(given, "PROBE_CACHE_DIR", "~/.cache/probe/features")


def results_dir(given: str | Path | None = None) -> Path:
    """Return the folder of records and tables: argument, `PROBE_RESULTS_DIR`, `./results`."""
    return _choose(given, "PROBE_RESULTS_DIR", "results")


def is_utf8(path: Path) -> bool:
    """Return True if a path is valid text, which some libraries need. On Linux, file names can be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute(path: str | Path) -> Path:
    """Return an absolute path. A leading `~` stays, because home folders differ between machines."""
    return Path(path) if str(path).startswith("~") else Path(path).absolute()


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder in place of `~`, or of `~NAME` if there is a user NAME.

    Raises:
        FolderError: this process has no home folder, as in a container whose user id has no account.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as err:
        if Path(path).parts[0] != "~":  # a file name that begins with `~`
            return Path(path)
        raise FolderError(f"{path}: this process has no home folder; set HOME, or give an absolute path") from err


def _choose(given: str | Path | None, variable: str, default: str) -> Path:
    chosen = given or os.environ.get(variable)
    option = f"--{variable.removeprefix('PROBE_').lower().replace('_', '-')}"
    try:
        folder = expand_home(chosen or default)
    except FolderError as err:
        if chosen:
            raise
        raise FolderError(
            f"this process has no home folder for {default}; name a folder with {option} or {variable}, or set HOME"
        ) from err
    for path in (folder, *folder.parents):
        if os.path.isfile(path):  # noqa: PTH113 - `Path.is_file` raises if a name is too long
            raise FolderError(f"{path} is a file, not a folder; name a folder with {option} or {variable}")
    return folder
