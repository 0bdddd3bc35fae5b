"""Check features, labels, metric and cost of a probe before anything is fitted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from probe.errors import FeaturesError, ProtocolError, listed
from probe.features.arrays import Features
from probe.probes import costs
from probe.probes.fitter import FitSettings
from probe.probes.shots import count_drawn
from probe.specs import KNN, Protocol
from probe.stats.metrics import IGNORED, find_mismatch, find_undefined

logger = logging.getLogger(__name__)


def needs_choice(rules: Protocol) -> bool:
    """Return True if a protocol chooses C or k among several values."""
    return len(rules.grid) > 1 or len(rules.neighbours) > 1


def check_splits(rules: Protocol, *, train: Features, val: Features | None, test: Features) -> None:
    """Check that the splits have features and labels that a protocol can use.

    Raises:
        ProtocolError: the protocol needs `val` and there is none, or `train` has a single class.
        FeaturesError: features are missing or not finite, or shapes or labels do not match.
    """
    if needs_choice(rules) and val is None and not rules.held_out:
        chosen = "k" if rules.method == KNN else "C"
        raise ProtocolError(
            f"protocol {rules.name!r} chooses {chosen} on a validation split, but there is none; give val (val_x and "
            "val_y in a file), or hold out some training images with --val-fraction 0.1"
        )
    labels = train.y if train.y.ndim == 1 else train.y[:, (train.y == 1).any(axis=0)]
    if len(np.unique(labels[labels != IGNORED])) < 2:
        raise ProtocolError("all training images have the same label; a probe needs at least two classes")
    widths = {}
    for name, features in (("train", train), ("val", val), ("test", test)):
        if features is not None:
            x = features.at(rules.feature_point)
            _check_split(name, x, features.y, label_shape=train.y.shape[1:])
            widths[name] = x.shape[1]
    if len(set(widths.values())) > 1:
        raise FeaturesError(
            f"the splits have different numbers of features, {widths}; extract all splits with the same model"
        )


def _check_split(name: str, x: np.ndarray, y: np.ndarray, *, label_shape: tuple[int, ...]) -> None:
    """Check the features and labels of one split.

    Args:
        name: name of the split, for messages.
        x: features.
        y: labels.
        label_shape: expected shape of the labels of one image: (), or (k,) if an image can show several of k classes.
    """
    if x.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise FeaturesError(
            f"{name} has features of shape {x.shape} and {len(y)} labels; give features (n, d) and n labels, n >= 1"
        )
    is_finite = np.isfinite(x.sum(axis=1, dtype=np.float64))
    if not is_finite.all():
        raise FeaturesError(
            f"{name} has features that are not finite, first in row {int(np.argmin(is_finite))}; remove the row or "
            "extract its image again"
        )
    if y.ndim == 1 and y.dtype.kind in "iu" and y.min() < 0:
        row = int(y.argmin())
        raise FeaturesError(f"{name} has the label {y[row]} in row {row}; give integers >= 0")
    if y.ndim not in (1, 2) or y.dtype.kind not in "iu" or (y.ndim == 2 and y.min() < IGNORED):
        raise FeaturesError(
            f"{name} has labels of dtype {y.dtype} and shape {y.shape}; give one integer >= 0 per image, or one row of "
            "1, 0 and -1 per image"
        )
    if y.shape[1:] != label_shape:
        raise FeaturesError(
            f"{name} has labels of shape {y.shape}, but one image of train has labels of shape {label_shape}; use the "
            "same classes in all splits"
        )
    if y.ndim == 2 and y.max() > 1:
        raise FeaturesError(f"{name} has the label {y.max()}; give rows of 1, 0 and -1")


def check_metric(metric: str, *, num_classes: int, scored: Mapping[str, np.ndarray]) -> None:
    """Check that a metric suits the labels of the splits that are scored, given by name.

    Raises:
        ProtocolError: the metric does not suit the labels, or is not defined on a split.
    """
    is_multi_label = any(y.ndim == 2 for y in scored.values())
    if reason := find_mismatch(metric, num_classes=num_classes, is_multi_label=is_multi_label):
        raise ProtocolError(reason)
    for name, y in scored.items():
        if reason := find_undefined(metric, y):
            raise ProtocolError(
                f"the metric {metric} is not defined on the {name} split: {reason}; use a different metric"
            )


def warn_of_missing_classes(fitted: Sequence[Features], test: Features, label_values: Sequence[int]) -> None:
    """Warn about test classes that the training images cannot teach, and about classes that do not count."""
    y = np.concatenate([features.y for features in fitted])
    if y.ndim == 2:
        is_scored = (test.y == 1).any(axis=0)
        missing = np.flatnonzero(is_scored & ~((y == 1).any(axis=0) & (y == 0).any(axis=0)))
        message = (
            "%d classes of the test split have no positive or no negative training image, so the probe cannot rank "
            "their images: %s"
        )
        if not is_scored.all():
            unscored = np.flatnonzero(~is_scored).tolist()
            logger.warning(
                "%d classes have no positive image in the test split and do not count in the mean: %s",
                len(unscored),
                listed(unscored),
            )
    else:
        missing = np.setdiff1d(test.y, y)
        missing = np.array(label_values)[missing] if label_values else missing
        message = "%d classes of the test split have no training image, so their test images count as wrong: %s"
    if len(missing):
        logger.warning(message, len(missing), listed(missing.tolist()))


def check_cost(settings: FitSettings, splits: Sequence[Features], *, num_classes: int, num_scored: int) -> None:
    """Estimate and log the cost of a probe, and check that there is enough memory, before anything is fitted."""
    rules = settings.rules
    arrays = [split.at(rules.feature_point) for split in splits]
    n = sum(map(len, arrays))
    if rules.shots:
        n = min(n, count_drawn(rules, num_classes))
    cost = costs.estimate_cost(rules, settings.solver, arrays, n=n, k=num_classes, num_scored=num_scored)
    costs.check_memory(cost, settings.solver, settings.device)
    logger.debug(
        "protocol %s, solver %s: %d images of %d features, at most %d fits, about %.0f s on the CPU, %.1f GB of memory",
        rules.name,
        settings.solver,
        n,
        arrays[0].shape[1],
        cost.fits,
        cost.seconds,
        cost.memory / 1e9,
    )
