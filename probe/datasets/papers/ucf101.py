"""UCF101: the middle frames of short videos, and the makers' three divisions into training and test clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probe.datasets.archives import fetch_missing
from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.datasets.sources.video import read_middle_frame
from probe.datasets.splits.folds import Fold, Selection, with_validation
from probe.datasets.splits.groups import find_groups
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset

NUMBERS = ("01", "02", "03")  # of the lists


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open all clips of the six lists, sorted by class and file. The names of clips give their groups.

    Raises:
        DatasetMissingError: the archives could not be downloaded.
        DatasetError: a list is damaged, or has a clip of a class that is not in classInd.txt.
    """
    if not offline:
        fetch_missing(source, root)
    videos, lists = (root / source.location / folder for folder in ("UCF-101", "ucfTrainTestlist"))
    index = _read_classes(lists / "classInd.txt", source)
    listed = {clip for kind in ("train", "test") for k in NUMBERS for clip in _read_list(lists, kind, k, index, source)}
    ids = sorted(listed, key=lambda clip: (index[clip.split("/")[0]], clip))
    name = f"{spec.name}/{subset.name}"
    clips = _find_clips(videos, ids)
    numbers = find_groups(name, ids, r"_(g\d+)_c\d+\.\w+$")  # v_ApplyEyeMakeup_g08_c01.avi belongs to the group g08
    return ImageDataset(
        name=name,
        labels=np.array([index[clip.split("/")[0]] for clip in ids], dtype=np.int64),
        class_names=list(index),
        ids=ids,
        groups=[f"{clip.split('/')[0]}/{number}" for clip, number in zip(ids, numbers, strict=True)],
        **in_files(videos, clips, read=read_middle_frame),
    )


def open_folds(spec: DatasetSpec, source: Source, subsets: Mapping[str, ImageDataset], *, root: Path) -> list[Fold]:
    """Read the makers' three folds; validation is held out of each training list by whole groups.

    Raises:
        DatasetError: the training and the test list of a fold share a clip.
        TooFewImagesError: a class has too few groups to hold out a validation split.
    """
    lists = root / source.location / "ucfTrainTestlist"
    index = {name: i for i, name in enumerate(subsets["all"].class_names)}
    position = {clip: i for i, clip in enumerate(subsets["all"].ids)}
    folds = []
    for k in NUMBERS:
        train, test = (set(_read_list(lists, kind, k, index, source)) for kind in ("train", "test"))
        if shared := sorted(train & test):
            raise DatasetError(
                f"trainlist{k}.txt and testlist{k}.txt in {lists} both have {shared[0]}; get {source.files} again"
            )
        kept, tested = (Selection("all", np.sort([position[clip] for clip in clips])) for clips in (train, test))
        folds.append(with_validation(subsets, kept, tested, spec.val_fraction))
    return folds


def _read_classes(path: Path, source: Source) -> dict[str, int]:
    """Return the class indices, from 0 on, by class name. classInd.txt has lines such as `1 ApplyEyeMakeup`."""
    fields = [line.split() for line in read_lines(path, source)]
    if [entry[0] for entry in fields] != [str(i + 1) for i in range(len(fields))] or {*map(len, fields)} != {2}:
        raise DatasetError(f"{path} does not number the classes from 1 on; get {source.files} again")
    return {name: int(number) - 1 for number, name in fields}


def _read_list(lists: Path, kind: str, number: str, index: Mapping[str, int], source: Source) -> list[str]:
    """Read the clips of a list: lines of CLASS/FILE, which end with the number of the class in training lists."""
    path = lists / f"{kind}list{number}.txt"
    clips = []
    for line in read_lines(path, source):
        clip, *label = line.split()
        name = clip.split("/")[0]
        if name not in index or label != ([str(index[name] + 1)] if kind == "train" else []):
            raise DatasetError(
                f"{path} has the line {line!r}, which does not agree with classInd.txt; get {source.files} again"
            )
        clips.append(clip)
    return clips


def _find_clips(folder: Path, clips: list[str]) -> list[str]:
    """Return the names of clips on disk: some copies have v_HandstandPushups instead of v_HandStandPushups."""
    classes = [folder / name for name in {clip.split("/")[0] for clip in clips}]
    here = {
        name.lower(): name
        for class_dir in classes
        if class_dir.is_dir()
        for name in (f"{class_dir.name}/{path.name}" for path in class_dir.iterdir())
    }
    return [here.get(clip.lower(), clip) for clip in clips]
