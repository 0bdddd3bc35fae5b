"""A run's record <-> JSON, one file a cell: `<results>/records/<dataset>/<model>.<mode>.<protocol>.<precision>.json`.

Fits of another solver than scikit-learn's have it before the `.json`.

A cell that failed has its record beside, `....failed.json`, and one of which images were missing or passed over has
`....partial.json`: neither takes the place of a whole result, and a whole result removes both. Files are written under
another name and renamed, so that a reader never meets half of one.

Schema history: 1, the first; `encoder` was given `license`, `preprocess` and `dtypes` later on. 2: `spec.dataset` has
`sources` in place of `form` and `source`; `read`, and `folds` in `result`, are new; `extraction`, and `compiled` in
`spec`, came later on. 3: `result` has `solver`, `tol`, `excess`, `interval`, `outcomes`, `same_images`, and `draws`
with their `seed` and `indices`; points of its `sweep` have `gradient_ratio` and `objective`; `parity` has `p_value`;
`sample` in `features` came later on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from probe.errors import ResultsError
from probe.specs import slug

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 3
DEFAULT_SOLVER = "sklearn"
DONE, FAILED = "done", "failed"
STATES = (".failed", ".partial", "")  # in the names of files, by `RunRecord.rank`


@dataclass(frozen=True)
class RunRecord:
    """How one number was made; all values are JSON's.

    Args:
        status: `done` or `failed`.
        spec: the whole `RunSpec`: dataset, model, protocol, jit, device, precision, batch size, solver.
        encoder: weights' SHA-256 and licence, widths, preprocessing, and the `dtypes` of the checkpoint, of the image
            tower's weights as they compute, and of the features as they are kept; empty where the cell failed before
            that.
        splits: for `train`, `val`, `test`, or `train/1` and so on where there are several folds: number of the images
            that were read and SHA-256 of their ids and labels, in order; ids are positions in a part of the source, or
            names of files.
        features: for the same: SHA-256 of the bytes, and a `sample` of the values at each feature point, see
            `features.Features.sample`, by which others can tell how far theirs are off.
        result: a `ProbeResult` without its predictions, `outcomes` packed as `outcomes.Outcomes.pack` does; None where
            the cell failed.
        parity: against the eager mode of the same cell, in JIT records made beside it: `max_abs_difference` for each
            feature point over all splits, the number of test `predictions_flipped`, and the `p_value` of the paired
            test of both scores.
        seconds: wall time of `load`, `extract` and `fit`; next to nothing for `fit` where JIT features had the bytes of
            the eager ones, and so their probe.
        environment: see `environment.describe`.
        error: `type` and `message`; None where the cell is done.
        read: the `source` that had the images; `revisions`, the commit of each part that came from the hub; `partial`,
            for parts with other numbers of images than their row says: how many there were, and how many it says;
            `skipped`, `part`, `id` and `message` of images that could not be read.
        extraction: how the features were made: `from_cache`, whether an earlier run made them; `parts`, for each part
            what the process that completed it measured: `images` a second, seconds reading, encoding and keeping, the
            share of time in which the device idled, peak memory, the number of models that shared the reading.
        created: when the cell ended, ISO 8601 in UTC.
    """

    status: str
    spec: Mapping[str, Any]
    created: str
    encoder: Mapping[str, Any]
    splits: Mapping[str, Any]
    features: Mapping[str, Any]
    result: Mapping[str, Any] | None
    parity: Mapping[str, Any] | None
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    error: Mapping[str, str] | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    extraction: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.spec["dataset"]["name"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.spec["model"]["name"])

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return str(self.spec["protocol"]["name"])

    @property
    def mode(self) -> str:
        """`eager`, `jit` or `compiled`."""
        return "jit" if self.spec["jit"] else "compiled" if self.spec.get("compiled") else "eager"

    @property
    def precision(self) -> str:
        """Precision of the weights: `fp32`, `fp16` or `bf16`."""
        return str(self.spec["precision"])

    @property
    def solver(self) -> str:
        """Name of the solver."""
        return str(self.spec.get("solver", DEFAULT_SOLVER))

    @property
    def is_partial(self) -> bool:
        """Whether images were missing, or passed over because they could not be read."""
        return bool(self.read.get("partial") or self.read.get("skipped"))

    @property
    def rank(self) -> int:
        """Which record of a cell counts: a whole result (2) before a partial one (1) before a failure (0)."""
        return 0 if self.status == FAILED else 1 if self.is_partial else 2

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What the record is of: model, mode, dataset, protocol, precision, solver."""
        return (self.model, self.mode, self.dataset, self.protocol, self.precision, self.solver)


def model_slug(record: RunRecord) -> str:
    """The model of a record as a part of a file name."""
    return slug(record.model, is_path=record.spec["model"]["form"] == "file")


def record_path(record: RunRecord, results_dir: Path) -> Path:
    """Where a record is kept."""
    state = STATES[record.rank]
    name = f"{model_slug(record)}.{record.mode}.{slug(record.protocol)}.{record.precision}"
    if record.solver != DEFAULT_SOLVER:
        name += f".{record.solver}"
    folder = slug(record.dataset, is_path=":" in record.dataset)  # as in folder:PATH; no name has a colon
    return results_dir / "records" / folder / f"{name}{state}.json"


def write_record(record: RunRecord, results_dir: Path) -> Path:
    """Write a record in one step; the path.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    path = record_path(record, results_dir)
    write_text(path, json.dumps(asdict(record), indent=2, sort_keys=True, allow_nan=False) + "\n")
    state = STATES[record.rank]
    for lower in STATES[: record.rank]:
        path.with_name(f"{path.name.removesuffix(f'{state}.json')}{lower}.json").unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: under another name, then renamed.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))  # names of files need not be text


def write_bytes(path: Path, data: bytes) -> None:
    """The same with bytes.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    # A name of its own, so that two processes that write the same file do not write into one another.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:  # Ctrl-C too leaves nothing behind
            temporary.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise ResultsError(f"cannot write {path} ({err.strerror}); free it, or name another folder") from err


def check_writable(results_dir: Path) -> None:
    """Find out before the work, not after it, whether results can be written.

    Raises:
        ResultsError: they cannot.
    """
    marker = results_dir / "records" / f".writable-{os.getpid()}"
    write_text(marker, "")
    marker.unlink(missing_ok=True)


def read_records(results_dir: str | Path = "results") -> list[RunRecord]:
    """Read all records of a results folder, sorted by what they are of.

    A file that is damaged or of a later schema is named in a warning and passed over, never changed. Of a cell the
    record of the highest `rank` is taken, of equal ranks the newest; two of one rank are named.
    """
    return [record for _, record in locate_records(results_dir)]


def locate_records(results_dir: str | Path) -> list[tuple[Path, RunRecord]]:
    """The same, each with the file that it is from."""
    best: dict[tuple[str, ...], tuple[Path, RunRecord]] = {}
    for path in sorted((Path(results_dir) / "records").glob("*/*.json")):
        try:
            record = read_record(path)
        except ResultsError as err:
            logger.warning("%s; it is passed over", err)
            continue
        other = best.get(record.key)
        if other is None:
            best[record.key] = (path, record)
            continue
        newer, older = sorted([(path, record), other], key=lambda one: (one[1].rank, one[1].created), reverse=True)
        if newer[1].rank == older[1].rank:
            logger.warning("%s and %s are of one cell; the newer counts, the first of them", newer[0], older[0])
        best[record.key] = newer
    return [best[key] for key in sorted(best)]


def _check_complete(record: RunRecord) -> None:
    """Look up what tables need, so that a record without it is found on reading."""
    for name in ("spec", "encoder", "splits", "features", "seconds", "environment", "read", "extraction"):
        if not isinstance(getattr(record, name), dict):
            raise TypeError(f"{name} is no object")
    if record.status not in (DONE, FAILED) or not isinstance(record.created, str):
        raise TypeError(f"status {record.status!r} or time {record.created!r} is none")
    spec = record.spec
    _ = (record.key, spec["model"]["form"], spec["dataset"]["metric"], spec["protocol"]["feature_point"])
    needed = ("score", "C", "n_iter", "converged", "num_test") if record.status == DONE else ("message",)
    found = record.result if record.status == DONE else record.error
    if not isinstance(found, dict) or not set(needed) <= set(found):
        raise KeyError(*needed)
    # Folds and draws may differ in C, which is None then.
    passed_over = ("converged", "message", "C" if found.get("folds") or found.get("draws") else "")
    numbers = [found[name] for name in needed if name not in passed_over]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"one of {', '.join(needed)} is no number")
    around = found.get("interval")
    ends = [found["score"], *(around[end] for end in ("low", "high"))] if around else numbers[:1]
    if record.status == DONE and not all(0 <= end <= 1 for end in ends):
        raise ValueError(f"a score or interval is no fraction: {ends}")


def read_record(path: str | Path) -> RunRecord:
    """Read one record.

    Raises:
        ResultsError: it is not there, damaged, or of a later schema.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise ResultsError(f"cannot read {path} ({err.strerror or err}); name a record, a .json file") from err
    except (ValueError, RecursionError) as err:  # also bytes that are no text
        raise ResultsError(f"{path} is damaged: no JSON ({err}); run its cell again") from err
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, int):
        raise ResultsError(f"{path} is damaged, or no record: it has no schema version; remove it, or run its cell")
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has schema {version}, newer than {SCHEMA_VERSION}; update probe")
    known = {own.name for own in dataclass_fields(RunRecord)}
    if unknown := sorted(set(fields) - known):
        raise ResultsError(f"{path} is damaged: no record has {', '.join(unknown)}; remove it, or run its cell again")
    try:
        record = RunRecord(**fields)
        _check_complete(record)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        reason = f"without {err}" if isinstance(err, KeyError) else err
        raise ResultsError(f"{path} is damaged: {reason}; run its cell again") from err
    return record
