"""Metrics, all with the same signature: (labels, scores) -> fraction in [0, 1], higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from probe.names import unknown_name

Metric = Callable[[np.ndarray, np.ndarray], float]

RECALLS = np.linspace(0, 1, 11)  # recalls of the 11-point average precision
IGNORED = -1  # label of an image that counts neither as positive nor as negative, such as `difficult` in VOC


def accuracy(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the share of images whose label has the highest score.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely. On a tie, the first class wins.

    Returns:
        A fraction in [0, 1].

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `accuracy_score` on the arg max.
    """
    return float(np.mean(is_first(y_true, y_score)))


def top5(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the share of images whose label is among the five highest scores.

    It is 1 if there are at most five classes.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely. On a tie, the first class wins.

    Returns:
        A fraction in [0, 1].

    Source: Kay et al. 2017 (arXiv 1705.06950), section 4. Equals scikit-learn's `top_k_accuracy_score` without ties.
    """
    return float(np.mean(is_among_five(y_true, y_score)))


def mean_top1_top5(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the mean of `accuracy` and `top5`, the metric of Kinetics700.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely. On a tie, the first class wins.

    Returns:
        A fraction in [0, 1].

    Source: Radford et al. 2021, table 9.
    """
    return (accuracy(y_true, y_score) + top5(y_true, y_score)) / 2


def mean_per_class(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the mean of the per-class recalls, the metric of Pets, Caltech101, Flowers102 and Aircraft.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely. On a tie, the first class wins.

    Returns:
        A fraction in [0, 1]. Classes with no image do not count.

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `balanced_accuracy_score` on the arg max.
    """
    return mean_recall(y_true, is_first(y_true, y_score))


def is_first(y_true: np.ndarray, y_score: np.ndarray) -> np.ndarray:
    """Return True for each image that `accuracy` counts as right, bool (n,). See `accuracy` for the arguments."""
    return np.asarray(y_score.argmax(axis=1) == y_true)


def is_among_five(y_true: np.ndarray, y_score: np.ndarray) -> np.ndarray:
    """Return True for each image that `top5` counts as right, bool (n,). See `top5` for the arguments."""
    own = y_score[np.arange(len(y_true)), y_true][:, None]  # (n, 1)
    before = np.arange(y_score.shape[1]) < y_true[:, None]  # (n, k)
    rank = (y_score > own).sum(axis=1) + ((y_score == own) & before).sum(axis=1)
    return np.asarray(rank < 5)


def mean_recall(y_true: np.ndarray, is_right: np.ndarray) -> float:
    """Return the mean of the per-class recalls from right answers; classes without images do not count.

    Args:
        y_true: int64 (n,), class indices.
        is_right: bool (n,), see `is_first`.
    """
    counts = np.bincount(y_true)
    recalls = np.bincount(y_true, weights=is_right)[counts > 0] / counts[counts > 0]
    return float(recalls.mean())


def roc_auc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the probability that a positive image has a higher score than a negative one, the metric of Hateful Memes.

    Args:
        y_true: int64 (n,), 0 or 1, both present.
        y_score: float (n, 2), higher is more likely. Images are ranked by the second column minus the first. A tie
            between a positive and a negative image counts as one half.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: only one class is present.

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `roc_auc_score`.
    """
    margin = y_score[:, 1] - y_score[:, 0]
    positive, negative = margin[y_true == 1], np.sort(margin[y_true == 0])
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError("ROC AUC needs images of both classes, but there is only one class")
    below, not_above = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


def voc2007_11pt_map(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return the 11-point interpolated average precision, averaged over classes, the metric of Pascal VOC 2007.

    The average precision of a class is the mean, over the recalls 0, 0.1, ..., 1, of the highest precision at this
    recall or above.

    Args:
        y_true: int64 (n, k): 1 if the image shows the class, 0 if not, -1 if it does not count (`difficult` in VOC).
        y_score: float (n, k), higher is more likely. On a tie, the first image comes first.

    Returns:
        A fraction in [0, 1]. Classes with no positive image do not count, because their recall is not defined: the
        development kit divides by zero, and scikit-learn's `average_precision_score` warns and counts 0. A class
        without training images has equal scores for all images, so its average precision depends only on their order.

    Raises:
        ValueError: no class has a positive image.

    Source: Everingham et al. 2010 (IJCV 88), section 4.2, and `VOCevalcls.m` of the VOC 2007 development kit.
    """
    precisions = [precision for precision in average_precisions(y_true, y_score) if precision is not None]
    if not precisions:
        raise ValueError("average precision needs an image that shows a class, but there is none")
    return float(np.mean(precisions))


def average_precisions(y_true: np.ndarray, y_score: np.ndarray) -> list[float | None]:
    """Return the average precision of each class, and None for a class with no positive image.

    See `voc2007_11pt_map` for the arguments.
    """
    precisions = []
    for labels, scores in zip(y_true.T, y_score.T, strict=True):
        counts, is_known = labels != IGNORED, (labels == 1).any()
        precisions.append(_average_precision(labels[counts] == 1, scores[counts]) if is_known else None)
    return precisions


def _average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float:
    ends = np.flatnonzero(is_positive[np.argsort(-scores, kind="stable")]) + 1  # images up to each positive image
    hits = np.arange(1, len(ends) + 1)
    recall, precision = hits / len(hits), hits / ends  # precision is highest at positive images
    best = np.maximum.accumulate(precision[::-1])[::-1]  # highest precision at this recall or above
    # The tolerance is for recalls such as 0.3, which are not exact in floating point.
    return float(np.mean(best[np.searchsorted(recall, RECALLS - 1e-12)]))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "top5": top5,
    "mean_top1_top5": mean_top1_top5,
    "mean_per_class": mean_per_class,
    "roc_auc": roc_auc,
    "voc2007_11pt_map": voc2007_11pt_map,
}


def find_mismatch(name: str, *, num_classes: int, is_multi_label: bool) -> str:
    """Return the reason why a metric does not suit the labels of a dataset, or "" if it does."""
    if is_multi_label and not takes_several_labels(name):
        return f"images can have several labels, which the metric {name} does not support; use voc2007_11pt_map"
    if not is_multi_label and takes_several_labels(name):
        return f"images have one label each, which the metric {name} does not support; use accuracy or mean_per_class"
    if name == "roc_auc" and num_classes != 2:
        return f"the metric roc_auc needs 2 classes, but there are {num_classes}; use accuracy or mean_per_class"
    return ""


def find_undefined(name: str, y: np.ndarray) -> str:
    """Return the reason why a metric is not defined on the labels of a split, or "" if it is defined.

    Args:
        name: one of `METRICS`.
        y: labels (n,), or (n, k) of 1, 0 and -1.
    """
    if name == "roc_auc" and len(np.unique(y)) < 2:
        return f"all of its {len(y)} images have the label {y[0]}, but ROC AUC needs images of both classes"
    if name == "voc2007_11pt_map" and not (y == 1).any():
        return "none of its images shows a class, but average precision needs at least one that does"
    return ""


def takes_several_labels(name: str) -> bool:
    """Return True if a metric scores images that can show several classes."""
    return name == "voc2007_11pt_map"


def get_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UnknownNameError: no metric has this name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
