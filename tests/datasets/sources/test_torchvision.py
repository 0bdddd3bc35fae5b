"""Every row with a torchvision class opens a miniature of its true layout on disk, and names what is wrong in it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from make import layouts

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import Subset

NAMES = sorted(layouts.WRITERS)
IN_FILES = [name for name in NAMES if name not in ("svhn", "emnist")]  # every image is a file


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return a function that writes a miniature, and returns the catalogue's row with the sizes of the miniature."""

    def make(name):
        layouts.WRITERS[name](tmp_path, monkeypatch)
        spec = get_dataset(name)
        subsets = tuple(Subset(subset.name, len(layouts.LABELS)) for subset in spec.subsets)
        return replace(spec, subsets=subsets, num_classes=len(layouts.CLASSES), val_fraction=0.5)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_its_label(name, small, tmp_path):
    splits = open_dataset(small(name), data_dir=tmp_path, offline=True)
    assert sorted(splits.split("test").labels.tolist()) == sorted(layouts.LABELS)
    for split in (splits.split("train"), splits.split("val"), splits.split("test")):
        assert split.labels.dtype == np.int64
        assert [split[i][1] for i in range(len(split))] == split.labels.tolist()
        assert all(split[i][0].mode == "RGB" for i in range(len(split)))


@pytest.mark.parametrize("name", NAMES)
def test_the_official_validation_split_is_used_where_there_is_one(name, small, tmp_path):
    splits = open_dataset(small(name), data_dir=tmp_path, offline=True)
    official = len(get_dataset(name).subsets) == 3
    assert (len(splits.split("train")), len(splits.split("val"))) == ((4, 4) if official else (2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_here_says_what_to_put_where(name, tmp_path):
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(name, data_dir=tmp_path, offline=True)
    assert f"put {get_dataset(name).sources[0].files} into {tmp_path}" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_images_is_named(name, small, tmp_path):
    small(name)
    with pytest.raises(DatasetError, match=f"{name}/train: expected [0-9]+ images, found 4"):
        open_dataset(name, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", IN_FILES)
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_image_is_named(name, content, small, tmp_path):
    """The first and the last image are read on opening."""
    spec = small(name)
    for path in [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png")]:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name}/train: image [03] \(.*\) cannot be read"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", sorted(set(IN_FILES) - {"country211", "rendered_sst2"}))
def test_an_image_that_is_listed_and_gone_is_named(name, small, tmp_path):
    """The two datasets that are left out list their folders, so only the number of images shows that one is gone."""
    spec = small(name)
    for path in [path for path in tmp_path.rglob("*.jpg") if "3" in path.stem or "4" in path.stem]:
        path.unlink()
    with pytest.raises(DatasetError, match=rf"{name}/train: image 3 \(.*\) cannot be read .*; replace its file"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_a_class_that_downloads_nothing_any_more_is_not_asked_to(tmp_path):
    """The makers' address of Stanford Cars is gone. Its other sources are repositories of the hub."""
    spec = get_dataset("stanford_cars")
    with pytest.raises(DatasetMissingError, match="probe cannot download it; put a folder stanford_cars"):
        open_dataset(replace(spec, sources=spec.sources[:1]), data_dir=tmp_path)


def test_a_folder_that_is_half_there_is_named(small, tmp_path):
    spec = small("dtd")
    shutil.rmtree(tmp_path / "dtd" / "dtd" / "labels")
    with pytest.raises(DatasetError, match=r"dtd in .* is damaged"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "emnist"])
def test_files_with_a_dot_in_their_names_are_named(name, tmp_path, monkeypatch, caplog):
    """Some copies, such as Kaggle's, have the name train-images.idx3-ubyte instead of train-images-idx3-ubyte."""
    spec = get_dataset(name)
    spec = replace(spec, sources=(replace(spec.sources[0], can_download=True),))
    for path in spec.sources[0].paths:
        file = tmp_path / path.replace("-idx", ".idx")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    first = spec.sources[0].paths[0].rpartition("/")[2]
    remedy = f"rename {first.replace('-idx', '.idx')} to {first}"
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(spec, data_dir=tmp_path, offline=True)
    assert remedy in str(caught.value)

    def refuse(*_, **__):
        raise DatasetMissingError("no network")

    monkeypatch.setattr("probe.datasets.sources.torchvision.download", refuse)
    with pytest.raises(DatasetMissingError, match="no network"):
        open_dataset(spec, data_dir=tmp_path)
    assert any(f"{name}: downloading; to use the local files instead, {remedy}" in text for text in caplog.messages)
