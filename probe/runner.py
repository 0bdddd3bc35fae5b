"""A run -> its record; a grid is a loop over runs. The only module that sees the whole line.

    dataset, encoder -> features -> probe -> record

`run_one` is that line. `run` and `run_grid` plan, skip what is recorded, and write records and tables.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from probe import environment, grid, paths
from probe.comparison import compare_features, count_flips
from probe.datasets.splits.folds import by_split
from probe.decoder import decode
from probe.errors import ProbeError, ProtocolError, brief
from probe.features.arrays import Extraction, Features
from probe.features.extraction import Session, extract, features_key, num_images, prepare
from probe.features.store import FITS
from probe.leaderboard import derived
from probe.probes.cached_fits import FitCache
from probe.probes.fit import PROBE_VERSION, fit_folds
from probe.probes.result import ProbeResult
from probe.probes.solvers.catalog import device_for
from probe.progress import Progress, show_progress
from probe.records.record import check_writable, write_record
from probe.records.schema import (
    DoneRecord,
    EncoderRecord,
    EnvironmentRecord,
    ErrorRecord,
    FailedRecord,
    FeaturesRecord,
    ParityRecord,
    ResultRecord,
    RunRecord,
)
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import DatasetSpec, ModelSpec, Protocol, RunSpec
from probe.stats import paired

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its score, with what a comparison of modes needs.

    Args:
        spec: the run.
        record: not written yet.
        extraction: its features.
        result: its probe.
        fits: finished fits, cached until the record is written.
    """

    spec: RunSpec
    record: DoneRecord
    extraction: Extraction = field(repr=False)
    result: ProbeResult = field(repr=False)
    fits: FitCache = field(repr=False)


@dataclass(frozen=True)
class FailedRun:
    """A run that has no score, and the exception that prevented it."""

    record: FailedRecord
    exception: Exception


def run_one(
    spec: RunSpec,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    session: Session | None = None,
    finished: Sequence[FinishedRun] = (),
) -> FinishedRun:
    """Run one combination of dataset, encoder and protocol.

    Args:
        spec: the run.
        settings: folders and policies.
        session: datasets, encoders and features that other runs of this process opened; None opens all for this run.
        finished: runs of the same encoder: a JIT run is compared with its eager partner among them.

    Raises:
        Exception: whatever prevents a score, a `ProbeError` where the user can mend it.
    """
    session = session or Session(settings)
    dataset = session.open_dataset(spec.dataset)
    encoder = session.find_encoder(spec)  # loaded only if features are not cached
    extraction = extract(encoder, dataset, session)
    folds = extraction.cut()  # train, val and test of each fold: x float32 (n, d), y
    digests = by_split(folds, lambda k, name: _describe(folds[k][name]))

    partners = [run for run in finished if run.spec.of_all_modes == spec.of_all_modes]
    twin = next((run for run in partners if run.record.features == digests), None)
    fits = FitCache(paths.cache_dir(settings.cache_dir) / FITS)
    started = time.perf_counter()
    if twin is not None:  # the same bytes under the same protocol have the same probe
        logger.info("%s: the features are those of %s, and so is the probe", spec, twin.spec)
        result = twin.result
    else:
        result = fit_folds(
            folds,
            metric=spec.dataset.metric,
            protocol=spec.protocol,
            solver=spec.solver,
            device=device_for(spec.solver, spec.device),
            fit_cache=fits,
            shows_progress=True,
        )
    _refuse_not_finite(spec, result)
    seconds = time.perf_counter() - started

    record = _record(spec, extraction=extraction, features=digests, result=result, fit_seconds=seconds)
    run = FinishedRun(spec, record, extraction, result, fits)
    eager = next((run for run in partners if spec.jit and run.record.mode == "eager"), None)
    return run if eager is None else replace(run, record=replace(record, parity=compare_modes(eager, run)))


def run_grid(
    specs: Sequence[RunSpec], settings: Settings = DEFAULT_SETTINGS, *, rerun: bool = False
) -> Iterator[RunRecord]:
    """Run the runs of a grid that have no complete record; yield the records of all.

    Records of earlier commands come first. Each new record is written before it is yielded, the tables when all are
    done. A run that fails is recorded as failed, and the next one begins.

    Args:
        specs: the runs, as `grid.plan` gives them.
        settings: folders and policies.
        rerun: also run what has a complete record.

    Raises:
        ResultsError: the results folder cannot be written to.
    """
    results_dir = paths.results_dir(settings.results_dir)
    check_writable(results_dir)
    pending = grid.pending(specs, settings, rerun=rerun)
    pending.log()
    try:
        yield from pending.done.values()
        for run in _run_all(pending.runs, Session(settings)):
            yield _write(run, results_dir)
    finally:  # also after Ctrl-C: what is done is in the tables
        derived.write_derived(results_dir)


def run(
    dataset: str | DatasetSpec,
    *,
    model: str | ModelSpec = "ViT-B/32",
    jit: bool = False,
    protocol: str | Protocol = "clip-paper",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    compiled: bool = False,
    solver: str = "sklearn",
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    allow_partial: bool = False,
    skip_corrupt: int = 0,
    workers: int | None = None,
    rerun: bool = False,
) -> DoneRecord:
    """Run one combination of dataset, model and protocol, and write its record and the tables of its model.

    A complete record that exists is returned as it is. The leaderboard is written by `python -m probe tables`, and by
    the command `run`, so that a loop over this function does not write it again and again.

    Args:
        dataset: a name of the catalogue, `folder:PATH` and so on as `get_dataset` takes them, or a `DatasetSpec`.
        model: a name of the catalogue, `random:NAME`, the path of a checkpoint, or a `ModelSpec`.
        jit: run the TorchScript archive as it is.
        protocol: how the probe is fitted.
        device: `auto` is CUDA where there is one, else the CPU.
        precision: `auto` is fp16 on CUDA, fp32 elsewhere.
        batch_size: images encoded at a time; it changes the last bits of features. None is `models.memory`'s.
        compiled: have torch compile the rebuilt model.
        solver: of the probe, `sklearn` or `fast`.
        data_dir: folder of datasets, see `probe.paths`.
        weights_dir: folder of checkpoints, likewise.
        results_dir: folder of records and tables, likewise.
        cache_dir: folder of features, likewise.
        offline: never touch the network.
        allow_partial: evaluate on the images that are present where a dataset lacks some; the record is marked.
        skip_corrupt: skip up to this many images that cannot be read; the record names them.
        workers: processes that read images; None is `reading.default_workers`.
        rerun: run it again even if it has a complete record.

    Raises:
        Exception: whatever prevents a score, a `ProbeError` where the user can mend it; the record of the failure is
            written first.
    """
    (spec,) = grid.plan(
        [dataset],
        [model],
        protocols=[protocol],
        jit_modes=[jit],
        device=device,
        precision=precision,
        batch_size=batch_size,
        compiled=compiled,
        solver=solver,
    )
    settings = Settings(
        data_dir=data_dir,
        weights_dir=weights_dir,
        results_dir=results_dir,
        cache_dir=cache_dir,
        offline=offline,
        allow_partial=allow_partial,
        skip_corrupt=skip_corrupt,
        workers=workers,
    )
    folder = paths.results_dir(settings.results_dir)
    check_writable(folder)
    pending = grid.pending([spec], settings, rerun=rerun)
    pending.log()
    if pending.done:
        return pending.done[spec]
    (outcome,) = _run_all([spec], Session(settings))
    derived.write_tables_of(_write(outcome, folder), folder)
    if isinstance(outcome, FailedRun):
        raise outcome.exception
    return outcome.record


def _run_all(specs: Sequence[RunSpec], session: Session) -> Iterator[FinishedRun | FailedRun]:
    with show_progress() as progress:
        groups = grid.by_dataset(specs)
        progress.expect(sum(map(num_images, groups)))
        for group in groups:
            yield from run_dataset(group, session, progress)


def run_dataset(
    specs: Sequence[RunSpec], session: Session, progress: Progress | None = None
) -> Iterator[FinishedRun | FailedRun]:
    """Run the runs of one dataset in their order; features of all their encoders are extracted together before.

    Args:
        specs: the runs.
        session: opens the dataset and loads the encoders.
        progress: has been told of the images of these runs; None shows nothing.
    """
    expected = num_images(specs) if progress is not None else 0
    failures = prepare(specs, session, progress or Progress(is_shown=False), expected=expected)
    finished: list[FinishedRun] = []
    for spec in specs:
        logger.info("%s", spec)
        try:
            if features_key(spec) in failures:
                raise failures[features_key(spec)]
            finished = [run for run in finished if run.spec.model == spec.model]
            run = run_one(spec, session.settings, session=session, finished=finished)
        except Exception as err:  # a grid goes on past whatever breaks a run, and the record names it
            logger.debug("%s", spec, exc_info=not isinstance(err, ProbeError))
            yield FailedRun(failure(spec, {"type": type(err).__name__, "message": brief(str(err) or repr(err))}), err)
        else:
            finished.append(run)
            yield run
    session.extracted.clear()


def _write(run: FinishedRun | FailedRun, results_dir: Path) -> RunRecord:
    write_record(run.record, results_dir)
    if isinstance(run, FinishedRun):
        run.fits.clear()
    return run.record


def _refuse_not_finite(spec: RunSpec, result: ProbeResult) -> None:
    """Refuse a result that JSON cannot hold.

    Raises:
        ProtocolError: a number is infinite or NaN.
    """
    gradient = (result.gradient_norm, result.gradient_ratio)
    numbers = (result.score, result.objective, *gradient, result.excess, result.suboptimality)
    if not np.isfinite(numbers).all():
        raise ProtocolError(f"{spec}: score, objective or gradient is not finite, {numbers}; see its features")


def failure(spec: RunSpec, error: Mapping[str, str]) -> FailedRecord:
    """Return the record of a run that failed.

    Args:
        spec: the run.
        error: `type` and `message` of the error.
    """
    return FailedRecord(
        spec=spec,
        created=_now(),
        encoder=EncoderRecord(),
        splits={},
        features={},
        error=ErrorRecord(error["type"], error["message"]),
        seconds={},
        environment=_typed(environment.describe(spec.device), EnvironmentRecord),
    )


def _describe(features: Features) -> FeaturesRecord:
    sample = {point: tuple(values) for point, values in features.sample().items()}
    return FeaturesRecord(features.compute_sha256(), sample)


def compare_modes(eager: FinishedRun, jit: FinishedRun) -> ParityRecord:
    """Compare a JIT run with the eager one: features over all splits, test predictions, scores."""
    differences = compare_features(eager.extraction.features, jit.extraction.features)
    largest = {point: found.max_abs for point, found in differences.items()}
    flipped = count_flips(eager.result.predictions, jit.result.predictions)
    test = paired.compare(eager.result.outcomes, jit.result.outcomes, same_images=eager.result.same_images)
    # The eager score tells later whether the eager run was run again since.
    return ParityRecord(largest, flipped, p_value=test.p_value, eager_score=eager.result.score)


def _record(
    spec: RunSpec,
    *,
    extraction: Extraction,
    features: Mapping[str, FeaturesRecord],
    result: ProbeResult,
    fit_seconds: float,
) -> DoneRecord:
    seconds = {**extraction.seconds, "fit": fit_seconds}
    return DoneRecord(
        spec=spec,
        created=_now(),
        encoder=extraction.encoder,
        read=extraction.read,
        splits=dict(extraction.splits),
        features=dict(features),
        result=_typed({**result.to_dict(), "probe_version": PROBE_VERSION}, ResultRecord),
        extraction=extraction.extraction,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        environment=_typed(environment.describe(spec.device), EnvironmentRecord),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _typed(described: Any, kind: type[T]) -> T:
    return decode(json.loads(json.dumps(described)), kind)  # JSON has neither tuples nor NumPy's numbers
