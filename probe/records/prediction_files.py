"""Predictions of runs: a Parquet file per run, with a row for each test image of each fold or few-shot draw.

| column | content |
| --- | --- |
| `image` | id of the image: a path, or a position in the source |
| `part` | number of the fold or draw, from 1 on, as in the names of heads; 0 if the run has one |
| `label`, `label_name` | its class in the dataset |
| `prediction`, `prediction_name` | the predicted class |
| `probability` | probability of the most probable class |
| `top_labels`, `top_names`, `top_probabilities` | lists of up to five classes, the most probable first |
| `logits` | list with a logit for each class, by label; only if asked for, and never for k-NN |

The JSON text `probe` in the metadata has the fields of `PredictionsInfo`. Labels with gaps, such as 0, 1 and 3, have a
logit for each label that occurs, so `logit_labels` gives the label of each logit.

If an image can show several classes, the columns of labels and predictions are lists, and `ignored` lists the labels
that do not count for the image.

Each further test set of a run has a file of its own. There, `label` and `label_name` are lists of the classes of the
dataset that are right for the image, and these columns are added:

| column | content |
| --- | --- |
| `test_class` | name of the class of the image in the test set |
| `is_right` | true if `prediction` is right |
| `own_prediction`, `own_prediction_name` | the predicted class among the classes of the test set |
| `own_is_right` | true if `own_prediction` is right |
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.decoder import decode
from probe.errors import ResultsError, summarize
from probe.paths import expand_home
from probe.records.record import check_folder, encode, record_path, run_path, write_bytes
from probe.records.schema import DoneRecord
from probe.specs import RunSpec, unique_slug
from probe.stats.metrics import IGNORED, takes_several_labels
from probe.stats.top_classes import TopClasses

METADATA = b"probe"  # key of the JSON text in the metadata of the file
SUFFIX = ".parquet"
FOLDER = "predictions"  # next to `records`, where `probe errors` looks by default


@dataclass(frozen=True, eq=False)
class PartPredictions:
    """Predictions for the n test images of one fold or few-shot draw.

    Args:
        ids: id of each image.
        y: int64 (n,), labels; or (n, k) of 1, 0 and -1 if an image can show several of k classes; or bool (n, k) for a
            further test set, True for the classes of the dataset that are right.
        predictions: int64 (n,), predicted labels; or (n, k) of 0 and 1.
        top: the classes with the highest scores.
        logits: float64 (n, k); None to leave them out.
        test_classes: for a further test set, the name of the class of each image in the test set.
        own_predictions: for a further test set, int64 (n,), predicted labels among the classes of the test set.
    """

    ids: Sequence[str]
    y: np.ndarray
    predictions: np.ndarray
    top: TopClasses
    logits: np.ndarray | None = None
    test_classes: Sequence[str] = ()
    own_predictions: np.ndarray | None = None


@dataclass(frozen=True)
class PredictionsInfo:
    """Description of a file of predictions.

    Args:
        record: path of the record below the folder of records.
        created: time of the run.
        with_logits: True if logits were asked for.
        logit_labels: label of each element of `logits`, for each part in ascending order; empty without logits.
        test: name of the further test set; empty for the test split of the dataset.
    """

    record: str
    created: str
    with_logits: bool
    logit_labels: tuple[tuple[int, ...], ...] = ()
    test: str = ""


@dataclass(frozen=True)
class WrongImage:
    """A test image with a wrong prediction.

    Args:
        image: its id.
        part: number of the fold or draw; 0 if the run has one.
        label: name of its class, or of its classes. In a further test set, these are the classes of the dataset that
            are right.
        prediction: name of the predicted class; if images can show several classes, the most probable of the predicted
            classes that the image does not show.
        probability: probability of this class.
    """

    image: str
    part: int
    label: str
    prediction: str
    probability: float


def predictions_path(record_file: Path, predictions_dir: Path, test: str = "") -> Path:
    """Return the path of the predictions of a run, or of its predictions on a further test set.

    Args:
        record_file: path of the record, such as `records/DATASET/RUN.json`.
        predictions_dir: the folder of predictions.
        test: name of the further test set; empty for the test split of the dataset.
    """
    stem = predictions_dir / record_file.parent.name / record_file.name.removesuffix(".json")
    return stem / f"{unique_slug(test)}{SUFFIX}" if test else stem.with_name(f"{stem.name}{SUFFIX}")


def describe_predictions(
    record: DoneRecord,
    parts: Iterable[PartPredictions],
    class_names: Sequence[str],
    *,
    with_logits: bool,
    logit_labels: tuple[tuple[int, ...], ...] = (),
    test: str = "",
) -> tuple[Path, bytes]:
    """Return the path of the file of a run's predictions below the folder of predictions, and its content.

    Args:
        record: the record.
        parts: predictions of each fold or draw, which may be made one at a time.
        class_names: names in the order of the labels.
        with_logits: True if logits were asked for.
        logit_labels: labels of the logits of each part, see `PredictionsInfo`.
        test: name of the further test set; empty for the test split of the dataset.
    """
    from pyarrow import parquet

    place = record_path(record, Path())
    info = PredictionsInfo(f"{place.parent.name}/{place.name}", record.created, with_logits, logit_labels, test)
    file, writer = io.BytesIO(), None
    parts_per_run = max(1, len(record.result.folds)) * max(1, _num_draws(record))
    for i, part in enumerate(parts):
        table = _make_table(part, i + 1 if parts_per_run > 1 else 0, class_names)
        table = table.replace_schema_metadata({METADATA: json.dumps(asdict(info))})
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return predictions_path(place, Path(), test), file.getvalue()


def _num_draws(record: DoneRecord) -> int:
    result = record.result
    return len(result.folds[0].draws if result.folds else result.draws)


def _make_table(part: PartPredictions, number: int, class_names: Sequence[str]) -> Any:
    import pyarrow as pa

    n, top, y = len(part.ids), part.top, part.y
    highest = max(int(top.labels.max()), y.shape[1] - 1 if y.ndim == 2 else int(y.max()))
    names = _texts([*map(escape_id, class_names), *map(str, range(len(class_names), highest + 1))])
    columns: dict[str, Any] = {
        "image": _texts(list(map(escape_id, part.ids))),
        "part": _numbers(np.full(n, number, np.int32)),
    }
    if part.test_classes:
        columns["test_class"] = _texts(list(map(escape_id, part.test_classes)))
    for name, labels in (("label", y), ("prediction", part.predictions)):
        if labels.ndim == 1:
            columns |= {name: _numbers(labels.astype(np.int64)), f"{name}_name": names.take(_numbers(labels))}
        else:
            found, counts = _numbers(np.nonzero(labels == 1)[1]), (labels == 1).sum(axis=1)
            columns |= {name: _lists(found, counts), f"{name}_name": _lists(names.take(found), counts)}
    if part.own_predictions is not None:
        own = _numbers(part.own_predictions.astype(np.int64))
        columns["is_right"] = _numbers(y[np.arange(n), part.predictions])
        columns |= {"own_prediction": own, "own_prediction_name": names.take(own)}
        columns["own_is_right"] = _numbers(y[np.arange(n), part.own_predictions])
    elif y.ndim == 2:
        columns["ignored"] = _lists(_numbers(np.nonzero(y == IGNORED)[1]), (y == IGNORED).sum(axis=1))
    columns["probability"] = _numbers(top.probabilities[:, 0])
    columns["top_labels"] = _rows(top.labels)
    columns["top_names"] = _lists(names.take(_numbers(top.labels.ravel())), np.full(n, top.labels.shape[1]))
    columns["top_probabilities"] = _rows(top.probabilities)
    if part.logits is not None:
        columns["logits"] = _rows(part.logits)
    return pa.table(columns)


def _rows(array: np.ndarray) -> Any:
    """Return a column of lists, the rows of an array (n, m)."""
    return _lists(_numbers(array.ravel()), np.full(len(array), array.shape[1]))


def _lists(values: Any, counts: np.ndarray) -> Any:
    """Return a column of lists, the first with the first `counts[0]` values, and so on."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(_numbers(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)), values)


def _numbers(values: np.ndarray) -> Any:
    """Return a column of numbers or booleans (n,). `pyarrow.array` would import pandas, which takes half a second."""
    import pyarrow as pa

    stored = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(stored)])


def _texts(values: Sequence[str]) -> Any:
    """Return a column of texts. `pyarrow.array` would import pandas, see `_numbers`."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])


def escape_id(text: str) -> str:
    """Return an id or name as the file has it: characters of file names that are not valid text are escaped."""
    return encode(text).decode()


def check_predictions_dir(predictions_dir: str | Path | None) -> None:
    """Check that predictions can be written, if they are to be.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    if predictions_dir is not None:
        folder = expand_home(predictions_dir)
        check_folder(folder, f"the folder of predictions {folder}", option="--predictions")


def write_predictions(predictions: dict[Path, bytes], predictions_dir: str | Path | None) -> None:
    """Write the predictions of a run below a folder, and free their memory.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    if predictions_dir is not None:
        for path, content in predictions.items():
            write_bytes(expand_home(predictions_dir) / path, content)
    predictions.clear()


def has_predictions(spec: RunSpec, record: DoneRecord, predictions_dir: str | Path, *, with_logits: bool) -> bool:
    """Return True if all predictions of a complete record are in a folder, with logits if they are asked for.

    The predictions on the further test sets of the run must be there, too.
    """
    place, folder = run_path(spec, Path()), expand_home(predictions_dir)
    try:
        found = [read_info(predictions_path(place, folder, test)) for test in ("", *(one.name for one in spec.tests))]
    except ResultsError:
        return False
    return all(info.created == record.created and (info.with_logits or not with_logits) for info in found)


def read_info(path: Path, test: str = "") -> PredictionsInfo:
    """Return the description in a file of predictions, see `predictions_path`.

    Raises:
        ResultsError: the file is missing, damaged, or holds no predictions.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        plain = (parquet.read_schema(path).metadata or {}).get(METADATA)
        return decode(json.loads(plain or "null"), PredictionsInfo)
    except FileNotFoundError as err:
        raise ResultsError(
            f"there are no predictions at {path}; repeat the run with --predictions {_folder_of(path, test)}, or name "
            "the folder of the predictions with --predictions"
        ) from err
    except (OSError, ValueError, pyarrow.ArrowException) as err:
        raise ResultsError(f"{path} is damaged or holds no predictions ({summarize(err)}); repeat the run") from err


def _folder_of(path: Path, test: str) -> Path:
    """Return the folder of predictions that a file of predictions is in."""
    return path.parents[2 if test else 1]


def find_errors(path: Path, record: DoneRecord, *, test: str = "", most: int | None = None) -> list[WrongImage]:
    """Return the images with wrong predictions, the most confident first.

    If images can show several classes, an image counts as wrong if a predicted class among its five most probable is
    not shown. Classes that are shown and were not predicted do not count, nor do ignored labels. Predictions on a
    further test set are among all classes of the dataset.

    Args:
        path: the file of predictions, see `predictions_path`.
        record: the record of the run.
        test: name of the further test set of the file; empty for the test split of the dataset.
        most: largest number of images; None for all.

    Raises:
        ResultsError: the file is missing, damaged, or of a different run.
    """
    import pyarrow
    from pyarrow import parquet

    info = read_info(path, test)
    if info.created != record.created:
        raise ResultsError(
            f"{path} has the predictions of the run of {info.created}, but the record is of {record.created}; repeat "
            f"the run with --predictions {_folder_of(path, test)}"
        )
    try:
        if not test and takes_several_labels(record.result.metric):
            names = ["image", "part", "label", "label_name", "prediction", "ignored"]
            rows = parquet.read_table(
                path, columns=[*names, "top_labels", "top_names", "top_probabilities"]
            ).to_pylist()
            found = [wrong for row in rows if (wrong := _wrong_class(row)) is not None]
            return sorted(found, key=lambda wrong: -wrong.probability)[:most]
        compared = ["is_right"] if test else ["label", "prediction"]
        table = parquet.read_table(path, columns=[*compared, "probability"])
        columns = [table[name].to_numpy() for name in compared]
        probability = table["probability"].to_numpy()
        positions = np.flatnonzero(~columns[0] if test else columns[0] != columns[1])
        positions = positions[np.argsort(-probability[positions], kind="stable")][:most]
        names = ["image", "part", "label_name", "prediction_name", "probability"]
        rows = parquet.read_table(path, columns=names).take(positions).to_pylist()
        if test:  # several classes can be right
            rows = [{**row, "label_name": ", ".join(row["label_name"])} for row in rows]
        return [WrongImage(*(row[name] for name in names)) for row in rows]
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as err:
        raise ResultsError(f"{path} is damaged ({summarize(err)}); repeat the run with --rerun") from err


def _wrong_class(row: Mapping[str, Any]) -> WrongImage | None:
    """Return the most probable predicted class that an image does not show, or None if there is none."""
    wrong = set(row["prediction"]) - set(row["label"]) - set(row["ignored"])
    ranked = zip(row["top_labels"], row["top_names"], row["top_probabilities"], strict=True)
    for label, name, probability in ranked:
        if label in wrong:
            return WrongImage(row["image"], row["part"], ", ".join(row["label_name"]), name, probability)
    return None
