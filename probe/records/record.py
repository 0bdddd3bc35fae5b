"""Read and write records: one JSON file per run, below the folder `records` of a results folder. Heads are in `heads`.

The path is `<dataset>/<model>.<mode>.<protocol>.<precision>.json`, with the solver before `.json` unless it is
scikit-learn's or the protocol fits nothing. The record of a failed run ends in `.failed.json` instead. If images were
missing or skipped, the record ends in `.partial.json`. Neither replaces a complete result, and a complete result
removes both. See `records.schema` for the fields of a record, and `records.migration` for records of earlier versions.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from probe.atomic import make_folder, temporary_beside, write_atomically
from probe.decoder import decode
from probe.errors import ResultsError, listed
from probe.models.catalog import MODELS
from probe.records.checks import find_fault
from probe.records.migration import migrate
from probe.records.schema import (
    DONE,
    FAILED,
    SCHEMA_VERSION,
    STATES,
    DoneRecord,
    FailedRecord,
    RunRecord,
)
from probe.specs import NO_SOLVER, DatasetSpec, ModelSpec, RunSpec, unique_slug

logger = logging.getLogger(__name__)

# The solvers without a part in the names of files: `sklearn` was the default when the names were chosen.
UNNAMED_SOLVERS = ("sklearn", NO_SOLVER)
ALL_FILES = "*/*.json"
PUBLISHED_MODELS = tuple(name for row in MODELS for name in (row.name, f"random:{row.name}"))


def model_slug(spec: ModelSpec) -> str:
    """Return the name of a model for use in a file name, different for each model."""
    return unique_slug(spec.name, is_path=spec.form == "file", catalog=PUBLISHED_MODELS)


def dataset_slug(spec: DatasetSpec) -> str:
    """Return the name of a dataset for use in a file name. Only the last part of a path, as in folder:PATH, is used."""
    return unique_slug(spec.name, is_path=":" in spec.name)  # no name in the catalogue has a colon


def run_path(spec: RunSpec, results_dir: Path) -> Path:
    """Return the path of the record of a run that is complete."""
    solver = "" if spec.solver in UNNAMED_SOLVERS else f".{unique_slug(spec.solver)}"
    names = (model_slug(spec.model), spec.mode, unique_slug(spec.protocol.name), unique_slug(spec.precision))
    return results_dir / "records" / dataset_slug(spec.dataset) / f"{'.'.join(names)}{solver}.json"


def head_path(record: RunRecord, results_dir: Path, part: int = 0) -> Path:
    """Return the path of the head of a record, or of one of its folds or few-shot draws, from 1 on."""
    path = record_path(record, results_dir)
    stem = f"{path.stem}.{part}" if part else path.stem
    return results_dir / "heads" / path.parent.name / f"{stem}.safetensors"


def record_path(record: RunRecord, results_dir: Path) -> Path:
    """Return the path of a record in a results folder."""
    return run_path(record.spec, results_dir).with_suffix(f"{STATES[record.rank]}.json")


def write_record(record: RunRecord, results_dir: Path) -> Path:
    """Write a record in one step, remove records of the run that it supersedes, and return its path.

    Raises:
        ResultsError: the folder cannot be written to, or the file holds the record of a different run, as can happen on
            a file system that ignores case.
    """
    whole, rank = run_path(record.spec, results_dir), record.rank
    path = whole.with_suffix(f"{STATES[rank]}.json")
    other = try_to_read(path)
    if other is not None and other.key != record.key:
        raise ResultsError(
            f"{path} holds the record of {listed(other.key)}, and the record of {listed(record.key)} would overwrite "
            "it; rename the dataset, model or protocol of one of them, or name another results folder"
        )
    write_text(path, json.dumps(record.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n")
    for superseded in STATES[:rank]:
        whole.with_suffix(f"{superseded}.json").unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    write_bytes(path, encode(text))


def encode(text: str) -> bytes:
    """Encode as UTF-8. Characters of file names that are not valid text are escaped."""
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, by `atomic.write_atomically`.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    try:
        make_folder(path.parent)
        with write_atomically(path) as file:
            file.write(data)
    except OSError as err:
        raise ResultsError(
            f"cannot write {path} ({err.strerror}); check its permissions and disk space, or name another folder"
        ) from err


def check_writable(results_dir: Path) -> None:
    """Check that results can be written, before the work of a grid begins.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    check_folder(results_dir / "records", f"the results folder {results_dir}", option="--results-dir")


def check_folder(folder: Path, name: str, *, option: str) -> None:
    """Check that a folder can be written to; `name` and `option` are for the message.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    marker = temporary_beside(folder / "writable")
    try:
        make_folder(folder)
        marker.touch()
        marker.unlink(missing_ok=True)
    except OSError as err:
        raise ResultsError(f"cannot write to {name} ({err.strerror}); name another one with {option}") from err


def read_records(results_dir: str | Path = "results", *, files: str = ALL_FILES) -> list[RunRecord]:
    """Return all records of a results folder, sorted by their `key`.

    A file that is damaged or of a later schema is skipped with a warning, and never changed. If a run has several
    records, the one with the highest `rank` is returned, and of equal ranks the newest, with a warning.

    Args:
        results_dir: a results folder.
        files: pattern of the files to read, below the folder `records`.
    """
    return [record for _, record in locate_records(results_dir, files=files)]


def locate_records(results_dir: str | Path, *, files: str = ALL_FILES) -> list[tuple[Path, RunRecord]]:
    """Return the records of `read_records`, each with the path of its file."""
    located, faults = scan_records(results_dir, files=files)
    for fault in faults:
        logger.warning("skipped a record: %s", fault)
    return located


def scan_records(
    results_dir: str | Path, *, files: str = ALL_FILES
) -> tuple[list[tuple[Path, RunRecord]], list[ResultsError]]:
    """Return the records of `read_records` with their paths, and an error for each file that cannot be read."""
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
            logger.warning("skipped %s: %s is a newer record of the same run", older[0], newer[0])
        best[record.key] = newer
    return [best[key] for key in sorted(best)], faults


def try_to_read(path: Path) -> RunRecord | None:
    """Return a record, or None if its file is missing or damaged."""
    with suppress(ResultsError):
        return read_record(path)
    return None


def read_record(path: str | Path) -> RunRecord:
    """Return the record of a file.

    Raises:
        ResultsError: the file is missing, damaged, or of a later schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        plain = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as err:
        raise ResultsError(f"cannot read {path} ({err.strerror or err}); give the .json file of a record") from err
    except (ValueError, RecursionError) as err:  # also bytes that are not text, and a name with a NUL
        if Path(path).suffix != ".json":
            raise ResultsError(f"{path} is not a record; give the .json file of a record") from err
        raise ResultsError(
            f"{path} is damaged: it is not valid JSON ({err}); remove the file and repeat the run"
        ) from err
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ResultsError(
            f"{path} is damaged or not a record: it has no schema_version; remove the file and repeat the run"
        )
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; update probe")
    try:
        record = decode_record(migrate(plain))
        fault = find_fault(record)
    except ValueError as err:
        fault = str(err)
    if fault:
        raise ResultsError(f"{path} is damaged: {fault}; remove the file and repeat the run")
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def decode_record(plain: Mapping[str, Any]) -> RunRecord:
    """Return the record that plain values of the newest schema describe.

    Raises:
        ValueError: a field is missing, unknown or has a wrong type; the message begins with its path.
    """
    known = {own.name for kind in (DoneRecord, FailedRecord) for own in fields(kind)} | {"status"}
    if unknown := sorted(plain.keys() - known):
        raise ValueError(f"it has unknown fields ({listed(unknown)})")
    status = plain.get("status")
    if status not in (DONE, FAILED):
        raise ValueError(f"status is {status!r}, expected {DONE!r} or {FAILED!r}")
    kind: type[DoneRecord | FailedRecord] = DoneRecord if status == DONE else FailedRecord
    if plain.get(other := "error" if status == DONE else "result") is not None:
        raise ValueError(f"its status is {status!r}, but the field {other} is not null")
    given = {own.name: plain[own.name] for own in fields(kind) if own.name in plain}
    return decode(given, kind)


def test_images(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the names and digests of the test splits; only scores on the same test images can be compared."""
    return tuple(sorted((name, split.sha256) for name, split in record.splits.items() if name.startswith("test")))


def prompts_of(record: RunRecord) -> tuple[tuple[str, ...], str] | None:
    """Return templates and digest of the class names of a zero-shot record, which must agree in scores to compare.

    Records of other protocols have no prompts: None.
    """
    if not isinstance(record, DoneRecord) or record.prompts is None:
        return None
    return record.prompts.templates, record.prompts.class_names_sha256


def weights_of(records: Iterable[RunRecord]) -> set[str]:
    """Return the digests of the weights of records. Records of early versions have none."""
    return {record.encoder.weights_sha256 for record in records if record.encoder.weights_sha256}
