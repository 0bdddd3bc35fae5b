"""The columns of a Hugging Face data set: which holds the images, which the labels, and the labels as numbers."""

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
            names = _class_names(feature)
            if names and seen.setdefault(column, names) != names:
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
            raise DatasetError(f"{name}: the classes of the column {column!r} are not those of train; save both alike")
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
    """The labels of each row; one, unless the column holds lists.

    Raises:
        DatasetError: there is no such column, or rows without a label, which are None or negative.
    """
    cells = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    values = cells if _is_list(rows.features[column]) else [[cell] for cell in cells]
    values = [labels if labels is None else [whole_as_integer(label) for label in labels] for labels in values]
    unlabelled = sum(labels is None or any(map(_is_missing, labels)) for labels in values)
    if unlabelled:
        raise DatasetError(
            f"{name}: {unlabelled} of {len(values)} images have no label in the column {column!r}; take another column "
            "or split"
        )
    fraction = next((label for labels in values for label in labels if isinstance(label, float)), None)
    if fraction is not None:
        raise DatasetError(
            f"{name}: {fraction!r} in the column {column!r} is not a class; a class is a whole number or a text: take "
            "another column with ?label=COLUMN"
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
    """The column that is given, or the only one that is likely."""
    given = next((column for column in features if composed(column) == composed(given)), given)
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
        isinstance(feature, datasets.Value)
        and (dtype in ("bool", "string", "large_string") or "int" in dtype or "float" in dtype)
    )


def _kind(feature: Any) -> str:
    """A column's type in a word or two."""
    if _is_list(feature):
        return f"list of {_kind(_element(feature))}"
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
