import math
from itertools import pairwise

import pytest

from probe.probes.protocols import get_protocol
from probe.probes.sweep import best, bisect, search

PAPER = get_protocol("clip-paper")


def _search(score, grid=PAPER.grid, coarse_step=PAPER.coarse_step):
    return search(lambda values: map(score, values), grid, coarse_step=coarse_step, score=lambda value: value)


def test_the_papers_grid_has_97_values_8_to_the_decade():
    assert len(PAPER.grid) == 97
    assert PAPER.grid[0] == 1e-6
    assert PAPER.grid[-1] == 1e6
    assert PAPER.grid[8] / PAPER.grid[0] == pytest.approx(10)


def test_the_first_values_are_the_papers():
    tried = _search(lambda C: 0.0)
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= {float(f"{C:.6g}") for C in tried}


def _tent(left, right):
    """Return a function that decreases by `left` and `right` per decade on the two sides of its peak at 0."""
    return lambda x: min(left * x, -right * x)


def _bell(left, right):
    """Return a bell curve, which resembles an accuracy; `left` and `right` are widths in decades."""
    return lambda x: math.exp(-((x / (left if x < 0 else right)) ** 2) / 2)


def _cliff(left, right):
    """Return a function with a step next to its peak and tiny slopes, so that only the order of scores matters."""
    return lambda x: 1.0 if x == 0 else (0.5 + 1e-6 * left * x if x < 0 else 0.9 - 1e-6 * right * x)


# Scores are functions of the distance from the peak in decades. Neighbouring scores on the grid are different floats.
SHAPES = [shape(left, right) for shape in (_tent, _cliff) for left in (0.01, 1, 30) for right in (0.01, 1, 30)]
SHAPES += [_bell(left, right) for left in (1, 3, 10) for right in (1, 3, 10)]


@pytest.mark.parametrize("peak", range(97))
def test_every_single_peak_is_found_within_15_fits(peak):
    """The peak can be anywhere, and its two sides can have different widths."""
    decades = {C: (k - peak) / 8 for k, C in enumerate(PAPER.grid)}
    for shape in SHAPES:
        scores = [shape(x) for x in decades.values()]
        assert all(a < b for a, b in pairwise(scores[: peak + 1]))
        assert all(a > b for a, b in pairwise(scores[peak:]))
        tried = _search(lambda C, shape=shape: shape(decades[C]))
        assert best(tried, lambda value: value) == PAPER.grid[peak]
        assert len(tried) <= 15


def test_a_coarse_step_of_one_tries_every_value():
    """All 45 values of DINOv2 are fitted."""
    grid = get_protocol("dinov2").grid
    assert list(_search(lambda C: 0.0, grid, 1)) == list(grid)


def test_no_value_is_tried_twice():
    calls = []
    _search(lambda C: calls.append(C) or 0.0)
    assert len(calls) == len(set(calls))


def test_ties_go_to_the_smaller_c():
    """On a tie the stronger regularisation wins, so that reruns agree."""
    assert best(_search(lambda C: 1.0), lambda value: value) == 1e-6


def _bisect(score, grid=(1e-2, 1.0, 1e2), steps=8):
    calls = []

    def evaluate(values):
        calls.extend(values)
        return map(score, values)

    found = bisect(evaluate, grid, steps=steps, score=lambda value: value)
    assert len(calls) == len(set(calls)) == len(found.tried)  # no value is evaluated twice
    assert list(found.tried) == sorted(found.tried)
    return found


@pytest.mark.parametrize("peak", [-0.9, -0.3, 0.0, 0.21, 0.77])
def test_a_bisection_comes_as_near_to_a_single_peak_as_its_last_interval(peak):
    found = _bisect(lambda C: -abs(math.log10(C) - peak))
    assert abs(math.log10(found.chosen) - peak) <= 2 / 2**7  # the interval of the eighth step, 2 decades in the first
    assert len(found.tried) == 3 + 8


def test_a_bisection_begins_at_the_largest_of_the_best_values_and_keeps_the_lower_end_on_a_tie():
    """CoOp's code does the same, because it tries the largest value first."""
    assert _bisect(lambda C: 0.0).chosen == 1e2 / 10
    assert _bisect(lambda C: float(C < 1)).chosen == pytest.approx(1e-3)


def test_a_bisection_chooses_the_winner_of_its_last_step():
    """The value of the grid with the highest score is not chosen, because the last step does not compare it."""
    found = _bisect(lambda C: 2.0 if C == 1 else C / 1000, steps=1)
    assert found.chosen == 10
    assert found.tried[1.0] > found.tried[found.chosen]
