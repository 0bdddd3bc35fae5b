"""Files of features: the splits of a probe as arrays, in the formats of `features.formats`.

    train_x  train_y  [train_pre_projection]   val_...   test_...   [about]

`x` is float (n, d). `y` is integer (n,), or (n, k) of 1, 0 and -1 if an image can show several of k classes, or text
(n,), the names of the classes. Labels with gaps are renumbered from 0. A dataset with several folds has `fold1_train_x`
and so on. Probes can be fitted on features from any source in this form. In `.npz` files that `probe` writes, the JSON
text `about` describes the features.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probe.atomic import make_folder, write_atomically
from probe.errors import FeaturesError, listed, summarize
from probe.features.arrays import PRE_PROJECTION, Features
from probe.features.formats import NAME, NamedArrays, read_arrays
from probe.specs import SPLITS

ROWS = 4096  # rows that are written or checked at a time


@dataclass(frozen=True)
class FeatureFile:
    """Content of a file.

    Args:
        folds: the features of each fold by split.
        about: description that `probe` wrote into the file; empty in other files.
        class_names: names of the classes in the order of the labels, if the labels of the file are texts.
    """

    folds: Sequence[Mapping[str, Features]]
    about: Mapping[str, Any]
    class_names: tuple[str, ...] = ()


def save(
    path: Path,
    features: Mapping[str, Features],
    rows: Sequence[Mapping[str, tuple[str, np.ndarray]]],
    about: Mapping[str, Any],
) -> None:
    """Write the splits of all folds, with a few rows of memory-mapped arrays in memory at a time.

    Args:
        path: path of the file, which is written in one step.
        features: features by subset.
        rows: for each fold, the subset and the ascending rows of each split.
        about: description of the features.

    Raises:
        FeaturesError: the file cannot be written.
    """
    try:
        make_folder(path.parent)
        with write_atomically(path) as whole, zipfile.ZipFile(whole, "w", allowZip64=True) as file:
            for k, fold in enumerate(rows):
                for split, (subset, positions) in fold.items():
                    prefix = f"{split}_" if len(rows) == 1 else f"fold{k + 1}_{split}_"
                    source = features[subset]
                    arrays = {"x": source.x, "y": source.y, PRE_PROJECTION: source.pre_projection}
                    for name, array in arrays.items():
                        if array is not None:
                            _write(file, prefix + name, array, positions)
            _write(file, "about", np.array(json.dumps(about, sort_keys=True)), None)
    except OSError as err:
        raise FeaturesError(
            f"cannot write {path} ({err.strerror or err}); make it writable, or name a different file"
        ) from err


def _write(file: zipfile.ZipFile, name: str, array: np.ndarray, rows: np.ndarray | None) -> None:
    shape = array.shape if rows is None else (len(rows), *array.shape[1:])
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        if rows is None:
            member.write(array.tobytes())
        else:
            for chunk in _chunks(array, rows):
                member.write(np.ascontiguousarray(chunk).data.cast("B"))


def _chunks(array: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows of an array, a few at a time. A memory-mapped array is read as a file, so no page stays in memory."""
    if not isinstance(array, np.memmap) or array.filename is None:
        yield from (array[rows[i : i + ROWS]] for i in range(0, len(rows), ROWS))
        return
    width = int(np.prod(array.shape[1:]))
    for start in range(0, len(array), ROWS):
        stop = min(start + ROWS, len(array))
        wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        if len(wanted):
            offset = array.offset + start * width * array.itemsize
            read = np.fromfile(array.filename, array.dtype, (stop - start) * width, offset=offset)
            yield read.reshape(stop - start, *array.shape[1:])[wanted - start]


def load(path: Path) -> FeatureFile:
    """Read features: an `.npz` file, a Parquet file, or a folder of `.npy` files, whose arrays are memory-mapped.

    Labels that are texts become the positions of their names among the sorted names of all splits.

    Raises:
        FeaturesError: the file cannot be read, or has no training and test features in this form.
    """
    return _check(path, read_arrays(path))


def from_arrays(splits: Mapping[str, Features], *, where: str) -> FeatureFile:
    """Return features in memory as the content of a file, after the checks of files, see `load`.

    Args:
        splits: features of `train`, `test` and, if there are any, `val`. Arrays may have any type that files may
            have.
        where: origin of the features, for messages.

    Raises:
        FeaturesError: a split is missing or unknown, or is not in this form.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, features in splits.items():
        if split not in SPLITS:
            raise FeaturesError(f"{where} has features of {split!r}; name the splits {listed(SPLITS)}")
        if not isinstance(features, Features):
            raise FeaturesError(f"{where}: {split} is a {type(features).__name__}; give probe.Features")
        parts = {"x": features.x, "y": features.y, PRE_PROJECTION: features.pre_projection}
        try:
            arrays |= {f"{split}_{kind}": np.asarray(part) for kind, part in parts.items() if part is not None}
        except (ValueError, TypeError) as err:  # lists of different lengths, or a tensor of a GPU
            raise FeaturesError(f"{where}: {split} has no arrays ({summarize(err)}); give NumPy arrays") from err
    return _check(where, NamedArrays(arrays, advice="give features of train and test"))


def _check(path: Path | str, found: NamedArrays) -> FeatureFile:
    """Return the splits of arrays that are in the form of this module; `path` is for messages."""
    folds = sorted({int(NAME.fullmatch(name)[1] or 0) for name in found.arrays})  # type: ignore[index]  # all match
    if len(folds) > 1 and 0 in folds:
        raise FeaturesError(f"{path} has train_x and fold1_train_x; give either one set of splits, or folds")
    if not folds:
        held = f"; it has {listed(found.others)}" if found.others else ""
        names = (found.name_format.format(prefix="", split=s, kind=k) for s in ("train", "test") for k in ("x", "y"))
        raise FeaturesError(f"{path} has no {listed(dict.fromkeys(names))}{held}; {found.advice}")
    found, class_names = _number_classes(path, found)
    return FeatureFile([_read_fold(path, found, k) for k in folds], found.about, class_names)


def _number_classes(path: Path | str, found: NamedArrays) -> tuple[NamedArrays, tuple[str, ...]]:
    """Replace labels that are texts by the positions of their names among the sorted names, and return the names."""
    labels = {name: array for name, array in found.arrays.items() if NAME.fullmatch(name)[3] == "y"}  # type: ignore[index]  # all match
    texts = {name: _as_texts(path, name, array) for name, array in labels.items() if array.dtype.kind in "US"}
    if not texts:
        return found, ()
    for name, array in labels.items():
        if name not in texts:
            raise FeaturesError(
                f"{path}: {name} has numbers, but {next(iter(texts))} has texts; give all labels as one of them"
            )
        empty = np.flatnonzero(np.char.strip(texts[name]).ravel() == "")
        if len(empty):
            raise FeaturesError(f"{path}: the label in row {empty[0]} of {name} is an empty text; name its class")
        if array.ndim != 1:
            raise FeaturesError(f"{path}: {name} has texts of shape {array.shape}; give one name for each row")
    names = np.unique(np.concatenate(list(texts.values())))
    numbered = {name: np.searchsorted(names, array) for name, array in texts.items()}
    return replace(found, arrays={**found.arrays, **numbered}), tuple(names.tolist())


def _as_texts(path: Path | str, name: str, array: np.ndarray) -> np.ndarray:
    try:
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else np.asarray(array)
    except UnicodeDecodeError as err:
        raise FeaturesError(f"{path}: {name} has texts that are not UTF-8; save the names as texts") from err


def _read_fold(path: Path | str, found: NamedArrays, k: int) -> dict[str, Features]:
    prefix = f"fold{k}_" if k else ""
    splits = {}
    for split in SPLITS:
        x, y, before = (found.arrays.get(f"{prefix}{split}_{name}") for name in ("x", "y", PRE_PROJECTION))
        if x is None and y is None and split == "val":
            continue
        if x is None or y is None:
            missing = found.name_format.format(prefix=prefix, split=split, kind="x" if x is None else "y")
            raise FeaturesError(f"{path} has no {missing}; {found.advice}")
        points = {"x": x, PRE_PROJECTION: before}
        if y.ndim not in (1, 2) or any(
            array.ndim == 0 or len(array) != len(y) for array in points.values() if array is not None
        ):
            shapes = ", ".join(str(array.shape) for array in (x, before, y) if array is not None)
            raise FeaturesError(f"{path}: {prefix}{split} has arrays of {shapes}; give features (n, d) and n labels")
        checked = {
            name: _as_features(path, f"{prefix}{split}_{name}", array)
            for name, array in points.items()
            if array is not None
        }
        labels = _as_labels(path, f"{prefix}{split}_y", y)
        splits[split] = Features(checked["x"], labels, checked.get(PRE_PROJECTION))
    return splits


def _as_labels(path: Path | str, name: str, array: np.ndarray) -> np.ndarray:
    """Return labels as int64. Booleans and floating-point numbers with whole values are accepted."""
    if array.dtype.kind == "f":
        values = array.astype(np.float64)  # 2^53 overflows float16
        rows = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**53)
        if not rows.all():
            row = int(np.argmin(rows.reshape(len(rows), -1).all(axis=1)))
            raise FeaturesError(f"{path}: the label in row {row} of {name} is {array[row]}; give integers >= 0")
    elif array.dtype.kind not in "iub" or (array.dtype.kind == "u" and array.size and array.max() >= 2**63):
        raise FeaturesError(f"{path}: {name} has labels of type {array.dtype}; give integers >= 0")
    return np.ascontiguousarray(array, dtype=np.int64)


def _as_features(path: Path | str, name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise FeaturesError(f"{path}: {name} has {array.dtype} {array.shape}; give floating-point features (n, d)")
    with np.errstate(over="ignore"):  # reported below
        converted = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(converted), ROWS):
        is_finite = np.isfinite(converted[start : start + ROWS]).all(axis=1)
        if not is_finite.all():
            row = start + int(np.argmin(is_finite))
            raise FeaturesError(
                f"{path}: the features in row {row} of {name} are not finite in float32; remove the row, or scale them"
            )
    return converted
