import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.errors import ProtocolError
from probe.probes.solvers.catalog import SOLVERS, get_solver
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.scikit_learn import ScikitLearn, fit_on_device


def fit_logistic_regression(x, y, *, C, max_iter, tol):
    return ScikitLearn([x], y, max_iter=max_iter, tol=tol).fit(C)


def _digits(classes):
    digits = load_digits()
    chosen = np.isin(digits.target, classes)
    return (digits.data[chosen] / 16).astype(np.float32), digits.target[chosen]


@pytest.mark.parametrize("classes", [range(10), [3, 8]], ids=["multinomial", "binary"])
def test_the_fit_is_scikit_learns(classes):
    x, y = _digits(classes)
    fit = fit_logistic_regression(x, y, C=0.316, max_iter=1000, tol=1e-6)
    theirs = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(x, y)
    # The bits can differ, because the number of threads changes the order of sums.
    np.testing.assert_allclose(fit.coef, theirs.coef_, atol=1e-4)
    assert abs(fit.n_iter - theirs.n_iter_.max()) <= 5
    assert fit.converged


@pytest.mark.parametrize("classes", [range(10), [3, 8]], ids=["multinomial", "binary"])
def test_objective_and_gradient_equal_automatic_differentiation(classes):
    """The second way of computing is torch's cross-entropy in float64 and its derivative."""
    x, y = _digits(classes)
    fit = fit_logistic_regression(x, y, C=2.0, max_iter=7, tol=1e-6)
    weights = torch.tensor(fit.coef, dtype=torch.float64, requires_grad=True)
    intercept = torch.tensor(fit.intercept, dtype=torch.float64, requires_grad=True)
    logits = torch.from_numpy(x).double() @ weights.T + intercept
    if len(weights) == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    target = torch.from_numpy(np.searchsorted(np.unique(y), y))
    objective = torch.nn.functional.cross_entropy(logits, target) + weights.square().sum() / (2 * 2.0 * len(x))
    objective.backward()
    largest = max(weights.grad.abs().max().item(), intercept.grad.abs().max().item())
    assert fit.objective == pytest.approx(objective.item(), rel=1e-12)
    assert fit.gradient_norm == pytest.approx(largest, rel=1e-9)


def test_a_fit_that_ends_at_max_iter_is_not_converged_and_does_not_warn():
    """The solver turns scikit-learn's warning into data. Warnings are errors in tests."""
    x, y = _digits(range(10))
    fit = fit_logistic_regression(x, y, C=1e6, max_iter=3, tol=1e-6)
    assert not fit.converged
    assert fit.n_iter == 3
    assert fit.gradient_ratio > 1e-3


def test_a_fit_that_stops_early_has_not_converged():
    """With a loose tolerance scikit-learn stops early without a warning, but the measurement shows it."""
    x, y = _digits(range(10))
    fit = fit_logistic_regression(x, y, C=1e3, max_iter=1000, tol=1e-2)
    assert fit.n_iter < 1000
    assert not fit.converged


def test_scores_have_a_column_for_every_class():
    x, y = _digits([1, 4])
    fit = fit_logistic_regression(x, y, C=1.0, max_iter=100, tol=1e-6)
    scores = fit.scores(x, 6)
    assert scores.shape == (len(x), 6)
    assert np.all(scores[:, [0, 2, 3, 5]] == -np.inf)
    assert np.array_equal(scores.argmax(axis=1), LogisticRegression(tol=1e-6).fit(x, y).predict(x))


@pytest.mark.slow
def test_scikit_learn_gives_the_same_result_on_tensors_as_on_arrays():
    """Fits on a GPU use the array API. The test uses tensors on the CPU, in a process with SciPy's array API."""
    script = """
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from probe.probes.solvers.scikit_learn import fit_on_device
x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
ours = LogisticRegression(C=0.5, tol=1e-6, max_iter=1000)
fit_on_device(ours, x, y + 3, "cpu")
theirs = LogisticRegression(C=0.5, tol=1e-6, max_iter=1000).fit(x, y + 3)
assert isinstance(ours.coef_, np.ndarray)
assert np.max(ours.n_iter_) > 1
assert np.array_equal(ours.classes_, theirs.classes_)
# Both stop when the gradient is small, but their sums in float32 have a different order.
assert np.abs(ours.coef_ - theirs.coef_).max() < 0.02 * np.abs(theirs.coef_).max()
assert np.array_equal((x @ ours.coef_.T + ours.intercept_).argmax(axis=1), theirs.predict(x) - 3)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "SCIPY_ARRAY_API": "1"})


def test_a_gpu_without_scipys_array_api_is_refused(monkeypatch):
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    with pytest.raises(ProtocolError, match="SCIPY_ARRAY_API=1"):
        fit_on_device(LogisticRegression(), np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), "cuda")


def test_a_warm_start_ends_at_the_same_optimum():
    x, y = _digits(range(10))
    solver = ScikitLearn([x], y, max_iter=5000, tol=1e-7)
    start = solver.fit(0.9)
    cold, warm = solver.fit(1.0), solver.fit(1.0, start=start)
    assert warm.n_iter - start.n_iter < cold.n_iter
    assert warm.objective == pytest.approx(cold.objective, rel=1e-6)  # the precision of float32


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("is_multi_label", [False, True])
def test_iterations_of_the_start_count(solver, is_multi_label):
    """The iterations of a fit include the iterations of the fit that it started from."""
    x, y = _digits(range(4))
    fitter = get_solver(solver)([x], np.eye(4, dtype=np.int64)[y] if is_multi_label else y, max_iter=1000, tol=1e-6)
    first = fitter.fit(0.1)
    second = fitter.fit(0.1, start=first)
    third = fitter.fit(0.1, start=second)
    assert first.n_iter > 5
    assert first.n_iter <= second.n_iter <= first.n_iter + 5
    assert second.n_iter <= third.n_iter <= second.n_iter + 5


@pytest.mark.parametrize("solver", SOLVERS)
def test_tick_is_called_for_every_iteration(solver):
    x, y = _digits(range(10))
    ticks = []
    fit = get_solver(solver)([x], y, max_iter=1000, tol=1e-6).fit(0.1, tick=ticks.append)
    assert ticks == sorted(ticks)
    assert len(ticks) >= fit.n_iter > 5


def test_the_excess_bounds_the_distance_to_the_optimum():
    x, y = _digits(range(10))
    best = ScikitLearn([x.astype(np.float64)], y, max_iter=20000, tol=1e-10).fit(1.0)
    for fit in (ScikitLearn([x], y, max_iter=20, tol=1e-6).fit(1.0), Fast([x], y, max_iter=3, tol=1e-6).fit(1.0)):
        assert 0 < fit.objective - best.objective <= fit.excess
