"""ImageNet ReaL: the validation images of ImageNet with reassessed labels, of which an image can have several or none.

The labels are in `real.json` of github.com/google-research/reassessed-imagenet: a list with the labels of each image,
in the order of the numbers in the names of the images. If the folder of ImageNet has no `real.json`, the copy that timm
carries is read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_files
from probe.datasets.sources.folder import list_class_files
from probe.datasets.test_classes import read_timm
from probe.errors import DatasetError, summarize
from probe.specs import DatasetSpec, Source, Subset

NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the images that have a label. Each set of labels is a class, named by these labels with commas.

    Raises:
        DatasetError: the file of labels is damaged, or the name of an image has no number of the file.
        ExtraMissingError: the file of labels is missing, and timm is not installed.
    """
    top = root / source.location
    written = _read_labels(top / "real.json")
    names, classes = [], []
    for name in list_class_files(top / "val"):
        found = NUMBER.fullmatch(name.split("/")[1])
        if found is None or not 1 <= int(found[1]) <= len(written):
            raise DatasetError(
                f"{top / 'val' / name} has no number of 1 to {len(written)} in its name, such as "
                "ILSVRC2012_val_00000001.JPEG; give the images their original names"
            )
        if labels := written[int(found[1]) - 1]:
            names.append(name)
            classes.append(",".join(map(str, sorted(labels))))
    class_names = sorted(set(classes))
    position = {name: i for i, name in enumerate(class_names)}
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([position[name] for name in classes], dtype=np.int64),
        class_names=class_names,
        ids=[f"val/{name}" for name in names],
        **in_files(top / "val", names),
    )


def _read_labels(path: Path) -> list[list[int]]:
    try:
        written = json.loads(
            path.read_text(encoding="utf-8") if path.is_file() else read_timm("imagenet_real_labels.json")
        )
        if not all(isinstance(label, int) for labels in written for label in labels):
            raise ValueError("a label is not an integer")
    except (ValueError, TypeError) as err:
        raise DatasetError(f"{path} is damaged ({summarize(err)}); get real.json again") from err
    found: list[list[int]] = written
    return found
