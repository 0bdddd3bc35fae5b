"""Convergence of fits: scores of fits far from their optimum have a star, and scores of fits at the optimum do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from make.bad_scales import NUM_TEST, NUM_VAL, PROBLEMS, find_optimum, make
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.features.arrays import Features
from probe.probes.fit import fit_probe
from probe.probes.solvers import decrement
from probe.probes.solvers.catalog import SOLVERS, get_solver
from probe.probes.solvers.evaluation import LIMIT, is_negligible
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.objective import Logistic, Objective, Rows
from probe.probes.solvers.optimality import measure_optimality
from probe.specs import Protocol

SWEEP = Protocol("sweep", "", "projected", (1e-4, 1e-2, 1.0, 1e2, 1e4), 2, 300, 1e-6, "this test")


def _entropy(y):
    shares = np.bincount(y) / len(y)
    return float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1))))


def _is_at_optimum(optimum, x, y, C, objective, share):
    """Compute the limit by its definition, with the penalty and the gain of the optimum."""
    penalty = float(np.square(optimum.coef).sum() / (2 * C * len(x)))
    gain = max(_entropy(y) - optimum.objective, penalty)
    return objective - optimum.objective <= share * min(optimum.objective, gain)


def _check(result, x, y, test):
    """Check that a fit has a star if the score at the optimum can differ, and no star at the optimum."""
    optimum = find_optimum(x, y, result.C)
    expected = int((optimum.predict(test.x) == test.y).sum())
    num_right = int((result.predictions == test.y).sum())
    if result.converged:
        assert abs(num_right - expected) <= NUM_TEST / 1000
    else:
        assert num_right != expected or not _is_at_optimum(optimum, x, y, result.C, result.objective, LIMIT / 10)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_scores_without_a_star_equal_the_scores_at_the_optimum(name, solver):
    """Scores may differ by one test image in a thousand, under the protocol `readme` and with a sweep over C.

    Newton's method in float64 finds the optimum independently. `fast` reaches it on all problems.
    """
    splits = make(name)
    train, val, test = (splits[split] for split in ("train", "val", "test"))
    result = fit_probe(train=train, test=test, protocol="readme", solver=solver)
    _check(result, train.x, train.y, test)
    swept = fit_probe(**splits, protocol=SWEEP, solver=solver)
    _check(swept, np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y]), test)
    for point in swept.sweep:
        if point.converged:
            optimum = find_optimum(train.x, train.y, point.C)
            right = (optimum.predict(val.x) == val.y).mean()
            assert point.score == pytest.approx(right, abs=len(val) / 1000 / len(val) + 1e-12)
        elif point.ended_early:
            optimum = find_optimum(train.x, train.y, point.C)
            assert (optimum.predict(val.x) == val.y).mean() <= max(other.score for other in swept.sweep)
    assert swept.choice_converged == all(point.converged or point.ended_early for point in swept.sweep)
    assert solver == "fast" or not any(point.ended_early for point in swept.sweep)
    if solver == "fast":
        assert result.converged
        assert swept.converged


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_fast_measures_convergence_on_outliers_for_any_order_of_rows(seed):
    """The order of the rows changes rounding errors, and some rounding errors end the solver far from the optimum."""
    splits = make("outliers of 1e4")
    order = np.random.default_rng(seed).permutation(len(splits["train"]))
    train = Features(splits["train"].x[order], splits["train"].y[order])
    result = fit_probe(**{**splits, "train": train}, protocol=replace(SWEEP, max_iter=1000), solver="fast")
    assert result.converged
    for point in result.sweep:
        if point.converged:
            right = find_optimum(train.x, train.y, point.C).predict(splits["val"].x) == splits["val"].y
            assert point.score == pytest.approx(right.mean(), abs=1 / NUM_VAL + 1e-12)


@pytest.mark.parametrize("value", [1e5, None], ids=["constant", "exponential"])
def test_one_large_column_does_not_hide_that_the_others_are_not_fitted(value):
    """scikit-learn stops after a few iterations, when the gradient is a thousandth of its initial value."""

    def features(n, seed):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 4, n)
        x = np.random.default_rng(99).normal(size=(4, 16))[y] + rng.normal(size=(n, 16))
        column = rng.exponential(1e4, (n, 1)) if value is None else np.full((n, 1), value)
        return Features(np.hstack([x, column]).astype(np.float32), y)

    train, test = features(400, 1), features(2000, 3)
    far, near = (fit_probe(train=train, test=test, protocol="readme", solver=s) for s in ("sklearn", "fast"))
    best = (find_optimum(train.x, train.y, 0.316).predict(test.x) == test.y).mean()
    assert far.score < best - 0.001
    assert not far.converged
    assert near.converged
    assert near.score == best


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("classes", [range(6), [3, 8]], ids=["multinomial", "binary"])
def test_suboptimality_estimates_the_distance_to_the_optimum(classes, scale):
    """Near the optimum, the error of the estimate is at most 10 % for any scale of a column."""
    x, y = load_digits(return_X_y=True)
    y = y[np.isin(y, classes)]
    x = (x[np.isin(load_digits().target, classes)] / 16)[:300]
    y = np.unique(y, return_inverse=True)[1][:300]
    x[:, 20] *= scale
    x = x.astype(np.float32)
    best = find_optimum(x, y, 1.0)
    rng = np.random.default_rng(0)
    weights = np.vstack([best.coef.T, best.intercept])
    noise = 0.01 * rng.normal(size=weights.shape) * np.abs(weights)
    rows = Rows([x])
    objective = Objective(rows, loss_of(y, len(np.unique(y)), rows.device), [1.0])
    near = measure_optimality(objective, 0, torch.from_numpy(weights + noise), num_iter=100)
    at_best = measure_optimality(objective, 0, torch.from_numpy(weights), num_iter=100)
    assert near.suboptimality == pytest.approx(near.objective - best.objective, rel=0.1)
    assert not near.converged
    assert at_best.objective == pytest.approx(best.objective, rel=1e-12)
    assert at_best.suboptimality < 1e-12
    assert at_best.converged


@pytest.mark.parametrize("dense_size", [decrement.DENSE_SIZE, 0], ids=["dense", "iterative"])
def test_a_weak_penalty_on_near_duplicates_gets_a_star(dense_size, monkeypatch):
    """scikit-learn stops far from the optimum, because the gradient is small and meets its `tol`."""
    monkeypatch.setattr(decrement, "DENSE_SIZE", dense_size)
    train = make("near duplicates, 1e-4")["train"]
    best = find_optimum(train.x, train.y, 1e6).objective
    fit = get_solver("sklearn")([train.x], train.y, max_iter=1000, tol=1e-4).fit(1e6)
    assert fit.objective > best + 1e-3
    assert not fit.converged
    if dense_size:
        assert fit.suboptimality == pytest.approx(fit.objective - best, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("dense_size", [decrement.DENSE_SIZE, 0], ids=["dense", "iterative"])
@pytest.mark.parametrize("C", [1.0, 1e4, 1e6])
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name.startswith("near duplicates")])
@pytest.mark.parametrize("solver", SOLVERS)
def test_near_duplicates_do_not_hide_that_a_fit_is_unfinished(name, C, solver, dense_size, monkeypatch):
    """With a weak penalty, small differences between columns can reduce the loss a lot, but only after many steps."""
    monkeypatch.setattr(decrement, "DENSE_SIZE", dense_size)
    train = make(name)["train"]
    optimum = find_optimum(train.x, train.y, C)
    fit = get_solver(solver)([train.x], train.y, max_iter=1000, tol=1e-4).fit(C)
    distance = fit.objective - optimum.objective
    is_near = _is_at_optimum(optimum, train.x, train.y, C, fit.objective, 2 * LIMIT)
    assert is_near or not fit.converged
    if solver == "fast":
        assert fit.converged or not _is_at_optimum(optimum, train.x, train.y, C, fit.objective, LIMIT / 2)
    if dense_size and not fit.converged:  # the objective is not quadratic so far from its minimum
        assert distance / 4 < fit.suboptimality < 4 * distance


@pytest.mark.parametrize(("shrink", "is_near"), [(1e-4, True), (1e-2, False)])
@pytest.mark.parametrize("C", [1e4, 1e6])
def test_few_steps_show_whether_a_fit_with_a_weak_penalty_has_converged(C, shrink, is_near, monkeypatch):
    """The estimated curvature makes a few steps enough, as on features that are too large for many steps."""
    monkeypatch.setattr(decrement, "DENSE_SIZE", 0)
    monkeypatch.setattr(decrement, "MAX_STEPS", 8)
    monkeypatch.setattr(decrement, "UNDECIDED_STEPS", 8)
    rng = np.random.default_rng(0)
    y = np.arange(3000) % 4
    scales, rotation = np.logspace(0, -2.5, 60), np.linalg.qr(rng.normal(size=(60, 60)))[0]
    x = ((rng.normal(size=(3000, 60)) + 2 * np.eye(60)[y]) * scales @ rotation).astype(np.float32)
    best = find_optimum(x, y, C)
    weights = torch.from_numpy(np.vstack([best.coef.T, best.intercept])) * (1 - shrink)
    rows = Rows([x])
    assert rows.whitened is not None
    end = measure_optimality(Objective(rows, loss_of(y, 4, rows.device), [C]), 0, weights, num_iter=80)
    assert end.converged == is_near
    if is_near:
        assert end.suboptimality == pytest.approx(end.objective - best.objective, rel=0.2)


def test_ignored_images_do_not_affect_the_measurement():
    """The measurement equals the measurement on the other images alone."""
    rng = np.random.default_rng(0)
    even = np.arange(400) % 2
    x = (rng.normal(size=(400, 8)) + even[:, None]).astype(np.float32)
    counts = np.arange(400) % 3 > 0
    weights = torch.from_numpy(rng.normal(size=(9, 1)))
    targets = torch.from_numpy(np.where(counts, even, -1)[:, None])
    masked = Objective(Rows([x]), Logistic(targets, torch.tensor([0])), [2.0])
    alone = Objective(Rows([x[counts]]), loss_of(even[counts], 2, torch.device("cpu")), [2.0])
    a, b = (measure_optimality(objective, 0, weights, num_iter=100) for objective in (masked, alone))
    assert a.objective == pytest.approx(b.objective, rel=1e-12)
    assert a.suboptimality == pytest.approx(b.suboptimality, rel=1e-5)


def test_a_fit_that_ends_at_max_iter_at_its_optimum_has_converged():
    """Convergence depends on where a fit ends, not on why it ends."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    needed = int(LogisticRegression(C=1e-3, tol=1e-6, max_iter=1000).fit(x, y).n_iter_[0])
    fit = get_solver("sklearn")([x], y, max_iter=needed - 1, tol=1e-12).fit(1e-3)
    assert fit.n_iter == needed - 1
    assert fit.converged


@pytest.mark.parametrize("x", [np.zeros((60, 3)), np.full((60, 3), 7.3)], ids=["zeros", "constants"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_uninformative_features_converge_to_equal_probabilities(x, solver):
    y = np.arange(60) % 3
    fit = get_solver(solver)([x.astype(np.float32)], y, max_iter=100, tol=1e-6).fit(1.0)
    assert fit.converged
    assert fit.objective == pytest.approx(np.log(3), rel=1e-9)


@pytest.mark.parametrize(
    ("objective", "without_features", "penalty", "share_of"),
    [(0.1, 1.4, 0.01, 0.1), (1.3999, 1.4, 1e-5, 1e-4), (1.4, 1.4, 1e-9, 1e-9)],
    ids=["little is left to lose", "little was gained", "the gain is rounding"],
)
def test_negligible_is_a_millionth_of_what_a_fit_has_achieved(objective, without_features, penalty, share_of):
    known = {"objective": objective, "without_features": without_features, "penalty": penalty}
    assert is_negligible(0.9e-6 * share_of, **known)
    assert not is_negligible(1.1e-6 * share_of, **known)


def test_a_choice_of_c_among_unconverged_fits_is_marked():
    """Fits of the sweep do not converge on features of a bad scale. They converge on plain features."""
    splits = make("constant 1e5")
    result = fit_probe(**splits, protocol=SWEEP, solver="sklearn")
    assert not result.choice_converged
    assert result.to_record().choice_converged is False
    plain = {name: part.take(np.arange(200)) for name, part in make("plain").items()}
    easy = Protocol("easy", "", "projected", (1e-3, 1e-2), 1, 300, 1e-6, "this test")
    assert fit_probe(**plain, protocol=easy, solver="fast").choice_converged
    assert fit_probe(**plain, protocol="readme").choice_converged


def test_a_penalty_beyond_float32_is_factored():
    """For standardised features, the penalty on the weights of features of 1e-30 is 1e60, more than float32 holds."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)) * 1e-30, np.arange(40) % 2
    objective = Objective(Rows([x]), loss_of(y, 2, torch.device("cpu")), [1.0])
    weights = torch.from_numpy(rng.normal(size=(4, 1)))
    found = measure_optimality(objective, 0, weights, num_iter=1)
    assert 0 < found.suboptimality < np.inf
    assert not found.converged
