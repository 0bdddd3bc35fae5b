"""A dataset's row -> its three splits, checked against the row: sizes, classes, label range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from probe import paths
from probe.datasets import embedded, folder, get_dataset, splits, torchvision
from probe.datasets.images import ImageDataset
from probe.errors import DatasetError
from probe.names import unknown_name
from probe.specs import DatasetSpec, Part

FORMS: dict[str, ModuleType] = {"embedded": embedded, "torchvision": torchvision, "folder": folder}
SPLITS = ("train", "val", "test")
_REPAIR = "get its files again, or correct its row"


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset; no image is in two of them."""

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset


def open_split(
    dataset: str | DatasetSpec, split: str, *, data_dir: str | Path | None = None, offline: bool = False
) -> ImageDataset:
    """Open `train`, `val` or `test` of a dataset: `len`, and `[i] -> (RGB image, label)`.

    Raises:
        UnknownNameError, DatasetError: each says what to do.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    opened: ImageDataset = getattr(open_splits(dataset, data_dir=data_dir, offline=offline), split)
    return opened


def open_splits(dataset: str | DatasetSpec, *, data_dir: str | Path | None = None, offline: bool = False) -> Splits:
    """Open all splits: official ones where they exist, else held out by `datasets.splits`.

    Raises:
        DatasetMissingError: the files are not here and could not be fetched; the message says what to put where.
        DatasetError: there are more, fewer or other images than the row says.
    """
    spec = get_dataset(dataset) if isinstance(dataset, str) else dataset
    opened = {part.name: _open_part(spec, part, root=paths.data_dir(data_dir), offline=offline) for part in spec.parts}
    pool = opened.get("all") or opened["train"]
    _check_classes(spec, pool)
    if "test" not in opened:
        pool, opened["test"] = _hold_out(spec, pool, spec.test_fraction, role="test")
    if "val" not in opened:
        of_all = spec.val_fraction / (1 - spec.test_fraction) if "all" in opened else spec.val_fraction
        pool, opened["val"] = _hold_out(spec, pool, of_all, role="val")
    return Splits(train=replace(pool, name=f"{spec.name}/train"), val=opened["val"], test=opened["test"])


def _open_part(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> ImageDataset:
    images: ImageDataset = FORMS[spec.form].open_part(spec, part, root=root, offline=offline)
    if len(images) != part.size:
        raise DatasetError(f"{images.name}: expected {part.size} images, found {len(images)}; {_REPAIR}")
    if images.labels.min() < 0 or images.labels.max() >= spec.num_classes:
        raise DatasetError(
            f"{images.name}: expected labels 0 to {spec.num_classes - 1}, found {images.labels.min()} to "
            f"{images.labels.max()}; {_REPAIR}"
        )
    return images


def _check_classes(spec: DatasetSpec, images: ImageDataset) -> None:
    found = len(np.unique(images.labels))
    if found != spec.num_classes:
        raise DatasetError(f"{images.name}: expected images of {spec.num_classes} classes, found {found}; {_REPAIR}")


def _hold_out(
    spec: DatasetSpec, pool: ImageDataset, fraction: float, *, role: str
) -> tuple[ImageDataset, ImageDataset]:
    try:
        kept, held = splits.hold_out(pool.labels, fraction, role=role)
    except splits.TooFewImagesError as err:
        needed = 3 if spec.parts[0].name == "all" else 2
        raise DatasetError(
            f"{spec.name}: class {pool.class_names[err.label]!r} has too few images to hold out a {role} split; "
            f"give it at least {needed}, drop it, or make train/, val/ and test/ yourself"
        ) from err
    return pool.subset(f"{spec.name}/rest", kept), pool.subset(f"{spec.name}/{role}", held)
