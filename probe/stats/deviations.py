"""Deviations of a score, from which the variance of the score and the covariance of two scores are computed.

The sampling of the test images makes a score vary. To first order, this variation is the sum of the influences of the
images. So the variance of the score is the sum of the squared influences. For accuracy this equals the usual variance
of a mean, and for ROC AUC it is DeLong's variance. The covariance of two probes is the sum of products, so comparing
many pairs of probes needs no resampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from probe.stats.outcomes import Outcomes
from probe.stats.resampling import bootstrap

NUM_DRAWS = 100  # the relative standard error of a standard deviation from 100 draws is 7 %


def deviations(folds: Sequence[Outcomes], *, same_images: bool) -> np.ndarray:
    """Return the deviations u of a score.

    The variance of the score is sum(u**2). The covariance with the score of another probe on the same images is
    sum(u * v), where v are the deviations of the other score.

    Args:
        folds: outcomes of one probe, one for each fold. The score is the mean over folds.
        same_images: True if all folds have the same test images.

    Returns:
        float64 (n,), the influence of each image on the score, divided by the number of images. For average precision
        float64 (NUM_DRAWS,), the difference of each bootstrap score from the mean score, divided by
        sqrt(NUM_DRAWS - 1). Probes on the same images have deviations of the same length and order.

    Source: DeLong et al. 1988 (Biometrics 44) for ROC AUC; Efron and Tibshirani 1993, section 22.6, for means.
    """
    if folds[0].metric == "voc2007_11pt_map":
        return _deviations_of_draws(folds, same_images=same_images)
    influences = [_influence(fold) for fold in folds]
    return np.asarray(np.mean(influences, axis=0)) if same_images else np.concatenate(influences) / len(influences)


def _influence(outcomes: Outcomes) -> np.ndarray:
    if outcomes.metric == "roc_auc":
        return _influence_on_roc_auc(outcomes.arrays["labels"], outcomes.arrays["ranks"])
    values = outcomes.values
    if "labels" not in outcomes.arrays:
        return np.asarray((values - values.mean()) / len(values))
    labels = outcomes.arrays["labels"]
    counts = np.bincount(labels)
    means = np.bincount(labels, weights=values) / np.maximum(counts, 1)
    return np.asarray((values - means[labels]) / counts[labels] / (counts > 0).sum())


def _influence_on_roc_auc(labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    won = np.empty(len(labels))  # share of the images of the other class that an image is ranked correctly against
    for own in (True, False):
        others = np.sort(ranks[labels != own])
        below, not_above = (np.searchsorted(others, ranks[labels == own], side=side) for side in ("left", "right"))
        before = (below + not_above) / (2 * len(others))
        won[labels == own] = 1 - before if own else before
    auc = won[labels].mean()
    return np.asarray((won - auc) / np.where(labels, labels.sum(), (~labels).sum()))


def _deviations_of_draws(folds: Sequence[Outcomes], *, same_images: bool) -> np.ndarray:
    # Average precision has no influence function: with every image, the rank at which a recall is reached jumps.
    scores = bootstrap([folds], same_images=same_images, draws=NUM_DRAWS)[:, 0]
    return np.asarray((scores - scores.mean()) / math.sqrt(NUM_DRAWS - 1))
