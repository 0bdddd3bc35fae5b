"""Where things live: an argument beats the environment, which beats the default. Touches no disk."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir(given: str | Path | None = None) -> Path:
    """Folder of datasets, laid out as torchvision's `root`: argument, `PROBE_DATA_DIR`, `~/.cache/probe/data`."""
    return _choose(given, "PROBE_DATA_DIR", Path.home() / ".cache" / "probe" / "data")


def weights_dir(given: str | Path | None = None) -> Path:
    """Folder of checkpoints: argument, `PROBE_WEIGHTS_DIR`, `~/.cache/clip`, where the reference keeps them too."""
    return _choose(given, "PROBE_WEIGHTS_DIR", Path.home() / ".cache" / "clip")


def cache_dir(given: str | Path | None = None) -> Path:
    """Folder of features: argument, `PROBE_CACHE_DIR`, `~/.cache/probe/features`."""
    return _choose(given, "PROBE_CACHE_DIR", Path.home() / ".cache" / "probe" / "features")


def results_dir(given: str | Path | None = None) -> Path:
    """Folder of records and tables: argument, `PROBE_RESULTS_DIR`, `./results`."""
    return _choose(given, "PROBE_RESULTS_DIR", Path("results"))


def absolute(path: str | Path) -> Path:
    """The same from any folder; `~` stays, which is another on other machines."""
    return Path(path) if str(path).startswith("~") else Path(path).absolute()


def _choose(given: str | Path | None, variable: str, default: Path) -> Path:
    chosen = given or os.environ.get(variable) or default
    return Path(chosen).expanduser()
