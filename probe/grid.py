"""Names -> the runs of a grid, in their order, and those of them that have no complete record yet. Runs nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from probe import environment, paths
from probe.datasets import get_dataset
from probe.datasets.catalog import CATALOG as DATASETS
from probe.errors import ProbeError, ResultsError, UnknownNameError, listed
from probe.features.store import EXTRACTION_VERSION
from probe.models import get_model
from probe.models.catalog import CATALOG as MODELS
from probe.models.devices import resolve_execution
from probe.models.loading import identify
from probe.models.memory import find_batch_size
from probe.models.preprocess import VERSION as PREPROCESS_VERSION
from probe.probes.fit import PROBE_VERSION
from probe.probes.protocols import CATALOG as PROTOCOLS
from probe.probes.protocols import get_protocol
from probe.probes.solvers.catalog import get_solver
from probe.records.record import read_record, run_path
from probe.records.schema import DoneRecord
from probe.settings import Settings
from probe.specs import DatasetSpec, ModelSpec, Protocol, RunSpec, identity

logger = logging.getLogger(__name__)

Named = DatasetSpec | ModelSpec | Protocol


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
    """Return the runs of a grid in the order in which they run; every name is looked up before anything runs.

    Args:
        datasets: names, or specifications of your own; the next two likewise.
        models: encoders.
        protocols: rules of the probe.
        jit_modes: False for eager, True for JIT.
        device: `auto`, or as torch names it.
        precision: `auto`, or that of the weights.
        batch_size: images encoded at a time; None is as many as the memory of the device holds, see `models.memory`.
        compiled: have torch compile the encoders.
        solver: of the probe.
        elsewhere: the runs are for other machines, and this one need not have the device.

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
    executions = [
        resolve_execution(device, precision=precision, jit=jit, compiled=compiled, elsewhere=elsewhere)
        for jit in jit_modes
    ]
    return [
        RunSpec(
            dataset,
            model,
            protocol,
            execution.jit,
            str(execution.device),
            execution.precision,
            find_batch_size(str(execution.device), model.architecture) if batch_size is None else int(batch_size),
            solver=solver,
            compiled=execution.compiled,
        )
        for dataset in rows
        for model in encoders
        for execution in executions
        for protocol in rules
    ]


def _refuse_taken_names(rows: Iterable[Named], catalog: Sequence[Named]) -> None:
    """Refuse a specification of the caller's under a name of the catalogue, whose records it would overwrite."""
    known = {row.name: row for row in catalog}
    for row in rows:
        if known.get(row.name, row) != row:
            raise UnknownNameError(f"{row.name!r} is the name of another row, too; give yours its own name")
        known[row.name] = row


def by_dataset(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Group runs that follow one another by their dataset, which is opened once for each group."""
    return [list(group) for _, group in groupby(specs, key=lambda spec: spec.dataset)]


@dataclass(frozen=True)
class Pending:
    """The runs of a grid that are left, and the records of those that are done."""

    runs: Sequence[RunSpec]
    done: dict[RunSpec, DoneRecord]

    def log(self) -> None:
        """Log how many runs are skipped, and which of their records other library versions made."""
        if not self.done:
            return
        total = len(self.runs) + len(self.done)
        logger.info("skipped %d of %d runs: already recorded (use --rerun)", len(self.done), total)
        here = environment.library_versions("features", "fits")
        others = Counter(_other_versions(record, here) for record in self.done.values())
        for versions, n in others.items():
            if versions:
                logger.info("%d of them were recorded with other library versions: %s", n, versions)


def pending(specs: Sequence[RunSpec], settings: Settings, *, rerun: bool = False) -> Pending:
    """Return the runs of a grid that have no complete record.

    A record is complete if it is of all images, and if its specification, its weights and the suite's own versions of
    preprocessing, extraction and probe are those of now. Versions of libraries may differ. If a mode of a probe is
    left, so are its other modes in the grid, since modes are compared.

    Args:
        specs: the runs.
        settings: where the records and weights are.
        rerun: leave all runs.
    """
    results_dir = paths.results_dir(settings.results_dir)
    identities = {spec: identity(spec) for spec in specs}
    planned, weights = set(identities.values()), dict[ModelSpec, str | None]()

    def find(spec: RunSpec) -> DoneRecord | None:
        record = _read(spec, identities[spec], results_dir)
        if record is None or not _has_own_versions(record) or not _has_weights(record, spec.model, weights, settings):
            return None
        has_partner = spec.jit and identity(replace(spec, jit=False)) in planned
        return record if record.parity is not None or not has_partner else None

    found = {} if rerun else {spec: record for spec in specs if (record := find(spec)) is not None}
    left = {spec.of_all_modes for spec in specs if spec not in found}
    done = {spec: found[spec] for spec in specs if spec.of_all_modes not in left}
    return Pending([spec for spec in specs if spec not in done], done)


def _read(spec: RunSpec, wanted: str, results_dir: Path) -> DoneRecord | None:
    """Read the record of a run; None if there is none of all images with this identity."""
    path = run_path(spec, results_dir)
    if path.is_file():
        with suppress(ResultsError):  # damaged
            record = read_record(path)
            if isinstance(record, DoneRecord) and record.is_whole and identity(record.spec) == wanted:
                return record
    return None


def _has_own_versions(record: DoneRecord) -> bool:
    """Return True if this version of the suite would make the record."""
    extraction = record.extraction
    versions = (extraction.extraction_version, extraction.preprocess_version, record.result.probe_version)
    return versions == (EXTRACTION_VERSION, PREPROCESS_VERSION, PROBE_VERSION)


def _has_weights(
    record: DoneRecord, model: ModelSpec, weights: dict[ModelSpec, str | None], settings: Settings
) -> bool:
    """Return True unless the weights are other than those of the record, as far as they are here and the record says.

    Args:
        record: of a run.
        model: the run's.
        weights: digests found so far; None for weights that are not here.
        settings: where weights are.
    """
    if model.sha256 or model.form == "random":  # then the specification says which weights
        return True
    if model not in weights:
        try:
            weights[model] = identify(model, weights_dir=settings.weights_dir, offline=True)
        except ProbeError:  # they are fetched when a run needs them
            weights[model] = None
    known = record.extraction.weights or (record.encoder.weights_sha256 if model.form == "file" else None)
    return known is None or weights[model] is None or known == weights[model]


def _other_versions(record: DoneRecord, here: dict[str, str | None]) -> str:
    packages = record.environment.packages
    return listed(
        [f"{name} {packages[name]}" for name, version in here.items() if packages.get(name, version) != version]
    )
