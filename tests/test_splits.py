import numpy as np
import pytest

from probe.datasets.splits import TooFewImagesError, hold_out

LABELS = np.array([0] * 50 + [1] * 20 + [2] * 3)


def test_nothing_is_lost_and_nothing_is_in_both():
    kept, held = hold_out(LABELS, 0.2, role="val")
    assert sorted([*kept, *held]) == list(range(len(LABELS)))


def test_every_class_gives_its_share_and_at_least_one():
    kept, held = hold_out(LABELS, 0.2, role="val")
    assert np.bincount(LABELS[held]).tolist() == [10, 4, 1]
    assert np.bincount(LABELS[kept]).tolist() == [40, 16, 2]


def test_a_class_never_goes_whole():
    labels = np.array([0, 0, 1, 1])
    kept, _ = hold_out(labels, 0.9, role="val")
    assert labels[kept].tolist() == [0, 1]


def test_the_split_is_the_same_everywhere():
    """Written down once: another machine, or a later NumPy, must divide alike."""
    _, held = hold_out(np.zeros(20, dtype=np.int64), 0.25, role="val")
    assert held.tolist() == [5, 13, 15, 17, 18]


def test_roles_are_independent():
    assert hold_out(LABELS, 0.2, role="val")[1].tolist() != hold_out(LABELS, 0.2, role="test")[1].tolist()


def test_a_class_of_one_image_is_named():
    with pytest.raises(TooFewImagesError, match="class 7"):
        hold_out(np.array([3, 3, 7]), 0.2, role="val")
