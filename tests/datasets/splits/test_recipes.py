"""The author-made splits: sizes of the paper, and the same members on every machine."""

import hashlib
import random

import numpy as np
import pytest

from probe.datasets.catalog import DATASETS
from probe.datasets.images import ImageDataset
from probe.datasets.splits.recipes import RECIPES
from probe.datasets.splits.stratified import TooFewImagesError, draw_splits
from probe.specs import SPLITS


def subset(labels):
    labels = np.asarray(labels, dtype=np.int64)
    names = [str(k) for k in range(labels.max() + 1)]
    return ImageDataset("test", labels, names, read=None, ids=[str(i) for i in range(len(labels))])


SHAPES = {
    "eurosat": {"all": np.repeat(range(10), [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000])},
    "resisc45": {"all": np.repeat(range(45), 700)},
    "caltech101": {"all": np.repeat(range(102), [467, *([80] * 91), *([140] * 9), 137])},
    "clevr_counts": {"train": np.arange(70_000) % 8, "test": np.arange(15_000) % 8},
}
# Every machine and every version of Python must give the same splits as those that were stored here.
DIGESTS = {
    "eurosat": "4e1f9a30f601b22d",
    "resisc45": "e74dd2f092aec655",
    "caltech101": "a3e51cff09225902",
    "clevr_counts": "92a0f51ad7a3f925",
}


def make(name):
    (fold,) = RECIPES[name]({key: subset(labels) for key, labels in SHAPES[name].items()}, 0.1)
    return fold


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_are_those_of_the_row(name):
    spec = next(spec for spec in DATASETS if spec.recipe == name)
    fold = make(name)
    for split, size in spec.split_sizes:
        assert len(fold[split].positions) == size


@pytest.mark.parametrize("name", RECIPES)
def test_no_image_is_in_two_splits(name):
    fold = make(name)
    chosen = [(fold[split].subset, i) for split in SPLITS for i in fold[split].positions.tolist()]
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("name", RECIPES)
def test_the_members_are_the_same_everywhere(name):
    fold = make(name)
    text = ";".join(",".join(map(str, fold[split].positions.tolist())) for split in SPLITS)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


def test_eurosat_has_500_of_each_class_in_each_split():
    fold = make("eurosat")
    labels = SHAPES["eurosat"]["all"]
    for split in SPLITS:
        assert np.bincount(labels[fold[split].positions]).tolist() == [500] * 10


def test_eurosat_is_the_authors_loop_on_sorted_files():
    """The authors describe their script: seed once, then draw 1,500 files of each class with `random.sample`."""
    random.seed(42)
    files = [f"{k:02}/{i:04}" for k, n in enumerate(np.bincount(SHAPES["eurosat"]["all"])) for i in range(n)]
    train, test = [], []
    for k in range(10):
        drawn = random.sample([file for file in files if file.startswith(f"{k:02}/")], 1500)
        train += drawn[:500]
        test += drawn[1000:]
    fold = make("eurosat")
    assert [files[i] for i in fold.train.positions] == sorted(train)
    assert [files[i] for i in fold.test.positions] == sorted(test)


def test_caltech_trains_on_30_of_each_class():
    fold = make("caltech101")
    labels = SHAPES["caltech101"]["all"]
    train, val = (np.bincount(labels[fold[split].positions], minlength=102) for split in ("train", "val"))
    assert set((train + val).tolist()) == {30}
    assert set(val.tolist()) == {3}


def test_clevr_is_tested_on_its_validation_part():
    fold = make("clevr_counts")
    assert (fold.train.subset, fold.val.subset, fold.test.subset) == ("train", "train", "test")
    assert len(fold.train.positions) + len(fold.val.positions) == 2000


@pytest.mark.parametrize("name", ["eurosat", "caltech101"])
def test_a_class_that_is_too_small_is_named(name):
    with pytest.raises(TooFewImagesError, match="class 1"):
        RECIPES[name]({"all": subset([0] * 2000 + [1] * 20)}, 0.1)


def test_draws_take_so_many_of_each_class_and_the_rest():
    labels = np.array([0] * 5 + [1] * 7)
    first, second, rest = draw_splits(labels, (1, 2, -1), role="test")
    assert [np.bincount(labels[p]).tolist() for p in (first, second, rest)] == [[1, 1], [2, 2], [2, 4]]
