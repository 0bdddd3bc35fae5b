"""Diagnosis of this machine: which datasets and models are ready or available, disk space, devices, and versions.

Nothing is changed, and the network is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probe import environment, paths
from probe.datasets.catalog import DATASETS
from probe.datasets.description import DOWNLOAD, READY, State, state
from probe.environment import EnvironmentRecord, package_version
from probe.models import is_here
from probe.models.catalog import MODELS
from probe.models.devices import device_names

# Optional libraries: what needs them, and the extra of this package that installs them.
EXTRAS = {
    "open_clip_torch": ("models of open_clip", "open-clip"),
    "timm": ("models of timm", "timm"),
    "transformers": ("image encoders of transformers, such as DINOv2 and SigLIP", "transformers"),
    "av": ("videos (UCF101, Kinetics)", "video"),
    "h5py": ("PatchCamelyon", "hdf5"),
    "ray": ("grids on several machines", "ray"),
}


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`.

    Args:
        datasets: state of each dataset in the catalogue.
        models: state of each model in the catalogue.
        folders: path and free disk space in bytes of the folders `data`, `weights` and `results`.
        devices: values for `--device`, with the names of the devices.
        extras: version of each optional library, None if it is not installed.
        environment: the environment as in a record.
    """

    datasets: Mapping[str, State]
    models: Mapping[str, State]
    folders: Mapping[str, tuple[str, int]]
    devices: Mapping[str, str]
    extras: Mapping[str, str | None]
    environment: EnvironmentRecord


def diagnose(
    *,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
) -> Diagnosis:
    """Return the state of every dataset and model, of the folders and of the devices."""
    folders = {
        "data": paths.data_dir(data_dir),
        "weights": paths.weights_dir(weights_dir),
        "results": paths.results_dir(results_dir),
    }
    return Diagnosis(
        datasets={spec.name: state(spec, data_dir) for spec in DATASETS},
        models={
            spec.name: State(READY) if is_here(spec, weights_dir) else State(DOWNLOAD, "downloads on first use")
            for spec in MODELS
        },
        folders={name: (str(path.absolute()), _free_bytes(path.absolute())) for name, path in folders.items()},
        devices=device_names(),
        extras={package: package_version(package) for package in EXTRAS},
        environment=environment.describe("cpu"),
    )


def _free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, or of the nearest parent folder that exists."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
