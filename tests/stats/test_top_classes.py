"""The most probable classes: in the order of a stable sort, with probabilities that SciPy gives."""

import numpy as np
import pytest
from make.predictions import make_predictions
from scipy.special import expit, softmax

from probe.stats import top_classes
from probe.stats.top_classes import SHARES, SIGMOID, SOFTMAX, find_top

CONVERSIONS = {SOFTMAX: lambda scores: softmax(scores, axis=1), SIGMOID: expit, SHARES: lambda scores: scores}


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "voc2007_11pt_map"])
@pytest.mark.parametrize("how", CONVERSIONS)
@pytest.mark.parametrize("levels", [3, 1000])
def test_classes_are_in_the_order_of_a_stable_sort(metric, how, levels, monkeypatch):
    monkeypatch.setattr(top_classes, "BLOCK", 100)
    _, scores = make_predictions(metric, levels=levels)
    top = find_top(scores, how)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, : top_classes.TOP]
    assert np.array_equal(top.labels, expected)
    probabilities = np.take_along_axis(CONVERSIONS[how](scores), expected, axis=1)
    assert np.allclose(top.probabilities, probabilities, rtol=0, atol=1e-12)


def test_original_labels_are_returned():
    top = find_top(np.array([[0.0, 2.0, 1.0]]), SOFTMAX, (3, 7, 40))
    assert top.labels.tolist() == [[7, 40, 3]]


def test_extreme_logits_have_finite_probabilities():
    scores = np.array([[1e4, -1e4, -np.inf], [-1e4, -2e4, -np.inf]])
    for how in (SOFTMAX, SIGMOID):
        assert np.isfinite(find_top(scores, how).probabilities).all()
