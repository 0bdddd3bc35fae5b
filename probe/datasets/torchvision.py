"""Datasets that torchvision has a class for. What is there is used; what is missing it downloads and checks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import DatasetSpec, Part

logger = logging.getLogger(__name__)

# Where torchvision's classes keep labels, or pairs of a file and its label. Some of it is private, so what is found is
# checked against two images; the other way to labels is to decode every image.
LABELS, PAIRS = ("targets", "_labels", "labels"), "_samples"


def open_part(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> ImageDataset:
    """Open one part through its torchvision class, found under `root` or downloaded there.

    CIFAR's files are pickles: torchvision reads them only after their MD5 has been found right.

    Raises:
        DatasetMissingError: the files are not here and could not be fetched; the message says what to put where.
        DatasetError: a file is damaged.
    """
    name = f"{spec.name}/{part.name}"
    source = _open(spec, part, root=root, offline=offline)
    labels = _labels(source)
    _check_ends(name, source, labels)
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=_class_names(source, labels),
        read=lambda i: _read(name, source, i)[0],
        ids=[f"{part.name}/{i}" for i in range(len(source))],
    )


def _labels(source: Any) -> np.ndarray:
    for attribute in LABELS:
        if hasattr(source, attribute):
            return np.asarray(getattr(source, attribute), dtype=np.int64)
    return np.array([label for _, label in getattr(source, PAIRS)], dtype=np.int64)


def _class_names(source: Any, labels: np.ndarray) -> list[str]:
    names = getattr(source, "classes", None)
    return [str(name) for name in names] if names is not None else [str(i) for i in range(labels.max() + 1)]


def _check_ends(name: str, source: Any, labels: np.ndarray) -> None:
    if len(labels) != len(source):
        raise DatasetError(f"{name}: expected a label for each of {len(source)} images, found {len(labels)}")
    for i in {0, len(source) - 1} if len(source) else ():
        _, label = _read(name, source, i)
        if label != labels[i]:
            raise DatasetError(f"{name}: image {i} has the label {label} and is listed with {labels[i]}; tell us")


def _read(name: str, source: Any, i: int) -> tuple[Image.Image, int]:
    try:
        image, label = source[i]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:  # as the formats' readers raise
        raise DatasetError(f"{name}: image {i} cannot be read ({err}); get its files again") from err
    return image, label


def _open(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> Any:
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, spec.source)
    arguments = dict(part.arguments)
    by_hand = f"put {spec.files} into {root}, or name another folder with --data-dir"
    try:
        return dataset_class(root, **arguments)
    except (RuntimeError, AssertionError, ValueError, KeyError, OSError) as err:
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
    except (RuntimeError, ValueError, OSError) as err:  # a ValueError where torchvision knows of no source any more
        raise DatasetMissingError(
            f"{spec.name} is not in {root} and could not be downloaded ({err}); {by_hand}"
        ) from err
