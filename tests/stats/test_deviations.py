import numpy as np
import pytest

from probe.stats.deviations import deviations
from probe.stats.metrics import METRICS
from probe.stats.outcomes import make_outcomes
from probe.stats.resampling import bootstrap, scores_of


def _outcomes(metric, *, n=400, seed=0, skill=1.5):
    """Make the outcomes of a probe; the larger `skill`, the more answers are right, and with 0 the probe guesses."""
    rng = np.random.default_rng(seed)
    if metric == "voc2007_11pt_map":
        y = (rng.random((n, 4)) < 0.3).astype(np.int64)
        y[rng.random((n, 4)) < 0.05] = -1
        return make_outcomes(metric, y, skill * (y == 1) + rng.normal(size=(n, 4)))
    k = 2 if metric == "roc_auc" else 8
    y = rng.integers(0, k, n) if metric == "roc_auc" else np.minimum(rng.geometric(0.3, n) - 1, k - 1)
    return make_outcomes(metric, y, skill * np.eye(k)[y] + rng.normal(size=(n, k)))


def _tolerance(metric):
    """Return three relative standard errors of a standard deviation, from 4,000 draws or 100 for average precision."""
    return 0.2 if metric == "voc2007_11pt_map" else 0.04


@pytest.mark.parametrize("metric", METRICS)
def test_the_sum_of_squares_is_the_variance_of_drawn_images(metric):
    outcomes = _outcomes(metric)
    moved = deviations([outcomes], same_images=False)
    assert moved.sum() == pytest.approx(0, abs=1e-12)
    drawn = bootstrap([[outcomes]], same_images=False, draws=4000)
    assert np.sqrt(np.square(moved).sum()) == pytest.approx(drawn.std(), rel=_tolerance(metric))


@pytest.mark.parametrize("metric", METRICS)
def test_differences_of_deviations_give_the_variance_of_a_difference(metric):
    """Two probes are scored on the same draws, so their common variation cancels."""
    a, b = (_outcomes(metric, skill=skill) for skill in (1.5, 1.2))
    moved = deviations([a], same_images=False) - deviations([b], same_images=False)
    drawn = bootstrap([[a], [b]], same_images=False, draws=4000)
    assert np.sqrt(np.square(moved).sum()) == pytest.approx((drawn[:, 0] - drawn[:, 1]).std(), rel=_tolerance(metric))


def test_the_deviation_of_roc_auc_is_the_effect_of_one_more_image():
    """The second way of computing scores each image a thousand times, and one of the images once more."""
    outcomes = _outcomes("roc_auc", n=60)
    weights = np.full((61, 60), 1000.0)
    weights[np.arange(60), np.arange(60)] += 1
    scores = scores_of(outcomes, weights)
    np.testing.assert_allclose((scores[:60] - scores[60]) * 1000, deviations([outcomes], same_images=False), atol=1e-5)


def test_deviations_of_folds_on_the_same_images_are_averaged():
    folds = [_outcomes("accuracy", seed=0), _outcomes("accuracy", seed=0, skill=1)]
    first, second = (deviations([fold], same_images=False) for fold in folds)
    np.testing.assert_allclose(deviations(folds, same_images=True), (first + second) / 2)
    np.testing.assert_allclose(deviations(folds, same_images=False), np.concatenate([first, second]) / 2)
