import numpy as np
import pytest
import torch

from probe.probes.solvers.curvature import Diagonal
from probe.probes.solvers.lbfgs import Limits, Preconditioners, minimise

SCALES = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], dtype=torch.float64)


def _identity():
    return Diagonal(torch.ones(4, dtype=torch.float64))


def _inverse_of_scales():
    return Diagonal(SCALES[:, 0])


def _bowl(weights, exact):
    """Evaluate a quadratic function whose minimum, 5, is at ones."""
    return 5 + float((SCALES * (weights - 1).square()).sum()) / 2, SCALES * (weights - 1)


def _largest(gradient):
    return float(gradient.abs().max())


def _minimise(evaluate, *, preconditioner=None, patience=1000, tol=1e-9, max_iter=500, most_left=np.inf, goes_on=None):
    """Return the minimum, the evaluation requests, and how many requests came before each new preconditioner."""
    refreshed, requests = [], []

    def refresh(weights):
        refreshed.append(len(requests))
        return _inverse_of_scales()

    steps = minimise(
        torch.zeros(4, 1, dtype=torch.float64),
        Preconditioners(preconditioner or _identity(), refresh, patience),
        Limits(tol, max_iter),
        measure=lambda value, gradient: _largest(gradient),
        is_enough=lambda unknowns, value, decrement: decrement <= most_left,
        goes_on=goes_on,
    )
    request = next(steps)
    while True:
        requests.append(request)
        try:
            request = steps.send(evaluate(request.unknowns, request.exact))
        except StopIteration as end:
            return end.value, requests, refreshed


def test_a_small_gradient_does_not_end_a_minimisation_far_from_the_minimum():
    """The first unknown, whose scale is a thousandth of the largest, is still far from its optimum."""
    early, _, _ = _minimise(_bowl, tol=1.0)
    found, _, _ = _minimise(_bowl, tol=1.0, most_left=1e-9)
    assert _largest(early.gradient) <= 1.0
    assert early.objective - 5 > 1e-2
    assert found.objective - 5 <= 1e-4


def test_a_quadratic_is_solved_to_its_tolerance():
    """The gradient is at most tol, so the distance is at most tol divided by the smallest scale, 1."""
    found, requests, _ = _minimise(_bowl)
    torch.testing.assert_close(found.unknowns, torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-9)
    assert _largest(found.gradient) <= 1e-9
    assert found.objective == pytest.approx(5, rel=1e-15)
    assert [request.exact for request in requests[-2:]] == [False, True]  # the last request only evaluates the end


def test_the_inverse_of_the_hessian_needs_a_single_step():
    found, requests, _ = _minimise(_bowl, preconditioner=_inverse_of_scales())
    assert found.n_iter == 1
    assert len(requests) == 3  # the last one evaluates the end in float64


def test_a_curved_valley_is_followed_to_its_minimum():
    """The function is Rosenbrock's, with the minimum at ones. The start is on the other side of the valley."""

    def valley(weights, exact):
        w = weights.clone().requires_grad_()
        value = ((1 - w[:-1]).square() + 100 * (w[1:] - w[:-1].square()).square()).sum()
        value.backward()
        return value.item(), w.grad

    found, _, _ = _minimise(valley)
    torch.testing.assert_close(found.unknowns, torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-7)


def test_a_minimisation_ends_after_max_iter_steps():
    found, _, _ = _minimise(_bowl, max_iter=3)
    assert found.n_iter == 3
    assert _largest(found.gradient) > 1e-9


def test_a_minimisation_ends_when_it_may_not_go_on():
    seen = []

    def goes_on(weights, value, n_iter):
        seen.append((weights, value, n_iter))
        return n_iter < 4

    found, _, _ = _minimise(_bowl, goes_on=goes_on)
    assert [n_iter for _, _, n_iter in seen] == [1, 2, 3, 4]
    assert found.n_iter == 4
    assert torch.equal(found.unknowns, seen[-1][0])
    assert found.objective == seen[-1][1] == _bowl(found.unknowns, exact=True)[0]


def test_a_start_at_the_minimum_takes_no_step():
    found, requests, _ = _minimise(lambda weights, exact: (0.0, torch.zeros_like(weights)))
    assert (found.n_iter, len(requests)) == (0, 2)


def test_preconditioners_are_replaced_less_and_less_often():
    """The first is replaced after 3 evaluations, the next after 1.5 times as many. A line search is finished first."""

    def flat(weights, exact):  # a function of fourth order, for which quadratic models converge slowly
        return float((weights - 1).pow(4).sum()), 4 * (weights - 1).pow(3)

    _, _, refreshed = _minimise(flat, patience=3, tol=1e-12)
    assert refreshed[0] in range(4, 8)
    gaps = np.diff(refreshed)
    assert all(gap >= 3 * 1.5 ** (i + 1) for i, gap in enumerate(gaps))


@pytest.mark.parametrize("offset", [1e-3, 1e-9], ids=["coarse", "fine"])
def test_exact_evaluations_are_requested_when_inexact_ones_allow_no_progress(offset):
    """Gradients with rounding errors must not end the minimisation far from the minimum."""
    rng = np.random.default_rng(0)

    def rounded(weights, exact):
        value, gradient = _bowl(weights, exact)
        noise = torch.from_numpy(rng.uniform(-1, 1, size=(4, 1)))
        return (value, gradient) if exact else (value, gradient + offset * noise)

    found, requests, _ = _minimise(rounded, tol=1e-10)
    assert requests[-1].exact
    assert _largest(found.gradient) <= 1e-10
    torch.testing.assert_close(found.unknowns, torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-10)


def test_values_of_nan_end_the_minimisation_at_its_start():
    """The minimisation neither loops nor takes a step."""

    def broken(weights, exact):
        return (1.0, torch.ones_like(weights)) if not weights.any() else (float("nan"), weights * float("nan"))

    found, _, _ = _minimise(broken)
    assert found.n_iter == 0
    assert not found.unknowns.any()
