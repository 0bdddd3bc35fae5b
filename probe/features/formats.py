"""Formats of features: `.npz` files, Parquet files, and folders of `.npy` files, each read into arrays by name.

All formats give the names of `.npz` files, see `features.files`, which checks the arrays. No code in a file
is executed.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import FeaturesError, listed, summarize
from probe.features.arrays import PRE_PROJECTION

if TYPE_CHECKING:
    import pyarrow

# Errors of reading a file that is damaged, or has a different format.
UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
NAME = re.compile(r"(?:fold(\d+)_)?(train|val|test)_(x|y|pre_projection)")
PARQUET = (".parquet", ".pq")
ROWS = 16_384  # rows of a Parquet file that are converted at a time
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
SPLIT, LABEL, FEATURES = "split", "label", "features"  # columns of a Parquet file
INDEX = "__index_level_0__"  # column that pandas adds
# Name of a `.npy` file without its suffix -> what is in the file.
_FILE = re.compile(r"((?:fold\d+_)?(?:train|val|test))(?:_(x|features|y|labels|targets|pre_projection))?")
_FILE_AS_CLIP_BENCHMARK = re.compile(r"(features|labels|targets)_(train|val|test)")
_KINDS = {None: "x", "features": "x", "labels": "y", "targets": "y"}


@dataclass(frozen=True)
class NamedArrays:
    """Content of a file or folder.

    Args:
        arrays: arrays by name, such as `train_x`.
        about: description that `probe` wrote into the file; empty in other files.
        others: names in the file that do not have this form.
        name_format: name of an array in messages, with `{prefix}`, `{split}` and `{kind}`.
        advice: how to write such a file, for messages.
    """

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[str] = ()
    name_format: str = "{prefix}{split}_{kind}"
    advice: str = "save it with numpy.savez under these names"


def read_arrays(path: Path) -> NamedArrays:
    """Read a folder of `.npy` files, a file whose name ends in `.parquet` or `.pq`, or else an `.npz` file.

    Arrays of `.npy` files are memory-mapped.

    Raises:
        FeaturesError: the file or folder cannot be read, or has another format.
    """
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path)
    return _read_folder(path) if _is_folder(path) else _read_npz(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def _read_npz(path: Path) -> NamedArrays:
    try:
        # The file is opened here, because NumPy does not close a file that is not an archive.
        with path.open("rb") as file, zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if NAME.fullmatch(name)}
            about = _read_about(archive["about"]) if "about" in archive.files else {}
            others = [name for name in archive.files if name not in arrays and name != "about"]
    except FileNotFoundError as err:
        raise FeaturesError(f"no file at {path}; create it with python -m probe extract --out") from err
    except UNREADABLE as err:
        raise FeaturesError(f"{path} is not a file of features ({_reason(err)}); save it with numpy.savez") from err
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # a member without .npy gives its bytes
        raise FeaturesError(f"{path} has members that are not arrays; save it with numpy.savez")
    return NamedArrays(arrays, about, others)


def _reason(err: Exception) -> str:
    has_objects = "allow_pickle" in str(err) or "Python objects" in str(err)
    return "it has arrays of Python objects" if has_objects else summarize(err)


def _read_about(text: np.ndarray) -> dict[str, Any]:
    """Return the description in a file that `probe` wrote; empty for any other array of this name."""
    try:
        about = json.loads(str(text))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _read_folder(path: Path) -> NamedArrays:
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    others = []
    try:
        for file in sorted(path.iterdir()):
            name = _name_of(file)
            if name is None:
                others.append(file.name)
                continue
            if name in names:
                raise FeaturesError(f"{path} has both {names[name]} and {file.name}; remove one of them")
            names[name] = file.name
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except UNREADABLE as err:
                raise FeaturesError(
                    f"{file} is not an array of numbers or texts ({_reason(err)}); save it with numpy.save"
                ) from err
            if not isinstance(array, np.ndarray):  # an archive under the name of an array
                array.close()
                raise FeaturesError(f"{file} is an .npz file; save its array with numpy.save, or rename it to .npz")
            arrays[name] = array
    except OSError as err:
        raise FeaturesError(f"cannot read {path} ({err.strerror or err}); name another folder") from err
    return NamedArrays(
        arrays,
        others=others,
        name_format="{prefix}{split}_{kind}.npy",
        advice="name the files train.npy, train_labels.npy, test.npy and test_labels.npy",
    )


def _name_of(file: Path) -> str | None:
    """Return the name of the array in a `.npy` file, or None if the file has another name."""
    if file.suffix != ".npy":
        return None
    found = _FILE.fullmatch(file.stem)
    if found is None and (other := _FILE_AS_CLIP_BENCHMARK.fullmatch(file.stem)) is not None:
        return f"{other[2]}_{_KINDS[other[1]]}"
    return None if found is None else f"{found[1]}_{_KINDS.get(found[2], found[2])}"


def _read_parquet(path: Path) -> NamedArrays:
    from pyarrow import parquet

    parts: dict[str, list[np.ndarray]] = {}
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            columns = _find_columns(path, file.schema_arrow)
            read = [name for names in columns.values() for name in names]
            for batch in file.iter_batches(batch_size=ROWS, columns=read):
                _add_batch(path, batch, columns, parts)
    except FileNotFoundError as err:
        raise FeaturesError(f"no file at {path}; write the features with pandas or pyarrow") from err
    except FeaturesError:
        raise
    except UNREADABLE as err:
        raise FeaturesError(f"{path} is not a Parquet file of features ({summarize(err)}); write it again") from err
    return NamedArrays(
        {name: np.concatenate(own) for name, own in parts.items()},
        name_format="rows of the split {split}",
        advice=f"give each row train, val or test in the column {SPLIT}",
    )


def _find_columns(path: Path, schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Return the columns of splits, labels (`y`) and features, in the order of the file."""
    from pyarrow import types

    for name in (SPLIT, LABEL):
        if name not in schema.names:
            raise FeaturesError(
                f"{path} has no column {name}, only {listed(schema.names)}; give the columns {SPLIT}, {LABEL} and "
                f"{FEATURES}"
            )
    columns = {SPLIT: [SPLIT], "y": [LABEL]}
    if FEATURES in schema.names:
        before = [PRE_PROJECTION] if PRE_PROJECTION in schema.names else []
        return {**columns, "x": [FEATURES], **({PRE_PROJECTION: before} if before else {})}
    names = [name for name in schema.names if name not in (SPLIT, LABEL, INDEX)]
    for name in names:
        if not types.is_floating(schema.field(name).type):
            raise FeaturesError(
                f"{path}: the column {name} has {schema.field(name).type}; without a column {FEATURES}, all columns "
                f"but {SPLIT} and {LABEL} must be floating-point features"
            )
    if not names:
        raise FeaturesError(f"{path} has no features; give a column {FEATURES} of lists, or a column for each feature")
    return {**columns, "x": names}


def _add_batch(
    path: Path, batch: pyarrow.RecordBatch, columns: Mapping[str, Sequence[str]], parts: dict[str, list[np.ndarray]]
) -> None:
    """Add the rows of a batch to the arrays of their splits."""
    for names in columns.values():
        for name in names:
            if batch.column(name).null_count:
                raise FeaturesError(f"{path}: the column {name} has empty cells; remove their rows, or fill them")
    splits = np.array(batch.column(SPLIT).to_pylist())
    arrays = {
        kind: _to_matrix(path, names[0], batch.column(names[0]))
        if len(names) == 1
        else np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names])
        for kind, names in columns.items()
        if kind != SPLIT
    }
    if columns["x"] != [FEATURES] and arrays["x"].ndim == 1:  # a single feature
        arrays["x"] = arrays["x"][:, None]
    for value in np.unique(splits).tolist():
        if value not in SPLIT_NAMES:
            raise FeaturesError(f"{path}: the column {SPLIT} has {str(value)!r}; give each row train, val or test")
        rows = splits == value
        for kind, array in arrays.items():
            own = parts.setdefault(f"{SPLIT_NAMES[value]}_{kind}", [])
            if own and own[0].shape[1:] != array.shape[1:]:
                raise FeaturesError(
                    f"{path}: rows have different numbers of features, {own[0].shape[1]} and {array.shape[1]}; "
                    "extract all rows with the same model"
                )
            own.append(array[rows])


def _to_matrix(path: Path, name: str, column: pyarrow.Array) -> np.ndarray:
    """Return a column as an array (n,), or (n, d) of a column of lists."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        widths = compute.list_value_length(column).unique().to_pylist()
        if len(widths) > 1:
            raise FeaturesError(
                f"{path}: the lists of the column {name} have different lengths, {listed(sorted(widths))}; extract all "
                "rows with the same model"
            )
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1))
    if types.is_string(kind) or types.is_large_string(kind):
        return np.array(column.to_pylist())
    return np.asarray(column.to_numpy(zero_copy_only=False))
