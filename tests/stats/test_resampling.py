"""Scores of counts equal the scores of the drawn images, and draws have the properties that metrics need."""

import numpy as np
import pytest

from probe.stats.metrics import IGNORED, METRICS
from probe.stats.outcomes import Outcomes, make_outcomes
from probe.stats.resampling import bootstrap, scores_of

SUMS = 1e-12  # tolerance: sums of some hundred fractions in a different order


def _outcomes(metric, *, n=240, levels=5, seed=0):
    """Make outcomes. With few levels most scores are tied."""
    rng = np.random.default_rng(seed)
    k = {"roc_auc": 2, "voc2007_11pt_map": 4}.get(metric, 12)
    y_true = rng.choice([0, 0, 0, 1, IGNORED], (n, k)) if metric == "voc2007_11pt_map" else rng.integers(0, k, n)
    return make_outcomes(metric, y_true, rng.integers(0, levels, (n, k)) / levels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [1_000_000, 5])
def test_the_score_of_counts_equals_the_score_of_the_rows(metric, levels):
    outcomes = _outcomes(metric, levels=levels)
    draws = np.sort(np.random.default_rng(0).integers(240, size=(20, 240)), axis=1)
    counts = np.stack([np.bincount(rows, minlength=240) for rows in draws]).astype(float)
    np.testing.assert_allclose(scores_of(outcomes, counts), [outcomes.score(r) for r in draws], rtol=0, atol=SUMS)


@pytest.mark.parametrize("metric", ["mean_per_class", "voc2007_11pt_map"])
def test_classes_that_are_not_drawn_do_not_count(metric):
    """With few images, a draw can lack classes or the positive images of a class."""
    outcomes = _outcomes(metric, n=20)
    for rows in ([0, 0, 1, 7], [2, 3, 3, 3, 9, 10]):
        counts = np.bincount(rows, minlength=20)[None].astype(float)
        assert scores_of(outcomes, counts)[0] == pytest.approx(outcomes.score(np.array(rows)), abs=SUMS)


@pytest.mark.parametrize("metric", ["roc_auc", "voc2007_11pt_map"])
def test_every_draw_has_a_score(metric):
    """One positive image of four would be missing from every third draw."""
    y_true, positive = np.array([0, 1, 0, 0]), np.arange(4.0)
    y_score = np.stack([-positive, positive], axis=1) if metric == "roc_auc" else positive[:, None]
    outcomes = make_outcomes(metric, y_true if metric == "roc_auc" else y_true[:, None], y_score)
    scores = bootstrap([[outcomes]], same_images=False, draws=200)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_probes_are_scored_on_the_same_images():
    """If exactly one of two probes is right on each image, their scores add up to one on every draw."""
    right = np.random.default_rng(0).random(100) < 0.5
    pair = [[Outcomes("accuracy", {"right": bits})] for bits in (right, ~right)]
    scores = bootstrap(pair, same_images=False, draws=50)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=0, atol=SUMS)
    assert scores[:, 0].std() == pytest.approx(0.05, rel=0.4)  # sqrt(0.25 / 100), 10 % standard error


def test_draws_that_do_not_fit_in_memory_together_are_different_draws():
    """The first 4369 draws are made together. The later draws have the same distribution but are not the same."""
    scores = bootstrap([[_outcomes("accuracy")]], same_images=False, draws=5000)[:, 0]
    assert (scores > 0).all()
    assert scores[4369:].mean() == pytest.approx(scores[:4369].mean(), rel=0.05)
    assert not np.array_equal(scores[4369:], scores[:631])


def test_average_precision_of_more_images_and_ranks_than_16_bits_can_number():
    y_true = np.arange(70_000)[:, None] % 2
    outcomes = make_outcomes("voc2007_11pt_map", y_true, np.random.default_rng(0).random((70_000, 1)))
    assert outcomes.arrays["ranks"].max() >= 1 << 15
    rows = np.sort(np.random.default_rng(1).integers(70_000, size=70_000))
    counts = np.bincount(rows, minlength=70_000)[None].astype(float)
    assert scores_of(outcomes, counts)[0] == pytest.approx(outcomes.score(rows), abs=SUMS)
