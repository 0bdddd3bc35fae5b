import io
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import av
import numpy as np
import pytest
from PIL import Image

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.sources.video import read_middle_frame
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import SPLITS


def _sizes(root):
    splits = open_dataset(f"folder:{root}")
    return [len(splits.split(name)) for name in SPLITS]


def test_one_tree_is_divided_by_class(image_folder):
    root = image_folder({"red": 10, "green": 5})
    splits = open_dataset(f"folder:{root}")
    assert [np.bincount(splits.split(name).labels).tolist() for name in SPLITS] == [[3, 6], [1, 2], [1, 2]]
    assert splits.split("train").class_names == ["green", "red"]


def test_given_splits_are_used(image_folder):
    counts = {"train/red": 4, "train/blue": 4, "val/red": 1, "val/blue": 2, "test/red": 3, "test/blue": 3}
    assert _sizes(image_folder(counts)) == [8, 3, 6]


def test_without_val_a_part_of_train_is_held_out(image_folder):
    counts = {"train/red": 20, "train/blue": 10, "test/red": 3, "test/blue": 3}
    assert _sizes(image_folder(counts)) == [27, 3, 6]


def test_labels_follow_the_training_classes(image_folder):
    """If the test set lacks the first class, the labels of the other classes must not shift."""
    root = image_folder({"train/blue": 4, "train/red": 4, "test/red": 3})
    assert set(open_dataset(f"folder:{root}").split("test").labels.tolist()) == {1}


def test_the_split_does_not_hang_on_where_the_folder_is(image_folder, tmp_path):
    root = image_folder({"red": 10, "green": 5})
    before = open_dataset(f"folder:{root}").split("test").compute_sha256()
    root = root.rename(tmp_path / "elsewhere")
    assert open_dataset(f"folder:{root}").split("test").compute_sha256() == before


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


@pytest.mark.parametrize("name", ["notes.txt", "notes.pdf"])
def test_a_file_that_is_no_image_is_named(image_folder, name):
    root = image_folder({"red": 5, "green": 5})
    (root / "red" / name).write_text("hello")
    with pytest.raises(DatasetError, match=f"red/{name} is not a known type of image"):
        get_dataset(f"folder:{root}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("loose.png", "is not in a class folder"),
        ("red/deeper/x.png", "is a folder inside a class"),
        ("blue/.hidden", "no images in"),
    ],
)
def test_what_does_not_fit_the_layout_is_named(image_folder, path, message):
    """A file that might be an image of the user is never skipped without a message."""
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
    splits = open_dataset(f"folder:{root}")
    with pytest.raises(DatasetError, match=rf"image [0-9]+ \(red/000\{suffix}\) cannot be read"):
        list(chain(splits.split("train"), splits.split("val"), splits.split("test")))


def test_a_class_of_one_image_is_named(image_folder):
    root = image_folder({"red": 5, "green": 1})
    with pytest.raises(DatasetError, match="class 'green' has too few images"):
        open_dataset(f"folder:{root}")


def test_a_class_of_one_image_is_fine_where_the_splits_are_given(image_folder):
    counts = {f"{split}/{name}": n for split in SPLITS for name, n in (("red", 3), ("blue", 1))}
    assert _sizes(image_folder(counts)) == [4, 4, 4]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train"], "has train/ but no test/; add it"),
        (["val", "test"], "has test/ and val/ but no train/; add it"),
        (["train", "val", "valid", "test"], "has 'val', 'valid', which all mean val; rename or merge them$"),
        (["train", "Training", "test"], "has 'Training', 'train', which all mean train; rename or merge"),
        (["train", "test", "holdout"], "holdout is next to test/ and would not be read; name the folders of splits"),
        (
            ["part-a", "part-b"],
            "is a folder inside a class; move its images up; if part-a is a split, not a class, ",
        ),
    ],
)
def test_folders_that_do_not_make_splits_are_named(folders, message, image_folder):
    root = image_folder({f"{folder}/{name}": 2 for folder in folders for name in ("red", "blue")})
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"folder:{root}")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training", "valid", "testing"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VAL", "TEST"),
        ("Train", "dev", "eval"),
        ("train", "validation", "Evaluation"),
    ],
)
def test_splits_go_by_all_usual_names(train, val, test, image_folder):
    counts = {f"{train}/red": 4, f"{train}/blue": 4, f"{val}/red": 1, f"{val}/blue": 2, f"{test}/red": 3}
    root = image_folder(counts)
    assert _sizes(root) == [8, 3, 3]
    shutil.rmtree(root / val)
    assert _sizes(root) == [6, 2, 3]


@pytest.mark.parametrize("name", ["val", "validation", "Valid", "dev"])
def test_training_and_validation_folders_alone_are_train_and_test(name, image_folder, caplog):
    """In the layout of ImageNet, `val` is the test split, and validation images are held out of `train`."""
    root = image_folder({"train/red": 20, "train/blue": 10, f"{name}/red": 3, f"{name}/blue": 2})
    with caplog.at_level("INFO", "probe"):
        opened = open_dataset(f"folder:{root}")
    assert [len(opened.split(split)) for split in SPLITS] == [27, 3, 5]
    assert opened.split("test").ids[0].startswith(f"{name}/blue/")
    assert dict(opened.source.subsets)["test"] == (("folder", name),)  # stored in the record
    assert f"folder:{root}: {name!r} is the test split; validation images are held out of 'train'" in caplog.messages


def test_classes_may_have_the_names_of_splits(image_folder):
    """`train` can be a class of vehicles: its folder contains images, like the folders of the other classes."""
    root = image_folder({"bus": 5, "car": 5, "train": 5})
    assert open_dataset(f"folder:{root}").split("train").class_names == ["bus", "car", "train"]


def test_images_without_class_folders_are_no_classes_called_train_and_test(image_folder):
    root = image_folder({"train": 5, "test": 5})
    with pytest.raises(DatasetError, match="has no class folders in test/, train/; put the images of each folder"):
        get_dataset(f"folder:{root}")


def test_a_test_class_that_training_lacks_is_named(image_folder):
    root = image_folder({"train/red": 4, "train/green": 4, "test/blue": 3})
    with pytest.raises(DatasetError, match="class 'blue' is not among the classes of the training images"):
        open_dataset(f"folder:{root}")


def _modes():
    """Return an image in all modes of image files. As in the reference, 16 bits clip and the orientation is ignored."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: rotated by 90 degrees
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
    """The reference's datasets open a file and call `convert("RGB")`, without any other change."""
    root = image_folder({"train/red": 4, "train/blue": 4, "test/blue": 3})
    (root / "test" / "red").mkdir()
    image, settings = _modes()[file]
    image.save(root / "test" / "red" / file, **settings)
    test = open_dataset(f"folder:{root}").split("test")
    found, label = test[len(test) - 1]
    assert (found.mode, test.class_names[label]) == ("RGB", "red")
    with Image.open(root / "test" / "red" / file) as expected:
        assert np.array_equal(found, expected.convert("RGB"))


def test_classes_that_differ_in_case_only_are_named(image_folder):
    root = image_folder({"red": 5, "green": 5})
    (root / "red").rename(root / "Green")
    with pytest.raises(
        DatasetError, match="has the classes 'Green' and 'green', which differ only in case, spaces or dots"
    ):
        get_dataset(f"folder:{root}")


@pytest.mark.parametrize("name", ["green ", "green.", "Green ."])
def test_classes_that_differ_in_spaces_or_dots_only_are_named(name, image_folder):
    root = image_folder({"red": 5, "green": 5})
    (root / "red").rename(root / name)
    with pytest.raises(DatasetError, match="which differ only in case, spaces or dots"):
        get_dataset(f"folder:{root}")


@pytest.mark.parametrize("name", ["café", "Ωmega", "việt", "が", "한글", "œ\N{COMBINING ACUTE ACCENT}"])
def test_two_unicode_forms_of_a_name_are_one_class(name, image_folder, caplog):
    """Systems such as macOS and Linux write different Unicode forms. Both can occur in one split or in two splits."""
    written, other = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    root = image_folder({f"{split}/{folder}": 4 for split in ("train", "test") for folder in ("red", "blue")})
    (root / "train" / "red").rename(root / "train" / other)
    (root / "test" / "red").rename(root / "test" / written)
    opened = open_dataset(f"folder:{root}")
    assert (opened.spec.num_classes, opened.subsets["test"].class_names) == (2, ["blue", written])
    assert opened.subsets["train"].labels.tolist() == opened.subsets["test"].labels.tolist() == [0] * 4 + [1] * 4
    assert not caplog.messages
    if written != other:
        shutil.copytree(root / "train" / "blue", root / "train" / written)
        opened = open_dataset(f"folder:{root}")
        assert np.bincount(opened.subsets["train"].labels).tolist() == [4, 8]
        assert caplog.messages == [
            f"folder:{root}: the class {written!r} is written in 2 Unicode forms, "
            f"{', '.join(map(ascii, sorted((written, other))))}"
        ]


@pytest.mark.parametrize("name", ["Red", "red ", "RED."])
def test_a_test_class_that_is_written_otherwise_than_in_training_is_named(name, image_folder):
    root = image_folder({"train/red": 4, "train/green": 4, "test/red": 3})
    (root / "test" / "red").rename(root / "test" / name)
    with pytest.raises(DatasetError, match=f"class {name!r} is written 'red' in the training images; use one spelling"):
        open_dataset(f"folder:{root}")


@pytest.mark.parametrize("place", ["red/010.png", "blue"])
def test_a_link_to_nothing_is_named(image_folder, place):
    root = image_folder({"red": 5, "green": 5})
    (root / place).symlink_to(root / "gone")
    with pytest.raises(DatasetError, match=f"{place} is a broken link; repair or remove it"):
        get_dataset(f"folder:{root}")


def test_links_to_images_are_images(image_folder):
    root = image_folder({"red": 5, "green": 5})
    (root / "red" / "010.png").symlink_to(root / "red" / "000.png")
    assert get_dataset(f"folder:{root}").subsets[0].size == 11


def test_an_image_that_would_fill_the_memory_is_named(image_folder, monkeypatch):
    """Pillow refuses images above its limit of pixels, which is lowered here. A variable can raise the limit."""
    root = image_folder({"red": 5, "green": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    message = (
        r"cannot be read \(it has 120 pixels, and the limit is 100\); set PROBE_MAX_IMAGE_PIXELS=120 to read it, or"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"folder:{root}")
    monkeypatch.setenv("PROBE_MAX_IMAGE_PIXELS", "120")
    assert len(list(open_dataset(f"folder:{root}").subsets["all"])) == 10
    monkeypatch.setenv("PROBE_MAX_IMAGE_PIXELS", "118")
    with pytest.raises(DatasetError, match="it has 120 pixels, and the limit is"):
        open_dataset(f"folder:{root}")
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize("value", ["many", "-1", "0", "1e9", "٣"])
def test_a_limit_of_pixels_that_is_no_number_is_named(value, image_folder, monkeypatch):
    root = image_folder({"red": 5, "green": 5})
    monkeypatch.setenv("PROBE_MAX_IMAGE_PIXELS", value)
    with pytest.raises(DatasetError, match=f"PROBE_MAX_IMAGE_PIXELS is '{value}'; give a number of pixels"):
        open_dataset(f"folder:{root}")


def _odd_files():
    """Return the content of files, by name, that Pillow reads with a warning, and True if their pixels may be wrong."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    jpeg, palette, fax, tags = (io.BytesIO() for _ in range(4))
    image.save(jpeg, "JPEG", exif=rotated)
    start = jpeg.getvalue().find(b"Exif\0\0")
    image.convert("P").save(palette, "PNG", transparency=bytes(range(256)))
    image.convert("1").save(fax, "TIFF", compression="group4")
    image.save(tags, "TIFF", tiffinfo={258: (8, 8, 8, 8)}, compression="tiff_lzw")
    return {
        "exif.jpg": (jpeg.getvalue()[: start + 14] + b"\xff\x7f" + jpeg.getvalue()[start + 16 :], False),
        "palette.png": (palette.getvalue(), False),
        "tags.tif": (tags.getvalue(), False),
        "fax.tif": (fax.getvalue()[:200] + b"\xff" * 40 + fax.getvalue()[240:], True),
    }


@pytest.mark.parametrize("file", _odd_files())
def test_no_raw_warning_of_a_reader_reaches_the_user(file, image_folder, caplog, capfd):
    """Harmless warnings of Pillow, which would be errors here, are dropped. The log names a file with damage."""
    content, is_damaged = _odd_files()[file]
    root = image_folder({"red": 5, "green": 5})
    (root / "red" / file).write_bytes(content)
    images = open_dataset(f"folder:{root}").subsets["all"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.__getitem__, range(len(images))))
    assert capfd.readouterr() == ("", "")
    said = [text for text in caplog.messages if f"(red/{file}) is damaged (Fax4Decode: Bad code word" in text]
    assert bool(said) == is_damaged
    assert len(caplog.messages) == len(said)


def test_a_damaged_tiff_has_one_error_and_no_line_of_libtiff(image_folder, capfd):
    root = image_folder({"red": 5, "green": 5})
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    (root / "red" / "000.tif").write_bytes(buffer.getvalue()[:200] + b"\xff" * 40 + buffer.getvalue()[240:])
    images = open_dataset(f"folder:{root}").subsets["all"]
    with pytest.raises(DatasetError, match=r"red/000\.tif\) cannot be read \("):
        list(images)
    assert capfd.readouterr() == ("", "")


def test_a_row_reads_videos_by_their_middle_frame(tmp_path):
    """The row of Kinetics reads frame n // 2 of n frames, and ignores the number of frames in the header."""
    for split in ("train", "val"):
        for k, name in enumerate(("jump", "run")):
            write_video(tmp_path / "kinetics700" / split / name / "a.mp4", num_frames=4 + k, shown=100 * k + 60)
            write_video(tmp_path / "kinetics700" / split / name / "b.mp4", num_frames=1, shown=100 * k + 60)
    spec = replace(get_dataset("kinetics700"), num_classes=2, val_fraction=0.5)
    with pytest.raises(DatasetError, match="expected 494801 images, found 4"):
        open_dataset(spec, data_dir=tmp_path)
    opened = open_dataset(spec, data_dir=tmp_path, allow_partial=True)
    assert opened.incomplete == {"train": 494_801, "test": 31_669}
    for image, label in opened.split("test"):
        assert np.asarray(image).mean() == pytest.approx(100 * label + 60, abs=4)  # the codec is lossy


def test_a_video_that_is_none_is_named(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"a\.mp4 cannot be read as a video"):
        read_middle_frame(tmp_path, ["a.mp4"], 0)


def write_video(path, *, num_frames, shown):
    """Write a video of black frames with a grey frame in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.bit_rate = 2_000_000
        for i in range(num_frames):
            pixels = np.full((32, 32, 3), shown if i == num_frames // 2 else 0, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
