"""Ranks of models by their mean scores over datasets: one more than the number of models with a higher mean.

Higher by more than chance, that is. All pairs are tested at once, from the covariances of what each test image adds to
the scores; chance in the draws of a few-shot protocol counts too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probe.errors import ResultsError
from probe.records.record import outcomes_of
from probe.records.schema import DoneRecord
from probe.stats.deviations import deviations
from probe.stats.intervals import quantile
from probe.stats.outcomes import Outcomes
from probe.stats.paired import SIGNIFICANT, check_pair, mcnemar


@dataclass(frozen=True)
class MeanRanks:
    """Ranks by model, `1`, or `1 =` where one is shared; and why others have none."""

    ranks: Mapping[str, str]
    reasons: Mapping[str, str]


def mean_ranks(records: Mapping[str, Sequence[DoneRecord]]) -> MeanRanks:
    """The rank of each model by its mean score over datasets.

    One dataset of right and wrong answers is tested by McNemar's test. Else the difference of two means is divided by
    its standard error, over test images and over draws of training images, and compared with the quantile of the
    normal distribution, or, as few draws say little of how much they vary, of Student's.

    Args:
        records: of each model those of the same datasets, in one order, on the same test images.

    Returns:
        Ranks of the models whose outcomes of test images are all there; one alone has none.

    Source: Welch 1947 (Biometrika 34) for the degrees of freedom.
    """
    outcomes: dict[str, list[list[Outcomes]]] = {}
    reasons: dict[str, str] = {}
    for model, cells in records.items():
        try:
            outcomes[model] = _outcomes(cells, next(iter(outcomes.values()), None))
        except ResultsError as err:
            reasons[model] = str(err)
    if len(outcomes) < 2:
        return MeanRanks({}, reasons)
    ranked = [records[model] for model in outcomes]
    means = np.array([np.mean([record.result.score for record in cells]) for cells in ranked])
    firsts = [folds[0] for folds in outcomes.values()]
    if len(ranked[0]) == 1 and len(firsts[0]) == 1 and firsts[0][0].metric in ("accuracy", "top5"):
        differ = _by_mcnemar([folds[0] for folds in firsts])
    else:
        differ = _by_variance(means, ranked, list(outcomes.values()))
    better = (differ & (means[None, :] > means[:, None])).sum(axis=1)
    shared = [int((better == n).sum()) > 1 for n in better]
    ranks = {model: f"{1 + n}{' =' if tie else ''}" for model, n, tie in zip(outcomes, better, shared, strict=True)}
    return MeanRanks(ranks, reasons)


def _outcomes(records: Sequence[DoneRecord], others: Sequence[Sequence[Outcomes]] | None) -> list[list[Outcomes]]:
    """Of each record, as far as they go together with those of another model."""
    found = []
    for i, record in enumerate(records):
        try:
            own = outcomes_of(record)
            if others is not None:
                check_pair(own, others[i])
        except ResultsError as err:
            raise ResultsError(f"{record.dataset}: {err}") from err
        found.append(own)
    return found


def _by_mcnemar(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """Which models differ, bool (n, n)."""
    right = np.stack([one.arrays["right"] for one in outcomes]).astype(np.float64)
    alone = np.rint(right @ (1 - right).T).astype(int)  # images that the model of the row has right alone
    return np.asarray(np.vectorize(mcnemar)(alone, alone.T) < SIGNIFICANT)


def _by_variance(
    means: np.ndarray, records: Sequence[Sequence[DoneRecord]], outcomes: Sequence[Sequence[Sequence[Outcomes]]]
) -> np.ndarray:
    """Which models differ, bool (n, n); records and outcomes are models by datasets."""
    num_datasets = len(records[0])
    variance, spread = np.zeros(
        (2, len(means), len(means))
    )  # of differences; squares of the share of draws, by freedom
    for i in range(num_datasets):
        same_images = records[0][i].result.same_images
        apart = np.stack([deviations(own[i], same_images=same_images) for own in outcomes])
        variance += _of_differences(apart @ apart.T)
        draws = np.array([_draw_scores(own[i]) for own in records])  # (models, draws)
        if draws.shape[1] > 1:
            own = _of_differences(np.cov(draws)) / draws.shape[1]
            variance += own
            spread += own**2 / (draws.shape[1] - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(spread > 0, variance**2 / spread, np.inf)
    size = np.abs(means[:, None] - means[None, :]) / np.sqrt(np.maximum(variance, 1e-30) / num_datasets**2)
    return np.asarray(size > np.vectorize(quantile)(freedom))


def _of_differences(covariance: np.ndarray) -> np.ndarray:
    """Variances of the difference of each pair, from their covariance, (n, n)."""
    own = np.diag(covariance)
    return np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0)


def _draw_scores(record: DoneRecord) -> list[float]:
    """The score of each draw of training images, the mean over folds; empty where all were trained on."""
    per_fold = [[draw.score for draw in part.draws] for part in record.result.folds or [record.result]]
    return [float(np.mean(scores)) for scores in zip(*per_fold, strict=True)]
