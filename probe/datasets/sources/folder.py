"""Folders of images, one subfolder per class: `folder:PATH`, and datasets of the catalogue with such folders.

    PATH/train/CLASS/*  PATH/test/CLASS/*  [PATH/val/CLASS/*]      splits as given; without val/, held out of train/
    PATH/train/CLASS/*  PATH/val/CLASS/*                           val/ is the test split, as in ImageNet
    PATH/CLASS/*                                                   one tree: divided 60 / 20 / 20, class by class

Folders of splits may have any spelling that `datasets.subsets` knows, such as `Training/` and `Testing/`. A folder with
such a name is a class if it holds images and is next to other folders of images.

Hidden files and files such as Thumbs.db are skipped; anything else that does not fit is an error.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from probe import paths
from probe.datasets import source_specs
from probe.datasets.archives import fetch_missing
from probe.datasets.images import LEFT_BY_SYSTEMS, ImageDataset, image_suffixes, in_files, read_file
from probe.datasets.sources.labels import class_positions, composed, folded, report_twins
from probe.datasets.sources.video import SUFFIXES as VIDEO_SUFFIXES
from probe.datasets.sources.video import read_middle_frame
from probe.datasets.splits.groups import groups_of
from probe.datasets.subsets import choose_subsets, find_subsets, subset_of
from probe.errors import DatasetError, DatasetMissingError, listed
from probe.specs import DatasetSpec, Source, Subset


def make_spec(path: str) -> DatasetSpec:
    """Make the specification of a folder from its subsets and classes.

    Raises:
        DatasetMissingError: the folder does not exist.
        DatasetError: the folder is empty, has no test split, or has a file that is not an image.
    """
    root = paths.expand_home(path).resolve()
    if not root.is_dir():
        raise DatasetMissingError(f"no folder at {root}; give folder:PATH with one subfolder for each class")
    folders = _find_subsets(root)
    files = {subset: list_class_files(root / folder) for subset, folder in folders.items()}
    classes = {composed(name.split("/")[0]) for name in files.get("train") or files["all"]}
    chosen = {subset: {"folder": folder} for subset, folder in folders.items()}
    spec = source_specs.own_dataset(f"folder:{root}", "folder", str(root), chosen, {}, can_download=False)
    subsets = tuple(Subset(subset, len(names)) for subset, names in files.items())
    return replace(spec, subsets=subsets, num_classes=len(classes))


def _find_subsets(root: Path) -> dict[str, str]:
    """Return subset -> its folder below `root`; `all` is `.` if the folders of `root` are classes."""
    folders = [entry.name for entry in _visible(root, ()) if entry.is_dir()]
    named = [name for name in folders if subset_of(name)]
    if not any(entry.is_dir() for name in named for entry in _visible(root / name, ())):
        if named and named == folders:
            raise DatasetError(
                f"{root} has no class folders in {listed(f'{name}/' for name in named)}; put the images of each "
                "folder into one subfolder per class, or rename a folder that is a class"
            )
        return {"all": "."}
    others = [entry.name for entry in _visible(root, tuple(named))]
    if others:
        raise DatasetError(
            f"{root}: {listed(others)} is next to {named[0]}/ and would not be read; name the folders of splits train, "
            "val and test, and move anything else away"
        )
    kinds = {subset_of(name) for name in named}
    if "train" not in kinds or len(kinds) == 1:
        missing = "train" if "train" not in kinds else "test"
        raise DatasetError(
            f"{root} has {' and '.join(f'{name}/' for name in named)} but no {missing}/; add it, or rename one"
        )
    return choose_subsets(str(root), {}, find_subsets(str(root), named))


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset. Class indices are positions in the sorted class names of the training folder.

    A further test set has no training folder; its class indices are positions in its own sorted class names.

    The argument `folder` of a subset is its folder below `source.location`, which is below the data folder. Options of
    the source:

    - `groups`: a pattern for the groups of images, see `splits.groups`.
    - `ignore`: names of files that are not images.
    - `numbered`: subsets whose class folders are named by class indices.
    - `media`: `video` for the middle frames of videos.

    Raises:
        DatasetMissingError: the folder does not exist, and its archives could not be downloaded.
        DatasetError: a class is missing in the training subset, or a file is unexpected.
    """
    if not offline:
        fetch_missing(source, root)
    options = dict(source.options)
    top = root / source.location
    suffixes = VIDEO_SUFFIXES if options.get("media") == "video" else None
    files, folders = {}, {}
    pool = subset.name if subset.name == "all" or spec.is_test_set else "train"
    for name in dict.fromkeys((subset.name, pool)):
        folders[name] = top / dict(dict(source.subsets)[name])["folder"]
        if not folders[name].is_dir():
            raise DatasetMissingError(f"{spec.name}/{name}: no folder at {folders[name]}")
        files[name] = list_class_files(folders[name], suffixes=suffixes, ignore=tuple(options.get("ignore", ())))
    names, folder = files[subset.name], folders[subset.name]
    if subset.name in options.get("numbered", ()):
        class_names = [str(i) for i in range(spec.num_classes or 0)]
    else:
        names_of_training = {name.split("/")[0] for name in files[pool]}
        class_names = sorted(set(map(composed, names_of_training)))
        if subset.name == pool:
            report_twins(spec.name, names_of_training)
    below = folder.relative_to(top).as_posix()
    ids = names if below == "." else [f"{below}/{name}" for name in names]
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=_labels(folder, names, class_names),
        class_names=class_names,
        ids=ids,
        groups=groups_of(f"{spec.name}/{subset.name}", subset, ids, options),
        **in_files(folder, names, read=read_middle_frame if suffixes else read_file),
    )


def list_class_files(
    folder: Path, *, suffixes: frozenset[str] | None = None, ignore: tuple[str, ...] = ()
) -> list[str]:
    """Return the files of all class folders as CLASS/FILE, sorted by class and name.

    Args:
        folder: the folder that contains the class folders.
        suffixes: accepted suffixes in lower case, with the dot; None for the formats of Pillow.
        ignore: names of files to skip.

    Raises:
        DatasetError: the folder has unexpected content, a class is empty, or the names of two classes differ only in
            case, spaces or dots.
    """
    allowed = suffixes or frozenset(image_suffixes())
    kind = "image" if suffixes is None else "video"
    files: list[str] = []
    of_folded: dict[str, str] = {}
    for entry in _visible(folder, ignore):
        if not entry.is_dir():
            what = _what(entry, "is not in a class folder; move it into a class folder, or remove it")
            raise DatasetError(f"{entry.path} {what}")
        twin = of_folded.setdefault(folded(entry.name), entry.name)
        if composed(twin) != composed(entry.name):
            raise DatasetError(
                f"{folder} has the classes {twin!r} and {entry.name!r}, which differ only in case, spaces or dots and "
                "name the same folder on some systems; merge them, or rename one"
            )
        images = _visible(Path(entry.path), ignore)
        if not images:
            raise DatasetError(f"no {kind}s in {entry.path}; add some, or remove the class")
        for image in images:
            if image.is_dir():
                raise DatasetError(
                    f"{image.path} is a folder inside a class; move its {kind}s up; if {entry.name} is a split, not a "
                    "class, call it train, val or test"
                )
            if not image.is_file() or Path(image.name).suffix.lower() not in allowed:
                raise DatasetError(f"{image.path} {_what(image, f'is not a known type of {kind}; remove it')}")
            files.append(f"{entry.name}/{image.name}")
    if not files:
        raise DatasetError(f"no {kind}s in {folder}; put them into one subfolder for each class")
    return files


def _what(entry: os.DirEntry[str], otherwise: str) -> str:
    return (
        "is a broken link; repair or remove it" if entry.is_symlink() and not Path(entry.path).exists() else otherwise
    )


def _visible(folder: Path, ignore: tuple[str, ...]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden files and files of operating systems."""
    ignored = set(map(composed, (*LEFT_BY_SYSTEMS, *ignore)))
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not entry.name.startswith(".") and composed(entry.name) not in ignored]
    return sorted(kept, key=lambda entry: entry.name)


def _labels(folder: Path, names: list[str], class_names: list[str]) -> np.ndarray:
    classes = [composed(name.split("/")[0]) for name in names]
    position = class_positions(str(folder), classes, class_names)
    return np.array([position[name] for name in classes], dtype=np.int64)
