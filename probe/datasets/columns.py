"""The columns of a Hugging Face data set: which holds the images, which the labels, and the labels as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from probe.errors import DatasetError, listed

# Columns that hold labels though their type does not say so.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "classes", "class_id", "class_label", "cls", "target")


def check_classes(where: str, files: Sequence[Path]) -> None:
    """See that files of Parquet name the same classes in the same order.

    `datasets` takes the names of the first file for all, so that the labels of another would mean other classes.

    Raises:
        DatasetError: two files differ.
    """
    seen: dict[str, list[str]] = {}
    for file in files:
        for column, feature in datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file)).items():
            if isinstance(feature, datasets.ClassLabel) and seen.setdefault(column, feature.names) != feature.names:
                raise DatasetError(
                    f"{where}: the classes of the column {column!r} in {file.name} are not those of its other files, "
                    "or in another order; save all alike"
                )


def image_column(name: str, features: Mapping[str, Any], given: str) -> str:
    """The column that is given, or the only one with images.

    Raises:
        DatasetError: there is none, or several; the message lists all columns and their types.
    """
    images = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Image) or _is_stored_image(feature)
    ]
    allowed = images + [column for column, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    return _choose_column(name, features, given, images, allowed, "image")


def read_labels(name: str, images: Any, training: Any, given: str) -> tuple[np.ndarray, list[str]]:
    """The labels of a part, int64 (n,), or (n, k) where a row has a list of them, and the names of the classes.

    Images are not looked at. Classes are those of the type of the column, else all labels of the training part, sorted.
    """
    column = _label_column(name, images.features, given)
    feature = _element(images.features[column])
    values = _values(name, images, column)
    if isinstance(feature, datasets.ClassLabel):
        class_names = [str(class_name) for class_name in feature.names]
        if getattr(_element(training.features.get(column)), "names", None) != feature.names:
            raise DatasetError(f"{name}: the classes of the column {column!r} are not those of train; save both alike")
        classes: list[Any] = list(range(len(class_names)))
    else:
        classes = sorted({label for labels in _values(name, training, column) for label in labels})
        class_names = [str(label) for label in classes]
    place = {label: i for i, label in enumerate(classes)}
    strange = {label: None for labels in values for label in labels if label not in place}
    if strange:
        raise DatasetError(
            f"{name}: {listed(map(repr, strange), most=3)} in the column {column!r} is no class of the training "
            "images; drop these images, or add the class"
        )
    if not _is_list(images.features[column]):
        return np.array([place[label] for (label,) in values], dtype=np.int64), class_names
    shown = np.zeros((len(values), len(classes)), dtype=np.int64)
    for i, labels in enumerate(values):
        shown[i, [place[label] for label in labels]] = 1
    return shown, class_names


def _values(name: str, rows: Any, column: str) -> list[list[Any]]:
    """The labels of each row; one, unless the column holds lists.

    Raises:
        DatasetError: there is no such column, or rows without a label, which are None or negative.
    """
    if column not in rows.features:
        raise DatasetError(f"{name}: train has no column {column!r}; choose another with ?label=COLUMN")
    cells = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    values = cells if _is_list(rows.features[column]) else [[cell] for cell in cells]
    unlabelled = sum(
        labels is None or any(label is None or (not isinstance(label, str) and label < 0) for label in labels)
        for labels in values
    )
    if unlabelled:
        raise DatasetError(
            f"{name}: {unlabelled} of {len(values)} images have no label in the column {column!r}; take another column "
            "or split"
        )
    if any(len(set(labels)) < len(labels) for labels in values):
        raise DatasetError(
            f"{name}: a list in the column {column!r} has a class twice; give lists of the classes that an image shows"
        )
    return values


def _label_column(name: str, features: Mapping[str, Any], given: str) -> str:
    allowed = [column for column, feature in features.items() if _is_label(_element(feature))]
    typed = [column for column in allowed if isinstance(_element(features[column]), datasets.ClassLabel)]
    return _choose_column(
        name, features, given, typed or [column for column in allowed if column in LABEL_NAMES], allowed, "label"
    )


def _choose_column(
    name: str, features: Mapping[str, Any], given: str, likely: Sequence[str], allowed: Sequence[str], what: str
) -> str:
    """The column that is given, or the only one that is likely."""
    if given in allowed or (not given and len(likely) == 1):
        return given or likely[0]
    columns = listed(f"{column} ({_kind(feature)})" for column, feature in features.items())
    if given and given not in features:
        wrong = f"there is no column {given!r}"
    elif given:
        wrong = f"the column {given!r} cannot hold {what}s"
    else:
        wrong = f"{'several columns' if likely else 'no column'} could hold the {what}s"
    raise DatasetError(f"{name}: {wrong}; the columns are {columns}: choose one with ?{what}=COLUMN")


def _is_stored_image(feature: Any) -> bool:
    """Whether a column has the bytes of files though its type does not say that they are images."""
    return isinstance(feature, dict) and getattr(feature.get("bytes"), "dtype", "") == "binary"


def _element(feature: Any) -> Any:
    """The type of what a list holds, of anything else the type itself."""
    if isinstance(feature, list):  # how versions before 4 wrote lists
        return feature[0]
    return feature.feature if hasattr(feature, "feature") else feature


def _is_list(feature: Any) -> bool:
    return _element(feature) is not feature


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and (dtype in ("bool", "string", "large_string") or "int" in dtype)
    )


def _kind(feature: Any) -> str:
    """A column's type in a word or two."""
    if _is_list(feature):
        return f"list of {_kind(_element(feature))}"
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
