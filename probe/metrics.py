"""Scores of predictions, all with one signature: (labels, scores) -> fraction in [0, 1], higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from probe.names import unknown_name

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Share of images whose highest score is that of their label.

    Args:
        y_true: int64 (n,), class indices in [0, k).
        y_score: float (n, k), higher is more likely; of equal scores the first counts.

    Returns:
        A fraction in [0, 1].

    Source: Radford et al. 2021, table 9. Equals scikit-learn's `accuracy_score` on the arg max.
    """
    return float(np.mean(y_score.argmax(axis=1) == y_true))


METRICS: dict[str, Metric] = {"accuracy": accuracy}


def get_metric(name: str) -> Metric:
    """Find a metric by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
