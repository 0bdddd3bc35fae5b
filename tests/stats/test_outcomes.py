"""Outcomes give the same scores as labels and predictions do."""

import numpy as np
import pytest
from make.predictions import NUM_IMAGES, make_predictions

from probe.errors import UnknownNameError
from probe.stats.metrics import METRICS
from probe.stats.outcomes import STORED_ARRAYS, make_outcomes, narrow, rank

SUMS = 1e-12  # tolerance: sums of some hundred fractions in a different order


every_metric = pytest.mark.parametrize("metric", METRICS)
with_and_without_ties = pytest.mark.parametrize("levels", [1_000_000, 5])


def test_every_metric_has_its_arrays():
    assert set(STORED_ARRAYS) == set(METRICS)


@every_metric
@with_and_without_ties
def test_the_score_equals_the_metric(metric, levels):
    y_true, y_score = make_predictions(metric, levels=levels)
    outcomes = make_outcomes(metric, y_true, y_score)
    assert outcomes.score() == pytest.approx(METRICS[metric](y_true, y_score), abs=SUMS)
    assert len(outcomes) == NUM_IMAGES


@every_metric
@with_and_without_ties
def test_the_score_of_some_rows_equals_the_metric_of_these_rows(metric, levels):
    """Rows can have any order, which breaks ties in average precision."""
    y_true, y_score = make_predictions(metric, levels=levels)
    outcomes = make_outcomes(metric, y_true, y_score)
    for seed in range(20):
        rows = np.random.default_rng(seed).integers(NUM_IMAGES, size=NUM_IMAGES)
        assert outcomes.score(rows) == pytest.approx(METRICS[metric](y_true[rows], y_score[rows]), abs=SUMS)


def test_consecutive_images_with_the_same_label_share_a_rank():
    """The two images with the score 3 are tied and have different labels, so they have a rank of their own."""
    labels, scores = np.array([1, 1, 1, 0, 0, 0, 1]), np.array([9.0, 8.0, 3.0, 3.0, 2.0, 1.0, -np.inf])
    assert rank(labels, scores).tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_ranks_are_narrowed_if_16_bits_hold_them():
    for highest, dtype in ((32_767, np.int16), (32_768, np.int64)):
        ranks = narrow(np.array([highest, 0]))
        assert ranks.tolist() == [highest, 0]
        assert ranks.dtype == dtype
    assert (-narrow(np.array([32_767, 0]))).argsort().tolist() == [0, 1]


def test_an_unknown_metric_is_an_error():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        make_outcomes("acuracy", np.zeros(2, int), np.zeros((2, 2)))


def test_images_have_values_only_for_metrics_that_are_means():
    y_true, y_score = make_predictions("mean_top1_top5", levels=5)
    outcomes = make_outcomes("mean_top1_top5", y_true, y_score)
    assert set(outcomes.values) == {0, 0.5, 1}
    assert outcomes.values.mean() == pytest.approx(outcomes.score(), abs=SUMS)
    with pytest.raises(ValueError, match="is not a mean over images; use score"):
        _ = make_outcomes("roc_auc", *make_predictions("roc_auc", levels=5)).values
