"""Ranks of models by their scores, or mean scores over datasets, on the same test images.

A rank is one more than the number of models that are better by more than chance. Models with the same number share a
rank. Two of different ranks may still be tied, if a third is better than only one of them; and of many pairs one in
twenty passes a test by chance. All pairs are tested at once, from the covariances of what each test image adds to the
scores. The draws of a few-shot protocol add to chance too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from probe.errors import ResultsError
from probe.leaderboard.labels import short_names
from probe.records.packing import outcomes_of
from probe.records.record import prompts_of, test_images
from probe.records.schema import DoneRecord, RunRecord
from probe.stats.deviations import deviations
from probe.stats.intervals import quantile
from probe.stats.outcomes import Outcomes
from probe.stats.paired import SIGNIFICANT, check_pair, mcnemar_of_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Outcomes of a record's test images, decoded once for all tests that need them."""

    record: DoneRecord

    @cached_property
    def outcomes(self) -> list[Outcomes]:
        """Outcomes of each fold; raises ResultsError if the record has none or they are damaged."""
        return outcomes_of(self.record)

    @cached_property
    def deviations(self) -> np.ndarray:
        """Variation of the score with the test images, see `stats.deviations`."""
        return deviations(self.outcomes, same_images=self.record.result.same_images)

    @cached_property
    def draw_scores(self) -> list[float]:
        """Score of each draw of training images, the mean over folds; empty if all images were trained on."""
        result = self.record.result
        per_fold = [[draw.score for draw in part.draws] for part in result.folds or [result]]
        return [float(np.mean(scores)) for scores in zip(*per_fold, strict=True)]


@dataclass(frozen=True)
class MeanRanks:
    """Ranks by model, `1`, or `1 =` if several models share it; and the reasons why other models have none."""

    ranks: Mapping[str, str]
    reasons: Mapping[str, str]


def mean_ranks(evidence: Mapping[str, Sequence[Evidence]]) -> MeanRanks:
    """Return the rank of each model by its mean score over datasets.

    One dataset of right and wrong answers is tested by McNemar's test. Otherwise the difference of two means is divided
    by its standard error, over test images and over draws of training images. The ratio is compared with the quantile
    of the normal distribution, or of Student's t if there are few draws.

    Args:
        evidence: for each model, one item for each dataset. The datasets, their order and their test images are the
            same for all models.

    Returns:
        Ranks of the models that have outcomes for all test images. A single model has no rank.

    Source: Welch 1947 (Biometrika 34) for the degrees of freedom.
    """
    ranked: dict[str, Sequence[Evidence]] = {}
    reasons: dict[str, str] = {}
    for model, own in evidence.items():
        try:
            _check(own, next(iter(ranked.values()), None))
            ranked[model] = own
        except ResultsError as err:
            reasons[model] = str(err)
    if len(ranked) < 2:
        return MeanRanks({}, reasons)
    rows = list(ranked.values())
    means = np.array([np.mean([one.record.result.score for one in row]) for row in rows])
    first = rows[0][0].outcomes
    if len(rows[0]) == 1 and len(first) == 1 and first[0].metric in ("accuracy", "top5"):
        differ = _by_mcnemar([row[0].outcomes[0] for row in rows])
    else:
        differ = _by_variance(means, rows)
    better = (differ & (means[None, :] > means[:, None])).sum(axis=1)
    shared = [int((better == n).sum()) > 1 for n in better]
    ranks = {model: f"{1 + n}{' =' if tie else ''}" for model, n, tie in zip(ranked, better, shared, strict=True)}
    return MeanRanks(ranks, reasons)


def dataset_ranks(records: Sequence[RunRecord]) -> dict[tuple[str, ...], str]:
    """Return the rank of each record by its key: `1`, or `1 =` if several share it.

    The records of one dataset, protocol, mode, precision and solver are compared if they have the same test images and
    prompts. Records without outcomes, which earlier versions wrote, have no rank.
    """
    groups: dict[tuple[object, ...], list[DoneRecord]] = {}
    for record in records:
        if isinstance(record, DoneRecord) and record.result.outcomes:
            run = (record.dataset, record.protocol, record.mode, record.precision, record.solver)
            groups.setdefault((*run, test_images(record), prompts_of(record)), []).append(record)
    ranks: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        by_model = {record.model: record for record in group}
        found = mean_ranks({model: [Evidence(record)] for model, record in by_model.items()})
        ranks |= {by_model[model].key: rank for model, rank in found.ranks.items()}
        for model, reason in found.reasons.items():
            logger.warning("%s has no rank: %s", " / ".join(by_model[model].key), reason)
    return ranks


def _check(evidence: Sequence[Evidence], others: Sequence[Evidence] | None) -> None:
    """Raise ResultsError if outcomes are missing, or if another model has different test images."""
    for i, one in enumerate(evidence):
        try:
            own = one.outcomes
            if others is not None:
                check_pair(own, others[i].outcomes)
        except ResultsError as err:
            (label,) = short_names([one.record.dataset]).values()
            raise ResultsError(f"{label}: {err}") from err


def _by_mcnemar(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """Return which models differ, bool (n, n)."""
    right = np.stack([one.arrays["right"] for one in outcomes]).astype(np.float32)  # exact up to 16 million images
    both = (right @ right.T).astype(int)
    alone = np.diag(both)[:, None] - both  # images that the model of the row has right alone
    return np.asarray(mcnemar_of_pairs(alone, alone.T) < SIGNIFICANT)


def _by_variance(means: np.ndarray, rows: Sequence[Sequence[Evidence]]) -> np.ndarray:
    """Return which models differ, bool (n, n); rows are models by datasets."""
    # Variances of differences, and the sum of their squared shares that come from draws, over degrees of freedom.
    variance, spread = np.zeros((2, len(means), len(means)))
    for column in zip(*rows, strict=True):
        apart = np.stack([one.deviations for one in column])
        variance += _of_differences(apart @ apart.T)
        draws = np.array([one.draw_scores for one in column])  # (models, draws)
        if draws.shape[1] > 1:
            own = _of_differences(np.cov(draws)) / draws.shape[1]
            variance += own
            spread += own**2 / (draws.shape[1] - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(spread > 0, variance**2 / spread, np.inf)
    size = np.abs(means[:, None] - means[None, :]) / np.sqrt(np.maximum(variance, 1e-30) / len(rows[0]) ** 2)
    return np.asarray(size > np.vectorize(quantile)(freedom))


def _of_differences(covariance: np.ndarray) -> np.ndarray:
    """Return the variance of the difference of each pair, from their covariance, (n, n)."""
    own = np.diag(covariance)
    return np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0)
