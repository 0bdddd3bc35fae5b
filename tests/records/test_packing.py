"""Packed outcomes of test images are unpacked to the same outcomes, and damage is refused."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from make.predictions import NUM_IMAGES, make_predictions

from probe.decoder import decode
from probe.errors import ResultsError
from probe.records.packing import pack, unpack
from probe.records.schema import PackedOutcomes
from probe.stats.metrics import METRICS
from probe.stats.outcomes import make_outcomes


def _assert_equal(a, b):
    assert a.metric == b.metric
    assert list(a.arrays) == list(b.arrays)
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        np.testing.assert_array_equal(array, b.arrays[name])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [1_000_000, 5], ids=["without ties", "with ties"])
def test_unpacking_inverts_packing(metric, levels):
    outcomes = make_outcomes(metric, *make_predictions(metric, levels=levels))
    plain = json.loads(json.dumps(asdict(pack(outcomes))))
    _assert_equal(unpack(decode(plain, PackedOutcomes)), outcomes)


def test_a_right_answer_takes_one_bit():
    rng = np.random.default_rng(0)
    packed = pack(make_outcomes("accuracy", rng.integers(0, 2, 8000), rng.random((8000, 2))))
    assert len(json.dumps(asdict(packed))) < 8000 / 8 * 4 / 3 + 200  # base64 takes four letters for three bytes


@pytest.mark.parametrize("n", [1, 7, 8, 300])
def test_any_number_of_images_can_be_packed(n):
    y_true = np.arange(n)
    outcomes = make_outcomes("mean_per_class", y_true, np.eye(n)[::-1])
    _assert_equal(unpack(pack(outcomes)), outcomes)


PACKED = pack(make_outcomes("voc2007_11pt_map", *make_predictions("voc2007_11pt_map", levels=5)))


def _with_ranks(**changes):
    plain = asdict(PACKED)
    plain["arrays"]["ranks"] |= changes
    return plain


def _damaged():
    plain, text = asdict(PACKED), PACKED.arrays["ranks"].data
    middle = len(text) // 2
    yield from ({**plain, "metric": "acuracy"}, {**plain, "n": NUM_IMAGES + 1}, {**plain, "arrays": {}})
    for data in (text[:-8], text[:middle] + "é" + text[middle + 1 :], "", "AAAA"):
        yield _with_ranks(data=data)
    yield _with_ranks(data=text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :])
    n = NUM_IMAGES
    yield from (_with_ranks(shape=shape) for shape in ([n], [n, 5], [-n, -4], [4, n], [10**30, 1]))
    yield from (_with_ranks(dtype="object"), _with_ranks(dtype="uint64"), _with_ranks(lowest=2**63))


@pytest.mark.parametrize("plain", list(_damaged()))
def test_damaged_outcomes_are_refused_in_one_sentence(plain):
    with pytest.raises(
        ResultsError, match=r"^the outcomes of test images are damaged \(.*\); repeat the run with --rerun$"
    ):
        unpack(decode(plain, PackedOutcomes))


@pytest.mark.parametrize(
    "plain",
    [
        *({}, []),
        *(_with_ranks(shape=shape) for shape in (["a"], None)),
        *(_with_ranks(data=None), _with_ranks(lowest=0.5), _with_ranks(lowest=None)),
    ],
)
def test_outcomes_of_wrong_types_are_refused_by_the_decoder(plain):
    with pytest.raises(ValueError, match=r"missing|[Ee]xpected"):
        decode(plain, PackedOutcomes)
