import numpy as np
import pytest
import torch

from probe.probes.solvers.curvature import Diagonal
from probe.probes.solvers.lbfgs import minimise

SCALES = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], dtype=torch.float64)


def _identity():
    return Diagonal(torch.ones(4, dtype=torch.float64))


def _inverse_of_scales():
    return Diagonal(SCALES[:, 0])


def _bowl(weights, exact):
    """Its minimum, 5, is at ones."""
    return 5 + float((SCALES * (weights - 1).square()).sum()) / 2, SCALES * (weights - 1)


def _largest(gradient):
    return float(gradient.abs().max())


def _minimise(answer, *, preconditioner=None, patience=1000, tol=1e-9, max_iter=500, most_left=np.inf):
    """What was found, and the questions with their preconditioner refreshes."""
    refreshed, questions = [], []

    def refresh(weights):
        refreshed.append(len(questions))
        return _inverse_of_scales()

    dialogue = minimise(
        torch.zeros(4, 1, dtype=torch.float64),
        preconditioner or _identity(),
        refresh=refresh,
        measure=lambda value, gradient: _largest(gradient),
        is_enough=lambda unknowns, value, decrement: decrement <= most_left,
        patience=patience,
        tol=tol,
        max_iter=max_iter,
    )
    question = next(dialogue)
    while True:
        questions.append(question)
        try:
            question = dialogue.send(answer(question.unknowns, question.exact))
        except StopIteration as end:
            return end.value, questions, refreshed


def test_a_small_gradient_is_not_the_end_where_much_is_left():
    """The gradient of the first unknown is left, whose scale is a thousandth of the largest."""
    early, _, _ = _minimise(_bowl, tol=1.0)
    found, _, _ = _minimise(_bowl, tol=1.0, most_left=1e-9)
    assert _largest(early.gradient) <= 1.0
    assert early.objective - 5 > 1e-2
    assert found.objective - 5 <= 1e-4


def test_a_quadratic_is_solved_to_its_tolerance():
    """The gradient is at most tol, and so the distance at most tol by the smallest scale."""
    found, questions, _ = _minimise(_bowl)
    torch.testing.assert_close(found.unknowns, torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-9)
    assert _largest(found.gradient) <= 1e-9
    assert found.objective == pytest.approx(5, rel=1e-15)
    assert found.n_eval == len(questions)
    assert [question.exact for question in questions[-2:]] == [False, True]  # the last only to say how it ended


def test_the_inverse_of_the_hessian_needs_a_single_step():
    found, questions, _ = _minimise(_bowl, preconditioner=_inverse_of_scales())
    assert found.n_iter == 1
    assert len(questions) == 3  # the last for products in float64


def test_a_crooked_valley_is_followed():
    """Rosenbrock's function, from the far side; its minimum is at ones."""

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


def test_a_start_at_the_minimum_takes_no_step():
    found, questions, _ = _minimise(lambda weights, exact: (0.0, torch.zeros_like(weights)))
    assert (found.n_iter, len(questions)) == (0, 2)


def test_a_preconditioner_is_asked_for_after_so_many_evaluations_and_then_ever_less():
    """After 3, after 6 more, after 12 more; a search that is under way is finished first."""

    def flat(weights, exact):  # of fourth order, which no quadratic model ends
        return float((weights - 1).pow(4).sum()), 4 * (weights - 1).pow(3)

    _, _, refreshed = _minimise(flat, patience=3, tol=1e-12)
    assert refreshed[0] in range(4, 8)
    gaps = np.diff(refreshed)
    assert all(gap >= 3 * 1.5 ** (i + 1) for i, gap in enumerate(gaps))


@pytest.mark.parametrize("offset", [1e-3, 1e-9], ids=["coarse", "fine"])
def test_where_rough_answers_lead_nowhere_exact_ones_are_asked_for(offset):
    """Gradients that are off by a constant, as by rounding, must not end the search, and the exact ones do."""
    rng = np.random.default_rng(0)

    def rounded(weights, exact):
        value, gradient = _bowl(weights, exact)
        noise = torch.from_numpy(rng.uniform(-1, 1, size=(4, 1)))
        return (value, gradient) if exact else (value, gradient + offset * noise)

    found, questions, _ = _minimise(rounded, tol=1e-10)
    assert questions[-1].exact
    assert _largest(found.gradient) <= 1e-10
    torch.testing.assert_close(found.unknowns, torch.ones(4, 1, dtype=torch.float64), rtol=0, atol=1e-10)


def test_answers_that_are_no_numbers_end_it_where_it_began():
    """Rather than loop, or take the step."""

    def broken(weights, exact):
        return (1.0, torch.ones_like(weights)) if not weights.any() else (float("nan"), weights * float("nan"))

    found, _, _ = _minimise(broken)
    assert found.n_iter == 0
    assert not found.unknowns.any()
