"""Precision of saved heads: float32, which halves the file, unless the outcome of a test image would change."""

from __future__ import annotations

import numpy as np

from probe.features.arrays import Features
from probe.probes.fits import Weights, at_feature_point
from probe.probes.result import ProbeResult
from probe.specs import ZERO_SHOT, Protocol
from probe.stats.outcomes import make_outcomes


def round_weights(part: ProbeResult, test: Features, rules: Protocol) -> Weights:
    """Return the weights of a single fit as they are saved.

    The weights are rounded to float32 if the rounded weights give the same prediction and outcome of each test image.
    Otherwise the weights are not rounded.

    Args:
        part: result of one fold or draw, with one head.
        test: the test images that it was scored on.
        rules: its protocol.

    Returns:
        Weights in float64. Rounded weights are exact in float32.
    """
    (weights,) = part.heads
    with np.errstate(over="ignore"):  # an infinite weight is not used, see below
        arrays = [array.astype(np.float32).astype(np.float64) for array in (weights.weight, weights.bias)]
    rounded = Weights(*arrays)
    if not np.isfinite(rounded.weight).all() or not np.array_equal(rounded.bias == -np.inf, weights.bias == -np.inf):
        return weights
    logits = rounded.logits(at_feature_point(rules, test))
    y = np.searchsorted(part.label_values, test.y) if part.label_values else test.y
    (before,), after = part.outcomes, make_outcomes(part.metric, y, logits)
    is_same = all(np.array_equal(array, after.arrays[name]) for name, array in before.arrays.items())
    return rounded if is_same and np.array_equal(_predict(logits, part, rules), part.predictions) else weights


def _predict(logits: np.ndarray, part: ProbeResult, rules: Protocol) -> np.ndarray:
    """Return the predictions of logits in the form of `ProbeResult.predictions`."""
    best = logits.argmax(axis=1)
    if part.predictions.ndim == 1:
        return np.asarray(part.label_values)[best] if part.label_values else best
    if rules.method == ZERO_SHOT:
        return np.eye(logits.shape[1], dtype=np.int64)[best]
    return (logits > 0).astype(np.int64)
