"""Datasets with a class in torchvision, which downloads and checks missing files."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from probe.atomic import lock, make_folder
from probe.datasets import source_specs
from probe.datasets.archives import fetch_missing
from probe.datasets.fingerprints import of_array, of_files
from probe.datasets.images import ImageDataset
from probe.datasets.splits.groups import groups_of
from probe.errors import DatasetError, DatasetMissingError, ExtraMissingError, summarize
from probe.names import unknown_name
from probe.specs import DatasetSpec, Source, Subset

logger = logging.getLogger(__name__)

# Errors of torchvision's classes for files that are missing, damaged, or of another dataset.
FAILURES = (RuntimeError, AssertionError, ValueError, KeyError, OSError, EOFError, TypeError, NotImplementedError)

# Arguments of the classes that users cannot give.
OURS = ("root", "download", "transform", "transforms", "target_transform", "loader", "is_valid_file")
# Attributes of the classes with labels, files, or pairs of a file and its label. Some are private, so their values are
# compared with two images. Without these attributes, every image would have to be decoded for its label.
LABELS, FILES, PAIRS = ("targets", "_labels", "labels"), ("_image_files", "_images"), ("_samples", "samples", "imgs")


def make_spec(rest: str) -> DatasetSpec:
    """Make the specification of `torchvision:CLASS`, or `torchvision:CLASS?key=value&...` with arguments of the class.

    The argument `train` or `split` of the class selects a subset. If the class knows `val` and not `test`, `val` is the
    test subset. If the class has neither argument, all images are one subset. Sizes and classes are not checked.

    Raises:
        UnknownNameError: torchvision has no such class of labelled images.
        DatasetError: the class does not have an argument, or it returns videos.
    """
    name, _, query = rest.partition("?")
    arguments = {key: _value(value) for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True)}
    subsets = _find_subsets(check_class(name, arguments), arguments)
    found = {subset: {**arguments, **chosen} for subset, chosen in subsets.items()}
    return source_specs.own_dataset(f"torchvision:{rest}", "torchvision", name, found, {}, can_download=True)


def check_class(name: str, arguments: Iterable[str]) -> type:
    """Return a class of torchvision, if it gives labelled images and has these arguments.

    Raises:
        UnknownNameError: torchvision has no such class of labelled images.
        DatasetError: the class does not have an argument, or it returns videos.
    """
    import torchvision.datasets

    classes = {
        entry: found
        for entry in torchvision.datasets.__all__
        if isinstance(found := getattr(torchvision.datasets, entry), type) and "root" in _parameters(found)
    }
    if name not in classes:
        raise unknown_name("class of torchvision", name, list(classes))
    known = [key for key in _parameters(classes[name]) if key not in OURS]
    if "frames_per_clip" in known:
        raise DatasetError(
            f"torchvision's {name} gives videos, not images; the datasets ucf101 and kinetics700 are middle frames of "
            "clips, and torchvision's Kinetics is a different version than Kinetics-700"
        )
    for key in arguments:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has no argument that you can give"
            raise DatasetError(f"torchvision's {name} has no argument {key!r}; {has}")
    return classes[name]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _parameters(dataset_class: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class of torchvision, including the parameters of its base classes."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in dataset_class.__mro__[:-1]:
        own = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of a class
        parameters = {**own, **parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return {name: parameter for name, parameter in parameters.items() if name not in ("self", "kwargs")}


def _find_subsets(dataset_class: type, arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the subsets of a class with the arguments that select them. Values of `split` are found by trying."""
    name, parameters = dataset_class.__name__, _parameters(dataset_class)
    selects = "train" if "train" in parameters else "split"
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in (*arguments, *OURS, selects):
            raise DatasetError(f"torchvision's {name} needs the argument {key!r}; write torchvision:{name}?{key}=...")
    if selects in arguments or selects not in parameters:
        return {"all": {}}
    if selects == "train":
        return {"train": {"train": True}, "test": {"train": False}}
    accepted = [
        value for value in ("train", "trainval", "val", "valid", "test") if _accepts(dataset_class, arguments, value)
    ]
    chosen = {
        "train": next((value for value in ("train", "trainval") if value in accepted), None),
        "val": next((value for value in ("val", "valid") if value in accepted), None),
        "test": "test" if "test" in accepted else None,
    }
    if chosen["test"] is None:
        chosen |= {"test": chosen["val"], "val": None}
    if chosen["train"] is None or chosen["test"] is None:
        raise DatasetError(
            f"torchvision's {name} has no training and test subset; write a catalogue entry in TOML with the arguments "
            "of each subset"
        )
    return {subset: {"split": value} for subset, value in chosen.items() if value is not None}


def _accepts(dataset_class: type, arguments: dict[str, Any], split: str) -> bool:
    """Return True if a class knows a value of `split`: with an empty folder, its error is about missing files only."""
    with tempfile.TemporaryDirectory() as empty:
        try:
            dataset_class(root=empty, **_no_download(dataset_class), **arguments, split=split)
        except ValueError:
            return False
        except Exception:  # each class has its own error for missing files
            pass
        return True


def _no_download(dataset_class: type) -> dict[str, bool]:
    """Return the argument that forbids a download, for classes that download by default."""
    return {"download": False} if "download" in _parameters(dataset_class) else {}


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset through its torchvision class, from files below `root`, which may be downloaded.

    CIFAR's files are pickles: torchvision reads them only after comparing their MD5. Options of the source:
    `first_class`, the label of class 0 in the source; `groups`, a pattern for groups of images, see `splits.groups`.

    Raises:
        DatasetMissingError: the files are missing and could not be downloaded.
        DatasetError: a file is damaged, or the class has no labels.
    """
    name = f"{spec.name}/{subset.name}"
    options = dict(source.options)
    images = _open(spec, source, subset, root=root, offline=offline)
    listed = _labels(name, images)
    _check_ends(name, images, listed)
    first_class = options.get("first_class", 0)
    labels = listed - first_class
    files = _files(images)
    ids = _ids(files, root=root) or [f"{subset.name}/{i}" for i in range(len(images))]
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=_class_names(images, labels, first_class),
        read=partial(_read, images),
        ids=ids,
        groups=groups_of(name, subset, ids, options),
        content=_content(images, ids if files else [], root=root),
    )


def _find_attribute(images: Any, names: Sequence[str]) -> Any:
    """Return the first of these attributes that an object has, or None."""
    return next((getattr(images, name) for name in names if hasattr(images, name)), None)


def _labels(name: str, images: Any) -> np.ndarray:
    written = _find_attribute(images, LABELS)
    if written is None:
        written = [label for _, label in _find_attribute(images, PAIRS) or ()]
    try:
        labels = np.asarray(written)
    except ValueError:  # lists of different lengths, such as boxes
        labels = np.empty(0)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise DatasetError(
            f"{name}: torchvision's {type(images).__name__} has no class index for each of its {len(images)} images; "
            "use a dataset for classification"
        )
    return labels.astype(np.int64)


def _class_names(images: Any, labels: np.ndarray, first_class: int) -> list[str]:
    names = getattr(images, "classes", None)
    if names is not None and len(names) > int(labels.max()):
        return [str(name) for name in names]
    return [str(i + first_class) for i in range(int(labels.max()) + 1)]


def _files(images: Any) -> list[str]:
    """Return the files of the images, or an empty list if images have no files of their own."""
    files = _find_attribute(images, FILES)
    if files is None:
        files = [pair[0] for pair in _find_attribute(images, PAIRS) or ()]
    is_whole = len(files) == len(images) and all(isinstance(file, str | Path) for file in files)
    return [str(file) for file in files] if is_whole else []


def _ids(files: list[str], *, root: Path) -> list[str]:
    """Return the paths of files relative to the data folder."""
    top = str(root.resolve()) + os.sep
    return [file.removeprefix(top).removeprefix(str(root) + os.sep).replace(os.sep, "/") for file in files]


def _content(images: Any, files: list[str], *, root: Path) -> Callable[[], str] | None:
    """Return the function that computes the fingerprint, from files or from the array that most other classes have."""
    if files:
        return partial(of_files, root, files)
    data = getattr(images, "data", None)
    return partial(of_array, np.asarray(data)) if hasattr(data, "shape") else None


def _check_ends(name: str, images: Any, labels: np.ndarray) -> None:
    for i in {0, len(images) - 1} if len(images) else ():
        try:
            _, label = images[i]
        except Exception:  # `opening` reads these images again, and decides if the error matters
            continue
        if label != labels[i]:
            raise DatasetError(
                f"{name}: image {i} has the label {label}, but its list says {labels[i]}; please report this"
            )


def _read(images: Any, i: int) -> Image.Image:
    image: Image.Image = images[i][0]
    return image


def _open(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> Any:
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, source.location, None)
    if dataset_class is None:
        raise DatasetError(f"{spec.name}: torchvision has no class {source.location!r}; correct its specification")
    arguments = {"root": root, **dict(dict(source.subsets)[subset.name])}
    missing = "its files are missing"
    if all((root / path).exists() for path in source.paths):
        lock_path = root / f"{spec.name}.lock"
        try:
            return dataset_class(**arguments, **_no_download(dataset_class))
        except ImportError as err:
            raise ExtraMissingError(
                f"torchvision's {source.location} needs {err.name}; pip install {err.name}"
            ) from err
        except FAILURES as err:
            why = summarize(err)
            if source.paths:  # files exist, but some are truncated or missing
                if lock_path.exists():  # wait for a process that unpacks these files
                    with lock(lock_path), contextlib.suppress(*FAILURES):
                        return dataset_class(**arguments, **_no_download(dataset_class))
                raise DatasetError(
                    f"{spec.name} in {root} is damaged ({why}); remove it, then run again to fetch it, or put "
                    f"{source.files or 'its files'} there"
                ) from err
            missing = why
    if offline:
        raise DatasetMissingError(f"{spec.name} cannot be opened from {root} ({missing}), and must not be downloaded")
    if source.downloads:
        fetch_missing(source, root)
        return _open(spec, source, subset, root=root, offline=True)
    return download(spec, source.location, **arguments)


def download(spec: DatasetSpec, class_name: str, *, root: Path, **arguments: Any) -> Any:
    """Let a class of torchvision download and open its files, one process at a time.

    Raises:
        DatasetMissingError: the download failed.
    """
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, class_name)
    if "download" not in _parameters(dataset_class):
        raise DatasetMissingError(f"torchvision's {class_name} cannot download its files; put them into {root}")
    logger.info("%s: not in %s, downloading", spec.name, root)
    try:
        make_folder(root)
        with lock(root / f"{spec.name}.lock"):
            return dataset_class(root=root, download=True, **arguments)
    except FAILURES as err:
        raise DatasetMissingError(f"torchvision: {summarize(err)}") from err
