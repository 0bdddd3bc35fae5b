"""Outcomes give the same scores as labels and predictions do."""

import json

import numpy as np
import pytest

from probe.errors import ResultsError, UnknownNameError
from probe.stats.metrics import IGNORED, METRICS
from probe.stats.outcomes import STORED_ARRAYS, make_outcomes, rank, unpack

N = 240
SUMS = 1e-12  # tolerance: sums of some hundred fractions in a different order


def _predictions(metric, *, levels, seed=0):
    """Make labels and scores. With few levels most scores are tied. One class has no training images."""
    rng = np.random.default_rng(seed)
    k = {"roc_auc": 2, "voc2007_11pt_map": 4}.get(metric, 12)
    y_score = rng.integers(0, levels, (N, k)) / levels
    if metric == "voc2007_11pt_map":
        y_score[:, 3] = -np.inf
        y_score[:5, 0] = -np.inf
        return rng.choice([0, 0, 0, 1, IGNORED], (N, k)), y_score
    y_score[:, -1] = -np.inf if k > 2 else y_score[:, -1]
    return rng.integers(0, k, N), y_score


every_metric = pytest.mark.parametrize("metric", METRICS)
with_and_without_ties = pytest.mark.parametrize("levels", [1_000_000, 5])


def _assert_equal(a, b):
    assert a.metric == b.metric
    assert list(a.arrays) == list(b.arrays)
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        np.testing.assert_array_equal(array, b.arrays[name])


def test_every_metric_has_its_arrays():
    assert set(STORED_ARRAYS) == set(METRICS)


@every_metric
@with_and_without_ties
def test_the_score_equals_the_metric(metric, levels):
    y_true, y_score = _predictions(metric, levels=levels)
    outcomes = make_outcomes(metric, y_true, y_score)
    assert outcomes.score() == pytest.approx(METRICS[metric](y_true, y_score), abs=SUMS)
    assert len(outcomes) == N


@every_metric
@with_and_without_ties
def test_the_score_of_some_rows_equals_the_metric_of_these_rows(metric, levels):
    """Rows can have any order, which breaks ties in average precision."""
    y_true, y_score = _predictions(metric, levels=levels)
    outcomes = make_outcomes(metric, y_true, y_score)
    for seed in range(20):
        rows = np.random.default_rng(seed).integers(N, size=N)
        assert outcomes.score(rows) == pytest.approx(METRICS[metric](y_true[rows], y_score[rows]), abs=SUMS)


def test_consecutive_images_with_the_same_label_share_a_rank():
    """The two images with the score 3 are tied and have different labels, so they have a rank of their own."""
    labels, scores = np.array([1, 1, 1, 0, 0, 0, 1]), np.array([9.0, 8.0, 3.0, 3.0, 2.0, 1.0, -np.inf])
    assert rank(labels, scores).tolist() == [0, 0, 1, 1, 2, 2, 3]


@every_metric
@with_and_without_ties
def test_unpacking_inverts_packing(metric, levels):
    outcomes = make_outcomes(metric, *_predictions(metric, levels=levels))
    _assert_equal(unpack(json.loads(json.dumps(outcomes.pack()))), outcomes)


def test_a_right_answer_takes_one_bit():
    rng = np.random.default_rng(0)
    packed = make_outcomes("accuracy", rng.integers(0, 2, 8000), rng.random((8000, 2))).pack()
    assert len(json.dumps(packed)) < 8000 / 8 * 4 / 3 + 200  # base64 takes four letters for three bytes


@pytest.mark.parametrize("n", [1, 7, 8, 300])
def test_any_number_of_images_can_be_packed(n):
    y_true = np.arange(n)
    outcomes = make_outcomes("mean_per_class", y_true, np.eye(n)[::-1])
    _assert_equal(unpack(outcomes.pack()), outcomes)


def _damaged():
    packed = make_outcomes("voc2007_11pt_map", *_predictions("voc2007_11pt_map", levels=5)).pack()

    def changed(**changes):
        ranks = {**packed["arrays"]["ranks"], **changes}
        return {**packed, "arrays": {**packed["arrays"], "ranks": ranks}}

    text = packed["arrays"]["ranks"]["data"]
    middle = len(text) // 2
    yield from ({}, [], {**packed, "metric": "acuracy"}, {**packed, "n": N + 1}, {**packed, "arrays": {}})
    yield from (changed(data=data) for data in (text[:-8], text[:middle] + "é" + text[middle + 1 :], "", None, "AAAA"))
    yield changed(data=text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :])
    yield from (changed(shape=shape) for shape in ([N], [N, 5], [-N, -4], [4, N], ["a"], [10**30, 1], None))
    yield from (changed(dtype="object"), changed(dtype="uint64"), changed(lowest=0.5), changed(lowest=None))


@pytest.mark.parametrize("packed", list(_damaged()))
def test_damaged_outcomes_are_refused_in_one_sentence(packed):
    with pytest.raises(
        ResultsError, match=r"^the outcomes of test images are damaged \(.*\); repeat the run with --rerun$"
    ):
        unpack(packed)


def test_an_unknown_metric_is_an_error():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        make_outcomes("acuracy", np.zeros(2, int), np.zeros((2, 2)))


def test_images_have_values_only_for_metrics_that_are_means():
    y_true, y_score = _predictions("mean_top1_top5", levels=5)
    outcomes = make_outcomes("mean_top1_top5", y_true, y_score)
    assert set(outcomes.values) == {0, 0.5, 1}
    assert outcomes.values.mean() == pytest.approx(outcomes.score(), abs=SUMS)
    with pytest.raises(ValueError, match="is not a mean over images; use score"):
        _ = make_outcomes("roc_auc", *_predictions("roc_auc", levels=5)).values
