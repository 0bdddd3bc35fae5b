"""Birdsnap: the makers' lists, and the images that could still be downloaded from their links."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset. The training subset holds the images of images.txt that test_images.txt does not list.

    Species are numbered from 1. Images that are not on disk are left out, because most of their links are dead;
    `opening` compares the number of images.

    Raises:
        DatasetError: a list is damaged, or the lists contradict each other.
    """
    top = root / source.location
    species = _read_species(top / "images.txt", spec, source)
    header, *tested = read_lines(top / "test_images.txt", source) or [""]
    if unknown := [*({header} - {"path"}), *(path for path in tested if path not in species)]:
        raise DatasetError(
            f"{top / 'test_images.txt'} has the line {unknown[0]!r}, which is not in images.txt; "
            f"get {source.files} again"
        )
    wanted = set(tested) if subset.name == "test" else species.keys() - set(tested)
    wanted &= _list_images(top / "download" / "images")
    ids = [path for path in species if path in wanted]
    names = {label: path.split("/")[0] for path, label in species.items()}
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([species[path] for path in ids], dtype=np.int64),
        class_names=[names.get(i, str(i + 1)) for i in range(spec.num_classes or max(names, default=-1) + 1)],
        ids=ids,
        **in_files(top / "download" / "images", ids),
    )


def _read_species(path: Path, spec: DatasetSpec, source: Source) -> dict[str, int]:
    """Return the images in images.txt and their class indices, in the order of the file."""
    header, *lines = [line.split("\t") for line in read_lines(path, source)] or [[]]
    num_classes = spec.num_classes or len(lines)
    species = {}
    for fields in lines:
        row = dict(zip(header, fields, strict=False))
        number = row.get("species_id", "")
        if len(fields) != len(header) or not row.get("path") or not number.isdecimal():
            raise DatasetError(
                f"{path} has the line {' '.join(fields)[:80]!r}, which does not fit its columns; "
                f"get {source.files} again"
            )
        if not 1 <= int(number) <= num_classes:
            raise DatasetError(
                f"{path} has the species {number}, and there are 1 to {num_classes}; get {source.files} again"
            )
        species[row["path"]] = int(number) - 1
    return species


def _list_images(folder: Path) -> set[str]:
    """List the files of all folders of species: 500 look-ups instead of one for each image."""
    return {
        f"{path.parent.name}/{path.name}" for entry in folder.iterdir() if entry.is_dir() for path in entry.iterdir()
    }
