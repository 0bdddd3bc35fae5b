"""How a score comes to vary with the images that were drawn, image by image, so that no pair of probes needs draws.

To first order, a score of other images differs by the sum of what the drawn ones move it by; its variance is the sum of
squares. For a share of right answers that is exact, for ROC AUC it is DeLong's variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from probe.stats.outcomes import Outcomes
from probe.stats.resampling import bootstrap

NUM_DRAWS = 100  # a spread from so many is known within 7 %


def deviations(folds: Sequence[Outcomes], *, same_images: bool) -> np.ndarray:
    """How a score comes to vary: squares sum to its variance, products with those of another probe to their covariance.

    Args:
        folds: outcomes of one probe for each fold, usually one; the score is the mean of theirs.
        same_images: whether the folds have the same test images, which then are drawn for all of them.

    Returns:
        float64: for each image what one more of it adds to the score, or for average precision, for each of
        `NUM_DRAWS` draws, how far off its score is; of the same images as many in the same order.

    Source: DeLong et al. 1988 (Biometrics 44) for ROC AUC; Efron and Tibshirani 1993, section 22.6, for means.
    """
    if folds[0].metric == "voc2007_11pt_map":
        return _of_draws(folds, same_images=same_images)
    parts = [_influence(fold) for fold in folds]
    return np.asarray(np.mean(parts, axis=0)) if same_images else np.concatenate(parts) / len(parts)


def _influence(outcomes: Outcomes) -> np.ndarray:
    if outcomes.metric == "roc_auc":
        return _of_roc_auc(outcomes.arrays["labels"], outcomes.arrays["ranks"])
    values = outcomes.values
    labels = outcomes.arrays.get("labels", np.zeros(len(values), np.int64))
    counts = np.bincount(labels)
    means = np.bincount(labels, weights=values) / np.maximum(counts, 1)
    return np.asarray((values - means[labels]) / counts[labels] / (counts > 0).sum())


def _of_roc_auc(labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    won = np.empty(len(labels))  # the share of the other class that an image is on the right side of
    for own in (True, False):
        others = np.sort(ranks[labels != own])
        below, not_above = (np.searchsorted(others, ranks[labels == own], side=side) for side in ("left", "right"))
        before = (below + not_above) / (2 * len(others))
        won[labels == own] = 1 - before if own else before
    auc = won[labels].mean()
    return np.asarray((won - auc) / np.where(labels, labels.sum(), (~labels).sum()))


def _of_draws(folds: Sequence[Outcomes], *, same_images: bool) -> np.ndarray:
    # Where a recall is reached moves with every image, and with it a precision: there is no slope to take.
    scores = bootstrap([folds], same_images=same_images, draws=NUM_DRAWS)[:, 0]
    return np.asarray((scores - scores.mean()) / math.sqrt(NUM_DRAWS - 1))
