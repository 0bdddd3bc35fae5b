"""k-nearest neighbours: the images of a bank that are most similar to an image vote for its labels.

The bank holds the training images, and after the choice of k the validation images too, if the protocol has `refit`.
`neighbours` defines similarity and says which of equally similar images vote. Of classes with equal votes, the first
one is predicted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.errors import joined
from probe.features.arrays import Features
from probe.probes.calibration import calibrate, logits_of_shares
from probe.probes.neighbours import STEPS_PER_UNIT, Neighbours, find_neighbours
from probe.probes.result import ProbeResult, make_result
from probe.records.schema import NeighboursRecord
from probe.specs import NO_SOLVER, Protocol
from probe.stats.metrics import IGNORED, get_metric
from probe.stats.top_classes import SHARES

logger = logging.getLogger(__name__)

NO_TEMPERATURE = "no temperature: the shares of the votes are the probabilities, and many of them are 0"


@dataclass(frozen=True)
class KNNSettings:
    """Rules of a vote and of its score.

    Args:
        rules: a protocol of the method `knn`.
        metric: a name of `metrics.METRICS`.
        num_classes: number of classes.
        label_values: original labels, if the labels were renumbered; otherwise empty.
        device: where candidates are searched, such as `cpu` or `cuda`.
        finds_top: see `fit.fit_probe`.
    """

    rules: Protocol
    metric: str
    num_classes: int
    label_values: tuple[int, ...]
    device: str
    finds_top: bool = False


def fit_knn(train: Features, val: Features | None, test: Features, settings: KNNSettings) -> ProbeResult:
    """Choose k on the validation split, and score the test split with the votes of the bank.

    The bank of the test split is `train`, followed by `val` if the protocol has `refit`. A k larger than the bank means
    all of the bank.

    Args:
        train: features and labels, see `fit.fit_probe`, which has checked them.
        val: features to choose k on; not needed for a single k.
        test: features to score.
        settings: protocol, metric, labels and device.
    """
    rules, label_values = settings.rules, settings.label_values
    k = rules.neighbours[-1]
    sweep: tuple[NeighboursRecord, ...] = ()
    if len(rules.neighbours) > 1:
        assert val is not None
        k, sweep = _choose_k(train, val, settings)
    splits = [train] if val is None or not rules.refit else [train, val]
    y = np.concatenate([split.y for split in splits])
    smallest = len(train) if sweep else len(y)
    if larger := [str(k) for k in rules.neighbours if k > smallest]:
        are = "is" if len(larger) == 1 else "are"
        text = joined(larger, "and")
        logger.warning("k = %s %s larger than the bank of %d images, so all of them vote", text, are, smallest)
    found = _find(splits, test, k, settings)
    shares = vote(found, y, k, rules.temperature, settings.num_classes)
    if y.ndim == 2:
        predictions = (shares > 0.5).astype(np.int64)
    else:
        predictions = shares.argmax(axis=1)
        predictions = np.array(label_values)[predictions] if label_values else predictions
    return make_result(
        settings.metric,
        test.y,
        shares,
        predictions=predictions,
        C=None,
        num_train=len(y),
        solver=NO_SOLVER,
        calibration=calibrate(test.y, logits_of_shares(shares, is_multi_label=y.ndim == 2), reason=NO_TEMPERATURE),
        label_values=label_values,
        k=k,
        k_sweep=sweep,
        top=SHARES if settings.finds_top else "",
    )


def _choose_k(train: Features, val: Features, settings: KNNSettings) -> tuple[int, tuple[NeighboursRecord, ...]]:
    """Return the k with the best score on the validation split, with `train` as the bank, and the scores of all k.

    Of values of k with equal scores, the smallest is chosen.
    """
    rules = settings.rules
    found = _find([train], val, rules.neighbours[-1], settings)
    sweep = []
    for k in rules.neighbours:
        shares = vote(found, train.y, k, rules.temperature, settings.num_classes)
        sweep.append(NeighboursRecord(k, get_metric(settings.metric)(val.y, shares)))
        logger.debug("k = %d: validation score %.4f", k, sweep[-1].score)
    return max(sweep, key=lambda tried: (tried.score, -tried.k)).k, tuple(sweep)


def _find(bank: Sequence[Features], queries: Features, k: int, settings: KNNSettings) -> Neighbours:
    """Return the neighbours of queries at the feature point of the protocol."""
    point = settings.rules.feature_point
    return find_neighbours([split.at(point) for split in bank], queries.at(point), k, settings.device)


def vote(found: Neighbours, y: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Return the share of each class in the votes of the first k neighbours, float64 (n, num_classes).

    Args:
        found: k or more neighbours of each query, or the whole bank.
        y: labels of the bank: int64 (m,), where the shares of an image sum to 1; or (m, num_classes) of 1, 0 and -1,
            where the share of a class is the weighted mean of its labels, without labels of -1.
        k: number of neighbours.
        temperature: a neighbour of similarity s has the weight exp(s / `temperature`); 0 gives equal weights.
        num_classes: number of classes.
    """
    positions, similarities = found.positions[:, :k], found.similarities[:, :k]
    weights = np.ones_like(similarities)
    if temperature:  # relative to the nearest, to avoid overflow; sums of multiples of 1 / STEPS_PER_UNIT are exact
        weights = np.exp((similarities - similarities[:, :1]) / temperature)
        weights = np.rint(weights * STEPS_PER_UNIT) / STEPS_PER_UNIT
    n = len(positions)
    if y.ndim == 1:
        bins = np.arange(n)[:, None] * num_classes + y[positions]
        votes = np.bincount(bins.ravel(), weights.ravel(), minlength=n * num_classes).reshape(n, num_classes)
        return votes / weights.sum(axis=1, keepdims=True)
    positive, counted = np.zeros((n, num_classes)), np.zeros((n, num_classes))
    for nearest, weight in zip(positions.T, weights.T, strict=True):
        positive += weight[:, None] * (y[nearest] == 1)
        counted += weight[:, None] * (y[nearest] != IGNORED)
    return positive / np.where(counted > 0, counted, 1)
