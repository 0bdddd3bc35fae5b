"""What can be run on this machine: datasets and models that are here or can be had, disk, devices, versions.

Looks, and changes nothing; touches no network.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from probe import environment, paths
from probe.datasets.catalog import CATALOG as DATASETS
from probe.datasets.description import DOWNLOAD, READY, State, state
from probe.models import is_here
from probe.models.catalog import CATALOG as MODELS
from probe.models.devices import device_names

# Libraries that only a part of the suite needs, and for what.
EXTRAS = {"open_clip_torch": "open_clip: models", "av": "videos (UCF101, Kinetics)", "h5py": "PatchCamelyon"}


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Args:
        datasets: the state of each dataset of the catalogue.
        models: likewise of each model.
        folders: for `data`, `weights` and `results`: the path and the free bytes of its disk.
        devices: what `--device` can name here, with its name.
        extras: for each optional library: its version, None where it is not installed.
        environment: as in every record.
    """

    datasets: Mapping[str, State]
    models: Mapping[str, State]
    folders: Mapping[str, tuple[str, int]]
    devices: Mapping[str, str]
    extras: Mapping[str, str | None]
    environment: Mapping[str, Any]


def diagnose(
    *,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
) -> Diagnosis:
    """Look at every dataset and model, the folders and the devices."""
    folders = {
        "data": paths.data_dir(data_dir),
        "weights": paths.weights_dir(weights_dir),
        "results": paths.results_dir(results_dir),
    }
    return Diagnosis(
        datasets={spec.name: state(spec, data_dir) for spec in DATASETS},
        models={
            spec.name: State(READY) if is_here(spec, weights_dir) else State(DOWNLOAD, "run it without --offline")
            for spec in MODELS
        },
        folders={name: (str(path.absolute()), _free_bytes(path.absolute())) for name, path in folders.items()},
        devices=device_names(),
        extras={package: _version(package) for package in EXTRAS},
        environment=environment.describe("cpu"),
    )


def _free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, or of the nearest folder above that exists."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
