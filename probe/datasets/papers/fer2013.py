"""FER 2013: grey faces of 48 x 48 pixels, stored as numbers in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from probe.datasets.class_names import FER2013
from probe.datasets.images import ImageDataset, in_array
from probe.errors import DatasetError, listed
from probe.specs import DatasetSpec, Source, Subset

USAGES = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
SIZE = 48


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset: the rows of one `Usage`. Their pixels stay in memory, 2,304 bytes per image.

    Columns are found by name: fer2013.csv has emotion, pixels, Usage; icml_face_data.csv has emotion, Usage, pixels.

    Raises:
        DatasetError: the columns differ, or a row has no valid image or emotion.
    """
    labels, pixels = _read_table(root / source.paths[0], USAGES[subset.name], source)
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array(labels, dtype=np.int64),
        class_names=FER2013,
        ids=[f"{subset.name}/{i}" for i in range(len(labels))],  # rows are in the same order in both files
        **in_array(pixels),
    )


def _read_table(path: Path, usage: str, source: Source) -> tuple[list[int], np.ndarray]:
    """Read the labels and pixels, uint8 (n, 48, 48), of the rows of one usage."""
    labels, pixels, number = [], [], 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            columns = [name.strip() for name in next(rows, [])]
            if sorted(columns) != ["Usage", "emotion", "pixels"]:
                raise ValueError(f"expected the columns emotion, pixels and Usage, got {columns}")
            for number, row in enumerate(rows, start=2):  # noqa: B007 - an error names it
                values = dict(zip(columns, row, strict=True))
                if values["Usage"] not in USAGES.values():
                    raise ValueError(f"{values['Usage']!r} is not a Usage; expected {listed(USAGES.values())}")
                if values["Usage"] == usage:
                    labels.append(_read_label(values["emotion"]))
                    pixels.append(_read_pixels(values["pixels"]))
    except (OSError, ValueError, csv.Error) as err:
        raise DatasetError(f"{path}, line {number}, cannot be read ({err}); get {source.files} again") from err
    return labels, np.array(pixels, dtype=np.uint8).reshape(-1, SIZE, SIZE)


def _read_label(text: str) -> int:
    if not text.isdecimal() or int(text) >= len(FER2013):
        raise ValueError(f"expected an emotion from 0 to {len(FER2013) - 1}, got {text!r}")
    return int(text)


def _read_pixels(text: str) -> np.ndarray:
    pixels = np.fromstring(text, dtype=np.int64, sep=" ")  # 8 times as fast as int(), over 83 million numbers
    if len(pixels) != SIZE * SIZE or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"expected {SIZE * SIZE} pixels from 0 to 255")
    return pixels.astype(np.uint8)
