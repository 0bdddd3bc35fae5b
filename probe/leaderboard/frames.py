"""Records -> a pandas DataFrame with one row for each run, and its texts for other programs and for people."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from probe.datasets.catalog import DATASETS
from probe.errors import ResultsError
from probe.leaderboard.exports import latex_table
from probe.leaderboard.labels import MODE_LABELS, NO_RECORD, POINT_LABELS, PRECISION_LABELS, SOLVER_LABELS
from probe.leaderboard.sections import gflops, natural
from probe.leaderboard.tables import CLEAN_COLUMNS, csv_value, markdown_table, row
from probe.leaderboard.texts import CALIBRATION_NAMES, calibration_values
from probe.records.record import PUBLISHED_MODELS, encode, locate_records
from probe.records.schema import FeaturesRecord, MeterRecord, RunRecord, SplitRecord
from probe.specs import SPLITS, digest

if TYPE_CHECKING:
    import pandas as pd

# Categories are in these orders; further names follow in natural order.
ORDERS: dict[str, Sequence[str]] = {
    "dataset": [spec.name for spec in DATASETS],
    "model": PUBLISHED_MODELS,
    "mode": list(MODE_LABELS),
    "precision": list(PRECISION_LABELS),
    "solver": list(SOLVER_LABELS),
    "feature_point": list(POINT_LABELS),
}
KEYS = ("dataset", "model", "mode", "protocol", "precision", "solver")  # the rows are sorted by these columns
SECONDS = ("load", "extract", "text", "fit", "tests", "clean")
ENERGY = ("cpu", "gpu")
TEXT, TIME = "string", "datetime64[us, UTC]"
COLUMNS: dict[str, str] = {
    **dict.fromkeys((*KEYS, "feature_point", "metric"), "category"),
    "status": TEXT,
    **dict.fromkeys(("score", "low", "high"), "float64"),
    "interval": "category",
    "C": "float64",
    **dict.fromkeys(("k", "n_iter"), "Int64"),
    **dict.fromkeys(("gradient_ratio", "excess"), "float64"),
    **dict.fromkeys(("converged", "choice_converged", "partial"), "boolean"),
    **dict.fromkeys(("num_train", "num_test"), "Int64"),
    **{name: "Int64" if name.startswith("num") else "float64" for name in CLEAN_COLUMNS},
    **{name: "Int64" if name == "ece_bins" else "float64" for name in (*CALIBRATION_NAMES, "gflops")},
    **dict.fromkeys((f"{name}_seconds" for name in SECONDS), "float64"),
    **dict.fromkeys((f"fit_{name}_joules" for name in ENERGY), "float64"),
    **dict.fromkeys(("images_per_second", *(f"{name}_joules_per_1000_images" for name in ENERGY)), "float64"),
    "created": TIME,
    "device": "category",
    **dict.fromkeys(("cpu", "accelerator", "platform", "python"), TEXT),
    "git_commit": TEXT,
    "git_dirty": "boolean",
    **dict.fromkeys(("extraction_version", "preprocess_version", "probe_version"), "Int64"),
    "weights_sha256": TEXT,
    **dict.fromkeys((f"{name}_{kind}_sha256" for kind in ("images", "features") for name in SPLITS), TEXT),
    **dict.fromkeys(("error", "record"), TEXT),
}
READABLE = {
    **{name: name for name in ("dataset", "model", "mode", "precision", "protocol", "solver")},
    **{"score": "score, %", "low": "low, %", "high": "high, %"},
    **{"C": "C", "k": "k", "num_test": "test images", "status": "status"},
}


def results_frame(results_dir: str | Path = "results") -> pd.DataFrame:
    """Return the records of a results folder as a pandas DataFrame with one row for each run.

    `read_records` reads the records: a file that is damaged or has a later schema is skipped with a warning. The
    columns and their types are `COLUMNS`, followed by `package_NAME` with the version of each package that a record
    names. Scores, bounds of intervals and the ECE are fractions. A value that a run does not have is missing, and so is
    an empty text. The categories of `dataset` and `model` are in the order of the catalogues. Rows are sorted by
    dataset, model, mode, protocol, precision and solver.

    Args:
        results_dir: a results folder. Without records, the DataFrame has no rows.

    Raises:
        ResultsError: there is no such folder.
    """
    import pandas as pd

    if not Path(results_dir).is_dir():
        raise ResultsError(f"no records in {results_dir}, which is not a folder; name a results folder")
    located = locate_records(results_dir)
    rows = [record_values(record, path.relative_to(results_dir).as_posix()) for path, record in located]
    further = {name for one in rows for name in one.keys() - COLUMNS.keys()}
    types = {**COLUMNS, **{name: "float64" for name in sorted(further) if name.endswith("_seconds")}}
    types |= {name: TEXT for name in sorted(further - types.keys())}
    frame = pd.DataFrame({name: _column(name, kind, [one.get(name) for one in rows]) for name, kind in types.items()})
    return frame.sort_values([*KEYS, "record"], ignore_index=True)


def record_values(record: RunRecord, path: str) -> dict[str, object]:
    """Return the values of a record under `COLUMNS`, and the versions of packages. Values it lacks are None."""
    result, environment = record.result, record.environment
    values = row(record)
    values |= {"model": record.model, "mode": record.mode, "device": record.spec.device, "partial": record.is_partial}
    values |= calibration_values(record)
    if result is not None:
        values |= {name: getattr(result, name) for name in ("converged", "choice_converged", "probe_version")}
    values |= {f"{_to_utf8(name)}_seconds": value for name, value in record.seconds.items()}
    values |= {f"fit_{name}_joules": record.fit_joules.get(name) for name in ENERGY}
    values |= _extraction_values(record.extraction.subsets.values())
    values |= {name: getattr(environment, name) for name in ("cpu", "accelerator", "platform", "python")}
    values |= {"git_commit": environment.git_commit, "git_dirty": environment.git_dirty}
    values |= {name: getattr(record.extraction, name) for name in ("extraction_version", "preprocess_version")}
    for name in SPLITS:
        values[f"{name}_images_sha256"] = _digest(record.splits, name)
        values[f"{name}_features_sha256"] = _digest(record.features, name)
    values |= {f"package_{_to_utf8(name)}": version for name, version in environment.packages.items()}
    error = None if record.error is None else record.error.message
    return {**values, "created": record.created, "gflops": gflops(record), "error": error, "record": path}


def _extraction_values(meters: Collection[MeterRecord]) -> dict[str, float | None]:
    """Return the speed and energy of the extraction over the images of all subsets. What is not known is None."""

    def mean(values: Iterable[float | None]) -> float | None:
        """Return the mean of the values of the subsets over all images."""
        total = 0.0
        for meter, value in zip(meters, values, strict=True):
            if value is None:
                return None
            total += meter.images * value
        return total / max(1, sum(meter.images for meter in meters)) or None

    seconds = mean(1 / meter.images_per_second if meter.images_per_second else None for meter in meters)
    energy = {name: mean(meter.joules_per_1000_images.get(name) for meter in meters) for name in ENERGY}
    return {
        "images_per_second": None if seconds is None else 1 / seconds,
        **{f"{name}_joules_per_1000_images": value for name, value in energy.items()},
    }


def _digest(splits: Mapping[str, SplitRecord | FeaturesRecord], split: str) -> str | None:
    """Return the digest of a split, or of the digests of its folds if there are several."""
    found = {name: one.sha256 for name, one in splits.items() if name.partition("/")[0] == split}
    return digest(found) if found.keys() - {split} else found.get(split)


def _column(name: str, kind: str, values: Sequence[object]) -> pd.api.extensions.ExtensionArray:
    """Return the values of a column, in the type of the column."""
    import pandas as pd

    if kind == TIME:
        return pd.array([parse_time(str(value)) for value in values], dtype=kind)
    if kind not in ("category", TEXT):
        return pd.array(values, dtype=kind)
    texts = [_to_utf8(str(value)) if value not in (None, "") else None for value in values]
    if kind == TEXT:
        return pd.array(texts, dtype=kind)
    places = {text: i for i, text in enumerate(ORDERS.get(name, ()))}
    known = sorted({text for text in texts if text}, key=lambda text: (places.get(text, len(places)), natural(text)))
    return pd.Categorical(texts, categories=pd.Index(known, dtype="str"))


def _to_utf8(text: str) -> str:
    return encode(text).decode()


def parse_time(text: str) -> datetime:
    """Return the time of a record, which is in UTC if the record does not name another zone."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return CSV: numbers unrounded, texts as `tables.csv_value` returns them, missing values empty."""
    texts = frame.select_dtypes(["string", "category"])
    safe = {name: [csv_value(value) for value in texts[name].astype(object)] for name in texts}
    return str(
        frame.assign(**safe)
        .set_axis([csv_value(name) for name in frame], axis=1)
        .to_csv(index=False, lineterminator="\n")
    )


def frame_to_text(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows to read, of the columns `READABLE` that have a value, with scores in percent."""
    shown = {name: title for name, title in READABLE.items() if frame.empty or frame[name].notna().any()}
    columns = [
        [_text(title, value) for value in frame[name].astype(object).where(frame[name].notna(), None)]
        for name, title in shown.items()
    ]
    return list(shown.values()), [list(cells) for cells in zip(*columns, strict=True)]


def _text(title: str, value: object) -> str:
    if value is None:
        return NO_RECORD
    if isinstance(value, float):
        return f"{100 * value:.2f}" if title.endswith("%") else f"{value:.4g}"
    return str(value)


# The texts of a DataFrame of `results_frame`.
FRAME_FORMATS: dict[str, Callable[[pd.DataFrame], str | bytes]] = {
    "md": lambda frame: markdown_table(*frame_to_text(frame)),
    "csv": frame_to_csv,
    "latex": lambda frame: latex_table((), *frame_to_text(frame)),
    "parquet": lambda frame: bytes(frame.to_parquet(index=False)),
}
