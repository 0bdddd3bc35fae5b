"""Datasets that torchvision has a class for. What is there is used; what is missing it downloads and checks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import DatasetSpec, Part

logger = logging.getLogger(__name__)


def open_part(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> ImageDataset:
    """Open one part through its torchvision class, found under `root` or downloaded there.

    CIFAR's files are pickles: torchvision reads them only after their MD5 has been found right.

    Raises:
        DatasetMissingError: the files are not here and could not be fetched; the message says what to put where.
    """
    source = _open(spec, part, root=root, offline=offline)
    return ImageDataset(
        name=f"{spec.name}/{part.name}",
        labels=np.asarray(source.targets, dtype=np.int64),
        class_names=list(source.classes),
        read=lambda i: source[i][0],
        ids=[f"{part.name}/{i}" for i in range(len(source))],
    )


def _open(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> Any:
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, spec.source)
    arguments = dict(part.arguments)
    by_hand = f"put {spec.files} into {root}, or name another folder with --data-dir"
    try:
        return dataset_class(root, **arguments)
    except (RuntimeError, AssertionError, ValueError, OSError) as err:
        if "not found" not in str(err):  # a file is there but cut short
            raise DatasetError(f"{spec.name} in {root} is damaged ({err}); remove it, then {by_hand}") from err
        if offline:
            raise DatasetMissingError(
                f"{spec.name} is not in {root} and --offline forbids to fetch it; {by_hand}"
            ) from err
    logger.info("%s: not in %s, downloading", spec.name, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{spec.name}.lock"):
            return dataset_class(root, download=True, **arguments)
    except (RuntimeError, OSError) as err:
        raise DatasetMissingError(
            f"{spec.name} is not in {root} and could not be downloaded ({err}); {by_hand}"
        ) from err
