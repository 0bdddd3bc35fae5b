"""Fits that can no longer get the best validation score are ended, and the chosen C stays the same."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.metrics import balanced_accuracy_score

from probe.features.arrays import Features
from probe.probes.cached_fits import FitCache
from probe.probes.contest import Contest, shares_of
from probe.probes.fit import fit_probe
from probe.probes.fits import Fit
from probe.probes.fitter import Fitter
from probe.probes.protocols import get_protocol
from probe.stats.metrics import get_metric

PAPER = replace(get_protocol("clip-paper"), feature_point="projected")
DATASETS = {"digits": load_digits, "wine": load_wine, "cancer": load_breast_cancer}


def _draw(dataset, seed):
    """Return random nonlinear features of a dataset, in three splits."""
    data, rng = DATASETS[dataset](), np.random.default_rng(seed)
    x = (data.data - data.data.mean(axis=0)) / (data.data.std(axis=0) + 1e-9)
    x = np.maximum(x @ rng.normal(size=(x.shape[1], 96)), 0).astype(np.float32) * rng.exponential(size=96)
    order = rng.permutation(len(x))
    rows = dict(zip(("train", "val", "test"), np.array_split(order, [len(x) // 3, 2 * len(x) // 3]), strict=True))
    return {name: Features(x[own].astype(np.float32), data.target[own].astype(np.int64)) for name, own in rows.items()}


def _fit(C=1.0, *, coef, intercept=(0.0, 0.0, 0.0), objective=1.0, ended_early=False):
    numbers = dict.fromkeys(("suboptimality", "gradient_norm", "gradient_ratio", "excess", "tol"), 0.0)
    return Fit(
        C=C,
        coef=np.array(coef),
        intercept=np.array(intercept),
        classes=np.array([3, 5, 8]),
        is_multi_label=False,
        n_iter=1,
        converged=True,
        objective=objective,
        ended_early=ended_early,
        **numbers,
    )


@pytest.fixture
def any_number(monkeypatch):
    """Let fits end early with any number of validation images."""
    monkeypatch.setattr("probe.probes.contest.MIN_IMAGES", 1)


# The fits of digits take seconds.
DRAWS = [
    pytest.param(name, seed, marks=() if seed == 0 and name != "digits" else pytest.mark.slow)
    for name in DATASETS
    for seed in range(4)
]


@pytest.mark.parametrize(("dataset", "seed"), DRAWS)
@pytest.mark.usefixtures("any_number")
@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class"])
def test_a_contest_does_not_change_the_choice(monkeypatch, dataset, metric, seed):
    parts = _draw(dataset, seed)
    found = fit_probe(**parts, protocol=PAPER, metric=metric)
    monkeypatch.setattr(Fitter, "hold_contest", lambda *_: None)
    expected = fit_probe(**parts, protocol=PAPER, metric=metric)
    assert found.C == expected.C
    assert np.array_equal(found.predictions, expected.predictions)
    assert [point.C for point in found.sweep] == [point.C for point in expected.sweep]
    assert not any(point.ended_early for point in expected.sweep)
    for one, other in zip(found.sweep, expected.sweep, strict=True):
        if one.ended_early:
            assert not one.converged
            assert one.n_iter <= other.n_iter
            assert other.score < max(point.score for point in expected.sweep)


def test_with_few_validation_images_no_fit_ends_early():
    """There are 190 validation images. Without the limit, fits end early, as the next test shows."""
    assert not any(point.ended_early for point in fit_probe(**_draw("cancer", 0), protocol=PAPER).sweep)


@pytest.mark.usefixtures("any_number")
def test_fits_are_ended_and_do_not_mark_the_result():
    result = fit_probe(**_draw("cancer", 0), protocol=PAPER)
    ended = [point for point in result.sweep if point.ended_early]
    assert ended
    assert all(point.C > result.C for point in ended)
    assert result.choice_converged == all(point.converged for point in result.sweep if not point.ended_early)
    assert [point.ended_early for point in result.to_record().sweep] == [point.ended_early for point in result.sweep]


@pytest.mark.usefixtures("any_number")
def test_a_fit_that_was_ended_is_not_cached(tmp_path):
    """The validation images, which can end a fit, are not in its key."""
    parts, cache = _draw("cancer", 0), FitCache(tmp_path)
    first = fit_probe(**parts, protocol=PAPER, fit_cache=cache)
    assert any(point.ended_early for point in first.sweep)
    stored = len(list(tmp_path.rglob("*.npz")))
    assert stored == len(first.sweep) + 1 - sum(point.ended_early for point in first.sweep)
    again = fit_probe(**parts, protocol=PAPER, fit_cache=cache)
    assert (again.C, again.score) == (first.C, first.score)


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class"])
def test_shares_give_the_metric(metric):
    rng = np.random.default_rng(0)
    y, scores = rng.choice(3, 50, p=(0.7, 0.2, 0.1)), rng.normal(size=(50, 3))
    shares = shares_of(metric, y)
    right = scores.argmax(axis=1) == y
    assert shares[right].sum() == pytest.approx(get_metric(metric)(y, scores), abs=1e-12)
    if metric == "mean_per_class":
        assert shares[right].sum() == pytest.approx(balanced_accuracy_score(y, scores.argmax(axis=1)), abs=1e-12)


@pytest.mark.parametrize("metric", ["top5", "roc_auc", "voc2007_11pt_map"])
def test_other_metrics_hold_no_contest(metric):
    assert shares_of(metric, np.array([0, 1])) is None


def test_predictions_do_not_suffer_from_a_large_offset():
    """With products in float32, the offset would hide the differences between the images."""
    x = np.array([[1e6, 0], [1e6, 1], [1e6, 2]], np.float32)
    fit = _fit(coef=np.array([[1.0, 0], [1, 1e-2], [1, 2e-2]]), intercept=(0.0, -5e-3, -2e-2))
    contest = Contest(x, np.array([3, 5, 8]), np.full(3, 1 / 3), num_train=10)
    expected = fit.classes[fit.scores(x, 9)[:, fit.classes].argmax(axis=1)]
    assert contest._predict(fit.coef, fit.intercept, fit.classes).tolist() == expected.tolist() == [3, 5, 8]


class TestTwoConditions:
    """A fit with four validation images, of which the best finished fit gets all right."""

    x = np.eye(4, 3, dtype=np.float32)
    y = np.array([3, 5, 8, 3])
    right = np.eye(3)
    wrong = -np.eye(3)

    def contest(self):
        contest = Contest(self.x, self.y, np.full(4, 0.25), num_train=10)
        contest.enter(_fit(coef=self.right, objective=1.0))
        return contest

    def can_win(self, contest, coef, objective):
        return contest.can_win(100.0, coef, np.zeros(3), classes=np.array([3, 5, 8]), objective=objective)

    def test_the_first_comparison_ends_nothing(self):
        assert self.can_win(self.contest(), self.wrong, 0.1)

    def test_a_low_score_that_no_longer_changes_ends_a_fit(self):
        contest = self.contest()
        self.can_win(contest, self.wrong, 0.1)
        assert not self.can_win(contest, self.wrong, 0.1)

    def test_a_fit_whose_predictions_still_change_goes_on(self):
        contest = self.contest()
        self.can_win(contest, self.wrong, 0.1)
        assert self.can_win(contest, np.roll(self.wrong, 1, axis=0) * 2, 0.1)

    def test_an_equal_score_goes_on(self):
        """On a tie, the smaller C wins, which can be the C of the fit."""
        contest = self.contest()
        self.can_win(contest, self.right, 0.1)
        assert self.can_win(contest, self.right, 0.1)

    def test_a_fit_that_is_farther_from_its_optimum_than_the_best_fit_goes_on(self):
        """At C = 100, the weights of the best fit have the objective 1 - 3 / 20 + 3 / 2000."""
        contest, other = self.contest(), 1 - 3 / 20 + 3 / 2000
        self.can_win(contest, self.wrong, other + 1e-6)
        assert self.can_win(contest, self.wrong, other + 1e-6)
        assert not self.can_win(contest, self.wrong, other - 1e-6)

    def test_without_a_finished_fit_every_fit_goes_on(self):
        contest = Contest(self.x, self.y, np.full(4, 0.25), num_train=10)
        contest.enter(_fit(coef=self.right, ended_early=True))
        self.can_win(contest, self.wrong, 0.1)
        assert self.can_win(contest, self.wrong, 0.1)
