from itertools import chain

import numpy as np
import pytest
from PIL import Image

from probe.datasets import get_dataset
from probe.datasets.opening import SPLITS, open_splits
from probe.errors import DatasetError, DatasetMissingError


def _sizes(root):
    splits = open_splits(f"folder:{root}")
    return [len(getattr(splits, name)) for name in SPLITS]


def test_one_tree_is_divided_by_class(image_folder):
    root = image_folder({"red": 10, "green": 5})
    splits = open_splits(f"folder:{root}")
    assert [np.bincount(getattr(splits, name).labels).tolist() for name in SPLITS] == [[3, 6], [1, 2], [1, 2]]
    assert splits.train.class_names == ["green", "red"]


def test_given_splits_are_used(image_folder):
    counts = {"train/red": 4, "train/blue": 4, "val/red": 1, "val/blue": 2, "test/red": 3, "test/blue": 3}
    assert _sizes(image_folder(counts)) == [8, 3, 6]


def test_without_val_a_part_of_train_is_held_out(image_folder):
    counts = {"train/red": 20, "train/blue": 10, "test/red": 3, "test/blue": 3}
    assert _sizes(image_folder(counts)) == [27, 3, 6]


def test_labels_follow_the_training_classes(image_folder):
    """A test set without the first class must not shift the others."""
    root = image_folder({"train/blue": 4, "train/red": 4, "test/red": 3})
    assert set(open_splits(f"folder:{root}").test.labels.tolist()) == {1}


def test_the_split_does_not_hang_on_where_the_folder_is(image_folder, tmp_path):
    root = image_folder({"red": 10, "green": 5})
    before = open_splits(f"folder:{root}").test.sha256
    root = root.rename(tmp_path / "elsewhere")
    assert open_splits(f"folder:{root}").test.sha256 == before


def test_what_systems_leave_behind_is_passed_over(image_folder):
    root = image_folder({"red": 5, "green": 5})
    (root / ".git").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "red" / name).write_bytes(b"x")
    assert sum(_sizes(root)) == 10


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetMissingError, match="no folder at"):
        get_dataset(f"folder:{tmp_path / 'nowhere'}")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match=f"no images in {tmp_path}"):
        get_dataset(f"folder:{tmp_path}")


def test_a_file_that_is_no_image_is_named(image_folder):
    root = image_folder({"red": 5, "green": 5})
    (root / "red" / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"red/notes\.txt is no image"):
        get_dataset(f"folder:{root}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("loose.png", "is in no class"),
        ("red/deeper/x.png", "is a folder inside a class"),
        ("blue/.hidden", "no images in"),
    ],
)
def test_what_does_not_fit_the_layout_is_named(image_folder, path, message):
    """Nothing that might be an image of the user's is passed over in silence."""
    root = image_folder({"red": 5, "green": 5})
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).touch()
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"folder:{root}")


def test_every_way_to_say_a_folder_is_one_dataset(image_folder, monkeypatch):
    root = image_folder({"red": 5, "green": 5})
    monkeypatch.chdir(root)
    assert get_dataset("folder:.") == get_dataset(f"folder:{root}/red/..") == get_dataset(f"folder:{root}")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"), (".jpg", b""), (".ppm", b"P6 4 4 255 \x00"), (".qoi", b"qoif")],
)
def test_a_damaged_image_is_named(image_folder, suffix, content):
    root = image_folder({"red": 5, "green": 5})
    (root / "red" / "000.png").unlink()
    (root / "red" / f"000{suffix}").write_bytes(content)
    splits = open_splits(f"folder:{root}")
    with pytest.raises(DatasetError, match=rf"red/000\{suffix} cannot be read"):
        list(chain(splits.train, splits.val, splits.test))


def test_a_class_of_one_image_is_named(image_folder):
    root = image_folder({"red": 5, "green": 1})
    with pytest.raises(DatasetError, match="class 'green' has too few images"):
        open_splits(f"folder:{root}")


def test_a_class_of_one_image_is_fine_where_the_splits_are_given(image_folder):
    counts = {f"{split}/{name}": n for split in SPLITS for name, n in (("red", 3), ("blue", 1))}
    assert _sizes(image_folder(counts)) == [4, 4, 4]


def test_a_missing_test_split_is_named(image_folder):
    root = image_folder({"train/red": 5, "val/red": 5})
    with pytest.raises(DatasetError, match="has train/ and val/ but no test/"):
        get_dataset(f"folder:{root}")


def test_a_test_class_that_training_lacks_is_named(image_folder):
    root = image_folder({"train/red": 4, "train/green": 4, "test/blue": 3})
    with pytest.raises(DatasetError, match="class 'blue' is not in"):
        open_splits(f"folder:{root}")


def _modes():
    """One picture in the modes that files have; 16 bits clip and an orientation is passed over, as in the reference."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # "turn me by a quarter"
    return {
        "grey.png": (image.convert("L"), {}),
        "palette.png": (image.convert("P"), {}),
        "black-and-white.png": (image.convert("1"), {}),
        "alpha.png": (image.convert("RGBA"), {}),
        "grey-alpha.png": (image.convert("LA"), {}),
        "16-bit.png": (Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "rotated.jpg": (image, {"exif": rotated}),
    }


@pytest.mark.parametrize("file", _modes())
def test_every_mode_becomes_rgb_as_in_the_reference(file, image_folder):
    """The reference's datasets open a file and say `convert("RGB")`; nothing more happens to it."""
    root = image_folder({"train/red": 4, "train/blue": 4, "test/blue": 3})
    (root / "test" / "red").mkdir()
    image, settings = _modes()[file]
    image.save(root / "test" / "red" / file, **settings)
    test = open_splits(f"folder:{root}").test
    found, label = test[len(test) - 1]
    assert (found.mode, test.class_names[label]) == ("RGB", "red")
    with Image.open(root / "test" / "red" / file) as expected:
        assert np.array_equal(found, expected.convert("RGB"))
