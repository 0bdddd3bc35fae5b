"""Reproduction of records: run them again from their specifications alone, and compare, see `records.verdicts`.

Cached features are not used unless the caller names a cache folder. The original records are never changed.
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
from probe.models.own import FORM
from probe.models.own_files import is_file
from probe.probes.cached_fits import FitCache
from probe.records.record import read_record, record_path, scan_records, write_record
from probe.records.schema import DoneRecord, FailedRecord, RunRecord
from probe.records.verdicts import NOT_RUN, Reproduction, judge
from probe.runner import run_grid
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import RunSpec
from probe.supplied import fit_again

logger = logging.getLogger(__name__)


def reproduce(
    record: str | Path | RunRecord,
    *,
    tolerance: int | None = None,
    device: str | None = None,
    features: str | Path | None = None,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    offline: bool = False,
    allow_code: bool = False,
) -> Reproduction:
    """Run a record again and compare the results.

    On the CPU, torch computes with the number of threads in the record if there are as many processors, because the
    number of threads changes the last bits.

    Args:
        record: a record or its path.
        tolerance: number of test images by which the score may differ; None is one in a thousand, and at least one.
        device: device to run on; None is the device of the record.
        features: features of a record of supplied features, see `probe.fit_features`; such a record is only reproduced
            if they are given.
        data_dir: folder of datasets; None is the default of `probe.paths`.
        weights_dir: folder of checkpoints; None is the default of `probe.paths`.
        cache_dir: folder of cached features to use; None extracts all features again.
        results_dir: folder to write the new record to; None does not write it.
        offline: do not use the network.
        allow_code: run the Python file that the record of a model `module:FILE.py:FUNCTION` names; False does not
            reproduce such a record.

    Raises:
        ResultsError: the record cannot be read, its run failed, or it would be overwritten.
    """
    if isinstance(record, str | Path):
        record = read_record(record)
    if isinstance(record, FailedRecord):
        raise ResultsError(f"{_name(record)} failed and has no score to reproduce; run it again")
    settings = Settings(
        data_dir=data_dir, weights_dir=weights_dir, cache_dir=cache_dir, results_dir=results_dir, offline=offline
    )
    (result,) = reproduce_all(
        [record], tolerance=tolerance, device=device, features=features, settings=settings, allow_code=allow_code
    )
    return result


def find_records(path: str | Path) -> tuple[list[RunRecord], list[ResultsError]]:
    """Return the records of a results folder or of a file, and an error for each file that cannot be read.

    Raises:
        ResultsError: no record was found.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises if a name is too long
        return [read_record(path)], []
    located, faults = scan_records(path)
    if not located and not faults:
        raise ResultsError(f"no records in {path}; give a results folder, or the .json file of a record")
    return [record for _, record in located], faults


def estimate_seconds(record: RunRecord, others: Iterable[RunRecord] = ()) -> float:
    """Return the seconds that a run took, with features extracted rather than cached.

    Args:
        record: record of the run.
        others: records that may include the other mode of the run. If both modes have the same features, only one of
            their records has the time of the fit.
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
    features: str | Path | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    allow_code: bool = False,
) -> Iterator[Reproduction]:
    """Run records again, and yield each result when it is ready. Runs of a model and dataset share their features.

    Meanwhile, torch computes with the number of threads in the record, also for the caller.

    Args:
        records: records; failed runs are skipped.
        tolerance: see `reproduce`.
        device: see `reproduce`.
        features: see `reproduce`.
        settings: folders and policies; see `reproduce` for `cache_dir` and `results_dir`.
        allow_code: see `reproduce`.

    Raises:
        ResultsError: two records have the same run, or the results folder cannot be written to.
    """
    supplied = {(one.dataset, one.model) for one in records if one.extraction.supplied is not None}
    planned: dict[RunSpec, DoneRecord] = {}
    for record in records:
        if isinstance(record, FailedRecord):
            logger.info("skipped %s: the run failed and has no score to reproduce", _name(record))
            continue
        if record.extraction.supplied is not None:
            is_only = len(supplied) == 1
            yield _reproduce_supplied(record, features, tolerance, device=device, settings=settings, is_only=is_only)
            continue
        model = record.spec.model
        if model.form == FORM and is_file(model) and not allow_code:
            reason = f"its model is Python code in {model.source}; read the code, and run it with --allow-code"
            yield Reproduction(record, None, NOT_RUN, reason)
            continue
        try:
            spec = _plan(record, device)
        except ProbeError as err:
            yield Reproduction(record, None, NOT_RUN, str(err))
            continue
        if record.key in [other.key for other in planned.values()]:
            raise ResultsError(f"two records have the run {spec}; reproduce them one after the other")
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
            # A record with duplicate class names was made with this permission.
            own = replace(settings, allow_partial=is_partial, skip_corrupt=num_corrupt, allow_duplicate_names=True)
            of_key = {planned[spec].key: planned[spec] for spec in specs}
            with threads(num_threads, blas=num_blas):
                for again in run_grid(specs, own, rerun=True):
                    yield judge(of_key[again.key], again, tolerance=tolerance)


def _reproduce_supplied(
    record: DoneRecord,
    features: str | Path | None,
    tolerance: int | None,
    *,
    device: str | None,
    settings: Settings,
    is_only: bool,
) -> Reproduction:
    """Fit the probe of a record of supplied features again, on features that are given again, see `fit_again`."""
    origin = record.extraction.supplied
    name = origin.file if origin is not None else ""
    if features is None:
        reason = f"its features were supplied{f' in {name}' if name else ''}; give them again with --features"
        return Reproduction(record, None, NOT_RUN, reason)
    if settings.results_dir is not None:
        _refuse_overwriting(record, Path(settings.results_dir))
    try:
        own_device = str(resolve_execution(device or record.spec.device).device)
        num_threads = (record.environment.torch_threads or 0) if own_device == "cpu" else 0
        with threads(num_threads, blas=record.environment.blas_threads or 0):
            again = fit_again(record, features, device=own_device, fit_cache=FitCache(None), is_only=is_only)
    except ProbeError as err:
        return Reproduction(record, None, NOT_RUN, str(err))
    if settings.results_dir is not None:
        write_record(again, Path(settings.results_dir))
    return judge(record, again, tolerance=tolerance)


def _refuse_overwriting(record: RunRecord, results_dir: Path) -> None:
    path = record_path(record, results_dir)
    if path.is_file() and read_record(path).created == record.created:
        raise ResultsError(f"the new record would replace the original {path}; name another folder with --results-dir")


def _plan(record: DoneRecord, device: str | None) -> RunSpec:
    spec = record.spec
    try:
        run = resolve_execution(device or spec.device, precision=spec.precision, jit=spec.jit, compiled=spec.compiled)
    except ProbeError as err:
        raise ResultsError(f"the record was made on {spec.device}, and {err}") from err
    return replace(spec, device=str(run.device))


def _group(planned: Mapping[RunSpec, DoneRecord]) -> dict[tuple[int, int, bool, int], list[RunSpec]]:
    """Return runs grouped by the threads of torch and of BLAS, and by the images that may be missing or skipped."""
    groups: dict[tuple[int, int, bool, int], list[RunSpec]] = {}
    for spec in sorted(planned, key=lambda spec: (spec.dataset.name, spec.model.name, spec.jit)):
        record = planned[spec]
        # Records of earlier versions and of other devices do not fix the number of threads; 0 leaves it unchanged.
        num_threads = (record.environment.torch_threads or 0) if spec.device == "cpu" else 0
        num_blas = record.environment.blas_threads or 0
        missing, corrupt = bool(record.read.partial), len(record.read.skipped)
        groups.setdefault((num_threads, num_blas, missing, corrupt), []).append(spec)
    return groups


def _name(record: RunRecord) -> str:
    return f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}"
