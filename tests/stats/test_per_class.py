"""Scores of classes and confusions equal scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from probe.stats.intervals import wilson
from probe.stats.per_class import MAX_CONFUSIONS, class_scores, count_classes


@pytest.mark.parametrize(("n", "k"), [(500, 4), (900, 40), (30, 3)])
def test_counts_equal_scikit_learn(n, k):
    rng = np.random.default_rng(n)
    y_true, y_pred = rng.integers(k, size=(2, n))
    found, matrix = count_classes(y_true, y_pred, k), confusion_matrix(y_true, y_pred, labels=range(k))
    assert np.array_equal(found.images, matrix.sum(axis=1))
    assert np.array_equal(found.right, matrix.diagonal())
    assert len(found.confusions) == min(MAX_CONFUSIONS, ((matrix > 0) & ~np.eye(k, dtype=bool)).sum())
    assert all(matrix[label, predicted] == num for label, predicted, num in found.confusions)
    errors = np.where(np.eye(k, dtype=bool), 0, matrix)
    assert found.confusions[0, 2] == errors.max()
    assert np.all(np.diff(found.confusions[:, 2]) <= 0)
    scores, expected = (
        class_scores([found]),
        recall_score(y_true, y_pred, labels=range(k), average=None, zero_division=0),
    )
    for one, recall in zip(scores, expected, strict=True):
        assert one.images > 0
        assert one.score == pytest.approx(recall)
        assert (one.low, one.high) == wilson(recall, one.images)


def test_a_class_without_test_images_has_no_score():
    (first, second) = class_scores([count_classes(np.zeros(3, np.int64), np.array([0, 0, 1]), 2)])
    assert (first.score, first.images) == (pytest.approx(2 / 3), 3)
    assert (second.score, second.low, second.images) == (None, None, 0)


def test_draws_on_the_same_images_do_not_narrow_the_interval():
    y = np.repeat([0, 1], 10)
    one, other = count_classes(y, y, 2), count_classes(y, np.zeros_like(y), 2)
    (first, second) = class_scores([one, other])
    assert (first.score, second.score) == (1.0, 0.5)
    assert (second.low, second.high) == wilson(0.5, 10)
    assert second.images == 10


def test_a_probe_without_errors_has_no_confusions():
    assert count_classes(np.arange(3), np.arange(3), 3).confusions.shape == (0, 3)
