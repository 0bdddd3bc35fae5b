"""Records of runs <-> JSON files, one a run: `<results>/records/<dataset>/<model>.<mode>.<protocol>.<precision>.json`.

Fits of another solver than scikit-learn's have it before the `.json`.

A run that failed has its record beside, `....failed.json`, and one of which images were missing or skipped has
`....partial.json`: neither takes the place of a whole result, and a whole result removes both. Files are written under
another name and renamed, so that a reader never meets half of one. See `records.schema` for what is in a record, and
`records.migration` for records of earlier versions.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.atomic import make_folder, temporary_beside, write_atomically
from probe.decoder import decode
from probe.errors import ResultsError, listed
from probe.models.catalog import CATALOG as MODELS
from probe.records.checks import find_fault
from probe.records.migration import migrate
from probe.records.schema import (
    DONE,
    FAILED,
    SCHEMA_VERSION,
    STATES,
    DoneRecord,
    FailedRecord,
    ResultRecord,
    RunRecord,
)
from probe.specs import DatasetSpec, ModelSpec, RunSpec, unique_slug

if TYPE_CHECKING:
    from probe.stats.outcomes import Outcomes

logger = logging.getLogger(__name__)

DEFAULT_SOLVER = "sklearn"
ALL_FILES = "*/*.json"
PUBLISHED_MODELS = tuple(name for row in MODELS for name in (row.name, f"random:{row.name}"))


def model_slug(record: RunRecord) -> str:
    """Return the model of a record as a part of a file name, unique for each model."""
    return _slug_of_model(record.spec.model)


def _slug_of_model(spec: ModelSpec) -> str:
    return unique_slug(spec.name, is_path=spec.form == "file", catalog=PUBLISHED_MODELS)


def dataset_slug(record: RunRecord) -> str:
    """Return the dataset of a record as a part of a file name. A path, as in folder:PATH, keeps only its last part."""
    return _slug_of_dataset(record.spec.dataset)


def _slug_of_dataset(spec: DatasetSpec) -> str:
    return unique_slug(spec.name, is_path=":" in spec.name)  # no name of the catalogue has a colon


def record_path(record: RunRecord, results_dir: Path) -> Path:
    """Return the path of a record in a results folder."""
    return run_path(record.spec, results_dir, state=STATES[record.rank])


def run_path(spec: RunSpec, results_dir: Path, *, state: str = "") -> Path:
    """Return the path of the record of a run; `state` is empty for a complete record, else one of `STATES`."""
    solver = "" if spec.solver == DEFAULT_SOLVER else f".{unique_slug(spec.solver)}"
    names = (_slug_of_model(spec.model), spec.mode, unique_slug(spec.protocol.name), unique_slug(spec.precision))
    return results_dir / "records" / _slug_of_dataset(spec.dataset) / f"{'.'.join(names)}{solver}{state}.json"


def write_record(record: RunRecord, results_dir: Path) -> Path:
    """Write a record in one step; the path.

    Raises:
        ResultsError: the folder cannot be written to, or the file holds the record of a different run.
    """
    path = record_path(record, results_dir)
    _refuse_other(path, record)
    write_text(path, json.dumps(record.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n")
    state = STATES[record.rank]
    for lower in STATES[: record.rank]:
        path.with_name(f"{path.name.removesuffix(f'{state}.json')}{lower}.json").unlink(missing_ok=True)
    return path


def _refuse_other(path: Path, record: RunRecord) -> None:
    """Refuse to replace the record of a different run; a damaged file may be replaced.

    Two runs can have the same file name on a file system that ignores case.
    """
    try:
        key = read_record(path).key
    except ResultsError:
        return
    if key != record.key:
        raise ResultsError(
            f"{path} holds the record of {listed(key)}, and the record of {listed(record.key)} would overwrite it; "
            "rename the dataset, model or protocol of one of them, or name another results folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: under another name, then renamed.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    write_bytes(path, encode(text))


def encode(text: str) -> bytes:
    """UTF-8; names of files need not be text, and what is none is escaped."""
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """The same with bytes.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    try:
        make_folder(path.parent)
        with write_atomically(path) as file:
            file.write(data)
    except OSError as err:
        raise ResultsError(f"cannot write {path} ({err.strerror}); free it, or name another folder") from err


def check_writable(results_dir: Path) -> None:
    """Find out before the work, not after it, whether results can be written.

    Raises:
        ResultsError: they cannot.
    """
    marker = temporary_beside(results_dir / "records" / "writable")
    write_text(marker, "")
    marker.unlink(missing_ok=True)


def read_records(results_dir: str | Path = "results", *, files: str = ALL_FILES) -> list[RunRecord]:
    """Read all records of a results folder, sorted by what they are of.

    A file that is damaged or of a later schema is named in a warning and passed over, never changed. Of a cell the
    record of the highest `rank` is taken, of equal ranks the newest; two of one rank are named.
    `files` chooses files below the folder `records`.
    """
    return [record for _, record in locate_records(results_dir, files=files)]


def locate_records(results_dir: str | Path, *, files: str = ALL_FILES) -> list[tuple[Path, RunRecord]]:
    """The same, each with the file that it is from."""
    found, faults = scan_records(results_dir, files=files)
    for fault in faults:
        logger.warning("%s; it is passed over", fault)
    return found


def scan_records(
    results_dir: str | Path, *, files: str = ALL_FILES
) -> tuple[list[tuple[Path, RunRecord]], list[ResultsError]]:
    """The same, and what is wrong with the files that cannot be read."""
    best: dict[tuple[str, ...], tuple[Path, RunRecord]] = {}
    faults = []
    for path in sorted((Path(results_dir) / "records").glob(files)):
        try:
            record = read_record(path)
        except ResultsError as err:
            faults.append(err)
            continue
        other = best.get(record.key, (path, record))
        newer, older = sorted([(path, record), other], key=lambda one: (one[1].rank, one[1].created), reverse=True)
        if newer[0] != older[0] and newer[1].rank == older[1].rank:
            logger.warning("%s is passed over: %s is of the same cell, and newer", older[0], newer[0])
        best[record.key] = newer
    return [best[key] for key in sorted(best)], faults


def read_record(path: str | Path) -> RunRecord:
    """Read one record.

    Raises:
        ResultsError: the file is missing, damaged, or of a later schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        plain = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as err:
        raise ResultsError(f"cannot read {path} ({err.strerror or err}); name a record, a .json file") from err
    except (ValueError, RecursionError) as err:  # also bytes that are not text, and a name with a NUL
        raise ResultsError(f"{path} is damaged: no JSON ({err}); run it again") from err
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ResultsError(f"{path} is damaged, or no record: it has no schema version; remove it, or run it again")
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has schema {version}, newer than {SCHEMA_VERSION}; update probe")
    try:
        record = decode_record(migrate(plain))
        fault = find_fault(record)
    except ValueError as err:
        fault = str(err)
    if fault:
        raise ResultsError(f"{path} is damaged: {fault}; run it again")
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def decode_record(plain: Mapping[str, Any]) -> RunRecord:
    """Return a record of the newest schema from what JSON has of it.

    Raises:
        ValueError: a field is missing, unknown or of a wrong type; the message begins with its path.
    """
    known = {own.name for kind in (DoneRecord, FailedRecord) for own in fields(kind)} | {"status"}
    if unknown := sorted(plain.keys() - known):
        raise ValueError(f"no record has {listed(unknown)}")
    status = plain.get("status")
    if status not in (DONE, FAILED):
        raise ValueError(f"status is {status!r}, not done or failed")
    kind: type[DoneRecord | FailedRecord] = DoneRecord if status == DONE else FailedRecord
    if plain.get("error" if status == DONE else "result") is not None:
        raise ValueError("a record that is done has a result, one that failed an error, and neither has both")
    given = {own.name: plain[own.name] for own in fields(kind) if own.name in plain}
    return decode(given, kind)


def test_images(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the test splits of a record and their digests: scores of different test images do not compare."""
    return tuple(sorted((name, split.sha256) for name, split in record.splits.items() if name.startswith("test")))


def outcomes_of(record: RunRecord) -> list[Outcomes]:
    """Return the outcomes of the test images, one for each fold or draw.

    Raises:
        ResultsError: they are damaged, or an earlier version recorded none.
    """
    if record.result is None or not record.result.outcomes:
        raise ResultsError("it has no outcomes of test images, which records have from schema 3 on; run it again")
    return unpack_outcomes(record.result)


def unpack_outcomes(result: ResultRecord) -> list[Outcomes]:
    """Return the outcomes of a result, which may have none.

    Raises:
        ResultsError: they are damaged.
    """
    from probe.stats.outcomes import unpack  # NumPy, which records without outcomes do without

    return [unpack(asdict(packed)) for packed in result.outcomes]
