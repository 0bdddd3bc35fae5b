"""Hateful Memes, the images alone. Labels are in files with one JSON object per line; their text is not used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from probe.datasets.class_names import HATEFUL_MEMES
from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset

# The first file that exists is read. The challenge's second phase renamed dev.jsonl.
LISTS = {"train": ("train.jsonl",), "test": ("dev.jsonl", "dev_seen.jsonl")}


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset, in the order of its list; the test subset is the makers' development subset.

    Raises:
        DatasetError: the development list is missing, or a line of a list is damaged or has no label.
    """
    top = root / source.location
    path = next((top / name for name in LISTS[subset.name] if (top / name).exists()), None)
    if path is None:
        raise DatasetError(f"{top} has no {' or '.join(LISTS[subset.name])}; put {source.files} into {root}")
    listed = [_read_line(line, path, source) for line in read_lines(path, source)]
    ids = [key for key, _ in listed]
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([label for _, label in listed], dtype=np.int64),
        class_names=HATEFUL_MEMES,
        ids=ids,
        **in_files(top, ids),
    )


def _read_line(line: str, path: Path, source: Source) -> tuple[str, int]:
    try:
        row = json.loads(line)
        key, label = row["img"], row["label"]
        if not isinstance(key, str) or label not in (0, 1):
            raise ValueError(f"{key!r} with the label {label!r}")
    except (ValueError, KeyError, TypeError) as err:
        raise DatasetError(
            f"{path} has the line {line[:80]!r}, which has no image with label 0 or 1 ({err}); get {source.files} again"
        ) from err
    return key, int(label)
