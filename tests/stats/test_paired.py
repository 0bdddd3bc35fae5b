"""Paired tests are compared with scipy's, and their error rate and power are simulated.

The standard error of an error rate of 5 % from 300 simulations is 1.3 %. The bounds below are about two standard errors
from 5 %.
"""

import numpy as np
import pytest
from scipy import stats

from probe.errors import ResultsError
from probe.stats.metrics import METRICS
from probe.stats.outcomes import Outcomes, make_outcomes
from probe.stats.paired import compare, mcnemar

SIMULATIONS = 300


def _right(bits, metric="accuracy", **arrays):
    return Outcomes(metric, {"right": np.asarray(bits, bool), **arrays})


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (3, 4), (2, 11), (130, 90), (25_200, 24_800)])
def test_mcnemar_is_the_binomial_test(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-8)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_a_p_value_that_underflows_is_zero():
    assert mcnemar(50_000, 0) == 0


def test_accuracy_on_one_fold_uses_mcnemars_test():
    found = compare([_right([1, 1, 1, 1, 0, 0])], [_right([1, 0, 0, 0, 1, 0])])
    assert (found.num_only_a, found.num_only_b, found.method) == (3, 1, "mcnemar")
    assert found.difference == pytest.approx(2 / 6, abs=1e-15)
    assert found.p_value == pytest.approx(0.625, abs=1e-12)  # (1 + 4) / 16, twice


def _labelled(metric, *, shift, n=200, seed=0):
    rng = np.random.default_rng(seed)
    if metric == "voc2007_11pt_map":
        y_true = (rng.random((n, 3)) < 0.2).astype(int)
        return y_true, rng.normal(size=(n, 3)) + shift * y_true
    k = 2 if metric == "roc_auc" else 8
    y_true = rng.integers(0, k, n)
    return y_true, rng.normal(size=(n, k)) + shift * np.eye(k)[y_true]


@pytest.mark.parametrize("metric", METRICS)
def test_a_probe_does_not_differ_from_itself(metric):
    outcomes = make_outcomes(metric, *_labelled(metric, shift=1))
    found = compare([outcomes], [outcomes])
    assert (found.p_value, found.difference) == (1, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_the_test_is_symmetric_and_deterministic(metric):
    y_true, y_score = _labelled(metric, shift=1)
    a = make_outcomes(metric, y_true, y_score)
    b = make_outcomes(metric, y_true, y_score + np.random.default_rng(1).normal(size=y_score.shape))
    forth, back = compare([a], [b]), compare([b], [a])
    assert forth == compare([a], [b])
    assert (forth.p_value, forth.difference) == (back.p_value, -back.difference)


def test_the_number_of_draws_limits_the_p_value_of_a_bootstrap():
    labels = np.arange(100) % 2
    found = compare(
        [_right(np.ones(100), "mean_per_class", labels=labels)],
        [_right(np.zeros(100), "mean_per_class", labels=labels)],
        draws=99,
    )
    assert found.p_value == 2 / (99 + 1)


class _Model:
    """Simulation of two probes on the same images, whose answers are correlated."""

    def __init__(self, metric, *, gap):
        self.metric, self.gap, self.rng = metric, gap, np.random.default_rng(7)

    def pair(self):
        draw, n = self.rng.normal, 200
        if self.metric == "roc_auc":
            y_true = np.repeat([1, 0], [60, 140])
            shared = draw(size=n) + y_true
            margins = (shared + draw(size=n) + gap * y_true for gap in (self.gap, 0))
            return [[make_outcomes("roc_auc", y_true, np.stack([-m, m], axis=1))] for m in margins]
        if self.metric == "voc2007_11pt_map":
            y_true = (self.rng.random((n, 2)) < 0.3).astype(int)
            shared = draw(size=(n, 2)) + y_true
            scores = (shared + draw(size=(n, 2)) + gap * y_true for gap in (self.gap, 0))
            return [[make_outcomes("voc2007_11pt_map", y_true, s)] for s in scores]
        folds = 2 if self.metric == "accuracy" else 1
        hard = draw(size=(folds, n))
        return [[self._outcomes(each + draw(size=n) - gap) for each in hard] for gap in (self.gap, 0)]

    def _outcomes(self, hardness):
        if self.metric == "mean_top1_top5":
            return _right(hardness < 0, self.metric, among_five=hardness < 1)
        if self.metric == "mean_per_class":
            return _right(hardness < 0.5, self.metric, labels=np.arange(len(hardness)) % 10)
        return _right(hardness < 0.5, self.metric)


metrics_by_bootstrap = pytest.mark.parametrize(
    "metric", ["accuracy", "mean_top1_top5", "mean_per_class", "roc_auc", "voc2007_11pt_map"]
)


@pytest.mark.slow
@metrics_by_bootstrap
def test_the_bootstrap_has_an_error_rate_of_five_percent(metric):
    model = _Model(metric, gap=0)
    significant = [compare(*model.pair(), draws=199).p_value <= 0.05 for _ in range(SIMULATIONS)]
    assert 0.02 <= np.mean(significant) <= 0.08


@metrics_by_bootstrap
def test_the_bootstrap_detects_a_difference(metric):
    model = _Model(metric, gap=0.6)
    results = [compare(*model.pair(), draws=199) for _ in range(SIMULATIONS // 3)]
    assert np.mean([each.p_value <= 0.05 and each.difference > 0 for each in results]) > 0.6


def test_mcnemars_test_has_an_error_rate_of_at_most_five_percent():
    """The test is exact, so its error rate is at most 5 %."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(1000, 100))
    a, b = (hard + rng.normal(size=hard.shape) < 0.5 for _ in range(2))
    significant = [compare([_right(x)], [_right(y)]).p_value <= 0.05 for x, y in zip(a, b, strict=True)]
    assert 0.01 <= np.mean(significant) <= 0.05


def test_folds_of_the_same_images_share_the_draws():
    """Ten equal folds on the same images give the same p-value as one fold."""
    rng = np.random.default_rng(0)
    a, b = (_right(rng.random(200) < p, "mean_per_class", labels=np.arange(200) % 4) for p in (0.8, 0.7))
    one, same = compare([a], [b]), compare([a] * 10, [b] * 10, same_images=True)
    assert same.p_value == one.p_value
    assert compare([a] * 10, [b] * 10).p_value < one.p_value


def test_probes_that_cannot_be_compared_are_errors():
    three, four = _right(np.ones(3)), _right(np.ones(4))
    with pytest.raises(ResultsError, match="2 folds and the other has 1; compare"):
        compare([three, three], [three])
    with pytest.raises(ResultsError, match="3 test images for one probe and 4 for the other; run"):
        compare([three], [four])
    with pytest.raises(ResultsError, match="metric accuracy and the other has top5; use"):
        compare([three], [_right(np.ones(3), "top5")])
    with pytest.raises(ResultsError, match="fold 1 has different labels"):
        compare(*([_right(np.ones(3), "mean_per_class", labels=np.array(y))] for y in ([0, 1, 1], [0, 0, 1])))
    with pytest.raises(ValueError, match="expected the outcomes of at least one fold"):
        compare([], [])
