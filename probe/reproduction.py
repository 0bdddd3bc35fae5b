"""Run records again, from what they say alone; `verdicts` says what came of it.

Nothing is taken from the feature store, unless the caller names one, and nothing of the records is changed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from probe.environment import threads
from probe.errors import ProbeError, ResultsError
from probe.models.devices import resolve_execution
from probe.records.record import read_record, record_path, scan_records
from probe.records.schema import DoneRecord, FailedRecord, RunRecord
from probe.records.verdicts import NOT_RUN, Reproduction, judge
from probe.runner import run_grid
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import RunSpec

logger = logging.getLogger(__name__)


def reproduce(
    record: str | Path | RunRecord,
    *,
    tolerance: int | None = None,
    device: str | None = None,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    offline: bool = False,
) -> Reproduction:
    """Run a record again and compare.

    On the CPU torch computes with as many threads as it did, as far as there are processors: they change last bits.

    Args:
        record: or its file.
        tolerance: test images by which the score may differ; None is one in a thousand, and at least one.
        device: to run on; None is that of the record.
        data_dir: folder of datasets, see `probe.paths`.
        weights_dir: folder of checkpoints, likewise.
        cache_dir: folder of features that may be used; None makes all of them again.
        results_dir: where the new record is written; None is nowhere.
        offline: never touch the network.

    Raises:
        ResultsError: the record cannot be read, is of a cell that failed, or would be overwritten.
    """
    if isinstance(record, str | Path):
        record = read_record(record)
    if isinstance(record, FailedRecord):
        raise ResultsError(f"{_name(record)} failed, so that there is no score to reproduce; run it again")
    settings = Settings(
        data_dir=data_dir, weights_dir=weights_dir, cache_dir=cache_dir, results_dir=results_dir, offline=offline
    )
    (found,) = reproduce_all([record], tolerance=tolerance, device=device, settings=settings)
    return found


def find_records(path: str | Path) -> tuple[list[RunRecord], list[ResultsError]]:
    """The records of a results folder, or the one in a file; and what is wrong with those that cannot be read.

    Raises:
        ResultsError: there is none.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises if a name is too long
        return [read_record(path)], []
    found, faults = scan_records(path)
    if not found and not faults:
        raise ResultsError(f"no records in {path}; name a results folder, or one of its records/DATASET/....json")
    return [record for _, record in found], faults


def estimate_seconds(record: RunRecord, others: Iterable[RunRecord] = ()) -> float:
    """How long its machine took, features made anew.

    Args:
        record: of which to say it.
        others: records among which is perhaps the other mode of the cell: one whose features had the same bytes took
            its probe from there, in no time.
    """
    subsets = record.extraction.subsets.values()
    encoding = sum(
        subset.images / subset.images_per_second for subset in subsets if subset.images and subset.images_per_second
    )
    same = [one for one in others if one.key_of_all_modes == record.key_of_all_modes]
    fit = max(one.seconds.get("fit", 0.0) for one in (record, *same))
    return float(record.seconds.get("load", 0.0) + max(encoding, record.seconds.get("extract", 0.0)) + fit)


def reproduce_all(
    records: Sequence[RunRecord],
    *,
    tolerance: int | None = None,
    device: str | None = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> Iterator[Reproduction]:
    """Run records again, each as soon as it is done; features of one model and dataset are made once.

    While it is at work, the caller's own torch computes with the threads of the record, too.

    Args:
        records: any; those whose cell failed are passed over.
        tolerance: see `reproduce`.
        device: likewise.
        settings: folders and policies; `cache_dir` and `results_dir` as `reproduce` takes them.

    Raises:
        ResultsError: two of them are of one cell, or the results folder cannot be written to.
    """
    planned: dict[RunSpec, DoneRecord] = {}
    for record in records:
        if isinstance(record, FailedRecord):
            logger.info("%s: failed, there is no score to reproduce", _name(record))
            continue
        try:
            spec = _plan(record, device)
        except ProbeError as err:
            yield Reproduction(record, None, NOT_RUN, str(err))
            continue
        if record.key in [other.key for other in planned.values()]:
            raise ResultsError(f"two records are of {spec}; reproduce one after the other")
        if settings.results_dir is not None:
            _refuse_overwriting(record, Path(settings.results_dir))
        planned[spec] = record
    with ExitStack() as stack:
        cache, results = (
            folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="probe-"))
            for folder in (settings.cache_dir, settings.results_dir)
        )
        settings = replace(settings, cache_dir=cache, results_dir=results)
        for (num_threads, num_blas, is_partial, num_corrupt), specs in _group(planned).items():
            own = replace(settings, allow_partial=is_partial, skip_corrupt=num_corrupt)
            of_key = {planned[spec].key: planned[spec] for spec in specs}
            with threads(num_threads, blas=num_blas):
                for again in run_grid(specs, own, rerun=True):
                    yield judge(of_key[again.key], again, tolerance=tolerance)


def _refuse_overwriting(record: RunRecord, results_dir: Path) -> None:
    path = record_path(record, results_dir)
    if path.is_file() and read_record(path).created == record.created:
        raise ResultsError(f"the new record would replace {path}, which is run again; name another folder")


def _plan(record: DoneRecord, device: str | None) -> RunSpec:
    spec = record.spec
    try:
        run = resolve_execution(device or spec.device, precision=spec.precision, jit=spec.jit, compiled=spec.compiled)
    except ProbeError as err:
        raise ResultsError(f"it was made on {spec.device}, and {err}") from err
    return replace(spec, device=str(run.device))


def _group(planned: Mapping[RunSpec, DoneRecord]) -> dict[tuple[int, int, bool, int], list[RunSpec]]:
    """Cells that run in one grid: with as many threads, of torch and of BLAS, and images that may be missing."""
    groups: dict[tuple[int, int, bool, int], list[RunSpec]] = {}
    for spec in sorted(planned, key=lambda spec: (spec.dataset.name, spec.model.name, spec.jit)):
        record = planned[spec]
        # Of earlier versions and other devices 0: as many as there are here.
        num_threads = (record.environment.torch_threads or 0) if spec.device == "cpu" else 0
        num_blas = record.environment.blas_threads or 0
        missing, corrupt = bool(record.read.partial), len(record.read.skipped)
        groups.setdefault((num_threads, num_blas, missing, corrupt), []).append(spec)
    return groups


def _name(record: RunRecord) -> str:
    return f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}"
