"""Scores of single classes, and the classes that are confused most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.stats.intervals import wilson

MAX_CONFUSIONS = 50  # pairs of classes that are stored


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Test images of each of k classes under a probe, for images with one label each.

    Args:
        images: int64 (k,), number of images of each class.
        right: int64 (k,), number of these images whose label has the highest score.
        confusions: int64 (m, 3), the most frequent errors: label, predicted class, and number of images; the most
            frequent first, at most `MAX_CONFUSIONS`.
    """

    images: np.ndarray
    right: np.ndarray
    confusions: np.ndarray


@dataclass(frozen=True)
class ClassScore:
    """Recall of a class: its index, its number of test images, the share of them that is right, and its interval.

    The interval is Wilson's 95 % interval of the share. Score and interval are None for a class without test images.
    """

    index: int
    images: int
    score: float | None
    low: float | None
    high: float | None


def count_classes(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> ClassCounts:
    """Count the test images of each class and their errors.

    Args:
        y_true: int64 (n,), class indices in [0, num_classes).
        y_pred: int64 (n,), predicted class indices.
        num_classes: k.
    """
    wrong = y_true != y_pred
    pairs, counts = np.unique(y_true[wrong] * num_classes + y_pred[wrong], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS]
    confusions = np.stack([pairs[most] // num_classes, pairs[most] % num_classes, counts[most]], axis=1)
    return ClassCounts(
        images=np.bincount(y_true, minlength=num_classes),
        right=np.bincount(y_true[~wrong], minlength=num_classes),
        confusions=confusions.astype(np.int64).reshape(-1, 3),
    )


def class_scores(counts: Sequence[ClassCounts]) -> list[ClassScore]:
    """Return the recall of each class over folds or draws: the mean of a class over all of its test images.

    Several folds or draws can have the same test images. The interval counts each image once: its number of images is
    that of one fold or draw, on average.
    """
    images, right = (np.sum([getattr(one, name) for one in counts], axis=0) for name in ("images", "right"))
    scores = []
    for index, (num, hits) in enumerate(zip(images.tolist(), right.tolist(), strict=True)):
        if not num:
            scores.append(ClassScore(index, 0, None, None, None))
            continue
        each = num / len(counts)
        low, high = wilson(hits / num, each)
        scores.append(ClassScore(index, round(each), hits / num, low, high))
    return scores
