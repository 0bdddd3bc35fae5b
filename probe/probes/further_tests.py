"""Score a probe on a further test set: other images that show classes of its dataset. Nothing is fitted or chosen.

Two conventions are in use if a test set shows only some classes of the dataset. The prediction is the class with the
highest score among all classes of the dataset, or among the classes of the test set. Both are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from probe.errors import ProtocolError
from probe.features.arrays import Features
from probe.features.further_tests import FurtherTest
from probe.probes.fits import at_feature_point
from probe.probes.knn import vote
from probe.probes.neighbours import find_neighbours
from probe.probes.result import ProbeResult, score_parts
from probe.records.packing import pack
from probe.records.schema import ConventionRecord, FurtherTestRecord, IntervalRecord
from probe.specs import KNN, Protocol
from probe.stats.outcomes import Outcomes
from probe.stats.top_classes import SHARES, SOFTMAX, TopClasses, find_top

METRICS = ("accuracy", "mean_per_class")  # metrics that need only to know which images are right


@dataclass(frozen=True)
class FittedProbe:
    """Probe of a run, for further test sets.

    Args:
        result: its result.
        folds: features of each fold, of which k-NN needs `train` and `val`.
        rules: its protocol.
        num_classes: number of classes k of the dataset.
        device: where k-NN searches neighbours.
    """

    result: ProbeResult
    folds: Sequence[Mapping[str, Features]]
    rules: Protocol
    num_classes: int
    device: str

    def scores(self, features: Features) -> Iterator[np.ndarray]:
        """Yield the scores of images under the probe of each fold or draw, float64 (n, k).

        Classes that the probe does not know have a score of -inf.
        """
        num_draws = len(self.result.parts) // len(self.folds)
        for i, part in enumerate(self.result.parts):
            fold = self.folds[i // num_draws]
            yield self._votes(fold, part, features) if self.rules.method == KNN else self._logits(part, features)

    def _logits(self, part: ProbeResult, features: Features) -> np.ndarray:
        (weights,) = part.heads
        logits = weights.logits(at_feature_point(self.rules, features))
        if logits.shape[1] == self.num_classes:
            return logits
        scores = np.full((len(features), self.num_classes), -np.inf)
        scores[:, list(part.label_values) or slice(logits.shape[1])] = logits
        return scores

    def _votes(self, fold: Mapping[str, Features], part: ProbeResult, features: Features) -> np.ndarray:
        assert part.k is not None
        x = features.at(self.rules.feature_point)
        bank = [fold["train"], fold["val"]] if self.rules.refit else [fold["train"]]
        found = find_neighbours([split.at(self.rules.feature_point) for split in bank], x, part.k, self.device)
        y = np.concatenate([split.y for split in bank])
        return vote(found, y, part.k, self.rules.temperature, self.num_classes)


@dataclass(frozen=True, eq=False)
class FurtherPredictions:
    """Predictions for n images of a further test set by the probe of one fold or draw.

    Args:
        top: the classes with the highest scores among all classes of the dataset.
        own: int64 (n,), predicted classes among the classes of the test set.
    """

    top: TopClasses
    own: np.ndarray


@dataclass(frozen=True)
class ConventionScores:
    """Scores on a further test set under both conventions.

    Args:
        all_classes: scores of predictions among all classes of the dataset.
        own_classes: scores of predictions among the classes that are right for some image; None if these are all
            classes.
        predictions: predictions of each fold or draw; empty if they were not asked for.
    """

    all_classes: ConventionRecord
    own_classes: ConventionRecord | None
    predictions: tuple[FurtherPredictions, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class ScoredTest:
    """A further test set with its scores, or with the error that prevented them.

    Args:
        record: its record.
        test: its features; None after an error.
        is_right: bool (c, k), which classes of the dataset are right for each class of the test set.
        predictions: predictions of each fold or draw; empty after an error, or if they were not asked for.
    """

    record: FurtherTestRecord
    test: FurtherTest | None = field(default=None, repr=False)
    is_right: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.bool_), repr=False)
    predictions: tuple[FurtherPredictions, ...] = field(default=(), repr=False)


def score_conventions(
    probe: FittedProbe, features: Features, is_right: np.ndarray, *, metric: str, finds_top: bool = False
) -> ConventionScores:
    """Score a probe on a further test set under both conventions.

    Args:
        probe: the probe.
        features: features of the test set; labels int64 (n,) of its c classes.
        is_right: bool (c, k), which classes of the dataset are right for each class of the test set.
        metric: metric of the dataset, one of `METRICS`.
        finds_top: also return the predictions.

    Raises:
        ProtocolError: the metric is not one of `METRICS`.
    """
    if metric not in METRICS:
        raise ProtocolError(
            f"further test sets are scored by {' or '.join(METRICS)}, but the metric of the dataset is {metric}; run "
            "the test set as a dataset of its own"
        )
    own = np.flatnonzero(is_right.any(axis=0))
    is_subset = len(own) < is_right.shape[1]
    among_all, among_own, predictions = [], [], []
    for scores in probe.scores(features):
        best = scores.argmax(axis=1)
        best_of_own = own[scores[:, own].argmax(axis=1)] if is_subset else best
        among_all.append(_outcomes(metric, features.y, is_right[features.y, best]))
        if is_subset:
            among_own.append(_outcomes(metric, features.y, is_right[features.y, best_of_own]))
        if finds_top:
            top = find_top(scores, SHARES if probe.rules.method == KNN else SOFTMAX)
            predictions.append(FurtherPredictions(top, best_of_own))
    num_draws = probe.rules.num_seeds if probe.rules.shots else 1
    return ConventionScores(
        _convention(among_all, num_draws),
        _convention(among_own, num_draws) if is_subset else None,
        tuple(predictions),
    )


def _outcomes(metric: str, y: np.ndarray, right: np.ndarray) -> Outcomes:
    return Outcomes(metric, {"right": right, "labels": y} if metric == "mean_per_class" else {"right": right})


def _convention(outcomes: Sequence[Outcomes], num_draws: int) -> ConventionRecord:
    """Return the mean score of all folds and draws, which have the same images; draws of a fold are consecutive."""
    scores, around = score_parts(outcomes, num_draws, same_images=True)
    return ConventionRecord(float(np.mean(scores)), IntervalRecord(**asdict(around)), tuple(map(pack, outcomes)))
