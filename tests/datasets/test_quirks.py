"""Datasets of torchvision that need more than its splits: folds, groups, recipes, other names of classes."""

from dataclasses import replace

import numpy as np
import pytest
from make import layouts

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import DatasetError, UnknownNameError
from probe.grid import plan
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Subset


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return a function that writes a miniature, and returns the catalogue's row with the sizes of the miniature."""

    def make(name, *sizes, **fields):
        getattr(layouts, name)(tmp_path, monkeypatch)
        spec = get_dataset(name)
        subsets = tuple(Subset(subset.name, size) for subset, size in zip(spec.subsets, sizes, strict=True))
        return replace(spec, subsets=subsets, num_classes=2, fold_sizes=(), **fields)

    return make


def test_stl10_has_ten_folds_of_its_makers(small, tmp_path):
    opened = open_dataset(small("stl10", 20, 4, val_fraction=0.34), data_dir=tmp_path, offline=True)
    lines = (tmp_path / "stl10_binary" / "fold_indices.txt").read_text().splitlines()
    assert len(opened.folds) == 10
    for fold, line in zip(opened.folds, lines, strict=True):
        assert sorted([*fold.train.positions, *fold.val.positions]) == sorted(map(int, line.split()))
        assert fold.test.positions.tolist() == [0, 1, 2, 3]
        assert len(fold.val.positions) == 2


def test_stl10_is_scored_by_the_mean_of_its_folds(small, tmp_path):
    """Features are extracted once and ten probes are fitted. The record has the digests of the splits of all folds."""
    spec = small("stl10", 20, 4, val_fraction=0.34)
    specs = plan([spec.name], ["tiny"], protocols=["readme"], device="cpu")
    specs = [replace(cell, dataset=spec) for cell in specs]
    (record,) = run_grid(specs, settings=Settings(data_dir=tmp_path, results_dir=tmp_path / "results", offline=True))
    assert record.error is None
    folds = record.result.folds
    assert len(folds) == 10
    assert record.result.score == pytest.approx(np.mean([fold.score for fold in folds]), abs=1e-15)
    assert set(record.splits) == {f"{name}/{k}" for name in ("train", "val", "test") for k in range(1, 11)}
    assert record.splits["test/1"] == record.splits["test/10"]
    assert len({record.splits[f"train/{k}"].sha256 for k in range(1, 11)}) == 10


@pytest.mark.parametrize("text", ["0 1 2\n", "0 1 1 2 3 4\n" * 10, "0 1 2 3 4 99\n" * 10, "0 one\n" * 10])
def test_damaged_folds_are_named(small, tmp_path, text):
    spec = small("stl10", 20, 4, val_fraction=0.34)
    (tmp_path / "stl10_binary" / "fold_indices.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"fold_indices\.txt"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_gtsrb_holds_out_whole_tracks(small, tmp_path):
    opened = open_dataset(small("gtsrb", 24, 4, val_fraction=0.25), data_dir=tmp_path, offline=True)
    tracks = {name: {key.rsplit("_", 1)[0] for key in opened.split(name).ids} for name in ("train", "val")}
    assert (len(tracks["train"]), len(tracks["val"])) == (6, 2)
    assert not tracks["train"] & tracks["val"]
    assert len(opened.split("val")) == 6


def test_gtsrb_is_tested_on_the_listed_labels(small, tmp_path):
    test = open_dataset(small("gtsrb", 24, 4, val_fraction=0.25), data_dir=tmp_path, offline=True).split("test")
    assert [(np.asarray(image)[0, 0, 0], label) for image, label in test] == [(100 * k, k) for k in layouts.LABELS]


def test_eurosat_is_read_from_its_folders(small, tmp_path):
    spec = small("eurosat", 10, recipe="", split_sizes=())
    everything = open_dataset(spec, data_dir=tmp_path, offline=True).subsets["all"]
    assert everything.labels.tolist() == [0] * 5 + [1] * 5
    assert everything.ids[0] == "eurosat/2750/AnnualCrop/AnnualCrop_0.jpg"


def test_eurosat_that_is_too_small_for_its_recipe_is_named(small, tmp_path):
    with pytest.raises(
        DatasetError, match="class 'AnnualCrop' has too few images to hold out a split; give it at least 1500"
    ):
        open_dataset(small("eurosat", 10), data_dir=tmp_path, offline=True)


def test_clevr_counts_from_three(small, tmp_path):
    spec = small("clevr_counts", 4, 4, recipe="", split_sizes=(), val_fraction=0.5)
    opened = open_dataset(spec, data_dir=tmp_path, offline=True)
    assert opened.subsets["train"].labels.tolist() == list(layouts.LABELS)
    assert opened.subsets["train"].class_names[:2] == ["3", "4"]


def test_any_class_of_torchvision_is_a_dataset(tmp_path, monkeypatch):
    """`torchvision:CLASS` opens any class, with the subsets that the class offers."""
    layouts.dtd(tmp_path, monkeypatch)
    opened = open_dataset("torchvision:DTD", data_dir=tmp_path, offline=True)
    assert [len(opened.split(name)) for name in ("train", "val", "test")] == [4, 4, 4]


def test_more_arguments_of_a_class_can_be_given(tmp_path, monkeypatch):
    layouts.emnist(tmp_path, monkeypatch)
    spec = get_dataset("torchvision:EMNIST?split=balanced")
    assert spec.sources[0].arguments("test") == {"split": "balanced", "train": False}


@pytest.mark.parametrize(
    ("name", "subsets"),
    [
        ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
        ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
        ("Country211", {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}),
        ("Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}),
        ("EuroSAT", {"all": {}}),
    ],
)
def test_parts_are_found_by_what_a_class_takes(name, subsets):
    (source,) = get_dataset(f"torchvision:{name}").sources
    assert {subset: dict(arguments) for subset, arguments in source.subsets} == subsets


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("CIFAR11", UnknownNameError, "unknown class of torchvision 'CIFAR11'; did you mean 'CIFAR10'"),
        ("DTD?partitoin=2", DatasetError, "torchvision's DTD has no argument 'partitoin'; it has"),
        ("CocoCaptions", DatasetError, "needs the argument 'annFile'"),
        ("EMNIST", DatasetError, "needs the argument 'split'; write torchvision:EMNIST?split=..."),
        (
            "Kinetics?frames_per_clip=1&num_classes=700",
            DatasetError,
            "gives videos, not images; the datasets ucf101 and kin",
        ),
        (
            "UCF101?frames_per_clip=1&annotation_path=x",
            DatasetError,
            "gives videos, not images; the datasets ucf101 and kin",
        ),
        ("HMDB51", DatasetError, "gives videos, not images; the datasets ucf101 and kinetics700 are middle frames"),
        ("FakeData", UnknownNameError, "unknown class of torchvision 'FakeData'"),
        ("CIFAR10?root=elsewhere", DatasetError, "has no argument 'root'"),
        ("CIFAR10?download=true", DatasetError, "has no argument 'download'"),
    ],
)
def test_what_is_wrong_with_a_class_is_one_sentence(name, error, message):
    with pytest.raises(error) as caught:
        get_dataset(f"torchvision:{name}")
    assert message in str(caught.value)


def test_a_fold_of_another_size_is_named(small, tmp_path):
    """A truncated file of folds gives such a fold."""
    spec = replace(small("stl10", 20, 4, val_fraction=0.34), fold_sizes=((6, 4),) * 10)
    path = tmp_path / "stl10_binary" / "fold_indices.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:9], " ".join(lines[9].split()[:5])]))
    with pytest.raises(DatasetError, match=r"expected 6 images for .* and 4 for testing in fold 10, found 5 and 4"):
        open_dataset(spec, data_dir=tmp_path, offline=True)
