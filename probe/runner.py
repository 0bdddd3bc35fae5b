"""A cell, or a grid of cells -> records and tables. The only module that sees the whole line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from probe import environment, paths
from probe.comparison import compare_features, count_flips
from probe.datasets import get_dataset
from probe.datasets.catalog import CATALOG as DATASETS
from probe.datasets.splits.folds import SPLITS
from probe.decoder import decode
from probe.errors import ProbeError, ProtocolError, UnknownNameError, brief
from probe.features.encode import Features
from probe.features.extraction import Access, Extraction, by_split, extract_dataset, num_images
from probe.features.store import FITS
from probe.leaderboard import derived
from probe.models import get_model
from probe.models.catalog import CATALOG as MODELS
from probe.models.devices import resolve_execution
from probe.models.memory import find_batch_size
from probe.probes.cached_fits import KeptFits
from probe.probes.fit import fit_folds
from probe.probes.protocols import CATALOG as PROTOCOLS
from probe.probes.protocols import get_protocol
from probe.probes.result import ProbeResult
from probe.probes.solvers.catalog import device_for, get_solver
from probe.progress import Progress, show_progress
from probe.records.record import check_writable, write_record
from probe.records.schema import (
    DoneRecord,
    EncoderRecord,
    EnvironmentRecord,
    ErrorRecord,
    ExtractionRecord,
    FailedRecord,
    FeaturesRecord,
    ParityRecord,
    ReadRecord,
    ResultRecord,
    RunRecord,
    SplitRecord,
)
from probe.specs import DatasetSpec, ModelSpec, Protocol, RunSpec
from probe.stats import paired

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = DatasetSpec | ModelSpec | Protocol


DEFAULT_ACCESS = Access()


@dataclass(frozen=True)
class Done:
    """A cell that has its score, with what a comparison of modes needs, and fits that are kept until it is written."""

    spec: RunSpec
    record: DoneRecord
    extraction: Extraction = field(repr=False)
    result: ProbeResult = field(repr=False)
    kept: KeptFits = field(repr=False)


@dataclass(frozen=True)
class Failed:
    """A cell that has none, and what broke it."""

    record: FailedRecord
    exception: Exception


def plan(
    datasets: Sequence[str | DatasetSpec],
    models: Sequence[str | ModelSpec],
    *,
    protocols: Sequence[str | Protocol] = ("clip-paper",),
    jit_modes: Sequence[bool] = (False,),
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    compiled: bool = False,
    solver: str = "sklearn",
    elsewhere: bool = False,
) -> list[RunSpec]:
    """The cells of a grid, in the order in which they run; every name is looked up before anything runs.

    A batch size that is not given is found from the memory of the device, see `models.memory`. With `elsewhere` they
    run on other machines, and the device need not be on this one.

    Raises:
        UnknownNameError, DatasetError, CheckpointMissingError, DeviceError: each says what to do.
    """
    get_solver(solver)
    rows = dict.fromkeys(d if isinstance(d, DatasetSpec) else get_dataset(d) for d in datasets)
    encoders = dict.fromkeys(m if isinstance(m, ModelSpec) else get_model(m) for m in models)
    rules = dict.fromkeys(p if isinstance(p, Protocol) else get_protocol(p) for p in protocols)
    _refuse_taken_names(rows, DATASETS)
    _refuse_taken_names(encoders, MODELS)
    _refuse_taken_names(rules, PROTOCOLS)
    runs = [
        resolve_execution(device, precision=precision, jit=jit, compiled=compiled, elsewhere=elsewhere)
        for jit in jit_modes
    ]
    return [
        RunSpec(
            dataset,
            model,
            protocol,
            run.jit,
            str(run.device),
            run.precision,
            find_batch_size(str(run.device), model.architecture) if batch_size is None else int(batch_size),
            solver=solver,
            compiled=run.compiled,
        )
        for dataset in rows
        for model in encoders
        for run in runs
        for protocol in rules
    ]


def _refuse_taken_names(rows: Iterable[Row], catalog: Sequence[Row]) -> None:
    """A row of the caller's under a name of the catalogue would overwrite the records of that name."""
    known = {row.name: row for row in catalog}
    for row in rows:
        if known.get(row.name, row) != row:
            raise UnknownNameError(f"{row.name!r} is the name of another row, too; give yours its own name")
        known[row.name] = row


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
) -> DoneRecord:
    """Run one cell and write its record and the tables.

    Args:
        dataset: a name of the catalogue, `folder:PATH` and so on as `get_dataset` takes them, or a row.
        model: a name of the catalogue, `random:NAME`, the path of a checkpoint, or a row.
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
        allow_partial: evaluate on what is there where images are missing; the record says so.
        skip_corrupt: pass over up to so many images that cannot be read; the record names them.
        workers: processes that read images; None is `reading.default_workers`.

    Raises:
        Exception: whatever kept the cell from a score, a `ProbeError` where it is the user's to mend; the record of the
            failure is written first.
    """
    (spec,) = plan(
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
    access = Access(
        data=data_dir,
        weights=weights_dir,
        results=results_dir,
        cache=cache_dir,
        offline=offline,
        allow_partial=allow_partial,
        skip_corrupt=skip_corrupt,
        workers=workers,
    )
    (cell,) = _run_cells([spec], access)
    if isinstance(cell, Failed):
        raise cell.exception
    return cell.record


def run_grid(specs: Sequence[RunSpec], *, access: Access = DEFAULT_ACCESS) -> Iterator[RunRecord]:
    """Run cells one after the other; each record is written before it is yielded, the tables when all are done.

    Features that are kept are not made again; those of all models and modes of a dataset are made in one pass over its
    images where they share the preprocessing. Eager and JIT cells of one probe are compared. A cell that fails is
    recorded as failed and the next one begins.

    Raises:
        ResultsError: the results folder cannot be written to.
    """
    for cell in _run_cells(specs, access):
        yield cell.record


def _run_cells(specs: Sequence[RunSpec], access: Access) -> Iterator[Done | Failed]:
    results_dir = paths.results_dir(access.results)
    check_writable(results_dir)
    try:
        with show_progress() as progress:
            of_dataset = [list(group) for _, group in groupby(specs, key=lambda spec: spec.dataset)]
            progress.expect(sum(num_images(list(_encodings(group))) for group in of_dataset))
            for group in of_dataset:
                for cell in _run_dataset(group, access, progress):
                    write_record(cell.record, results_dir)
                    if isinstance(cell, Done):
                        cell.kept.clear()
                    yield cell
    finally:  # also after Ctrl-C: what is done is in the tables
        derived.write_derived(results_dir)


def compute(specs: Sequence[RunSpec], access: Access) -> Iterator[RunRecord]:
    """The records of cells of one dataset, which the caller writes; the rest is as in `run_grid`."""
    for cell in _run_dataset(specs, access, Progress(is_shown=False)):
        if isinstance(cell, Done):
            cell.kept.clear()
        yield cell.record


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


def _encodings(specs: Sequence[RunSpec]) -> dict[RunSpec, list[RunSpec]]:
    """The cells of a dataset by what they share the features of, which is all but the protocol."""
    groups: dict[RunSpec, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(replace(spec, protocol=specs[0].protocol), []).append(spec)
    return groups


def _run_dataset(specs: Sequence[RunSpec], access: Access, progress: Progress) -> Iterator[Done | Failed]:
    """Run the cells of a dataset, in their order, as far as features are there; those that are kept are there first."""
    groups = _encodings(specs)
    outcomes = extract_dataset(list(groups), access, progress, expected=num_images(list(groups)))
    ready: dict[RunSpec, Extraction | Exception] = {}
    finished: list[Done] = []
    for encoding, cells in groups.items():
        while encoding not in ready:
            spec, outcome = next(outcomes)
            ready[spec] = outcome
        for cell in _run_cells_of(cells, ready.pop(encoding), finished, access):
            if isinstance(cell, Done):
                finished = [done for done in finished if done.spec.model == cell.spec.model] + [cell]
            yield cell


def _run_cells_of(
    specs: Sequence[RunSpec], outcome: Extraction | Exception, finished: Sequence[Done], access: Access
) -> Iterator[Done | Failed]:
    """Run the cells that differ in their protocol only."""
    for spec in specs:
        logger.info("%s", spec)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            yield _fit(spec, outcome, finished, access)
        except Exception as err:  # a grid goes on past whatever breaks a cell, and the record names it
            logger.debug("%s", spec, exc_info=not isinstance(err, ProbeError))
            yield Failed(failure(spec, {"type": type(err).__name__, "message": brief(str(err) or repr(err))}), err)


def _fit(spec: RunSpec, extraction: Extraction, finished: Sequence[Done], access: Access) -> Done:
    digests = by_split(extraction.rows, lambda k, name: _describe(extraction.split(name, k)))
    # Of the same probe: a grid of records that are run again has several solvers.
    same_probe = [cell for cell in finished if cell.spec.of_all_modes == spec.of_all_modes]
    kept = KeptFits(paths.cache_dir(access.cache) / FITS)
    twin = next((cell for cell in same_probe if cell.record.features == digests), None)
    started = time.perf_counter()
    if twin is not None:  # the same bytes under the same protocol have the same probe
        logger.info("%s: the features are those of %s, and so is the probe", spec, twin.spec)
        result = twin.result
    else:
        folds = ({name: extraction.split(name, k) for name in SPLITS} for k in range(len(extraction.rows)))
        result = fit_folds(
            folds,
            metric=spec.dataset.metric,
            protocol=spec.protocol,
            solver=spec.solver,
            device=device_for(spec.solver, spec.device),
            kept=kept,
            shows_progress=True,
        )
    gradient = (result.gradient_norm, result.gradient_ratio)
    numbers = (result.score, result.objective, *gradient, result.excess, result.suboptimality)
    if not np.isfinite(numbers).all():  # which JSON does not have
        raise ProtocolError(f"{spec}: score, objective or gradient is not finite, {numbers}; see its features")
    seconds = time.perf_counter() - started
    record = _record(spec, extraction=extraction, features=digests, result=result, fit_seconds=seconds)
    done = Done(spec, record, extraction, result, kept)
    eager = next((cell for cell in same_probe if spec.jit and cell.record.mode == "eager"), None)
    return done if eager is None else replace(done, record=replace(record, parity=compare(eager, done)))


def _describe(features: Features) -> FeaturesRecord:
    return FeaturesRecord(features.sha256, {point: tuple(values) for point, values in features.sample().items()})


def compare(eager: Done, jit: Done) -> ParityRecord:
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
        encoder=_typed(extraction.encoder, EncoderRecord),
        read=_typed(extraction.read, ReadRecord),
        splits=_typed(extraction.splits, dict[str, SplitRecord]),
        features=dict(features),
        result=_typed(result.to_dict(), ResultRecord),
        extraction=_typed(extraction.extraction, ExtractionRecord),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        environment=_typed(environment.describe(spec.device), EnvironmentRecord),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _typed(described: Any, kind: type[T]) -> T:
    return decode(json.loads(json.dumps(described)), kind)  # JSON has neither tuples nor NumPy's numbers
