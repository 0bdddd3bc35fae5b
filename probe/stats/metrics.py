"""Scores of predictions, all with one signature: (labels, scores) -> fraction in [0, 1], higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from probe.names import unknown_name

Metric = Callable[[np.ndarray, np.ndarray], float]

RECALLS = np.linspace(0, 1, 11)  # where the 11-point average precision looks
IGNORED = -1  # a label that counts neither as positive nor as negative: VOC's `difficult`


def accuracy(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Share of images whose highest score is that of their label.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely; of equal scores the first counts.

    Returns:
        A fraction in [0, 1].

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `accuracy_score` on the arg max.
    """
    return float(np.mean(is_first(y_true, y_score)))


def top5(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Share of images whose label is among their five highest scores; 1 where there are at most five classes.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely; a score that is equal to the label's counts as higher if its class
            comes first, as in `accuracy`.

    Returns:
        A fraction in [0, 1].

    Source: Kay et al. 2017 (arXiv 1705.06950), section 4. Equals scikit-learn's `top_k_accuracy_score` without ties.
    """
    return float(np.mean(is_among_five(y_true, y_score)))


def mean_top1_top5(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Mean of `accuracy` and `top5`, the metric of Kinetics700; arguments and result as theirs.

    Source: Radford et al. 2021, table 9.
    """
    return (accuracy(y_true, y_score) + top5(y_true, y_score)) / 2


def mean_per_class(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Mean of the per-class recalls, the metric of Pets, Caltech101, Flowers102 and Aircraft.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely; of equal scores the first counts.

    Returns:
        A fraction in [0, 1]. Classes with no image do not count.

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `balanced_accuracy_score` on the arg max.
    """
    return mean_recall(y_true, is_first(y_true, y_score))


def is_first(y_true: np.ndarray, y_score: np.ndarray) -> np.ndarray:
    """Which images `accuracy` counts as right, bool (n,); arguments as there."""
    return np.asarray(y_score.argmax(axis=1) == y_true)


def is_among_five(y_true: np.ndarray, y_score: np.ndarray) -> np.ndarray:
    """Which images `top5` counts as right, bool (n,); arguments as there."""
    own = y_score[np.arange(len(y_true)), y_true][:, None]  # (n, 1)
    before = np.arange(y_score.shape[1]) < y_true[:, None]  # (n, k)
    rank = (y_score > own).sum(axis=1) + ((y_score == own) & before).sum(axis=1)
    return np.asarray(rank < 5)


def mean_recall(y_true: np.ndarray, is_right: np.ndarray) -> float:
    """Mean over the classes that have images of the share of them that is right; what `mean_per_class` is made of."""
    counts = np.bincount(y_true)
    recalls = np.bincount(y_true, weights=is_right)[counts > 0] / counts[counts > 0]
    return float(recalls.mean())


def roc_auc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Chance that a positive image has a higher score than a negative one, the metric of Hateful Memes.

    Args:
        y_true: int64 (n,), 0 or 1, both present.
        y_score: float (n, 2), higher is more likely; what counts is the second column less the first, and equal ones
            count as half.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: only one class is present.

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `roc_auc_score`.
    """
    margin = y_score[:, 1] - y_score[:, 0]
    positive, negative = margin[y_true == 1], np.sort(margin[y_true == 0])
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError("ROC AUC needs images of both classes")
    below, not_above = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


def voc2007_11pt_map(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """11-point interpolated average precision, averaged over classes, the metric of Pascal VOC 2007.

    For each of the recalls 0, 0.1, ..., 1 the highest precision at that recall or above; their mean.

    Args:
        y_true: int64 (n, k): 1 where the image shows the class, 0 where not, -1 where it does not count (`difficult`).
        y_score: float (n, k), higher is more likely; of equal scores the first image comes first.

    Returns:
        A fraction in [0, 1]. Classes with no positive image do not count, because their recall is not defined: the
        development kit divides by zero, and scikit-learn's `average_precision_score` warns and counts 0. A class that
        was never trained has equal scores for all images, so its average precision depends only on their order.

    Raises:
        ValueError: no class has a positive image.

    Source: Everingham et al. 2010 (IJCV 88), section 4.2, and `VOCevalcls.m` of the VOC 2007 development kit.
    """
    precisions = []
    for labels, scores in zip(y_true.T, y_score.T, strict=True):
        counts = labels != IGNORED
        if (labels == 1).any():
            precisions.append(_average_precision(labels[counts] == 1, scores[counts]))
    if not precisions:
        raise ValueError("average precision needs an image that shows a class")
    return float(np.mean(precisions))


def _average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float:
    hits = np.cumsum(is_positive[np.argsort(-scores, kind="stable")])  # (n,) positives among the first i + 1
    recall, precision = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
    # The slack is for recalls such as 0.3, which a sum of tenths misses by a rounding.
    return float(np.mean([precision[recall >= r - 1e-12].max() for r in RECALLS]))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "top5": top5,
    "mean_top1_top5": mean_top1_top5,
    "mean_per_class": mean_per_class,
    "roc_auc": roc_auc,
    "voc2007_11pt_map": voc2007_11pt_map,
}


def misfit(name: str, *, num_classes: int, is_multi_label: bool) -> str:
    """Why a metric cannot score labels of a kind; empty where it can.

    Args:
        name: one of `METRICS`.
        num_classes: of the dataset.
        is_multi_label: whether an image can show several of them.
    """
    if is_multi_label != takes_several_labels(name):
        has, other = ("several labels", "voc2007_11pt_map") if is_multi_label else ("one label", "another, as accuracy")
        return f"an image has {has}, which the metric {name} cannot score; use {other}"
    if name == "roc_auc" and num_classes != 2:
        return f"there are {num_classes} classes, and the metric roc_auc is of two; use another, as accuracy"
    return ""


def find_undefined(name: str, y: np.ndarray) -> str:
    """Return the reason why a metric is not defined on the labels of a split, or "" if it is defined.

    Args:
        name: one of `METRICS`.
        y: labels (n,), or (n, k) of 1, 0 and -1.
    """
    if name == "roc_auc" and len(np.unique(y)) < 2:
        return f"all of its {len(y)} images have the label {y[0]}, and ROC AUC needs images of both classes"
    if name == "voc2007_11pt_map" and not (y == 1).any():
        return "none of its images shows a class, and average precision needs an image that does"
    return ""


def takes_several_labels(name: str) -> bool:
    """Return True if a metric scores images that can show several classes."""
    return name == "voc2007_11pt_map"


def get_metric(name: str) -> Metric:
    """Find a metric by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
