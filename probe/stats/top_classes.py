"""The classes with the highest scores of each test image, with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOP = 5  # classes
BLOCK = 1 << 18  # scores that are ranked at a time, so that they stay in the processor's cache

# How scores become probabilities: of all classes together, of each class by itself, or they are probabilities already.
SOFTMAX, SIGMOID, SHARES = "softmax", "sigmoid", "shares"


@dataclass(frozen=True, eq=False)
class TopClasses:
    """The classes with the highest scores of n images, up to `TOP` for each.

    Args:
        labels: int64 (n, m), original labels, from the highest score down. Of equal scores, the first class is first.
        probabilities: float64 (n, m), their probabilities, in [0, 1].
    """

    labels: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def find_top(y_score: np.ndarray, how: str, label_values: Sequence[int] = ()) -> TopClasses:
    """Return the classes with the highest scores of each image.

    Args:
        y_score: float64 (n, k), logits or shares. Logits of -inf have the probability 0.
        how: `SOFTMAX`, `SIGMOID` or `SHARES`, see `to_probabilities`.
        label_values: original label of each class; empty if it is the class index.
    """
    n, k = y_score.shape
    m = min(TOP, k)
    classes, probabilities = np.empty((n, m), np.int64), np.empty((n, m))
    step = max(1, BLOCK // k)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        left = np.maximum(y_score[rows], np.finfo(np.float64).min)  # a copy; -inf marks classes that are ranked
        for i in range(m):
            classes[rows, i] = left.argmax(axis=1)
            left[np.arange(len(left)), classes[rows, i]] = -np.inf
        probabilities[rows] = np.take_along_axis(to_probabilities(y_score[rows], how), classes[rows], axis=1)
    return TopClasses(np.asarray(label_values)[classes] if len(label_values) else classes, probabilities)


def to_probabilities(y_score: np.ndarray, how: str) -> np.ndarray:
    """Return the probabilities float64 (n, k) of scores.

    Args:
        y_score: float64 (n, k).
        how: `SOFTMAX` for logits of classes that exclude one another, `SIGMOID` for logits of classes that do not,
            `SHARES` for shares of votes, which are returned as they are.
    """
    if how == SHARES:
        return y_score
    if how == SIGMOID:
        return np.asarray(np.exp(-np.logaddexp(0, -y_score)))
    shifted = np.exp(y_score - y_score.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
