"""ObjectNet, a further test set of ImageNet: images of the 113 of its 313 classes that ImageNet has, too.

Layout below `location`, as its archive has it: `images/FOLDER/*.png`, and in `mappings/` the files of `FILES`.

Images have a red border of one pixel, which the makers ask to remove. Two pixels are cut off at each side, as in
github.com/mlfoundations/model-soups.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from probe.datasets.images import ImageDataset, in_files, read_file
from probe.datasets.sources.folder import list_class_files
from probe.errors import DatasetError, listed, summarize
from probe.specs import DatasetSpec, Source, Subset

FOLDERS, CLASSES = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"
IDS, NAMES = "pytorch_to_imagenet_2012_id.json", "imagenet_to_label_2012_v2"
FILES = (FOLDERS, CLASSES, IDS, NAMES)
BORDER = 2  # pixels


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the images of the classes that ImageNet has. The name of a class is its labels in ImageNet, with commas.

    Raises:
        DatasetError: a mapping is damaged, a class has no folder, or a file is unexpected.
    """
    top = root / source.location
    of_folder = read_mapping(top / "mappings")
    names = [name for name in list_class_files(top / "images") if name.split("/")[0] in of_folder]
    folders = sorted({name.split("/")[0] for name in names})
    if missing := sorted(of_folder.keys() - set(folders)):
        raise DatasetError(f"{spec.name}: {top / 'images'} has no folder {listed(map(repr, missing), most=3)}; add it")
    position = {folder: i for i, folder in enumerate(folders)}
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([position[name.split("/")[0]] for name in names], dtype=np.int64),
        class_names=[",".join(map(str, of_folder[folder])) for folder in folders],
        ids=[f"images/{name}" for name in names],
        **in_files(top / "images", names, read=_read),
    )


def read_mapping(folder: Path) -> dict[str, list[int]]:
    """Return the labels in ImageNet of each folder of images that has any, from the makers' files `FILES`.

    `FOLDERS` names the class of each folder, and `CLASSES` the ImageNet names of a class, separated by semicolons. Line
    i of `NAMES` has the ImageNet name with the id i of the challenge, and `IDS` gives this id for each label.

    Raises:
        DatasetError: a file is damaged, or names a class that the others do not have.
    """
    try:
        of_class, imagenet, ids = (_read_json(folder / name) for name in (FOLDERS, CLASSES, IDS))
        label_of_id = {int(number): int(label) for label, number in ids.items()}
        lines = (folder / NAMES).read_text(encoding="utf-8").splitlines()
        label_of_name = {line.strip(): label_of_id[i] for i, line in enumerate(lines) if line.strip()}
        folder_of = {name: own for own, name in of_class.items()}
        return {
            folder_of[name]: sorted(label_of_name[one.strip()] for one in several.split(";"))
            for name, several in imagenet.items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as err:
        raise DatasetError(
            f"the mappings of ObjectNet in {folder} are damaged ({type(err).__name__}: {summarize(err)}); get "
            f"{listed(FILES)} again"
        ) from err


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _read(folder: Path, names: Sequence[str], i: int) -> Image.Image:
    image = read_file(folder, names, i)
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))
