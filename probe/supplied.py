"""Probes on supplied features, which another program made, from the file to the record.

Records of supplied features have the mode `supplied`, and the names of their models begin with `supplied:`. So tables
show them apart from the records of encoders that the suite ran.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from probe import paths
from probe.errors import FeaturesError
from probe.features import files
from probe.features.arrays import PROJECTED, Features
from probe.features.store import FITS
from probe.leaderboard import derived
from probe.models.devices import resolve_execution
from probe.probes.cached_fits import FitCache
from probe.probes.fit import fit_folds
from probe.probes.protocols import get_protocol
from probe.probes.solvers.catalog import device_for
from probe.probes.supplied_heads import check_single_fit, describe_head_of_file
from probe.probes.supplied_records import (
    SuppliedFeatures,
    SuppliedFit,
    describe_supplied_splits,
    find_about,
    find_metric,
    hold_out_validation,
    make_record,
)
from probe.records.record import check_writable, record_path, try_to_read, write_bytes, write_record
from probe.records.schema import DoneRecord
from probe.specs import DEFAULT_SOLVER, LOGISTIC, NO_SOLVER, Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuppliedResults:
    """Probes on supplied features.

    Args:
        source: the features.
        metric: metric of the scores.
        device: device that the probes were fitted on, unless their solver has a device of its own.
        fitted: the probe of each protocol.
        records: their records; empty if none was wanted.
    """

    source: SuppliedFeatures
    metric: str
    device: str
    fitted: Sequence[SuppliedFit]
    records: Sequence[DoneRecord]


@dataclass(frozen=True)
class SuppliedSettings:
    """Settings of probes on supplied features, and the places of what is written.

    Args:
        metric: metric of the scores; empty for the stated one, see `find_metric`.
        solver: see `fit_features`, as `device`, `val_fraction`, `seed` and `cache_dir`.
        head: file to write the fitted weights of a single protocol to; None for none.
        results_dir: folder of records; None writes no record.
    """

    metric: str = ""
    solver: str = DEFAULT_SOLVER
    device: str = "auto"
    val_fraction: float | None = None
    seed: int = 0
    head: Path | None = None
    results_dir: Path | None = None
    cache_dir: str | Path | None = None


def open_features(
    features: str | Path | Mapping[str, Features], *, val_fraction: float | None = None, seed: int = 0
) -> SuppliedFeatures:
    """Read features, and hold out validation images of the training images if `val_fraction` is given.

    Args:
        features: path, see `files.load`; or the features of `train`, `test` and, if there are any, `val`.
        val_fraction: share of the training images of each class to hold out.
        seed: seed of this choice.

    Raises:
        FeaturesError: the file cannot be read, the features are missing or invalid, there are already validation
            features, or `val_fraction` is outside (0, 1).
    """
    started = time.perf_counter()
    if isinstance(features, Mapping):
        for split in ("train", "test"):
            if split not in features:
                raise FeaturesError(f"there are no {split} features; give features of train and test")
        name, content = "", files.from_arrays(features, where="the input")
    else:
        name, content = str(features), files.load(Path(features))
    folds = list(content.folds)
    if val_fraction is not None:
        if any("val" in fold for fold in folds):
            raise FeaturesError(f"{name or 'the input'} already has validation features; leave out --val-fraction")
        folds = [hold_out_validation(fold, val_fraction, seed=seed) for fold in folds]
    seconds = time.perf_counter() - started
    return SuppliedFeatures(replace(content, folds=folds), name, val_fraction, seed, seconds)


def fit_protocol(
    source: SuppliedFeatures, protocol: Protocol, *, metric: str, solver: str, device: str, fit_cache: FitCache
) -> SuppliedFit:
    """Fit a probe on supplied features. Features of one point are used whatever point the protocol names.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: see `fit_probe`.
    """
    rules = replace(protocol, feature_point=PROJECTED) if source.has_one_point else protocol
    own_solver = solver if rules.method == LOGISTIC else NO_SOLVER
    own_device = device_for(own_solver, device)
    started = time.perf_counter()
    result = fit_folds(
        source.folds,
        metric=metric,
        protocol=rules,
        solver=solver,
        device=own_device,
        fit_cache=fit_cache,
        shows_progress=True,
    )
    return SuppliedFit(rules, own_solver, own_device, result, time.perf_counter() - started)


def fit_features(
    features: str | Path | Mapping[str, Features],
    *,
    about: str | Path | Mapping[str, Any] | None = None,
    protocol: str | Protocol = "clip-paper",
    solver: str = DEFAULT_SOLVER,
    device: str = "auto",
    val_fraction: float | None = None,
    seed: int = 0,
    results_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> DoneRecord:
    """Fit a probe on features that another program made, and write its record and the tables of its model.

    Args:
        features: path of an `.npz` file, a Parquet file or a folder of `.npy` files; or the features of the splits
            `train`, `test` and, unless C is fixed, `val`.
        about: statements about the features: a TOML file, or a dict with fields of `AboutFeatures`. `dataset` and
            `model` are required. None uses the statements in a file of `probe extract`.
        protocol: rules by which the probe is fitted and scored. Features of one point are used whatever point it names.
        solver: solver of the probe, `fast` or `sklearn`.
        device: device that the probe is fitted on; `auto` is CUDA if available, and else the CPU.
        val_fraction: share of the training images of each class to hold out for validation, if there is no `val`.
        seed: seed of this choice.
        results_dir: folder of records and tables; None is the default of `probe.paths`.
        cache_dir: folder of cached fits; None is the default of `probe.paths`.

    Raises:
        FeaturesError: the features or the statements are missing, invalid, or contradict each other.
        UnknownNameError, ProtocolError: see `fit_probe`.
        ResultsError: the results folder cannot be written to.
    """
    folder = paths.results_dir(results_dir)
    settings = SuppliedSettings(
        solver=solver,
        device=device,
        val_fraction=val_fraction,
        seed=seed,
        results_dir=folder,
        cache_dir=cache_dir,
    )
    (record,) = fit_protocols(features, [protocol], about, settings).records
    derived.write_tables_of(record, folder)
    return record


def fit_protocols(
    features: str | Path | Mapping[str, Features],
    protocols: Sequence[str | Protocol],
    about: str | Path | Mapping[str, Any] | None,
    settings: SuppliedSettings,
) -> SuppliedResults:
    """Fit a probe on features by each protocol, and write the records, but no tables.

    Args:
        features: see `fit_features`.
        protocols: rules of the probes; a protocol that is named twice is fitted once.
        about: see `fit_features`. The statements are only needed for records and a head.
        settings: see `SuppliedSettings`.

    Raises:
        FeaturesError, UnknownNameError, ProtocolError, ResultsError: see `fit_features`.
        HeadError: the probe does not have exactly one head, or the description in the file is damaged.
    """
    head, results_dir = settings.head, settings.results_dir
    named = {rules.name: rules for rules in (get_protocol(one) if isinstance(one, str) else one for one in protocols)}
    if results_dir is not None:
        check_writable(results_dir)
    source = open_features(features, val_fraction=settings.val_fraction, seed=settings.seed)
    if head is not None:
        (single,) = named.values()
        check_single_fit(single, len(source.folds))
    said = None
    if about is not None or results_dir is not None:
        said = find_about(about, source)
        said = replace(said, metric=settings.metric or said.metric)
    fit_cache = FitCache(paths.cache_dir(settings.cache_dir) / FITS)
    stated = settings.metric or str(source.content.about.get("metric", "accuracy"))
    metric = find_metric(said) if said is not None else stated
    device = str(resolve_execution(settings.device).device)
    fitted = [
        fit_protocol(source, rules, metric=metric, solver=settings.solver, device=device, fit_cache=fit_cache)
        for rules in named.values()
    ]
    if head is not None:
        write_bytes(
            head,
            describe_head_of_file(
                source.content, fitted[0].result, fitted[0].protocol, source.folds[0]["test"], said=said
            ).to_bytes(),
        )
    records = []
    if said is not None and results_dir is not None:
        records = [make_record(source, said, one) for one in fitted]
        for record in records:
            _warn_of_replacement(record, record_path(record, results_dir))
            write_record(record, results_dir)
    fit_cache.clear()
    return SuppliedResults(source, metric, device, fitted, records)


def _warn_of_replacement(record: DoneRecord, path: Path) -> None:
    """Warn if a record replaces the record of other features. Both have the same name, because the user gives it."""
    earlier = try_to_read(path)
    if isinstance(earlier, DoneRecord) and _digests(earlier) != _digests(record):
        logger.warning(
            "%s was the record of other features, and is replaced; state another `model` or `dataset` to keep both",
            path,
        )


def _digests(record: DoneRecord) -> dict[str, str | None]:
    return {name: one.sha256 for name, one in record.features.items()}


def fit_again(
    record: DoneRecord,
    features: str | Path | Mapping[str, Features],
    *,
    device: str,
    fit_cache: FitCache,
    is_only: bool = True,
) -> DoneRecord:
    """Repeat the run of a record on features that are supplied again, and return the new record. Nothing is written.

    Args:
        record: the record.
        features: see `fit_features`.
        device: device to fit on.
        fit_cache: cache of finished fits.
        is_only: False if the features may belong to another record. They must then equal the features of `record`.

    Raises:
        ProtocolError: see `fit_features`.
        FeaturesError: see `fit_features`; or the features belong to other images, or perhaps to another record.
    """
    origin = record.extraction.supplied
    assert origin is not None
    source = open_features(features, val_fraction=origin.val_fraction, seed=origin.seed)
    _check_same(record, source, is_only=is_only)
    about = find_about(asdict(origin.about), source)
    fitted = fit_protocol(
        source,
        record.spec.protocol,
        metric=record.spec.dataset.metric,
        solver=record.solver if record.solver != NO_SOLVER else DEFAULT_SOLVER,
        device=device,
        fit_cache=fit_cache,
    )
    return replace(make_record(source, about, fitted), extraction=record.extraction)  # the file may have been renamed


def _check_same(record: DoneRecord, source: SuppliedFeatures, *, is_only: bool) -> None:
    """Check that features are of the splits of a record, and unless `is_only`, that they are its features."""
    digests = {name: features.compute_sha256() for name, features in source.by_name().items()}
    same = {name for name, one in record.features.items() if one.sha256 == digests.get(name)}
    given = describe_supplied_splits(source)
    # A file of `probe extract` has digests of its images, which its features in another format do not have.
    if given.keys() != record.splits.keys() or not all(
        name in same or split.sha256 == given[name].sha256 for name, split in record.splits.items()
    ):
        raise FeaturesError(
            f"the features of --features are not of the images of {record.dataset} in the record, because their splits "
            "or labels differ; give the features of this record"
        )
    if not is_only and len(same) < len(record.features):
        raise FeaturesError(
            "the features of --features differ from those of this record, and there are records of other supplied "
            "features; give this record alone with its own features"
        )
