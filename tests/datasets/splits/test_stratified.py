import numpy as np
import pytest

from probe.datasets.splits.stratified import TooFewImagesError, hold_out

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
    """Every machine and every version of NumPy must give the positions that are stored here."""
    _, held = hold_out(np.zeros(20, dtype=np.int64), 0.25, role="val")
    assert held.tolist() == [5, 13, 15, 17, 18]


def test_roles_are_independent():
    assert hold_out(LABELS, 0.2, role="val")[1].tolist() != hold_out(LABELS, 0.2, role="test")[1].tolist()


def test_a_class_of_one_image_is_named():
    with pytest.raises(TooFewImagesError, match="class 7"):
        hold_out(np.array([3, 3, 7]), 0.2, role="val")


GROUPS = [f"g{i // 5}" for i in range(50)] + [f"h{i // 4}" for i in range(20)] + ["a", "b", "c"]


def test_groups_go_whole():
    kept, held = hold_out(LABELS, 0.2, role="val", groups=GROUPS)
    assert not {GROUPS[i] for i in kept} & {GROUPS[i] for i in held}
    assert sorted([*kept, *held]) == list(range(len(LABELS)))


def test_as_many_groups_are_held_out_as_come_nearest():
    _, held = hold_out(LABELS, 0.2, role="val", groups=GROUPS)
    assert np.bincount(LABELS[held]).tolist() == [10, 4, 1]


def test_groups_of_uneven_size_come_near_the_share():
    """About a tenth of 99 images is held out, although the groups have 1 to 30 images."""
    groups = [f"{k}:{size}" for k, size in enumerate((1, 3, 5, 10, 20, 30, 30)) for _ in range(size)]
    _, held = hold_out(np.zeros(len(groups), dtype=np.int64), 0.1, role="val", groups=groups)
    assert abs(len(held) - 10) <= 4  # groups are not divided, so the share is not exact


def test_a_large_group_is_not_held_out_for_a_small_share():
    """The share is a tenth, so the single image is held out, and not the group of nine, in any order of the groups."""
    for names in (["a"] * 9 + ["b"], ["b"] * 9 + ["a"]):
        _, held = hold_out(np.zeros(10, dtype=np.int64), 0.1, role="val", groups=names)
        assert held.tolist() == [9]


def test_a_group_of_two_classes_must_not_take_a_whole_class():
    with pytest.raises(TooFewImagesError, match="class 1"):
        hold_out(np.array([0, 1] + [0] * 8), 0.2, role="val", groups=["a"] * 2 + ["b"] * 8)


def test_a_class_of_one_group_is_named():
    with pytest.raises(TooFewImagesError, match="class 1"):
        hold_out(np.array([0, 0, 1, 1]), 0.5, role="val", groups=["a", "b", "c", "c"])


def test_images_of_several_labels_are_divided_as_one_class():
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, -1]] * 5)
    kept, held = hold_out(labels, 0.2, role="val")
    assert (len(kept), len(held)) == (16, 4)
