"""Columns of a Hugging Face dataset: find the images and the labels, and turn labels into numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from probe.datasets.sources.labels import (
    class_positions,
    composed,
    indicators,
    refuse_twins,
    report_twins,
    shown,
    single,
    whole_as_integer,
)
from probe.errors import DatasetError, listed

logger = logging.getLogger(__name__)

# Usual names of label columns whose type does not say that they are labels.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "classes", "class_id", "class_label", "cls", "target")


def check_classes(where: str, files: Sequence[Path]) -> None:
    """Check that Parquet files name the same classes in the same order.

    `datasets` uses the class names of the first file for all files, so labels of other files could mean other classes.

    Raises:
        DatasetError: two files differ.
    """
    seen: dict[str, list[str]] = {}
    for file in files:
        for column, feature in datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file)).items():
            names = _class_names(feature)
            if names and seen.setdefault(column, names) != names:
                raise DatasetError(
                    f"{where}: the column {column!r} in {file.name} has different classes than the other files, or a "
                    "different order of classes; save all files with the same classes"
                )


def image_column(name: str, features: Mapping[str, Any], given: str) -> str:
    """Return the given column, or the only one with images.

    Raises:
        DatasetError: no column or several columns have images; the message lists all columns and their types.
    """
    images = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Image) or _is_stored_image(feature)
    ]
    allowed = images + [column for column, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    return _choose_column(name, features, given, images, allowed, "image")


def read_labels(
    name: str, images: Any, training: Any, given: str, *, takes_lists: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a subset, int64 (n,) or (n, k), and the names of the classes.

    Labels are (n, k) if rows hold lists: lists of classes, or lists with 0 or 1 for each class. Images are not read.
    The column's type names the classes; without such a type, the classes are all labels of the training subset, sorted.

    Args:
        name: name of the subset, for messages.
        images: the rows of the subset.
        training: the rows of the training subset.
        given: the column that the user named, if any.
        takes_lists: True if the metric scores several labels per image. Otherwise lists become labels (n,) if each
            holds exactly one class.
    """
    column = _label_column(name, images.features, given)
    if column not in training.features:
        raise DatasetError(f"{name}: train has no column {column!r}; choose another with ?label=COLUMN")
    feature, names = images.features[column], _class_names(images.features[column])
    values = _values(name, images, column)
    where = f"{name}, column {column!r}"
    if names:
        if _class_names(training.features[column]) != names:
            raise DatasetError(
                f"{name}: the column {column!r} has different classes than in train; save both with the same classes"
            )
        if images is training:
            report_twins(where, _element(feature).names)
        classes: list[Any] = list(dict.fromkeys(names))  # two Unicode forms of a name are one class
        values = [[names[label] for label in labels] for labels in values]
        if images is not training:
            trained = {names[label] for labels in _values(name, training, column) for label in labels}
            strange = (label for labels in values for label in labels if label not in trained)
            refuse_twins(where, strange, trained)
    else:
        pool = values if images is training else _values(name, training, column)
        if _is_list(feature) and indicators([*pool, *values]) is not None:
            table = np.array(values, dtype=np.int64)
            logger.info("%s: lists of 0 and 1, for each of %d classes", where, table.shape[1])
            return (table if takes_lists else single(table)), [str(i) for i in range(table.shape[1])]
        if _is_list(feature) and getattr(_element(feature), "dtype", "") == "bool":
            raise DatasetError(
                f"{where}: the lists differ in length, or hold one value; give lists with one value for each class, "
                "or lists of the classes that an image shows"
            )
        if any(isinstance(label, str) for labels in pool for label in labels):
            if images is training:
                report_twins(where, (label for labels in pool for label in labels))
            values, pool = ([[composed(label) for label in labels] for labels in rows] for rows in (values, pool))
        classes = sorted({label for labels in pool for label in labels})
    if any(len(set(labels)) < len(labels) for labels in values):
        raise DatasetError(
            f"{where}: a list has a class twice; give lists of the classes that an image shows, or lists with 0 or 1 "
            "for each class"
        )
    position = class_positions(where, (label for labels in values for label in labels), classes)
    places = [[position[label] for label in labels] for labels in values]
    class_names = [str(label) for label in classes]
    if not _is_list(feature):
        return np.array([place for (place,) in places], dtype=np.int64), class_names
    table = shown(places, len(classes))
    return (table if takes_lists else single(table)), class_names


def _values(name: str, rows: Any, column: str) -> list[list[Any]]:
    """Return the labels of each row: one label, or several if the column holds lists.

    Raises:
        DatasetError: the column does not exist, or rows have no label (None or a negative number).
    """
    cells = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    values = cells if _is_list(rows.features[column]) else [[cell] for cell in cells]
    values = [labels if labels is None else [whole_as_integer(label) for label in labels] for labels in values]
    unlabelled = sum(labels is None or any(map(_is_missing, labels)) for labels in values)
    if unlabelled:
        raise DatasetError(
            f"{name}: {unlabelled} of {len(values)} images have no label in the column {column!r}; choose a different "
            "column or split"
        )
    fraction = next((label for labels in values for label in labels if isinstance(label, float)), None)
    if fraction is not None:
        raise DatasetError(
            f"{name}: {fraction!r} in the column {column!r} is not a class; a class is a whole number or a text: "
            "choose a different column with ?label=COLUMN"
        )
    return values


def _is_missing(label: Any) -> bool:
    """Return True for None, NaN and negative numbers."""
    return label is None or label != label or (not isinstance(label, str) and label < 0)


def _class_names(feature: Any) -> list[str]:
    """Return the class names of a column of type `ClassLabel`, or of lists of that type; empty for other types."""
    element = _element(feature)
    return [composed(str(name)) for name in element.names] if isinstance(element, datasets.ClassLabel) else []


def _label_column(name: str, features: Mapping[str, Any], given: str) -> str:
    allowed = [column for column, feature in features.items() if _is_label(_element(feature))]
    typed = [column for column in allowed if isinstance(_element(features[column]), datasets.ClassLabel)]
    return _choose_column(
        name, features, given, typed or [column for column in allowed if column in LABEL_NAMES], allowed, "label"
    )


def _choose_column(
    name: str, features: Mapping[str, Any], given: str, likely: Sequence[str], allowed: Sequence[str], what: str
) -> str:
    """Return the given column, or the only likely one."""
    given = next((column for column in features if composed(column) == composed(given)), given)
    if given in allowed or (not given and len(likely) == 1):
        return given or likely[0]
    columns = listed(f"{column} ({_kind(feature)})" for column, feature in features.items())
    if given and given not in features:
        wrong = f"column {given!r} does not exist"
    elif given:
        wrong = f"the column {given!r} cannot hold {what}s"
    else:
        wrong = f"{'several columns' if likely else 'no column'} could hold the {what}s"
    raise DatasetError(f"{name}: {wrong}; the columns are {columns}: choose one with ?{what}=COLUMN")


def _is_stored_image(feature: Any) -> bool:
    """Return True if a column holds the bytes of files, although its type does not say that they are images."""
    return isinstance(feature, dict) and getattr(feature.get("bytes"), "dtype", "") == "binary"


def _element(feature: Any) -> Any:
    """Return the type of the elements of a list, or the type itself if it is not a list."""
    return getattr(feature, "feature", feature)


def _is_list(feature: Any) -> bool:
    return _element(feature) is not feature


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value)
        and (dtype in ("bool", "string", "large_string") or "int" in dtype or "float" in dtype)
    )


def _kind(feature: Any) -> str:
    """Return the type of a column in one or two words."""
    if _is_list(feature):
        return f"list of {_kind(_element(feature))}"
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
