"""WebDataset shards, which are tar files of images and labels: `wds:REST`, and datasets with such a source.

    wds:ORG/NAME                  a repository of the Hugging Face hub with the layout of clip-benchmark/wds_*:
                                  train/0.tar ..., train/nshards.txt, the same in test/, and classnames.txt with one
                                  name per line
    wds:PATH                      a folder with this layout: train/, test/ and optionally val/, in any spelling of
                                  `datasets.subsets`; without test/, val/ is the test subset. Or a folder with the
                                  shards of one subset, which is divided 60 / 20 / 20
    wds:https://HOST/FOLDER/      a folder of a server with this layout; the last slash is required
    wds:PATH/NAME-{000..012}.tar  shards by their names, which are divided; `{train,test}` or `{train,val,test}` in the
                                  name makes subsets; PATH can also be ORG/NAME or an address

Options follow as in a URL: `train`, `val`, `test` and `all` name the folder or shards of a subset below PATH, as in
`wds:ORG/NAME?train=n-train-{0000..1023}.tar&test=n-val-{00..63}.tar`; `revision` is a branch, tag or commit of the hub.

The files of a sample share their name up to the first dot: an image, and its label as a number in `.cls` or `.npy`, or
in `.json` under `label` or `cls`. An image that can show several classes has 0 or 1 for each class, or the numbers of
its classes, in `.npy`, as CLIP_benchmark writes them, or in `.json`. The option `metric` must then be
`voc2007_11pt_map`; this is the default for a local folder whose `dataset_type.txt` says `multilabel`. Without
classnames.txt, numbers with large gaps are taken to be ids and are replaced by class indices.

Each shard is read once to find the places of its files. Images are then read directly from the tar file. Shards from a
server are stored below the data folder, in `wds/`. Shards have no checksums; `probe` only checks that they are
complete.
"""

from __future__ import annotations

import glob
import posixpath
import re
import urllib.error
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from probe import hub, paths
from probe.datasets import source_specs
from probe.datasets.archives import check_member
from probe.datasets.fingerprints import of_files
from probe.datasets.images import ImageDataset
from probe.datasets.sources.labels import composed, indicators, shown, single
from probe.datasets.sources.options import read_options
from probe.datasets.sources.shard_names import (
    COMPRESSED,
    NUM_SHARDS,
    Shards,
    below_split,
    divide_location,
    divide_pattern,
    expand_braces,
    find_folders,
    list_shards,
    read_count,
)
from probe.datasets.sources.shards import Label, check_shard, compressed, read_image, read_index
from probe.datasets.subsets import SUBSETS, choose_subsets
from probe.errors import DatasetError, DatasetMissingError, DownloadError, listed
from probe.fetch import fetch
from probe.hub import is_repository
from probe.specs import DatasetSpec, Source, Subset, slug
from probe.stats.metrics import takes_several_labels

OPTIONS = ("revision", "metric", *SUBSETS)
CLASS_NAMES, KIND = "classnames.txt", "dataset_type.txt"


def make_spec(rest: str) -> DatasetSpec:
    """Make the specification of a repository or an address, without reading it, or of a path, from its folders.

    Raises:
        DatasetMissingError: the name is neither a path nor an address nor a repository.
        DatasetError: an option or pattern is wrong, or the names of folders do not tell their subsets.
    """
    written, _, query = rest.partition("?")
    location, pattern = divide_location(written)
    folder = paths.expand_home(location)
    is_url = "://" in location
    is_local = not is_url and bool(written) and folder.is_dir()
    _, options = read_options("wds", rest, OPTIONS[1:] if is_url or is_local else OPTIONS)
    name = f"wds:{rest}"
    if is_local:
        options = {"metric": _usual_metric(folder), **options}
        location = str(folder.resolve())
        name = "wds:" + "/".join(filter(None, (location, pattern))) + (f"?{query}" if query else "")
    _check_location(name, location, is_url=is_url, is_local=is_local)
    names: list[str] = []
    if pattern:
        found = divide_pattern(pattern)
    elif is_local:
        found, names = find_folders(name, Path(location), options)
    else:
        found = {"train": "train", "test": "test"}
    subsets = choose_subsets(name, options, found, names=names)
    return source_specs.own_dataset(name, "webdataset", location, subsets, options, can_download=not is_local)


def _usual_metric(folder: Path) -> str:
    """Return the metric that `dataset_type.txt` implies. CLIP_benchmark writes it for several labels per image."""
    path = folder / KIND
    kind = path.read_text(encoding="utf-8", errors="replace").strip().lower() if path.is_file() else ""
    if kind == "retrieval":
        raise DatasetError(f"{path} says retrieval: images with captions have no classes; give a different dataset")
    return "voc2007_11pt_map" if kind == "multilabel" else "accuracy"


def _check_location(name: str, location: str, *, is_url: bool, is_local: bool) -> None:
    if location.endswith(COMPRESSED):
        raise compressed(location)
    if is_url and not re.match(r"https?://[^/].*/$", location):
        raise DatasetError(
            f"{name} is not an address of shards; write https://HOST/FOLDER/, or an address of *.tar files"
        )
    if not is_url and not is_local and not is_repository(location):
        raise DatasetMissingError(f"no folder at {location}, and no repository ORG/NAME; check the name")


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset: the shards that its argument `split` names, as a folder or a pattern.

    The location of the source is a repository, an absolute path, or an address. Shards of an address are stored below
    the data folder. The only option of the source is `revision`.

    Raises:
        DatasetMissingError: a shard is missing, and cannot or may not be downloaded.
        DatasetError: a shard is damaged or unsafe, or a sample has no image or label.
    """
    name = f"{spec.name}/{subset.name}"
    _check_shared(spec, source)
    shards = _locate(source, subset.name, root=root, offline=offline)
    index, written, ids = read_index(shards.folder, shards.names)
    class_names = _read_class_names(shards.folder) or [str(i) for i in range(spec.num_classes or 0)]
    pool = written
    if not class_names and subset.name not in ("train", "all") and not spec.is_test_set:
        training = _locate(source, "train", root=root, offline=offline)
        _, pool, _ = read_index(training.folder, training.names)
    labels, class_names = _number(name, written, ids, pool=pool, class_names=class_names)
    if labels.ndim == 2 and not takes_several_labels(spec.metric):
        labels = single(labels)
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=class_names,
        read=partial(read_image, index),
        content=partial(of_files, shards.folder, shards.names),
        ids=ids,
        revision=shards.revision,
    )


def _check_shared(spec: DatasetSpec, source: Source) -> None:
    """Raise an error if a shard is in two subsets, so that no probe is tested on images it was fitted on."""
    named: dict[str, str] = {}  # folder or shard -> subset
    folders: dict[str, str] = {}  # folder of a shard that is named -> subset
    for subset in (subset.name for subset in spec.subsets):
        split = str(source.arguments(subset).get("split", subset))
        is_pattern = split.endswith(".tar")
        names = list(map(posixpath.normpath, expand_braces(split) if is_pattern else [split]))
        above = {name: posixpath.dirname(name) or "." for name in names} if is_pattern else {}
        for name in names:
            other = named.get(name) or (named.get(above[name]) if is_pattern else folders.get(name))
            if other:
                raise DatasetError(f"{spec.name}: {name} is in {other} and in {subset}; name it for one of them")
        named |= dict.fromkeys(names, subset)
        folders |= dict.fromkeys(above.values(), subset)


def _number(
    name: str, written: Sequence[Label], ids: Sequence[str], *, pool: Sequence[Label], class_names: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 (n,), or (n, k) where an image can show several classes, and the names of the classes.

    Args:
        name: name of the subset, for messages.
        written: the label of each image: a number; 0 or 1 for each class; or the numbers of the classes it shows.
        ids: ids of the images, for messages.
        pool: the labels of the training subset.
        class_names: names in the order of the class numbers; empty if only the labels tell the classes.
    """
    lists = [[label] if isinstance(label, int) else label for label in written]
    of_training = lists if pool is written else [[label] if isinstance(label, int) else label for label in pool]
    if indicators([*of_training, *lists]) is not None and len(lists[0]) == (len(class_names) or len(lists[0])):
        return np.array(lists, dtype=np.int64), class_names or [str(i) for i in range(len(lists[0]))]
    found = sorted({number for numbers in of_training for number in numbers})
    classes: Sequence[int] = range(len(class_names) or (found[-1] + 1 if found else 0))
    if not class_names and len(classes) > 2 * len(found):  # ids with gaps, not indices
        classes = found
    position = {number: i for i, number in enumerate(classes)}
    for key, numbers in zip(ids, lists, strict=True):
        strange = [number for number in numbers if number not in position]
        if strange:
            raise DatasetError(
                f"{name}: {key} has the label {strange[0]}, and there are {len(classes)} classes; correct it, or name "
                f"all classes in {CLASS_NAMES}"
            )
        if len(set(numbers)) < len(numbers):
            raise DatasetError(
                f"{name}: {key} has {len(numbers)} labels, with a class twice, and there are {len(classes)} classes; "
                "give the numbers of the classes that it shows, or 0 or 1 for each class"
            )
    places = [[position[number] for number in numbers] for numbers in lists]
    class_names = class_names or [str(number) for number in classes]
    if all(isinstance(label, int) for label in (*pool, *written)):
        return np.array([place for (place,) in places], dtype=np.int64), class_names
    return shown(places, len(classes)), class_names


def _read_class_names(folder: Path) -> list[str]:
    """Read the names of the classes, one per line; empty if the file does not exist."""
    path = folder / CLASS_NAMES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [composed(line.strip()) for line in text.rstrip().split("\n")] if text.strip() else []


def _locate(source: Source, subset: str, *, root: Path, offline: bool) -> Shards:
    """Return the shards of a subset, downloaded if they are missing."""
    split = str(source.arguments(subset).get("split", subset))
    if "://" in source.location:
        return _fetch_from_server(source.location, split, root=root, offline=offline)
    if Path(source.location).is_absolute():
        return list_shards(Path(source.location), split)
    revision = str(dict(source.options).get("revision", ""))
    return hub.try_offline_first(partial(_fetch_from_hub, source.location, revision, subset, split), offline=offline)


def _fetch_from_hub(repo: str, revision: str, subset: str, split: str, offline: bool) -> Shards:
    snapshot = hub.look_up(repo, revision=revision, offline=offline)
    if split.endswith(".tar"):
        patterns = [glob.escape(name) for name in expand_braces(split)]
    elif split == ".":
        patterns = [glob.escape(file) for file in snapshot.files if "/" not in file and file.endswith(".tar")]
    else:
        patterns = [f"{glob.escape(split)}/*.tar"]
    if snapshot.is_known and not hub.match_files(snapshot.files, patterns):
        folders = dict.fromkeys(file.rpartition("/")[0] or "." for file in snapshot.files if file.endswith(".tar"))
        where = (
            f"; there are some in {listed(folders)}: write ?{subset}=FOLDER" if folders else "; give a different one"
        )
        raise DatasetMissingError(f"{repo} has no shards {split}{where}")
    also = [glob.escape(below_split(split, NUM_SHARDS)), CLASS_NAMES]
    folder = hub.fetch_files(snapshot, [*patterns, *also], offline=offline)
    try:
        return replace(list_shards(folder, split), revision=folder.name)
    except DatasetError as err:
        if snapshot.is_known:
            raise
        raise DatasetMissingError(f"{repo} seems to be incomplete on this machine ({err})") from err


def _fetch_from_server(base: str, split: str, *, root: Path, offline: bool) -> Shards:
    """Return the shards of an address, stored in a folder that is named after the address."""
    folder = root / "wds" / slug(base, is_path=True)
    _fetch_class_names(base, folder, offline=offline)
    if split.endswith(".tar"):
        names = expand_braces(split)
    else:
        number = below_split(split, NUM_SHARDS)
        _fetch_file(base, number, folder, offline=offline)
        names = [below_split(split, f"{i}.tar") for i in range(read_count(folder / number))]
    for name in names:
        _fetch_file(base, name, folder, offline=offline)
    return Shards(folder, names)


def _fetch_class_names(base: str, folder: Path, *, offline: bool) -> None:
    """Download the names of the classes, if the server has them."""
    try:
        _fetch_file(base, CLASS_NAMES, folder, offline=offline)
    except DatasetMissingError as err:
        if not offline and not isinstance(err.__cause__, urllib.error.HTTPError):
            raise


def _fetch_file(base: str, name: str, folder: Path, *, offline: bool) -> None:
    target = folder / check_member(folder, name)
    try:
        fetch(base + name, target, check=check_shard if target.suffix == ".tar" else None, offline=offline)
    except DownloadError as err:
        raise DatasetMissingError(str(err)) from (err.__cause__ or err)
    except DatasetError as err:
        raise DatasetError(
            f"{base}{name} is not a complete shard ({err}); check the address, and whether it needs a login"
        ) from err
