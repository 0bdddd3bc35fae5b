"""Supplied features, the statements about them, probes on them, and their records, see `probe.supplied`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from probe import environment
from probe.datasets.catalog import DATASETS
from probe.errors import FeaturesError
from probe.features import files
from probe.features.arrays import PRE_PROJECTION, PROJECTED, Features
from probe.ordering import order
from probe.probes.fit import PROBE_VERSION
from probe.probes.result import ProbeResult
from probe.records.schema import (
    DoneRecord,
    EncoderRecord,
    ExtractionRecord,
    FeaturesRecord,
    ReadRecord,
    SplitRecord,
)
from probe.records.supplied import PREFIX, UNSTATED, AboutFeatures, SuppliedRecord, decode_about, read_about
from probe.specs import (
    SPLITS,
    SUPPLIED,
    DatasetSpec,
    ModelSpec,
    Protocol,
    RunSpec,
    Subset,
)


@dataclass(frozen=True)
class SuppliedFeatures:
    """Features of a file, or of arrays in memory, ready for probes.

    Args:
        content: the features and the description in their file.
        name: the path, for messages; empty for arrays in memory.
        val_fraction: share of the training images of each class that was held out for validation; None for none.
        seed: seed of this choice.
        seconds: wall time of reading.
    """

    content: files.FeatureFile
    name: str = ""
    val_fraction: float | None = None
    seed: int = 0
    seconds: float = 0.0

    @property
    def folds(self) -> Sequence[Mapping[str, Features]]:
        """The features of each fold by split."""
        return self.content.folds

    @property
    def has_one_point(self) -> bool:
        """True if the features were taken at one feature point only."""
        return all(features.pre_projection is None for fold in self.folds for features in fold.values())

    def by_name(self) -> dict[str, Features]:
        """Return the features of each split, under the names of splits in a record."""
        return {
            name if len(self.folds) == 1 else f"{name}/{k + 1}": fold[name]
            for k, fold in enumerate(self.folds)
            for name in SPLITS
            if name in fold
        }

    def compute_digests(self) -> list[dict[str, str]]:
        """Return the digest of each split of each fold, see `Features.compute_sha256`."""
        return [{split: features.compute_sha256() for split, features in fold.items()} for fold in self.folds]


@dataclass(frozen=True)
class SuppliedFit:
    """Probe on supplied features: its protocol, solver, device and result, and the wall time of the fit."""

    protocol: Protocol
    solver: str
    device: str
    result: ProbeResult
    seconds: float


def find_about(about: str | Path | Mapping[str, Any] | None, source: SuppliedFeatures) -> AboutFeatures:
    """Return the statements about features: from the user, or else from the file if `probe extract` wrote it.

    Args:
        about: path of a TOML file, its content as a dict, or None.
        source: the features.

    Raises:
        FeaturesError: the dataset or the model is missing, a key is unknown, a value is invalid, or statements
            contradict the features.
    """
    given = read_about(about) if isinstance(about, str | Path) else dict(about or {})
    where = str(about) if isinstance(about, str | Path) else "about" if about is not None else source.name
    stated = _stated_by_file(source.content.about)
    if about is None and not {"dataset", "model"} <= stated.keys():
        raise FeaturesError(
            f"{where or 'the input'} does not name its dataset and model; describe the features in a TOML file, and "
            "give it with --about"
        )
    found = decode_about({**stated, **given}, where=where)
    if not source.has_one_point and found.feature_point:
        raise FeaturesError(f"{where}: the features have both feature points; remove feature_point")
    names = found.class_names
    if names and source.content.class_names:
        raise FeaturesError(f"{where}: the labels of the features are texts; remove class_names")
    most = max(_largest_label(features) for fold in source.folds for features in fold.values())
    if names and most >= len(names):
        raise FeaturesError(f"{where}: class_names has {len(names)} names, but the features have the label {most}")
    return found


def _stated_by_file(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statements in a file that `probe extract` wrote, with names of `AboutFeatures`."""
    encoder, read = (about.get(name) or {} for name in ("encoder", "read"))
    stated = {name: about.get(name) for name in ("dataset", "model", "metric", "precision")}
    stated |= {"weights_sha256": encoder.get("weights_sha256"), "license": encoder.get("license")}
    stated["class_names"] = read.get("class_names")
    return {name: value for name, value in stated.items() if value}


def _largest_label(features: Features) -> int:
    return int(features.y.max(initial=-1)) if features.y.ndim == 1 else features.y.shape[1] - 1


def find_metric(about: AboutFeatures) -> str:
    """Return the stated metric, or else the metric of the dataset in the catalogue, or else `accuracy`."""
    known = {row.name: row.metric for row in DATASETS}
    return about.metric or known.get(about.dataset, "accuracy")


def make_record(source: SuppliedFeatures, about: AboutFeatures, fitted: SuppliedFit) -> DoneRecord:
    """Return the record of a probe on supplied features."""
    rules, result = fitted.protocol, fitted.result
    if source.has_one_point:
        rules = replace(rules, feature_point=about.feature_point or PROJECTED)
    spec = RunSpec(
        _describe_dataset(source, about, result.metric),
        ModelSpec(f"{PREFIX}{about.model}", SUPPLIED, "", license=about.license),
        rules,
        jit=False,
        device=fitted.device,
        precision=about.precision or UNSTATED,
        batch_size=0,
        solver=fitted.solver,
    )
    splits = source.by_name()
    first = source.folds[0]["train"]
    arrays = {PROJECTED: first.x, PRE_PROJECTION: first.pre_projection}
    if source.has_one_point:
        arrays = {about.feature_point or PROJECTED: first.x}
    widths = {point: array.shape[1] for point, array in arrays.items() if array is not None}
    return DoneRecord(
        spec=spec,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        encoder=EncoderRecord(
            license=about.license, embed_dim=widths.get(PROJECTED), pre_projection_dim=widths.get(PRE_PROJECTION)
        ),
        read=ReadRecord(class_names=source.content.class_names or about.class_names),
        splits=describe_supplied_splits(source),
        features={name: _describe_features(source, about, features) for name, features in splits.items()},
        seconds={"load": round(source.seconds, 3), "fit": round(fitted.seconds, 3)},
        environment=environment.describe(fitted.device),
        result=replace(result.to_record(), probe_version=PROBE_VERSION),
        extraction=ExtractionRecord(
            supplied=SuppliedRecord(
                about, Path(source.name).absolute().name if source.name else "", source.val_fraction, source.seed
            )
        ),
    )


def _describe_dataset(source: SuppliedFeatures, about: AboutFeatures, metric: str) -> DatasetSpec:
    fold = source.folds[0]
    labels = np.unique(np.concatenate([features.y for features in fold.values()]))
    names = source.content.class_names or about.class_names
    num_classes = len(names) or (fold["train"].y.shape[1] if fold["train"].y.ndim == 2 else len(labels))
    subsets = tuple(Subset(name, len(fold[name])) for name in SPLITS if name in fold)
    return DatasetSpec(
        about.dataset, "", subsets, (), num_classes=num_classes, metric=metric, num_folds=len(source.folds)
    )


def describe_supplied_splits(source: SuppliedFeatures) -> dict[str, SplitRecord]:
    """Return the number of images of each split of each fold, and a digest to compare splits by."""
    return {name: _describe_split(source, name, features) for name, features in source.by_name().items()}


def _describe_split(source: SuppliedFeatures, name: str, features: Features) -> SplitRecord:
    """Return the number of images of a split, and a digest.

    A file of `probe extract` has a digest of ids and labels. Other files have no ids, so the digest is computed from
    the labels in their order.
    """
    splits = source.content.about.get("splits")
    stated = splits.get(name) if isinstance(splits, dict) else None
    if isinstance(stated, dict) and stated.get("size") == len(features) and isinstance(stated.get("sha256"), str):
        return SplitRecord(stated["sha256"], len(features))
    return SplitRecord(hashlib.sha256(np.ascontiguousarray(features.y).data).hexdigest(), len(features))


def _describe_features(source: SuppliedFeatures, about: AboutFeatures, features: Features) -> FeaturesRecord:
    sample = {point: tuple(row) for point, row in features.sample().items()}
    if source.has_one_point:
        sample = {about.feature_point or PROJECTED: sample[PROJECTED]}
    return FeaturesRecord(features.compute_sha256(), sample)


def hold_out_validation(fold: Mapping[str, Features], fraction: float, *, seed: int = 0) -> dict[str, Features]:
    """Split the training features of a fold into `train` and `val`, stratified by class.

    The same seed gives the same split on every machine.

    Args:
        fold: features of the splits `train` and `test`.
        fraction: share of the images of each class to hold out, in (0, 1). The number of images is rounded, and at
            least one image of each class stays in `train`.
        seed: seed of the choice.

    Raises:
        FeaturesError: the fraction is outside (0, 1), or no image would be held out.
    """
    if not 0 < fraction < 1:  # NaN too
        raise FeaturesError(f"the fraction to hold out for validation is {fraction}; give a number between 0 and 1")
    y = fold["train"].y
    classes = y if y.ndim == 1 else np.zeros(len(y), np.int64)  # images with several labels are not stratified
    chosen = [
        position
        for label in np.unique(classes).tolist()
        for position in _hold_out_of(np.flatnonzero(classes == label), fraction, f"{seed}:{label}")
    ]
    if not chosen:
        raise FeaturesError(
            f"no class has enough images to hold out a fraction of {fraction} for validation; give a larger fraction"
        )
    is_val = np.zeros(len(y), dtype=bool)
    is_val[chosen] = True
    train, val = (fold["train"].take(np.flatnonzero(rows)) for rows in (~is_val, is_val))
    return {**fold, "train": train, "val": val}


def _hold_out_of(positions: np.ndarray, fraction: float, name: str) -> list[int]:
    num = min(round(fraction * len(positions)), len(positions) - 1)
    ordered = sorted(range(len(positions)), key=lambda i: order("val", name, i))
    return positions[ordered[:num]].tolist()
