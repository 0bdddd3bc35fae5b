"""Classes of a further test set -> the classes of the dataset that are right for its images."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probe.datasets.prompts import WORDNET_ID
from probe.datasets.sources.labels import composed
from probe.errors import DatasetError, ExtraMissingError, listed
from probe.specs import LABELS, WORDNET, DatasetSpec


def map_classes(
    test: DatasetSpec, test_names: Sequence[str], dataset: DatasetSpec, class_names: Sequence[str]
) -> np.ndarray:
    """Return which classes of a dataset are right for the images of each class of a further test set.

    The class names of the test set are looked up as its `class_ids` says:

    - `names`: names of classes of the dataset.
    - `wordnet`: WordNet ids. They are compared with the names of the dataset's classes if these are WordNet ids, as in
      the folders of ImageNet. Otherwise they are looked up in the list of ImageNet's ids that timm carries.
    - `labels`: labels of the dataset, separated by commas if several are right.

    A `class_map` of the test set gives the names, ids or labels to look up instead of a class name.

    Args:
        test: the further test set.
        test_names: names of its c classes, in the order of its labels.
        dataset: the dataset.
        class_names: names of its k classes, in the order of its labels.

    Returns:
        bool (c, k), with at least one True in each row.

    Raises:
        DatasetError: a class of the test set is not among the classes of the dataset.
        ExtraMissingError: WordNet ids must be looked up, and timm is not installed.
    """
    positions = _positions(test, dataset, class_names)
    given = {composed(name): classes for name, classes in test.class_map}
    if unknown := sorted(given.keys() - set(map(composed, test_names))):
        raise DatasetError(
            f"class_map of {test.name} has {listed(map(repr, unknown), most=3)}, which is not a class of its images; "
            "correct the name, or remove it"
        )
    is_right = np.zeros((len(test_names), len(class_names)), dtype=bool)
    for row, name in zip(is_right, map(composed, test_names), strict=True):
        own = name.split(",") if test.class_ids == LABELS else [name]
        for wanted in given.get(name, own):
            position = positions.get(composed(wanted))
            if position is None:
                what = {WORDNET: "a WordNet id", LABELS: "a label"}.get(test.class_ids, "the name")
                raise DatasetError(
                    f"{test.name}: {wanted!r} is not {what} of a class of {dataset.name}, so its classes are not a "
                    "subset; remove the images of this class, or map it with class_map in a TOML file"
                )
            row[position] = True
    if not is_right.any(axis=1).all():
        name = test_names[int(np.argmin(is_right.any(axis=1)))]
        raise DatasetError(f"class_map of {test.name} has no class for {name!r}; name at least one")
    return is_right


def _positions(test: DatasetSpec, dataset: DatasetSpec, class_names: Sequence[str]) -> dict[str, int]:
    """Return the label of each class of the dataset by its name, WordNet id or label, as the test set names classes."""
    if test.class_ids == LABELS:
        return {str(label): label for label in range(len(class_names))}
    names = list(map(composed, class_names))
    if test.class_ids == WORDNET and not all(map(WORDNET_ID.fullmatch, names)):
        if dataset.name != "imagenet":
            raise DatasetError(
                f"{test.name} names its classes by WordNet ids, but {dataset.name} does not; read {dataset.name} from "
                "folders that are named by WordNet ids"
            )
        names = read_timm("imagenet_synsets.txt").split()
    if len(set(names)) < len(names):
        twins = sorted({name for name in names if names.count(name) > 1})
        raise DatasetError(
            f"several classes of {dataset.name} have the name {listed(map(repr, twins), most=3)}, so the classes of "
            f"{test.name} cannot be found by name; use labels with class_ids = 'labels'"
        )
    return {name: label for label, name in enumerate(names)}


def read_timm(name: str) -> str:
    """Return a list of ImageNet that the installed timm carries. timm is not imported.

    Raises:
        ExtraMissingError: timm is not installed, or does not have the list.
    """
    package = importlib.util.find_spec("timm")
    path = Path(package.origin or "").parent / "data/_info" / name if package is not None else None
    if path is None or not path.is_file():
        raise ExtraMissingError(f"the list {name} is in timm, which is not installed; install the extra open-clip")
    return path.read_text(encoding="utf-8")
