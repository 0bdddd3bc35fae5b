"""A folder of images, one subfolder a class: `folder:PATH`.

    PATH/train/CLASS/*  PATH/test/CLASS/*  [PATH/val/CLASS/*]      splits as given; without val/, a part of train/
    PATH/CLASS/*                                                   one tree: divided 60 / 20 / 20, class by class

Hidden files and the notes that operating systems leave are passed over; anything else that does not fit is an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import DatasetSpec, Part

SPLITS = ("train", "val", "test")
LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini")


def folder_spec(root: Path) -> DatasetSpec:
    """Make the row of a folder by looking at it: which parts it has, how many images and classes.

    Raises:
        DatasetMissingError: there is no such folder.
        DatasetError: it is empty, has no test split, or holds a file that is no image.
    """
    root = root.resolve()
    if not root.is_dir():
        raise DatasetMissingError(f"no folder at {root}; give folder:PATH with one subfolder for each class")
    parts = [split for split in SPLITS if (root / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        missing = "train" if "train" not in parts else "test"
        raise DatasetError(
            f"{root} has {' and '.join(f'{p}/' for p in parts)} but no {missing}/; add it, or rename one"
        )
    files = {part: _list_images(root / part) for part in parts} if parts else {"all": _list_images(root)}
    classes = sorted({path.parent.name for path in files.get("train") or files["all"]})
    return DatasetSpec(
        name=f"folder:{root}",
        title=f"images in {root}",
        form="folder",
        source=str(root),
        parts=tuple(Part(name, len(paths)) for name, paths in files.items()),
        num_classes=len(classes),
        val_fraction=0.1 if parts else 0.2,
    )


def open_part(spec: DatasetSpec, part: Part, *, root: Path, offline: bool) -> ImageDataset:  # noqa: ARG001 - one signature for all forms
    """Open one part; class indices are the places of the training folder's class names in alphabetical order.

    Raises:
        DatasetError: a class that the training part does not have.
    """
    top = Path(spec.source)
    folder = top if part.name == "all" else top / part.name
    files = _list_images(folder)
    train = files if part.name in ("all", "train") else _list_images(top / "train")
    class_names = sorted({path.parent.name for path in train})
    index = {name: i for i, name in enumerate(class_names)}
    for path in files:
        if path.parent.name not in index:
            raise DatasetError(
                f"{path.parent}: class {path.parent.name!r} is not in {top / 'train'}; add it there or drop it"
            )
    return ImageDataset(
        name=f"{spec.name}/{part.name}",
        labels=np.array([index[path.parent.name] for path in files], dtype=np.int64),
        class_names=class_names,
        read=lambda i: _read(files[i]),
        ids=[path.relative_to(top).as_posix() for path in files],
    )


def _list_images(folder: Path) -> list[Path]:
    """The files of all class folders, sorted by class and name."""
    files: list[Path] = []
    for class_dir in _visible(folder):
        if not class_dir.is_dir():
            raise DatasetError(f"{class_dir} is in no class; put it into a subfolder, or remove it")
        images = _visible(class_dir)
        if not images:
            raise DatasetError(f"no images in {class_dir}; add some, or remove the class")
        for path in images:
            if path.is_dir():
                raise DatasetError(f"{path} is a folder inside a class; move its images up")
            if not path.is_file() or path.suffix.lower() not in Image.registered_extensions():
                raise DatasetError(f"{path} is no image; remove it")
        files += images
    if not files:
        raise DatasetError(f"no images in {folder}; put them into one subfolder for each class")
    return files


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name, without what nobody put there on purpose."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in LEFT_BY_SYSTEMS)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:  # as the formats' readers raise
        raise DatasetError(f"{path} cannot be read as an image; replace or remove it") from err
