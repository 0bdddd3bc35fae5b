from dataclasses import replace

import numpy as np
import pytest

from probe.errors import ProtocolError
from probe.probes.protocols import get_protocol
from probe.probes.shots import count_drawn, draw_shots

Y = np.array([0] * 20 + [1] * 9 + [5] * 12)[np.random.default_rng(0).permutation(41)]


def test_every_class_gives_the_requested_number_of_images():
    drawn = draw_shots(Y, shots=4, held_out=2, seed=0)
    assert np.unique(Y[drawn.train], return_counts=True)[1].tolist() == [4, 4, 4]
    assert np.unique(Y[drawn.held_out], return_counts=True)[1].tolist() == [2, 2, 2]


def test_positions_are_int64_ascending_and_drawn_once():
    drawn = draw_shots(Y, shots=5, held_out=4, seed=3)
    for positions in (drawn.train, drawn.held_out):
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
    assert not set(drawn.train) & set(drawn.held_out)


def test_the_draw_is_the_same_everywhere():
    """Another machine or a later version of NumPy must give the positions that are stored here."""
    drawn = draw_shots(np.array([0, 1] * 10), shots=2, held_out=1, seed=0)
    assert drawn.train.tolist() == [0, 1, 12, 17]
    assert drawn.held_out.tolist() == [4, 5]


def test_the_images_of_fewer_shots_are_a_subset_of_the_images_of_more_shots():
    """Otherwise a curve over the number of shots would also show the effect of different images."""
    for seed in range(5):
        smaller = [set(draw_shots(Y, shots=shots, seed=seed).train) for shots in (1, 2, 4, 8)]
        assert smaller[0] < smaller[1] < smaller[2] < smaller[3]


def test_held_out_images_do_not_change_the_shots():
    assert np.array_equal(draw_shots(Y, shots=3, seed=1).train, draw_shots(Y, shots=3, held_out=3, seed=1).train)


def test_seeds_are_different_draws():
    assert len({tuple(draw_shots(Y, shots=4, seed=seed).train) for seed in range(5)}) == 5


def test_the_draw_of_a_class_does_not_depend_on_other_classes():
    """Images are numbered within their class, so the positions of other classes do not matter."""
    images = np.flatnonzero(Y == 5)
    alone = images[draw_shots(Y[images], shots=3, held_out=2, seed=0).train]
    together = draw_shots(Y, shots=3, held_out=2, seed=0).train
    assert alone.tolist() == together[Y[together] == 5].tolist()


def test_classes_are_drawn_independently():
    """The draw does not take the same position in every class, because images of all classes can be sorted alike."""
    y = np.repeat(np.arange(20), 50)
    positions = draw_shots(y, shots=1, seed=0).train % 50
    assert len(set(positions.tolist())) > 10


def test_over_many_seeds_every_image_is_drawn_equally_often():
    counts = np.zeros(10)
    for seed in range(1000):
        counts[draw_shots(np.zeros(10, dtype=np.int64), shots=2, seed=seed).train] += 1
    # The expected count is 200. Tolerance: five standard deviations of sqrt(1000 * 0.2 * 0.8) = 12.6.
    assert np.abs(counts - 200).max() < 63


def test_labels_are_not_changed():
    before = Y.copy()
    draw_shots(Y, shots=2, seed=0)
    assert np.array_equal(Y, before)


def test_all_images_of_a_class_may_be_drawn():
    drawn = draw_shots(np.array([3, 3, 3, 8, 8, 8]), shots=2, held_out=1, seed=0)
    assert sorted([*drawn.train, *drawn.held_out]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 10}, "class 1 has 9 training images, but the protocol needs 10; choose a protocol with fewer shots"),
        ({"shots": 8, "held_out": 4}, r"but the protocol needs 12 \(8 to fit on and 4 to choose C on\); choose"),
        ({"shots": 0}, "expected shots >= 1 and held_out >= 0, got shots = 0 and held_out = 0"),
        ({"shots": 2, "held_out": -1}, "got shots = 2 and held_out = -1"),
    ],
)
def test_an_impossible_draw_is_refused(arguments, message):
    with pytest.raises(ProtocolError, match=message):
        draw_shots(Y, **arguments, seed=0)


def test_images_of_several_classes_cannot_be_drawn():
    with pytest.raises(
        ProtocolError, match=r"few-shot protocols need one label per image, but the labels have shape \(41, 3\)"
    ):
        draw_shots(np.zeros((41, 3), dtype=np.int64), shots=1, seed=0)


def test_a_digest_identifies_a_draw():
    """A record contains the seed and the digest instead of every index."""
    y = np.repeat(np.arange(3), 10)
    digests = [draw_shots(y, shots=2, held_out=1, seed=seed).compute_digest() for seed in (0, 1, 0)]
    assert digests[0] == digests[2] != digests[1]


def test_a_draw_of_all_classes_has_the_given_number_of_images():
    y = np.repeat(np.arange(5), [40, 30, 20, 10, 2])
    draw = draw_shots(y, shots=50, held_out=20, seed=0, per_class=False)
    assert (len(draw.train), len(draw.held_out)) == (50, 20)
    assert not set(draw.train.tolist()) & set(draw.held_out.tolist())
    assert (np.diff(draw.train) > 0).all()
    other = draw_shots(y, shots=60, held_out=10, seed=0, per_class=False)
    assert set(draw.train.tolist()) < set(other.train.tolist())
    assert not np.array_equal(draw.train, draw_shots(y, shots=50, seed=1, per_class=False).train)
    # The classes are about as frequent as in `y`.
    assert np.bincount(y[draw.train], minlength=5)[0] > np.bincount(y[draw.train], minlength=5)[3]


def test_a_draw_of_all_classes_that_cannot_be_fitted_is_refused():
    y = np.array([0] * 50 + [1])
    with pytest.raises(ProtocolError, match=r"dataset has 51 training images, but the protocol needs 60 \(50"):
        draw_shots(y, shots=50, held_out=10, seed=0, per_class=False)
    with pytest.raises(ProtocolError, match="all images of the draw with seed 0 are of class 0; choose"):
        draw_shots(y, shots=2, seed=0, per_class=False)


@pytest.mark.parametrize(
    ("changes", "num"),
    [({}, 40), ({"held_out": 2}, 40), ({"refit": True, "held_out": 2}, 60), ({"per_class": False}, 4)],
)
def test_the_images_of_the_final_fit_are_counted(changes, num):
    rules = replace(get_protocol("few-shot-4"), **changes)
    assert count_drawn(rules, 10) == num
