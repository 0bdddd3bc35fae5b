"""Planning of a grid: names -> runs in their order -> the runs that have no complete record yet. Runs nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from probe import environment, paths
from probe.datasets import ALL_TESTS, find_tests, get_dataset
from probe.datasets.catalog import DATASETS
from probe.datasets.prompts import get_prompts
from probe.errors import DatasetError, ExtraMissingError, HeadError, ProbeError, UnknownNameError, listed
from probe.features.store import EXTRACTION_VERSION
from probe.features.text import TEXT_VERSION
from probe.models import resolve_model
from probe.models.catalog import MODELS
from probe.models.devices import resolve_execution
from probe.models.loading import identify
from probe.models.memory import find_batch_size
from probe.models.preprocess import PREPROCESS_VERSION
from probe.names import unknown_name
from probe.probes.fit import PROBE_VERSION
from probe.probes.head_files import load_head
from probe.probes.protocols import PROTOCOLS, get_protocol
from probe.probes.solvers.catalog import check_solver
from probe.records.prediction_files import has_predictions
from probe.records.record import head_path, run_path, try_to_read
from probe.records.schema import DoneRecord
from probe.settings import Settings
from probe.specs import (
    DEFAULT_SOLVER,
    KNN,
    LOGISTIC,
    NO_SOLVER,
    ZERO_SHOT,
    DatasetSpec,
    ModelSpec,
    Protocol,
    RunSpec,
    identity,
)

if TYPE_CHECKING:
    from probe.models.own import Encoder

logger = logging.getLogger(__name__)
Spec = TypeVar("Spec", DatasetSpec, ModelSpec, Protocol)


def plan(
    datasets: Sequence[str | DatasetSpec],
    models: Sequence[str | ModelSpec | Encoder],
    *,
    protocols: Sequence[str | Protocol] = ("clip-paper",),
    jit_modes: Sequence[bool] = (False,),
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    compiled: bool = False,
    solver: str = DEFAULT_SOLVER,
    tests: Sequence[str] = (),
    clean: bool = False,
    elsewhere: bool = False,
) -> list[RunSpec]:
    """Return the runs of a grid in the order in which they run. Every name is looked up before anything runs.

    Args:
        datasets: names, or specifications of your own.
        models: names of encoders, specifications, or encoders of your own, see `models.own`.
        protocols: names, or protocols of your own.
        jit_modes: False for eager, True for JIT.
        device: `auto`, or a device as torch names it.
        precision: precision of the weights, or `auto`.
        batch_size: number of images encoded at a time; None chooses the number that fits into the memory of the device,
            see `models.memory`.
        compiled: compile the encoders with `torch.compile`.
        solver: name of the solver of the probes; protocols that fit nothing have none.
        tests: further test sets, see `datasets.find_tests`. A name applies to the datasets that have it in `tests`.
        clean: the runs also have a clean score, see `probes.clean`.
        elsewhere: the runs are for other machines, so this machine need not have the device.

    Raises:
        UnknownNameError, DatasetError, CheckpointMissingError, DeviceError: a name is unknown, or cannot be used here.
        ExtraMissingError: the runs are for other machines, and their prompts are in open_clip, which this machine
            lacks.
    """
    check_solver(solver)
    rows = _distinct((d if isinstance(d, DatasetSpec) else get_dataset(d) for d in datasets), DATASETS)
    encoders = _distinct(map(resolve_model, models), MODELS)
    rules = _distinct((p if isinstance(p, Protocol) else get_protocol(p) for p in protocols), PROTOCOLS)
    further = {row: find_tests(row, tests) for row in rows}
    _check_tests(tests, further)
    executions = {
        form: [
            resolve_execution(device, precision=precision, jit=jit, compiled=compiled, elsewhere=elsewhere, form=form)
            for jit in jit_modes
        ]
        for form in dict.fromkeys(model.form for model in encoders)
    }
    # Once for each model, not for each run, because the memory limits of a container are read from many files.
    batch_sizes = {
        (model, execution.device): find_batch_size(str(execution.device), model.architecture)
        if batch_size is None
        else int(batch_size)
        for model in encoders
        for execution in executions[model.form]
    }
    has_prompts = any(protocol.method == ZERO_SHOT for protocol in rules)
    prompts = {dataset: _digest_prompts(dataset, elsewhere=elsewhere) if has_prompts else "" for dataset in rows}
    return [
        RunSpec(
            dataset,
            model,
            protocol,
            execution.jit,
            str(execution.device),
            execution.precision,
            batch_sizes[model, execution.device],
            solver=solver if protocol.method == LOGISTIC else NO_SOLVER,
            compiled=execution.compiled,
            prompts=prompts[dataset] if protocol.method == ZERO_SHOT else "",
            tests=further[dataset],
            clean=clean,
        )
        for dataset in rows
        for model in encoders
        for execution in executions[model.form]
        for protocol in rules
    ]


def _distinct(chosen: Iterable[Spec], catalog: Sequence[Spec]) -> list[Spec]:
    """Return each specification once, in order.

    Raises:
        UnknownNameError: two of them, or one and another of the catalogue, have the same name. Their records would
            overwrite each other.
    """
    rows = list(dict.fromkeys(chosen))
    # The prompts of a dataset are not part of its identity, so a dataset of the catalogue can have other prompts.
    known = {row.name: identity(row) for row in catalog}
    names = Counter(row.name for row in rows)
    for row in rows:
        if names[row.name] > 1 or known.get(row.name, identity(row)) != identity(row):
            raise UnknownNameError(f"two different specifications have the name {row.name!r}; rename yours")
    return rows


def _check_tests(names: Sequence[str], further: Mapping[DatasetSpec, Sequence[DatasetSpec]]) -> None:
    """Check that each dataset has images to fit on, and that each name of a further test set is one of some dataset.

    Raises:
        UnknownNameError: no dataset has a further test set of this name.
        DatasetError: a dataset has only test images, or `all` is asked for where no dataset has further test sets.
    """
    for row in further:
        if row.is_test_set:
            raise DatasetError(
                f"{row.name} has only test images, so no probe can be fitted on it; name it with --also-test, and a "
                "dataset with its classes with --dataset"
            )
    known = dict.fromkeys(test.name for row in further for test in find_tests(row, names and [ALL_TESTS]))
    for name in names:
        if name == ALL_TESTS and not known:
            raise DatasetError(f"{listed(row.name for row in further)} has no further test sets; remove --also-test")
        if not known and not name.endswith(".toml"):
            raise DatasetError(
                f"{listed(row.name for row in further)} has no further test set {name!r}; give the path of a TOML file"
            )
        if name != ALL_TESTS and name not in known and not name.endswith(".toml"):
            raise unknown_name("further test set", name, known, forms="the path of a TOML file")


def _digest_prompts(dataset: DatasetSpec, *, elsewhere: bool) -> str:
    """Return the digest of a dataset's prompts; empty if they cannot be used, so that the run fails with the reason.

    Raises:
        ExtraMissingError: see `plan`. The run would not fail on a machine with open_clip.
    """
    try:
        return get_prompts(dataset).sha256
    except ProbeError as err:
        if elsewhere and isinstance(err, ExtraMissingError):
            raise
        return ""


@dataclass(frozen=True)
class Pending:
    """The runs of a grid that have no complete record, and the records of the others."""

    runs: Sequence[RunSpec]
    done: dict[RunSpec, DoneRecord]


def pending(specs: Sequence[RunSpec], settings: Settings, *, rerun: bool = False) -> Pending:
    """Return the runs of a grid that have no complete record, and log how many are skipped.

    A record is complete if all images were used, and if the specification, the weights and the suite's own versions of
    preprocessing, extraction and probe are unchanged. Versions of libraries may differ. If heads or predictions are to
    be written, their files must exist, too. If one mode of a run is pending, so are its other modes in the grid,
    because modes are compared.

    A record must also have scores on all images of each further test set of the run, and a clean score if the run has
    one. Otherwise the probe is fitted again. The new run also computes every score of the record, so that no
    score is lost.
    """
    results_dir = paths.results_dir(settings.results_dir)
    identities = {spec: identity(spec) for spec in specs}
    planned, weights = set(identities.values()), dict[ModelSpec, str | None]()
    recorded: dict[RunSpec, DoneRecord] = {}  # records of the runs, which may lack a score

    def find(spec: RunSpec) -> DoneRecord | None:
        record = try_to_read(run_path(spec, results_dir))
        if not isinstance(record, DoneRecord) or not record.is_whole or not _is_repeated(record.spec, spec):
            return None
        recorded[spec] = record
        if identity(record.spec) != identities[spec]:
            return None
        if not _has_tests(record, spec.tests) or (spec.clean and record.clean is None):
            return None
        directory = settings.predictions_dir
        if directory and not has_predictions(spec, record, directory, with_logits=settings.with_logits):
            return None
        if settings.save_heads and spec.protocol.method != KNN and not _has_head(record, results_dir):
            return None
        if not _has_own_versions(record) or not _has_weights(record, spec.model, weights, settings):
            return None
        has_partner = spec.jit and identity(replace(spec, jit=False)) in planned
        return record if record.parity is not None or not has_partner else None

    found = {spec: find(spec) for spec in specs}  # also fills `recorded`
    records = {} if rerun else {spec: record for spec, record in found.items() if record is not None}
    left = {spec.of_all_modes for spec in specs if spec not in records}
    done = {spec: records[spec] for spec in specs if spec.of_all_modes not in left}
    if done:
        logger.info("skipped %d of %d runs: already recorded (use --rerun)", len(done), len(specs))
        _log_versions(done.values())
    return Pending([_with_scores(spec, recorded.get(spec)) for spec in specs if spec not in done], done)


def _is_repeated(known: RunSpec, spec: RunSpec) -> bool:
    """Return True if two runs differ at most in their device and batch size, which the path of a record leaves out."""
    return identity(replace(known, device=spec.device, batch_size=spec.batch_size)) == identity(spec)


def _has_tests(record: DoneRecord, tests: Sequence[DatasetSpec]) -> bool:
    """Return True if a record has scores on all images of further test sets with these specifications."""
    whole = {test.name for test in record.tests if test.is_whole}
    known = {identity(test) for test in record.spec.tests if test.name in whole}
    return all(identity(test) in known for test in tests)


def _with_scores(spec: RunSpec, record: DoneRecord | None) -> RunSpec:
    """Return a run that has all the scores that its record has: of further test sets, and the clean score."""
    if record is None:
        return spec
    scored = {test.name for test in record.tests if test.error is None} - {test.name for test in spec.tests}
    tests = (*spec.tests, *(test for test in record.spec.tests if test.name in scored))
    return replace(spec, tests=tests, clean=spec.clean or record.clean is not None)


def find_lost_scores(record: DoneRecord, results_dir: Path) -> str:
    """Return the error of a record that lacks scores on further test sets that the record in its place has, or "".

    Such a record must not be written, because these scores would be lost. This happens if images of a test set were
    removed after the first run.
    """
    path = run_path(record.spec, results_dir)
    known = try_to_read(path) if record.is_whole else None  # other records do not replace the record
    if not isinstance(known, DoneRecord) or not _is_repeated(known.spec, record.spec):
        return ""
    scored = {test.name for test in known.tests if test.error is None}
    lost = {test.name: test.error.message for test in record.tests if test.name in scored and test.error is not None}
    if not lost:
        return ""
    return (
        f"the record has scores on {listed(lost)} that the new run lacks ({'; '.join(lost.values())}), so the record "
        f"was not replaced; make the images available again, or remove {path} to accept a record without these scores"
    )


def _has_head(record: DoneRecord, results_dir: Path) -> bool:
    """Return True if the first head of a record can be read and belongs to this record, not to an earlier run."""
    for path in (head_path(record, results_dir, part) for part in (0, 1)):
        with suppress(HeadError):
            if load_head(path).info.created == record.created:
                return True
    return False


def _has_own_versions(record: DoneRecord) -> bool:
    """Return True if this version of the suite would write the same record."""
    extraction = record.extraction
    versions = (extraction.extraction_version, extraction.preprocess_version, record.result.probe_version)
    has_text_version = record.prompts is None or record.prompts.text_version == TEXT_VERSION
    return has_text_version and versions == (EXTRACTION_VERSION, PREPROCESS_VERSION, PROBE_VERSION)


def _has_weights(
    record: DoneRecord, model: ModelSpec, weights: dict[ModelSpec, str | None], settings: Settings
) -> bool:
    """Return False if the weights are known to differ from the weights of the record.

    Digests are cached in `weights`, where None stands for weights that are not on this machine.
    """
    # The specification determines the weights.
    if model.seed is not None or (model.sha256 and model.form != "module"):
        return True
    if model not in weights:
        try:
            weights[model] = identify(model, weights_dir=settings.weights_dir, offline=True)
        except ProbeError:  # downloaded when a run needs them
            weights[model] = None
    known = record.extraction.weights or (record.encoder.weights_sha256 if model.form == "file" else None)
    return known is None or weights[model] is None or known == weights[model]


def _log_versions(records: Iterable[DoneRecord]) -> None:
    """Log how many records were made with different library versions, and which."""
    here, others = environment.library_versions("features", "fits"), Counter[str]()
    for record in records:
        packages = record.environment.packages
        others[listed(f"{name} {packages[name]}" for name in here if packages.get(name, here[name]) != here[name])] += 1
    for versions, n in others.items():
        if versions:
            logger.info("%d of them were recorded with different library versions: %s", n, versions)
