import math

import pytest

from probe.probes.protocols import get_protocol
from probe.probes.sweep import best, search

PAPER = get_protocol("clip-paper")


def _search(score):
    return search(score, PAPER.grid, coarse_step=PAPER.coarse_step, score=lambda value: value)


def test_the_papers_grid_has_97_values_8_to_the_decade():
    assert len(PAPER.grid) == 97
    assert PAPER.grid[0] == 1e-6
    assert PAPER.grid[-1] == 1e6
    assert PAPER.grid[8] / PAPER.grid[0] == pytest.approx(10)


def test_the_first_values_are_the_papers():
    tried = search(lambda C: C, PAPER.grid, coarse_step=16, score=lambda value: 0.0)
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= {float(f"{C:.6g}") for C in tried}


@pytest.mark.parametrize("peak", range(0, 97, 4))
def test_a_single_peak_is_found_within_15_fits(peak):
    tried = _search(lambda C: -abs(math.log10(C) - math.log10(PAPER.grid[peak])))
    assert best(tried, lambda value: value) == PAPER.grid[peak]
    assert len(tried) <= 15


def test_no_value_is_tried_twice():
    calls = []
    _search(lambda C: calls.append(C) or 0.0)
    assert len(calls) == len(set(calls))


def test_ties_go_to_the_smaller_c():
    """Of equal scores the stronger regularisation wins, so that reruns agree."""
    assert best(_search(lambda C: 1.0), lambda value: value) == 1e-6
