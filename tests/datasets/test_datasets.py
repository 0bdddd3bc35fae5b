import numpy as np
import pytest
from make.mnist import SMALL_MNIST, write_idx_files
from sklearn.datasets import load_digits

from probe.datasets import dataset_names, get_dataset
from probe.datasets.catalog import DATASETS
from probe.datasets.opening import open_dataset, open_split
from probe.errors import DatasetError, DatasetMissingError, UnknownNameError
from probe.specs import SPLITS
from probe.stats.metrics import METRICS

# Small files in the layout of the real ones.


def test_rows_are_complete():
    for spec in DATASETS:
        assert spec.title
        assert spec.license
        assert spec.homepage
        assert spec.metric in METRICS
        assert spec.numbers_from
        assert spec.sources
        assert all(source.files or source.can_download or source.form == "embedded" for source in spec.sources)


def test_a_near_dataset_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10' or 'cifar100'"):
        get_dataset("cifar-10")


def test_digits_are_scikit_learns_in_a_fixed_order():
    """Every image occurs once, and the test split is the one of the published results."""
    splits = open_dataset("digits")
    assert [len(splits.split(name)) for name in SPLITS] == [1079, 359, 359]
    ids = sorted(int(key.split("/")[1]) for name in SPLITS for key in splits.split(name).ids)
    assert ids == list(range(1797))
    assert splits.split("test").compute_sha256() == "5fa5b69d68b3b481f19375787d9c08c4ae318bdfc8e0a6559d8a8969018aeaf5"


def test_an_image_is_rgb_and_belongs_to_its_label():
    split = open_split("digits", "val")
    digits = load_digits()
    image, label = split[5]
    source = int(split.ids[5].split("/")[1])
    assert image.mode == "RGB"
    assert label == digits.target[source]
    assert np.array_equal(np.asarray(image)[..., 0], np.rint(digits.images[source] * 255 / 16))


def test_classes_are_shared_out_evenly():
    splits = open_dataset("digits")
    whole = np.bincount(load_digits().target)
    assert np.abs(np.bincount(splits.split("test").labels) - 0.2 * whole).max() <= 0.5
    assert np.abs(np.bincount(splits.split("val").labels) - 0.2 * whole).max() <= 0.625  # rounded twice


def test_positions_outside_are_an_error():
    """Negative positions are errors, too, unlike in a list. Iteration ends after the last image."""
    split = open_split("digits", "val")
    for position in (359, -1):
        with pytest.raises(IndexError, match=f"has no image {position}"):
            split[position]
    assert len(list(split)) == 359


def test_an_unknown_split_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        open_split("digits", "trian")


def test_files_that_are_there_are_found(tmp_path):
    write_idx_files(tmp_path)
    splits = open_dataset(SMALL_MNIST, data_dir=tmp_path, offline=True)
    assert [len(splits.split(name)) for name in SPLITS] == [30, 10, 10]
    image, label = splits.split("test")[7]
    assert (image.getpixel((0, 0)), label) == ((7, 7, 7), 7)
    train = {splits.split("train")[i][0].getpixel((0, 0)) for i in range(30)}
    val = {splits.split("val")[i][0].getpixel((0, 0)) for i in range(10)}
    assert not train & val


def test_a_wrong_number_of_images_gives_both(tmp_path):
    write_idx_files(tmp_path, train=39)
    with pytest.raises(DatasetError, match="small_mnist/train: expected 40 images, found 39"):
        open_dataset(SMALL_MNIST, data_dir=tmp_path, offline=True)


def test_a_file_cut_short_is_named(tmp_path):
    """A killed download leaves such a file. torchvision only checks that a file with this name exists."""
    write_idx_files(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match=f"small_mnist in {tmp_path} is damaged"):
        open_dataset(SMALL_MNIST, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", [name for name in dataset_names() if name != "digits"])
def test_offline_says_what_to_put_where(tmp_path, name):
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(name, data_dir=tmp_path, offline=True)
    assert get_dataset(name).sources[0].files in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())
