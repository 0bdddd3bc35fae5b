import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.probes.solvers import ScikitLearn


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
    # Not to the last bit: the number of threads changes the order of sums.
    np.testing.assert_allclose(fit.coef, theirs.coef_, atol=1e-4)
    assert abs(fit.n_iter - theirs.n_iter_.max()) <= 5
    assert fit.converged


@pytest.mark.parametrize("classes", [range(10), [3, 8]], ids=["multinomial", "binary"])
def test_objective_and_gradient_equal_automatic_differentiation(classes):
    """A second way of computing: torch's cross-entropy in float64, differentiated."""
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


def test_a_fit_that_was_cut_off_says_so_and_warns_nobody():
    """The warning becomes data; pytest would turn a stray one into an error."""
    x, y = _digits(range(10))
    fit = fit_logistic_regression(x, y, C=1e6, max_iter=3, tol=1e-6)
    assert not fit.converged
    assert fit.n_iter == 3
    assert fit.gradient_ratio > 1e-3


def test_a_fit_that_stops_early_by_itself_has_not_converged():
    """A loose tolerance stops in silence; the measured gradient tells."""
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
