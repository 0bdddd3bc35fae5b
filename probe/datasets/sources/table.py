"""Lists of images and labels in CSV: `csv:PATH`, and TOML files with such a source.

    csv:PATH.csv      a first line with the names of the columns, then a line per image: its path, its label, and
                      optionally its split. Without a column for the split, all images are divided 60 / 20 / 20
    csv:PATH          a folder with such a file for each split, such as train.csv and test.csv

Columns are separated by commas, semicolons or tabs, and found by usual names, such as `path`, `label` and `split`.
Options follow as in a URL, such as `csv:moths.csv?label=species&test=holdout`:

- `image`, `label` and `split` name the columns.
- `folder` is the folder that image paths are relative to. It is relative to the folder of the file, its default.
- `train`, `val`, `test` and `all` name the splits to take for these subsets.
- `metric` is a name of `probe.stats.metrics`.

Labels are texts. If all labels of the training images are whole numbers, classes are in the order of the numbers.
"""

from __future__ import annotations

import csv
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe import paths
from probe.datasets import source_specs
from probe.datasets.archives import fetch_missing
from probe.datasets.images import ImageDataset, in_files
from probe.datasets.sources.labels import class_positions, composed, report_twins
from probe.datasets.sources.options import read_options
from probe.datasets.subsets import SUBSETS, choose_subsets, find_subsets
from probe.errors import DatasetError, DatasetMissingError, listed
from probe.specs import DatasetSpec, Source, Subset

OPTIONS = ("image", "label", "split", "folder", "metric", *SUBSETS)
# Usual names of the columns, in lower case.
COLUMNS = {
    "image": (
        "path",
        "image",
        "filename",
        "file",
        "file_name",
        "filepath",
        "file_path",
        "image_path",
        "img",
        "img_path",
    ),
    "label": ("label", "labels", "class", "class_name", "class_id", "class_label", "target", "category"),
    "split": ("split", "subset", "set", "partition", "usage"),
}
WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?")  # 7 and 7.0, but not 007, which is a name
FRACTION = re.compile(r"-?[0-9]*\.[0-9]*[1-9][0-9]*(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Row:
    """Line of a file: the path of the image as written, its label, and its split ("" without a column for splits)."""

    image: str
    label: str
    split: str


def make_spec(rest: str) -> DatasetSpec:
    """Make the specification of a file or folder from its splits.

    Raises:
        DatasetMissingError: the file or folder does not exist.
        DatasetError: an option is unknown, a column is not found, or the splits do not say which is for training.
    """
    written = rest.partition("?")[0]
    location, options = read_options("csv", rest, OPTIONS)
    path = paths.expand_home(location).resolve()
    if path.is_dir() and len(files := _files(path)) == 1:  # a single file may have a column for the split
        path = files[0]
    name = f"csv:{path}{rest.removeprefix(written)}"
    names = _split_names(path, options)
    given = [subset for subset in SUBSETS if subset in options]
    found = find_subsets(name, names, given) if names else {"all": ""}
    subsets = choose_subsets(name, options, found, names=names)
    return source_specs.own_dataset(name, "table", str(path), subsets, options, can_download=False)


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset: the lines of the split that its argument `split` names, or all lines if `split` is empty.

    The options of the source are `image`, `label`, `split` and `folder`, as for `csv:PATH`.

    Raises:
        DatasetMissingError: the file or folder does not exist.
        DatasetError: a column or split is missing, or an image is missing, has no label, is listed twice, or is in two
            subsets.
    """
    if not offline:
        fetch_missing(source, root)
    name = f"{spec.name}/{subset.name}"
    options = {key: str(value) for key, value in source.options}
    path = root / source.location
    top = (path if path.is_dir() else path.parent) / options.pop("folder", "")
    pool = subset.name if subset.name == "all" or spec.is_test_set else "train"
    given = {key: dict(arguments) for key, arguments in source.subsets}  # `split` of the source is a column
    splits = {
        key: str(given.get(key, {}).get("split", "")) for key in (pool, *(subset.name for subset in spec.subsets))
    }
    unnamed = [key for key, split in splits.items() if not split and key != "all"]
    if unnamed:
        raise DatasetError(
            f"{spec.name}: no split of {path} is named for {unnamed[0]}, which would be all of its images; write "
            f"{unnamed[0]} = {{ split = ... }}"
        )
    lines = _read_splits(path, options, splits)
    _check_shared(spec.name, lines)
    listed_rows = lines[subset.name]
    if not listed_rows:
        raise DatasetError(f"{name}: {path} has no images in the split {splits[subset.name]!r}; name one that it has")
    images = _find_images(name, top, [row.image for row in listed_rows])
    labels, class_names = _number(name, listed_rows, lines[pool], is_pool=subset.name == pool)
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=class_names,
        ids=images,
        **in_files(top, images),
    )


def _split_names(path: Path, columns: dict[str, str]) -> list[str]:
    """Return the splits of a folder (the names of its files) or of a file; empty without a column for the split."""
    if path.is_dir():
        names = [file.stem for file in _files(path)]
        if not names:
            raise DatasetMissingError(f"no files *.csv or *.tsv in {path}; give a file, or a folder with such files")
        return names
    return [name for name in dict.fromkeys(row.split for row in _read_file(path, columns)) if name]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.name[0] != ".")


def _read_splits(path: Path, columns: dict[str, str], splits: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return subset -> the lines of its split; all lines if the split is empty."""
    if not path.is_dir():
        lines = _read_file(path, columns)
        return {subset: [row for row in lines if split in ("", row.split)] for subset, split in splits.items()}
    files = {file.stem: file for file in _files(path)}
    missing = next((split for split in splits.values() if split not in files), None)
    if missing is not None:
        raise DatasetMissingError(f"no {missing}.csv in {path}; put it there, or name another split")
    return {subset: _read_file(files[split], columns) for subset, split in splits.items()}


def _check_shared(name: str, lines: Mapping[str, Sequence[Row]]) -> None:
    """Raise an error if an image is in two subsets, so that no probe is tested on images it was fitted on."""
    subset_of_image: dict[str, str] = {}
    for subset, found in lines.items():
        for row in found:
            other = subset_of_image.setdefault(posixpath.normpath(row.image), subset)
            if other != subset:
                raise DatasetError(
                    f"{name}: the image {row.image} is in {other} and in {subset}; list it in one of them"
                )


def _read_file(path: Path, columns: dict[str, str]) -> list[Row]:
    """Return all lines of a file.

    Raises:
        DatasetMissingError: the file does not exist.
        DatasetError: the file is not CSV in UTF-8, a column is not found, or a line lacks a value or repeats an image.
    """
    found: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            names = [name.strip() for name in next(reader, [])]
            place = {what: _find_column(path, names, what, columns.get(what, "")) for what in COLUMNS}
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    values = {what: cells[i].strip() if i < len(cells) else "" for what, i in place.items() if i >= 0}
                    row = Row(values["image"], composed(values["label"]), values.get("split", ""))
                    missing = next((what for what, value in values.items() if not value), None)
                    if missing:
                        raise DatasetError(f"{path}, line {reader.line_num} has no {missing}; add it, or drop the line")
                    found.append(row)
    except FileNotFoundError as err:
        raise DatasetMissingError(f"no file {path}; give csv:PATH with a file of images and labels") from err
    except (csv.Error, UnicodeDecodeError, OSError) as err:
        raise DatasetError(f"{path} cannot be read as CSV in UTF-8 ({err}); save it in this format") from err
    twice = [image for image, count in Counter(posixpath.normpath(row.image) for row in found).items() if count > 1]
    if twice:
        raise DatasetError(f"{path} lists {listed(twice, most=3)} more than once; give each image one line")
    return found


def _find_column(path: Path, names: Sequence[str], what: str, given: str) -> int:
    """Return the index of a column, or -1 if there is no column for the split."""
    usual = (given,) if given else COLUMNS[what]
    places = [i for i, name in enumerate(names) if (name if given else name.casefold()) in usual]
    if len(places) == 1:
        return places[0]
    if not places and what == "split" and not given:
        return -1
    wrong = "several columns" if places else f"no column {given!r}" if given else "no column"
    raise DatasetError(
        f"{path} has {wrong} for the {what}; the columns are {listed(map(repr, names))}: choose one with ?{what}=COLUMN"
        + ("" if given or places else f", or add a first line with the names of the columns, such as {usual[0]}")
    )


def _find_images(name: str, top: Path, images: Sequence[str]) -> list[str]:
    """Return the paths of images as the file system spells them, possibly in a different Unicode form."""
    spelled = []
    for image in images:
        forms = dict.fromkeys((image, *(unicodedata.normalize(form, image) for form in ("NFC", "NFD"))))
        spelled.append(next((form for form in forms if (top / form).is_file()), ""))
    missing = [image for image, found in zip(images, spelled, strict=True) if not found]
    if missing:
        raise DatasetError(
            f"{name}: {len(missing):,} of {len(images):,} images are not in {top}, such as {missing[0]}; name the "
            "folder that paths are relative to with ?folder=FOLDER, or correct the paths"
        )
    return spelled


def _number(name: str, found: Sequence[Row], pool: Sequence[Row], *, is_pool: bool) -> tuple[np.ndarray, list[str]]:
    """Return class indices, int64 (n,), and the names of the classes of the training images."""
    is_numbered = all(WHOLE_NUMBER.fullmatch(row.label) for row in pool)
    strange = next((row.label for row in pool if not is_numbered and FRACTION.fullmatch(row.label)), None)
    if strange is not None or any(is_numbered and row.label.startswith("-") for row in pool):
        raise DatasetError(
            f"{name}: {strange or 'a negative number'} is not a class; a class is a text or an integer >= 0: "
            "take another column with ?label=COLUMN"
        )

    def label(row: Row) -> str:
        match = WHOLE_NUMBER.fullmatch(row.label) if is_numbered else None
        return match[1] if match else row.label

    labels, of_training = [label(row) for row in found], [label(row) for row in pool]
    classes = sorted(set(of_training), key=int if is_numbered else str)
    if is_pool:
        report_twins(name, (row.label for row in pool))
    position = class_positions(name, labels, classes)
    return np.array([position[text] for text in labels], dtype=np.int64), classes
