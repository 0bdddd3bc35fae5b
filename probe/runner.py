"""Runs of probes, from the specification to the record. This is the only module that spans all steps.

    dataset, encoder -> features -> probe -> record

`run_one` does all of these steps. `run` and `run_grid` plan, skip what is recorded, and write records and tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from probe import environment, grid, paths
from probe.comparison import compare_features, count_flips
from probe.datasets.opening import OpenedDataset
from probe.datasets.splits.folds import by_split
from probe.datasets.test_classes import map_classes
from probe.energy import EnergyMeter
from probe.errors import ProbeError, ResultsError, brief
from probe.features.arrays import Extraction
from probe.features.extraction import Session, extract, prepare_grid
from probe.features.further_tests import from_extraction, relabel
from probe.features.jobs import features_key
from probe.features.pixels import leaks_of_features
from probe.features.store import FITS
from probe.features.text import Classifier, find_classifier
from probe.leaderboard import derived
from probe.probes.cached_fits import FitCache
from probe.probes.clean import score_clean
from probe.probes.fit import PROBE_VERSION, fit_folds
from probe.probes.further_tests import FittedProbe, ScoredTest, score_conventions
from probe.probes.heads import describe_heads, write_heads
from probe.probes.prediction_parts import describe_all_predictions
from probe.probes.result import ProbeResult
from probe.probes.solvers.catalog import device_for, get_solver
from probe.probes.zero_shot import largest_logit_difference, score_zero_shot
from probe.records.prediction_files import check_predictions_dir, write_predictions
from probe.records.record import check_writable, write_record
from probe.records.schema import (
    LOGITS,
    DoneRecord,
    EncoderRecord,
    ErrorRecord,
    FailedRecord,
    FeaturesRecord,
    FurtherTestRecord,
    ParityRecord,
    RunRecord,
)
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import DEFAULT_SOLVER, LOGISTIC, ZERO_SHOT, DatasetSpec, ModelSpec, Protocol, RunSpec
from probe.stats import paired
from probe.tracking.trackers import open_trackers

if TYPE_CHECKING:
    from probe.models.own import Encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its score, with the data that a comparison of modes needs.

    Args:
        spec: the run.
        record: its record, which is not written yet.
        extraction: its features.
        result: its probe.
        fits: cache of its finished fits, until the record is written.
        heads: content of the files of its heads, by path below the results folder, if they are to be saved.
        predictions: content of the files of its predictions, by path below their folder, if they are to be written;
            empty after that.
        classifier: texts of the classes of a zero-shot run.
    """

    spec: RunSpec
    record: DoneRecord
    extraction: Extraction = field(repr=False)
    result: ProbeResult = field(repr=False)
    fits: FitCache = field(repr=False)
    heads: Mapping[Path, bytes] = field(default_factory=dict, repr=False)
    predictions: dict[Path, bytes] = field(default_factory=dict, repr=False)
    classifier: Classifier | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FailedRun:
    """A run that has no score, and the exception that it failed with."""

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
        finished: runs of the same encoder. A JIT run is compared with the eager run among them.

    Raises:
        Exception: any error that prevents a score; a `ProbeError` if the user can correct it.
    """
    session = session or Session(settings)
    dataset = session.open_dataset(spec.dataset)
    classifier = find_classifier(spec, session) if spec.protocol.method == ZERO_SHOT else None
    encoder = session.find_encoder(spec)  # loaded only if features are not cached
    extraction = extract(encoder, dataset, session)
    if not extraction.encoder.has_projection and spec.protocol.feature_point == "projected":
        logger.info(
            "%s has no projection; %s uses its features, which are the same at both feature points",
            spec.model.name,
            spec.protocol.name,
        )
    folds = extraction.cut(spec.splits)  # train, val and test of each fold: x float32 (n, d), y
    features = {
        name: FeaturesRecord(split.compute_sha256(), {point: tuple(row) for point, row in split.sample().items()})
        for name, split in by_split(folds, lambda k, name: folds[k][name], spec.splits).items()
    }

    partners = [run for run in finished if run.spec.of_all_modes == spec.of_all_modes]
    twin = next((run for run in partners if run.record.features == features), None)
    fits = FitCache(paths.cache_dir(session.settings.cache_dir) / FITS)
    if spec.protocol.method == LOGISTIC:
        get_solver(spec.solver)  # imports the solver's libraries, which is not part of the time of the fit
    finds_top = session.settings.predictions_dir is not None
    started = time.perf_counter()
    with EnergyMeter(spec.device) as energy:
        if classifier is not None:
            result = score_zero_shot(folds, classifier, metric=spec.dataset.metric, finds_top=finds_top)
        elif twin is not None:
            logger.debug("%s: same features as %s, so its probe is reused", spec, twin.spec)
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
                finds_top=finds_top,
            )
    seconds = {**extraction.seconds, "fit": time.perf_counter() - started}
    if classifier is not None:
        seconds["text"] = classifier.seconds
    class_names = dataset.class_names
    probe = FittedProbe(result, folds, spec.protocol, len(class_names), device_for(spec.solver, spec.device))
    started = time.perf_counter()
    tests = [score_further_test(spec, one, dataset, extraction, probe, session) for one in spec.tests]
    if tests:
        seconds["tests"] = time.perf_counter() - started
    clean = None
    if spec.clean:
        started = time.perf_counter()
        clean = score_clean(result, list(leaks_of_features(session.find_leaks(spec.dataset), dataset, extraction)))
        seconds["clean"] = time.perf_counter() - started

    record = DoneRecord(
        spec=_for_record(spec),
        created=_now(),
        encoder=extraction.encoder,
        read=extraction.read,
        splits=dict(extraction.splits),
        features=features,
        result=replace(result.to_record(), probe_version=PROBE_VERSION),
        tests=tuple(test.record for test in tests),
        clean=clean,
        extraction=extraction.extraction,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        fit_joules={part: round(value, 3) for part, value in energy.joules.items()},
        environment=environment.describe(spec.device),
        prompts=None if classifier is None else classifier.prompts,
    )
    heads: Mapping[Path, bytes] = {}
    if session.settings.save_heads:
        heads = describe_heads(record, result, folds, class_names)
    run = FinishedRun(spec, record, extraction, result, fits, heads, classifier=classifier)
    if session.settings.predictions_dir is not None:
        with_logits, ids = session.settings.with_logits, list(extraction.test_ids(dataset))
        run.predictions.update(
            describe_all_predictions(record, probe, ids, tests, class_names, with_logits=with_logits)
        )
    eager = next((run for run in partners if spec.jit and run.record.mode == "eager"), None)
    return run if eager is None else replace(run, record=replace(record, parity=compare_modes(eager, run)))


def score_further_test(
    spec: RunSpec,
    test: DatasetSpec,
    dataset: OpenedDataset,
    extraction: Extraction,
    probe: FittedProbe,
    session: Session,
) -> ScoredTest:
    """Score a probe on a further test set. A test set that cannot be scored does not stop its run.

    Args:
        spec: the run of the probe.
        test: the further test set.
        dataset: the dataset of the run.
        extraction: its features.
        probe: the probe.
        session: opens the test set and loads the encoder, unless its features are extracted.
    """
    finds_top = session.settings.predictions_dir is not None
    try:
        apart = replace(session, dataset=None)  # the dataset of the run stays open
        own = replace(spec, dataset=test, tests=())
        if test.relabels:
            found = relabel(apart.open_dataset(test), dataset, extraction)
        else:
            features = session.extracted.get(features_key(own))
            if features is None:
                features = extract(session.find_encoder(own), apart.open_dataset(test), apart)
            found = from_extraction(features, apart.open_dataset(test) if finds_top else None)
        is_right = map_classes(test, found.class_names, dataset.spec, dataset.class_names)
        scores = score_conventions(probe, found.features, is_right, metric=dataset.spec.metric, finds_top=finds_top)
    except Exception as err:  # the record names the error, and the run continues
        logger.debug("%s on %s", spec, test.name, exc_info=not isinstance(err, ProbeError))
        message = brief(str(err) or repr(err))
        logger.warning("%s: not scored on %s (%s)", dataset.spec.name, test.name, message)
        return ScoredTest(FurtherTestRecord(test.name, ErrorRecord(type(err).__name__, message)))
    record = FurtherTestRecord(
        test.name,
        split=found.split,
        read=found.read,
        metric=dataset.spec.metric,
        num_classes=int(is_right.any(axis=0).sum()),
        all_classes=scores.all_classes,
        own_classes=scores.own_classes,
    )
    return ScoredTest(record, found, is_right, scores.predictions)


def run_grid(
    specs: Sequence[RunSpec], settings: Settings = DEFAULT_SETTINGS, *, rerun: bool = False
) -> Iterator[RunRecord]:
    """Run the runs of a grid that have no complete record, and yield the records of all runs.

    Records of earlier commands come first. Each new record is written before it is yielded, and the tables are written
    at the end. A run that fails is recorded as failed, and the next run begins.

    Args:
        specs: the runs, from `grid.plan`.
        settings: folders and policies.
        rerun: also run the runs that have a complete record.

    Raises:
        ResultsError: the results folder cannot be written to.
    """
    results_dir = paths.results_dir(settings.results_dir)
    check_writable(results_dir)
    check_predictions_dir(settings.predictions_dir)
    try:
        for outcome in _run_pending(specs, settings, rerun=rerun):
            yield outcome if isinstance(outcome, DoneRecord) else outcome.record
    finally:  # also after Ctrl-C, so that the tables contain all finished runs
        derived.write_derived(results_dir)


def run(
    dataset: str | DatasetSpec,
    *,
    model: str | ModelSpec | Encoder = "ViT-B/32",
    jit: bool = False,
    protocol: str | Protocol = "clip-paper",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    compiled: bool = False,
    solver: str = DEFAULT_SOLVER,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    allow_partial: bool = False,
    skip_corrupt: int = 0,
    workers: int | None = None,
    allow_duplicate_names: bool = False,
    save_heads: bool = False,
    predictions_dir: str | Path | None = None,
    with_logits: bool = False,
    tests: Sequence[str] = (),
    clean: bool = False,
    log: Sequence[str] = (),
    rerun: bool = False,
) -> DoneRecord:
    """Run one combination of dataset, model and protocol, and write its record and the tables of its model.

    If the run has a complete record, it is returned and nothing runs. The leaderboard is only written by
    `python -m probe tables` and by the command `run`, so that a loop over this function stays fast.

    Args:
        dataset: a name from the catalogue, a name such as `folder:PATH`, see `get_dataset`, or a `DatasetSpec`.
        model: a name from the catalogue, `random:NAME`, the path of a checkpoint, a `ModelSpec`, or an
            `Encoder` of your own.
        jit: run the TorchScript archive instead of the model rebuilt from its weights.
        protocol: rules by which the probe is fitted and scored.
        device: a device as torch names it; `auto` is CUDA if available, and else the CPU.
        precision: precision of the weights; `auto` is fp16 on CUDA and else fp32.
        batch_size: number of images encoded at a time, which changes the last bits of features; None chooses the
            number that fits into memory, see `models.memory`.
        compiled: compile the rebuilt model with `torch.compile`.
        solver: solver of the probe, `fast` or `sklearn`.
        data_dir: folder of datasets; None is the default of `probe.paths`, as for the other folders.
        weights_dir: folder of checkpoints.
        results_dir: folder of records and tables.
        cache_dir: folder of cached features and fits.
        offline: do not use the network.
        allow_partial: evaluate on the images that are present if some are missing; the record is marked.
        skip_corrupt: number of unreadable images to skip before the run fails; the record names them.
        workers: number of processes that read images; None is `reading.default_workers`.
        allow_duplicate_names: run zero-shot even if several classes have the same name; the record names them.
        save_heads: write the fitted weights below the folder `heads` of the results folder, see `load_head`.
        predictions_dir: folder to write the prediction for each test image to, as Parquet, also for further test sets;
            None writes none.
        with_logits: also write the logits of each test image there.
        tests: further test sets to score the same probe on: names that the dataset has in `tests`, `all` of them, or
            paths of TOML files.
        clean: also score without test images that have the same pixels as a training or validation image.
        log: experiment trackers to log a new record to: `wandb`, `mlflow` or `trackio`.
        rerun: run again even if there is a complete record.

    Raises:
        Exception: any error that prevents a score; a `ProbeError` if the user can correct it. The record of the failure
            is written first.
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
        tests=tests,
        clean=clean,
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
        allow_duplicate_names=allow_duplicate_names,
        save_heads=save_heads,
        predictions_dir=predictions_dir,
        with_logits=with_logits,
        log=(log,) if isinstance(log, str) else tuple(log),
    )
    folder = paths.results_dir(settings.results_dir)
    check_writable(folder)
    check_predictions_dir(settings.predictions_dir)
    (outcome,) = _run_pending([spec], settings, rerun=rerun)
    if isinstance(outcome, DoneRecord):
        return outcome
    derived.write_tables_of(outcome.record, folder)
    if isinstance(outcome, FailedRun):
        raise outcome.exception
    return outcome.record


def _run_pending(
    specs: Sequence[RunSpec], settings: Settings, *, rerun: bool
) -> Iterator[DoneRecord | FinishedRun | FailedRun]:
    """Yield the records that exist, and then each other run of a grid when its record is written."""
    results_dir = paths.results_dir(settings.results_dir)
    pending = grid.pending(specs, settings, rerun=rerun)
    trackers = open_trackers(
        settings.log, offline=settings.offline, num_recorded=len(pending.done), results_dir=results_dir
    )
    yield from pending.done.values()
    for run in run_all(pending.runs, Session(settings)):
        ended = run
        if isinstance(run, FailedRun):
            write_record(run.record, results_dir)
        else:
            record = write_run(run.record, run.heads, run.predictions, settings)
            if isinstance(record, FailedRecord):
                ended = FailedRun(record, ResultsError(record.error.message))
            else:
                run.fits.clear()
        trackers.log(ended.record)
        yield ended
    trackers.report()


def write_run(
    record: RunRecord, heads: Mapping[Path, bytes], predictions: dict[Path, bytes], settings: Settings
) -> RunRecord:
    """Write the record of a run with its heads and predictions, and return the record.

    If the record would lose a score on a further test set, see `grid.find_lost_scores`, the record of a failed run is
    written and returned instead, and the files of the earlier run stay as they are.

    Args:
        record: the record.
        heads: content of the files of its heads, by path below the results folder.
        predictions: content of the files of its predictions, by path below their folder; empty after that.
        settings: folders.

    Raises:
        ResultsError: a folder cannot be written to.
    """
    results_dir = paths.results_dir(settings.results_dir)
    lost = grid.find_lost_scores(record, results_dir) if isinstance(record, DoneRecord) else ""
    if lost:
        predictions.clear()
        record = failure(record.spec, {"type": ResultsError.__name__, "message": lost})
    else:  # before the record, because a complete record is not repeated
        write_heads(heads, results_dir)
        write_predictions(predictions, settings.predictions_dir)
    write_record(record, results_dir)
    return record


def run_all(specs: Sequence[RunSpec], session: Session) -> Iterator[FinishedRun | FailedRun]:
    """Run all runs in their order, and write no records.

    Features of all encoders of a dataset are extracted together, before the first run of the dataset.

    Args:
        specs: the runs.
        session: opens the datasets and loads the encoders.
    """
    for group, failures in prepare_grid(specs, session, is_ready=partial(has_prompts, session)):
        finished: list[FinishedRun] = []
        for spec in group:
            logger.debug("%s", spec)
            try:
                if features_key(spec) in failures:
                    raise failures[features_key(spec)]
                finished = [run for run in finished if run.spec.model == spec.model]
                run = run_one(spec, session.settings, session=session, finished=finished)
            except Exception as err:  # the record names the error, and the grid continues
                logger.debug("%s", spec, exc_info=not isinstance(err, ProbeError))
                message = brief(str(err) or repr(err))
                yield FailedRun(failure(spec, {"type": type(err).__name__, "message": message}), err)
            else:
                finished.append(run)
                yield run


def has_prompts(session: Session, spec: RunSpec) -> bool:
    """Return False for a zero-shot run whose class names cannot be encoded. The run meets the same error."""
    if spec.protocol.method == ZERO_SHOT:
        try:
            find_classifier(spec, session)
        except Exception:
            return False
    return True


def _for_record(spec: RunSpec) -> RunSpec:
    """Return a run without the prompts of its dataset, unless it uses them: they can be hundreds of names."""
    if spec.protocol.method == ZERO_SHOT:
        return spec
    plain = replace(spec.dataset, class_names=(), class_names_from="", templates=(), templates_from="")
    return replace(spec, dataset=plain)


def failure(spec: RunSpec, error: Mapping[str, str]) -> FailedRecord:
    """Return the record of a failed run.

    Args:
        spec: the run.
        error: `type` and `message` of the error.
    """
    return FailedRecord(
        spec=_for_record(spec),
        created=_now(),
        encoder=EncoderRecord(),
        splits={},
        features={},
        error=ErrorRecord(error["type"], error["message"]),
        seconds={},
        environment=environment.describe(spec.device),
    )


def compare_modes(eager: FinishedRun, jit: FinishedRun) -> ParityRecord:
    """Compare a JIT run with the eager run: features of all splits, test predictions, scores, and zero-shot logits."""
    differences = compare_features(eager.extraction.features, jit.extraction.features)
    largest = {point: found.max_abs for point, found in differences.items()}
    if eager.classifier is not None and jit.classifier is not None:
        tests = [run.extraction.cut(("test",)) for run in (eager, jit)]
        largest[LOGITS] = largest_logit_difference(tests, (eager.classifier, jit.classifier))
    flipped = count_flips(eager.result.predictions, jit.result.predictions)
    test = paired.compare(eager.result.outcomes, jit.result.outcomes, same_images=eager.result.same_images)
    # The eager score shows later whether the eager run was repeated since.
    return ParityRecord(largest, flipped, p_value=test.p_value, eager_score=eager.result.score)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
