"""Each metric is compared with scikit-learn or with a second implementation of its definition."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from probe.errors import UnknownNameError
from probe.stats.metrics import accuracy, get_metric, mean_per_class, mean_top1_top5, roc_auc, top5, voc2007_11pt_map


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return rng.integers(0, 12, 300), rng.random((300, 12))


def test_accuracy_equals_scikit_learns(predictions):
    y_true, y_score = predictions
    assert accuracy(y_true, y_score) == accuracy_score(y_true, y_score.argmax(axis=1))


def test_top5_equals_scikit_learns(predictions):
    y_true, y_score = predictions
    assert top5(y_true, y_score) == top_k_accuracy_score(y_true, y_score, k=5)
    assert mean_top1_top5(y_true, y_score) == (accuracy(y_true, y_score) + top5(y_true, y_score)) / 2


def test_five_classes_are_all_among_the_first_five(predictions):
    y_true, y_score = predictions
    assert top5(y_true % 5, y_score[:, :5]) == 1


def test_a_tie_goes_to_the_first_class_in_top5_as_in_accuracy():
    equal = np.zeros((7, 7))
    assert top5(np.arange(7), equal) == 5 / 7
    assert accuracy(np.arange(7), equal) == 1 / 7


def test_mean_per_class_equals_scikit_learns_balanced_accuracy(predictions):
    y_true, y_score = predictions
    expected = balanced_accuracy_score(y_true, y_score.argmax(axis=1))
    assert mean_per_class(y_true, y_score) == pytest.approx(expected, abs=1e-15)


def test_a_class_without_images_does_not_count():
    y_true, y_score = np.array([0, 0, 2]), np.eye(3)[[0, 1, 2]]
    assert mean_per_class(y_true, y_score) == 0.75


@pytest.mark.parametrize("levels", [1_000_000, 5])
def test_roc_auc_equals_scikit_learns(levels):
    """With 5 levels most scores are tied."""
    rng = np.random.default_rng(0)
    y_true, positive = rng.integers(0, 2, 200), rng.integers(0, levels, 200) / levels
    expected = roc_auc_score(y_true, positive)
    assert roc_auc(y_true, np.stack([-positive, positive], axis=1)) == pytest.approx(expected, abs=1e-12)


def test_roc_auc_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="both classes"):
        roc_auc(np.ones(3, int), np.zeros((3, 2)))


def _by_the_development_kit(labels, scores):
    """Compute average precision as `VOCevalcls.m` of VOC 2007 does, with loops over ranks and over the recalls."""
    order = sorted(range(len(labels)), key=lambda i: -scores[i])
    true_positives, false_positives, points = 0, 0, []
    for i in order:
        true_positives += labels[i] == 1
        false_positives += labels[i] == 0
        if labels[i] != -1:
            points.append((true_positives, true_positives / (true_positives + false_positives)))
    positives = sum(label == 1 for label in labels)
    total = 0.0
    for tenths in range(11):
        reached = [precision for count, precision in points if 10 * count >= tenths * positives]
        total += max(reached, default=0.0) / 11
    return total


def test_average_precision_equals_the_development_kits():
    rng = np.random.default_rng(0)
    y_true, y_score = rng.choice([0, 0, 0, 1, -1], (100, 4)), rng.normal(size=(100, 4))
    expected = np.mean([_by_the_development_kit(y_true[:, k], y_score[:, k]) for k in range(4)])
    assert voc2007_11pt_map(y_true, y_score) == pytest.approx(expected, abs=1e-12)


def test_difficult_images_do_not_count():
    y_true, y_score = np.array([[1], [-1], [0]]), np.array([[2.0], [3.0], [1.0]])
    assert voc2007_11pt_map(y_true, y_score) == 1


def test_a_near_metric_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        get_metric("acuracy")
