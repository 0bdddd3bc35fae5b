from dataclasses import replace
from itertools import chain

import pytest
from make.records import NUM_TEST, changed, make_record, scored_record

from probe.leaderboard.few_shot import SHOTS, few_shot_charts
from probe.records.schema import SplitRecord


def _probes(dataset="digits", model="tiny", *, wrong=100, suffix="", **changes):
    """Return a record for each number of shots; each has 10 fewer wrong test images than the one before it."""
    return [
        scored_record(model, wrong - 10 * i, dataset=dataset, protocol=f"few-shot-{shots}{suffix}", **changes)
        for i, shots in enumerate(SHOTS)
    ]


def _zero_shot(dataset="digits", model="tiny", *, wrong=200, **changes):
    return scored_record(model, wrong, dataset=dataset, protocol="zero-shot", **changes)


def test_scores_are_averaged_over_the_datasets_that_have_every_number_of_shots_and_zero_shot():
    records = [*_probes("digits"), *_probes("mnist", wrong=140), *_probes("cifar10")[:-1], *_probes("stl10")]
    records += [_zero_shot("digits"), _zero_shot("mnist", wrong=160)]
    (chart,) = few_shot_charts(records)
    assert chart.datasets == ("digits", "mnist")
    (curve,) = chart.curves
    assert curve.scores == pytest.approx([1 - (120 - 10 * i) / 400 for i in range(5)])
    assert curve.zero_shot == pytest.approx(1 - 180 / 400)


def test_without_zero_shot_there_is_no_level():
    (chart,) = few_shot_charts(_probes())
    assert (chart.datasets, chart.curves[0].zero_shot) == (("digits",), None)


def test_models_of_a_chart_have_the_same_datasets():
    """A model without a zero-shot score does not remove the zero-shot level of the other models."""
    records = [*_probes("digits", "a"), *_probes("mnist", "a"), *_probes("digits", "b"), _zero_shot("digits", "a")]
    (chart,) = few_shot_charts(records)
    assert chart.datasets == ("digits",)
    assert [(curve.model, curve.zero_shot) for curve in chart.curves] == [("a", 0.5), ("b", None)]


def test_a_missing_number_of_shots_makes_no_chart():
    assert few_shot_charts(_probes()[1:]) == []
    assert few_shot_charts([make_record()]) == []
    assert few_shot_charts([changed(record, "spec.protocol.per_class", False) for record in _probes()]) == []


def test_what_does_not_compare_has_charts_of_its_own():
    base = _probes()
    variants = [base, _probes(suffix="-held-out"), _probes(jit=True)]
    variants += [[changed(record, "spec.protocol.tol", 1e-3) for record in base]]
    charts = few_shot_charts([*chain(*variants), _zero_shot()])
    assert [chart.protocol for chart in charts] == ["few-shot", "few-shot", "few-shot", "few-shot-held-out"]
    assert [chart.mode for chart in charts if chart.curves[0].zero_shot is None] == ["jit"]
    assert len({chart.key for chart in charts}) == 4


def test_different_test_images_are_not_averaged():
    other = {"test": SplitRecord("other", NUM_TEST)}
    (chart,) = few_shot_charts([*_probes(), replace(_zero_shot(), splits=other)])
    assert chart.curves[0].zero_shot is None
    first, *rest = _probes()
    assert few_shot_charts([replace(first, splits=other), *rest]) == []


def test_a_zero_shot_level_of_different_weights_is_not_drawn():
    other = changed(_zero_shot(), "encoder.weights_sha256", "cd" * 32)
    (chart,) = few_shot_charts([*_probes(), other])
    assert chart.curves[0].zero_shot is None
    (chart,) = few_shot_charts([*_probes(), *_probes(model="b"), other, _zero_shot(model="b")])
    assert [curve.zero_shot for curve in chart.curves] == [0.5, None]  # b comes before tiny


def test_zero_shot_levels_with_different_prompts_are_not_averaged():
    zero_shot, other = _zero_shot(model="a"), _zero_shot(model="b")
    (chart,) = few_shot_charts([*_probes(model="a"), *_probes(model="b"), zero_shot, other])
    assert [curve.zero_shot for curve in chart.curves] == [0.5, 0.5]
    other = changed(other, "prompts.templates", ("a drawing of a {}.",))
    (chart,) = few_shot_charts([*_probes(model="a"), *_probes(model="b"), zero_shot, other])
    assert [curve.zero_shot for curve in chart.curves] == [None, None]
