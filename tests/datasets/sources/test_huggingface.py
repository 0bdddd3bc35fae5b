"""Datasets in the formats of Hugging Face's library, from folders and a local hub, compared with the library itself."""

import errno
import functools
import io
import pickle
import shutil
import socket
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
import pytest
import torchvision
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from huggingface_hub import constants
from make.dataset_server import Denial, commit_of, copy_without_lists, serve, snapshot_of
from make.images import write_image
from PIL import Image

from probe.datasets import get_dataset
from probe.datasets.catalog import DATASETS
from probe.datasets.opening import open_dataset
from probe.datasets.sources.options import read_options
from probe.errors import DatasetError, DatasetMissingError, UnknownNameError
from probe.specs import Subset

CLASSES = ["red", "green", "blue"]
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
SIZES = {"train": 12, "validation": 3, "test": 6}


def encode(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def picture(i):
    """Return the image of a row. Its colour shows the class, and its width shows the position."""
    return encode(Image.new("RGB", (8 + i, 5), COLOURS[i % 3]))


def rows(n, *, label="label", feature=None, labels=None, image="image", pictures=None):
    """Return rows as in most datasets of the hub: images as bytes, and labels with the names of classes."""
    if feature is labels is pictures is None:
        return _plain_rows(n, label, image)
    return _make_rows(n, label, feature, labels, image, pictures)


@functools.cache
def _plain_rows(n, label, image):
    return _make_rows(n, label, None, None, image, None)


def _make_rows(n, label, feature, labels, image, pictures):
    return Dataset.from_dict(
        {
            image: [{"bytes": content, "path": None} for content in pictures or map(picture, range(n))],
            label: labels if labels is not None else [i % 3 for i in range(n)],
        },
        features=Features({image: ImageFeature(), label: feature or ClassLabel(names=CLASSES)}),
    )


def splits(*names, **settings):
    return DatasetDict({name: rows(SIZES[name], **settings) for name in names})


def write_parquet(folder, dataset, prefix="data/"):
    """Write Parquet files with the names that `push_to_hub` gives them, and return the folder."""
    for split, subset in dataset.items():
        path = folder / f"{prefix}{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        subset.to_parquet(path)
    (folder / ".gitattributes").touch()
    return folder


@pytest.fixture
def cache(tmp_path):
    """Return the cache folder of the hub's client."""
    return tmp_path / "hf_home" / "hub"


@pytest.fixture(autouse=True)
def _home(cache, monkeypatch):
    """Set the cache folders of Hugging Face's libraries, which read the environment only when they are imported."""
    home = cache.parent
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", home / "extracted")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _refuse(*_):
    raise AssertionError("the network was asked")


@pytest.fixture
def _no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _refuse)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made"


def check(opened, subsets=("train", "test")):
    """Check that every image of every subset is the one that was written, and has its label."""
    assert tuple(opened.subsets) == subsets
    for subset, images in opened.subsets.items():
        assert len(images) == SIZES[{"val": "validation", "all": "train"}.get(subset, subset)]
        assert list(images.class_names) == CLASSES
        assert images.ids[1] == f"{subset}/1"
        assert images.labels.dtype == np.int64
        for i in range(len(images)):
            image, label = images[i]
            assert (image.size, image.getpixel((0, 0)), label) == ((8 + i, 5), COLOURS[i % 3], i % 3)


# Paths.


def _save_parquet(folder):
    write_parquet(folder, splits("train", "test"))


def _save_arrow(folder):
    splits("train", "test").save_to_disk(folder)


def _save_images(folder):
    for split in ("train", "test"):
        for i in range(SIZES[split]):
            path = folder / split / CLASSES[i % 3] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("save", [_save_parquet, _save_arrow])
def test_a_folder_of_the_library_is_opened_without_a_network(save, folder):
    save(folder)
    check(open_dataset(f"hf:{folder}", offline=True))


@pytest.mark.usefixtures("_no_network")
def test_a_folder_of_images_has_its_folders_as_classes(folder):
    """Classes, labels and images equal the library's `imagefolder`, which has classes in alphabetical order."""
    _save_images(folder)
    opened = open_dataset(f"hf:{folder}", offline=True)
    theirs = datasets.load_dataset(str(folder), split="train")
    ours = opened.subsets["train"]
    assert list(ours.class_names) == sorted(CLASSES) == theirs.features["label"].names
    assert ours.labels.tolist() == theirs["label"]
    assert all(np.array_equal(ours[i][0], theirs[i]["image"]) for i in range(len(ours)))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("kind", ["one split", "parquet file", "arrow file", "folder of one split"])
def test_a_single_split_is_divided(kind, folder):
    subset = rows(SIZES["train"])
    path = folder
    if kind == "one split":
        subset.save_to_disk(folder)
    elif kind == "arrow file":
        subset.save_to_disk(folder)
        path = folder / "data-00000-of-00001.arrow"
    else:
        path = write_parquet(folder, {"train": subset})
        path = path / "data" / "train-00000-of-00001.parquet" if kind == "parquet file" else path
    check(open_dataset(f"hf:{path}", offline=True), ("all",))


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_a_validation_split_of_a_path_goes_by_many_names(name, folder):
    whole = splits("train", "validation", "test")
    whole[name] = whole.pop("validation")
    whole.save_to_disk(folder)
    check(open_dataset(f"hf:{folder}", offline=True), ("train", "val", "test"))


def test_every_way_to_say_a_path_is_one_dataset(folder, monkeypatch):
    """A record is stored under the name of the dataset, which must not depend on the current folder."""
    _save_arrow(folder)
    monkeypatch.chdir(folder)
    assert get_dataset("hf:.?label=label") == get_dataset(f"hf:{folder}/train/..?label=label")
    assert get_dataset("hf:.").name == f"hf:{folder}"


def test_options_name_the_splits_of_a_path(folder):
    splits("train", "validation", "test").save_to_disk(folder)
    spec = get_dataset(f"hf:{folder}?train=test&test=validation&val=train")
    found = open_dataset(spec, offline=True)
    assert {subset: len(images) for subset, images in found.subsets.items()} == {"train": 6, "val": 12, "test": 3}


def test_a_configuration_of_a_card_is_chosen(folder):
    """The types of columns come from the card, which here has different names of classes than the files."""
    _write_configs(folder)
    check(open_dataset(f"hf:{folder}?config=second", offline=True))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("{}/nowhere", "nowhere is neither a file or folder nor a repository ORG/NAME; check the name"),
        ("name", "name is neither a file or folder nor a repository ORG/NAME"),
        ("org/a--b", "org/a--b is neither a file or folder nor a repository ORG/NAME"),
        ("", "nothing follows the colon of 'hf:'; write one of"),
        ("?label=x", "nothing follows the colon of"),
        (
            "org/name?labels=x",
            "has the option 'labels'; the options are image, label, config, revision, metric, train, val",
        ),
        ("org/name?label=", "gives label no value; write label=VALUE once"),
        ("org/name?label=a&label=b", "gives label twice; write label=VALUE once"),
        ("org/name?all=a&train=b", "gives all and other subsets; give only all"),
        ("org/name?test=train", "takes the split 'train' for train and for test; give each its own"),
        ("{}?revision=main", "has the option 'revision'; the options are image, label, config, metric, train"),
    ],
)
def test_a_name_that_says_nothing_is_refused(rest, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"hf:{rest.format(tmp_path)}")


def test_options_are_read_as_in_a_url():
    assert read_options("hf", "a/b?label=fine%20label&revision=refs/convert/parquet", ("label", "revision")) == (
        "a/b",
        {"label": "fine label", "revision": "refs/convert/parquet"},
    )


@pytest.mark.parametrize("options", ["", "?test=validation", "?test=val", "?train=train"])
def test_a_path_with_training_and_validation_alone_is_tested_on_the_latter(options, folder, caplog):
    splits("train", "validation").save_to_disk(folder)
    with caplog.at_level("INFO", "probe"):
        opened = open_dataset(f"hf:{folder}{options}")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 12, "test": 3}
    assert dict(opened.source.subsets)["test"] == (("split", "validation"),)  # stored in the record
    assert any("'validation' is the test split; validation images are held out" in text for text in caplog.messages)


def test_a_validation_split_that_is_named_for_testing_is_not_for_validation(folder, caplog):
    """The README shows this form. The split called test is then not used, and a warning says so."""
    splits("train", "validation", "test").save_to_disk(folder)
    opened = open_dataset(f"hf:{folder}?test=validation")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 12, "test": 3}
    assert caplog.messages == [f"hf:{folder}?test=validation: the split 'test' is not used; take it with ?test=test"]


@pytest.mark.parametrize("names", [("train", "validation", "extra"), ("train", "extra")])
def test_a_path_without_a_test_split_says_which_there_are(names, folder):
    DatasetDict({name: rows(6) for name in names}).save_to_disk(folder)
    listed = ", ".join(names)
    with pytest.raises(DatasetError, match=rf"no test subset; say which split of {listed} it is with \?test="):
        get_dataset(f"hf:{folder}")


def test_two_spellings_of_one_split_are_refused_unless_one_is_named(folder):
    DatasetDict({name: rows(6) for name in ("train", "val", "valid", "test")}).save_to_disk(folder)
    with pytest.raises(DatasetError, match=r"has 'val', 'valid', which all mean val; rename or merge them, o"):
        get_dataset(f"hf:{folder}")
    assert dict(get_dataset(f"hf:{folder}?val=valid").sources[0].subsets)["val"] == (("split", "valid"),)


def _save_tree(root, *folders, names=CLASSES, n=2):
    """Write `n` images for each class of each folder. The colour shows the class, and the width shows the folder."""
    for k, subset in enumerate(folders):
        for name in names:
            for i in range(n):
                path = root / subset / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(Image.new("RGB", (8 + k, 5), COLOURS[CLASSES.index(name)])))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("data/Training", "data/Testing"),
        ("train", "Eval"),
    ],
)
def test_splits_of_an_image_folder_go_by_all_usual_names(train, test, folder):
    """`datasets` would merge the first pair of folders into one split, which would then be divided."""
    _save_tree(folder, train, test)
    opened = open_dataset(f"hf:{folder}")
    folders = open_dataset(f"folder:{folder / train}/..")
    for k, subset in enumerate(("train", "test")):
        images = opened.subsets[subset]
        assert {images[i][0].width for i in range(len(images))} == {8 + k}
        assert images.class_names == folders.subsets[subset].class_names
        assert images.labels.tolist() == folders.subsets[subset].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_folders_whose_names_say_no_split_are_not_put_together(folder):
    _save_tree(folder, "first", "second-half")
    with pytest.raises(
        DatasetError, match=r"no train subset; say which split of first, second_half it is with \?train="
    ):
        get_dataset(f"hf:{folder}")
    opened = open_dataset(f"hf:{folder}?train=first&test=second_half")
    assert [opened.subsets["test"][i][0].width for i in range(6)] == [9] * 6


@pytest.mark.parametrize("names", [("test-tube", "train car"), ("dev", "bus"), ("cat_train", "cat_test")])
def test_classes_whose_names_hold_that_of_a_split_are_classes(names, folder):
    for i in range(10):
        for name in names:
            path = folder / name / f"train_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
    opened = open_dataset(f"hf:{folder}")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"all": 20}
    assert opened.subsets["all"].class_names == sorted(names)


@pytest.mark.parametrize(
    ("folders", "extra", "message"),
    [
        (["train"], "test/1.png", "has no class folders in test/; put the images of each folder into one subfolder"),
        (
            ["train", "test"],
            "metadata.csv",
            "has one metadata file next to test/; put one into the folder of each split",
        ),
        (["a", "b"], "a/metadata.csv", "no train subset; say which split of a, b it is with"),
        (["first/a", "first/b"], None, "no train subset; say which split of a, b it is with"),
        (["train/a", "train/b", "test"], None, "train/a/blue and train/b/blue would become one class; rename one"),
        (["train", "Train", "test"], None, "has 'Train', 'train', which all mean train"),
    ],
)
def test_an_image_folder_that_does_not_say_what_is_what_is_refused(folders, extra, message, folder):
    _save_tree(folder, *folders)
    if extra:
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(picture(0))
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"hf:{folder}")


@pytest.mark.parametrize("extra", ["logo.png", "assets/logo.png"])
def test_pictures_beside_the_folders_of_splits_are_in_none(extra, folder):
    """Repositories of the hub contain such images for their card. These images have no class."""
    _save_tree(folder, "train", "test")
    (folder / extra).parent.mkdir(exist_ok=True)
    (folder / extra).write_bytes(picture(0))
    opened = open_dataset(f"hf:{folder}")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 6, "test": 6}


def test_pictures_beside_tables_do_not_hide_them(folder):
    _save_tree(folder / "assets", "light", "dark")
    for split in ("train", "test"):
        rows(SIZES[split]).to_parquet(folder / f"{split}.parquet")
    check(open_dataset(f"hf:{folder}"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training/0.parquet", "Testing/0.parquet"),
        ("TRAIN.parquet", "TEST.parquet"),
        ("my-Train-0.parquet", "my-Val-0.parquet"),
        ("data/Train-00000-of-00001.parquet", "data/Test-00000-of-00001.parquet"),
    ],
)
def test_tables_are_told_apart_by_their_names(train, test, folder):
    for name, split in ((train, "train"), (test, "test")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows(SIZES[split]).to_parquet(folder / name)
    check(open_dataset(f"hf:{folder}"))


def test_archives_of_images_are_named(folder):
    folder.mkdir()
    for split in ("Training", "Testing"):
        shutil.make_archive(folder / split, "zip", folder)
    with pytest.raises(
        DatasetError, match=r"contains archives, Testing\.zip, Training\.zip; unpack each into a folder"
    ):
        get_dataset(f"hf:{folder}")


def test_tables_whose_names_say_no_split_are_not_put_together(folder):
    folder.mkdir()
    for name in ("first", "second"):
        rows(6).to_parquet(folder / f"{name}.parquet")
    with pytest.raises(DatasetError, match=r"no train subset; say which split of first, second it is"):
        get_dataset(f"hf:{folder}")
    opened = open_dataset(f"hf:{folder}?train=first&test=second")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 6, "test": 6}


def test_tables_that_say_the_same_split_are_not_put_together(folder):
    folder.mkdir()
    for name in ("train", "test_easy-0", "test_easy-1", "test_hard"):
        rows(12 if name == "train" else 3).to_parquet(folder / f"{name}.parquet")
    with pytest.raises(
        DatasetError, match=r"no test subset; say which split of test_easy, test_hard, train it is with"
    ):
        get_dataset(f"hf:{folder}")
    opened = open_dataset(f"hf:{folder}?test=test_easy")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 12, "test": 6}


def test_numbered_tables_are_one_split(folder):
    folder.mkdir()
    for i in range(2):
        rows(6).to_parquet(folder / f"part-{i:04}.parquet")
    assert len(open_dataset(f"hf:{folder}").subsets["all"]) == 12


def test_a_split_that_a_path_does_not_have_is_named(folder):
    splits("train", "test").save_to_disk(folder)
    with pytest.raises(DatasetError, match=r"has no split 'extra'; its splits are train, test: write \?test=test"):
        open_dataset(f"hf:{folder}?test=extra", offline=True)


def test_a_path_that_went_away_is_missing(folder):
    _save_arrow(folder)
    spec = get_dataset(f"hf:{folder}")
    shutil.rmtree(folder)
    with pytest.raises(DatasetMissingError, match="no file or folder at"):
        open_dataset(spec)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data/train-00000-of-00001.parquet", b"PAR1, but cut short"),
        ("README.md", b"---\nconfigs: [\n---\n"),
        ("train.txt", b"no table"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(file, content, tmp_path, folder):
    _save_parquet(folder)
    (folder / file).write_bytes(content)
    path = folder / file if file.endswith(".txt") else folder
    with pytest.raises(DatasetError, match=f"{path} (cannot be read|is not a Parquet or Arrow file)"):
        open_dataset(f"hf:{path}", offline=True)


def test_an_empty_folder_is_named(folder):
    folder.mkdir()
    with pytest.raises(DatasetError, match=f"{folder} cannot be read"):
        get_dataset(f"hf:{folder}")


# Images.


def _stored(kind):
    """Return an image file that decoders are known to treat in different ways."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: rotated by 90 degrees
    return {
        "rotated": lambda: encode(image, "JPEG", exif=rotated),
        "palette": lambda: encode(image.convert("P")),
        "16 bits": lambda: encode(Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16))),
        "alpha": lambda: encode(image.convert("RGBA")),
        "cmyk": lambda: encode(image.convert("CMYK"), "JPEG"),
    }[kind]()


@pytest.mark.parametrize("kind", ["rotated", "palette", "16 bits", "alpha", "cmyk"])
def test_an_image_is_what_a_file_of_it_is_to_torchvision(kind, folder, tmp_path):
    """The reference opens files with Pillow and calls `convert("RGB")`, as torchvision's ImageFolder does."""
    content = _stored(kind)
    rows(12, pictures=[content, *map(picture, range(1, 12))]).save_to_disk(folder)
    file = tmp_path / "images" / "class" / ("a.jpg" if content.startswith(b"\xff\xd8") else "a.png")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    expected, _ = torchvision.datasets.ImageFolder(file.parent.parent)[0]
    found, _ = open_dataset(f"hf:{folder}", offline=True).subsets["all"][0]
    assert found.mode == "RGB"
    assert np.array_equal(found, expected)


def test_the_library_itself_would_turn_images(folder):
    """The library applies the orientation, so its decoding is not used. Without this, our module could be shorter."""
    rows(1, pictures=[_stored("rotated")]).save_to_disk(folder)
    assert datasets.load_from_disk(str(folder))[0]["image"].size == (9, 7)


def _half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"no image", "cannot identify image file", id="other"),
        pytest.param(b"", "cannot identify image file", id="empty"),
        pytest.param(_half(encode(Image.effect_noise((60, 60), 90))), "image file is truncated", id="cut short"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(content, why, folder):
    pictures = [content if i == 4 else picture(i) for i in range(12)]
    rows(12, pictures=pictures).save_to_disk(folder)
    images = open_dataset(f"hf:{folder}", offline=True).subsets["all"]
    assert len([images[i] for i in range(12) if i != 4]) == 11
    with pytest.raises(DatasetError, match=rf"made/all: image 4 \(all/4\) cannot be read \(.*{why}"):
        images[4]


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("path", [None, "https://example.org/a.png", "a.png"])
def test_an_image_that_is_not_there_is_named_and_not_fetched(path, folder, tmp_path, monkeypatch):
    cells = [{"bytes": None if i == 4 else picture(i), "path": path if i == 4 else None} for i in range(12)]
    folder.mkdir()
    table = pyarrow.table({"image": cells, "label": [0, 1, 2] * 4})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(picture(4))  # has the path of the table, but must not be read
    images = open_dataset(f"hf:{folder}", offline=True).subsets["all"]
    with pytest.raises(
        DatasetError, match=r"image 4 \(all/4\) cannot be read \(it (is empty|has no bytes, only the path)"
    ):
        images[4]


def test_bytes_need_no_type_that_says_image(folder):
    """Parquet files of other libraries have structs of bytes and path, without the library's type for images."""
    table = Dataset.from_dict(
        {"image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(12)], "label": [i % 3 for i in range(12)]}
    )
    assert isinstance(table.features["image"], dict)
    folder.mkdir()
    table.to_parquet(folder / "train.parquet")
    images = open_dataset(f"hf:{folder}", offline=True).subsets["all"]
    assert images[5][0].size == (13, 5)


def test_a_column_of_bytes_is_taken_when_it_is_named(folder):
    table = Dataset.from_dict({"jpg": [picture(i) for i in range(12)], "cls": [i % 3 for i in range(12)]})
    table.save_to_disk(folder)
    images = open_dataset(f"hf:{folder}?image=jpg", offline=True).subsets["all"]
    assert images[5][0].size == (13, 5)
    with pytest.raises(DatasetError, match=r"no column could hold the images; the columns are jpg \(binary\), cls"):
        open_dataset(f"hf:{folder}", offline=True)


@pytest.mark.parametrize(("start", "save"), [("spawn", _save_parquet), ("fork", _save_arrow), ("fork", _save_images)])
def test_worker_processes_read_the_same_images(start, save, folder):
    save(folder)
    images = open_dataset(f"hf:{folder}", offline=True).split("train")
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        found, label = pool.submit(images.__getitem__, 4).result()
    assert (found.tobytes(), label) == (images[4][0].tobytes(), images[4][1])


def test_images_stay_on_the_disk(folder):
    """The pickle that worker processes receive does not grow with the images."""
    large = encode(Image.effect_noise((300, 300), 90))
    write_parquet(folder, {"train": rows(30, pictures=[large] * 30)})
    images = open_dataset(f"hf:{folder}", offline=True).subsets["all"]
    assert 30 * len(large) > 1_000_000
    assert len(pickle.dumps(images.read)) < 10_000


# Labels and columns.


def _open_labels(folder, labels, feature, *, n=12, query="", **settings):
    rows(n, labels=labels, feature=feature, **settings).save_to_disk(folder)
    return open_dataset(f"hf:{folder}{query}", offline=True).subsets["all"]


@pytest.mark.parametrize(
    ("labels", "dtype", "class_names"),
    [
        ([5, 3, 9], "int64", ["3", "5", "9"]),
        ([5, 3, 9], "uint8", ["3", "5", "9"]),
        ([True, False, True], "bool", ["False", "True"]),
        (["cat", "bat", "dog"], "string", ["bat", "cat", "dog"]),
    ],
)
def test_labels_without_names_are_put_in_order(labels, dtype, class_names, folder):
    images = _open_labels(folder, labels * 4, Value(dtype))
    assert list(images.class_names) == class_names
    assert [images.class_names[label] for label in images.labels[:3]] == [str(label) for label in labels]


LISTS = [[0], [1, 2], [], [2], [0, 1, 2], [1]] * 2


@pytest.mark.parametrize("inner", [ClassLabel(names=CLASSES), Value("int64")])
def test_lists_of_classes_are_several_labels(inner, folder):
    images = _open_labels(folder, LISTS, datasets.Sequence(inner), query="?metric=voc2007_11pt_map")
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [[int(k in shown) for k in range(3)] for shown in LISTS]
    assert np.array_equal(images[4][1], [1, 1, 1])


def test_several_labels_need_a_metric_that_can_score_them(folder):
    with pytest.raises(
        DatasetError, match="several labels, which the metric accuracy does not support; use voc2007_11pt"
    ):
        _open_labels(folder, LISTS, datasets.Sequence(ClassLabel(names=CLASSES)))


def test_an_unknown_metric_is_named(folder):
    with pytest.raises(UnknownNameError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        _open_labels(folder, [0, 1, 2] * 4, ClassLabel(names=CLASSES), query="?metric=acuracy")


TABLE = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]] * 3


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float32"])
@pytest.mark.parametrize("length", [-1, 3])
def test_lists_of_0_and_1_say_which_classes_an_image_shows(dtype, length, folder, caplog):
    """In earlier versions, such lists were read as class numbers."""
    with caplog.at_level("INFO", "probe"):
        images = _open_labels(
            folder,
            TABLE,
            datasets.Sequence(Value(dtype), length=length),
            query="?metric=voc2007_11pt_map",
        )
    assert (images.labels.tolist(), images.labels.dtype, images.class_names) == (TABLE, np.int64, ["0", "1", "2"])
    assert any("lists of 0 and 1, for each of 3 classes" in text for text in caplog.messages)


def test_pairs_of_0_and_1_are_one_hot_and_no_pairs_of_classes(folder):
    """[0, 1] means the second of two classes. Read as class numbers, it would mean that an image shows both classes."""
    one_hot = [[0, 1], [1, 0], [1, 0]] * 4
    images = _open_labels(folder, one_hot, datasets.Sequence(Value("int64")))
    assert images.labels.tolist() == [1, 0, 0] * 4


@pytest.mark.parametrize("inner", [Value("int64"), ClassLabel(names=["0", "1"])])
def test_lists_of_several_lengths_are_classes_though_all_are_0_or_1(inner, folder):
    images = _open_labels(
        folder, [[0], [0, 1], [1], []] * 3, datasets.Sequence(inner), query="?metric=voc2007_11pt_map"
    )
    assert images.labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]] * 3


def test_lists_of_one_class_each_need_no_metric_for_several(folder):
    assert _open_labels(folder, [[0], [7], [3]] * 4, datasets.Sequence(Value("int64"))).labels.tolist() == [0, 2, 1] * 4


def test_one_hot_lists_are_read_alike_in_all_splits(folder):
    """The lists of the training split also decide how the lists of the test split are read."""
    feature = datasets.Sequence(Value("int64"))
    DatasetDict(
        train=rows(12, labels=TABLE, feature=feature), test=rows(3, labels=[[1, 1, 0]] * 3, feature=feature)
    ).save_to_disk(folder)
    opened = open_dataset(f"hf:{folder}?metric=voc2007_11pt_map")
    assert opened.subsets["test"].labels.tolist() == [[1, 1, 0]] * 3


@pytest.mark.parametrize(
    ("labels", "dtype", "message"),
    [
        ([[0, 1, 0], [0, 1]] * 6, "int64", r"a list has a class twice; give .*, or lists with 0 or 1 for each class"),
        ([[True], [False, True]] * 6, "bool", "the lists differ in length, or hold one value; give lists with"),
        ([[0.5, 0.5]] * 12, "float32", "0.5 in the column 'label' is not a class; a class is a whole number or a text"),
    ],
)
def test_a_list_that_could_be_either_is_refused(labels, dtype, message, folder):
    with pytest.raises(DatasetError, match=message):
        _open_labels(folder, labels, datasets.Sequence(Value(dtype)))


def test_floats_with_whole_values_are_classes(folder):
    images = _open_labels(folder, [2.0, 0.0, 7.0] * 4, Value("float32"))
    assert (images.labels.tolist(), images.class_names) == ([1, 0, 2] * 4, ["0", "2", "7"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"0\.5 in the column 'label' is not a class"),
        (float("inf"), "inf in the column 'label' is not a class"),
        (float("nan"), "4 of 12 images have no label in the column 'label'"),
        (-1.0, "4 of 12 images have no label in the column 'label'"),
    ],
)
def test_a_float_that_is_no_class_is_named(value, message, folder):
    with pytest.raises(DatasetError, match=message):
        _open_labels(folder, [value, 0.0, 1.0] * 4, Value("float64"))


def test_ids_with_gaps_are_numbered_and_keep_their_names(folder):
    ids = [901243, 2000, 145563, 48662]
    images = _open_labels(folder, ids * 3, Value("int32"))
    assert images.labels.tolist() == [3, 0, 2, 1] * 3
    assert images.class_names == ["2000", "48662", "145563", "901243"]


CAFE = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]


def test_two_unicode_forms_of_a_label_are_one_class(folder, caplog):
    texts = [[CAFE[1], "thé", CAFE[0]] * 4, [CAFE[0], "thé", CAFE[0]] * 2]
    DatasetDict(
        {name: rows(len(labels), labels=labels, feature=Value("string")) for name, labels in
         zip(("train", "test"), texts, strict=True)}
    ).save_to_disk(folder)  # fmt: skip
    opened = open_dataset(f"hf:{folder}")
    assert [images.labels.tolist() for images in opened.subsets.values()] == [[0, 1, 0] * 4, [0, 1, 0] * 2]
    assert opened.subsets["train"].class_names == ["café", "thé"]
    assert sum(
        "the class 'café' is written in 2 Unicode forms, 'cafe\\u0301', 'caf\\xe9'" in m for m in caplog.messages
    )


def test_two_unicode_forms_of_a_typed_label_are_one_class(folder):
    """The library makes two classes of two Unicode forms of a folder's name."""
    for split, form in (("train", CAFE[1]), ("test", CAFE[0])):
        _save_tree(folder, split, names=CLASSES)
        (folder / split / "green").rename(folder / split / form)
    opened = open_dataset(f"hf:{folder}")
    assert opened.subsets["train"].class_names == ["blue", "café", "red"]
    assert opened.subsets["train"].labels.tolist() == opened.subsets["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_typed_label_may_change_its_form_between_splits(folder):
    for split, form in zip(("train", "test"), CAFE, strict=True):
        rows(6, feature=ClassLabel(names=[form, "thé", "eau"])).save_to_disk(folder / split)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    opened = open_dataset(f"hf:{folder}")
    assert opened.subsets["test"].class_names == ["café", "thé", "eau"]


def test_labels_that_differ_only_in_case_or_spaces_are_reported(folder, caplog):
    """Names that differ only in case stay two classes, like the letters a and A."""
    images = _open_labels(folder, ["cat", "Cat", "dog "] * 4, Value("string"))
    assert images.class_names == ["Cat", "cat", "dog "]
    assert [text.partition("the classes ")[2] for text in caplog.messages] == [
        "'cat' and 'Cat' differ only in case, or in spaces or dots at their ends"
    ]


def test_a_label_that_is_written_otherwise_than_in_training_is_named(folder):
    DatasetDict(
        train=rows(6, labels=["a", "b"] * 3, feature=Value("string")),
        test=rows(3, labels=["a", "b", "B "], feature=Value("string")),
    ).save_to_disk(folder)
    with pytest.raises(DatasetError, match=r"class 'B ' is written 'b' in the training images; use one spelling"):
        open_dataset(f"hf:{folder}", offline=True)


def test_a_class_folder_that_is_written_otherwise_than_in_training_is_named(folder):
    """The type of the column has the classes of all splits, so it does not show that training lacks one of them."""
    for split, names in (("train", ("cat", "dog")), ("test", ("Cat", "dog"))):
        for name in names:
            write_image(folder / split / name / "0.png", (0, 0, 0))
    with pytest.raises(DatasetError, match=r"class 'Cat' is written 'cat' in the training images; use one spelling"):
        open_dataset(f"hf:{folder}")


@pytest.mark.parametrize(
    ("missing", "feature"),
    [(-1, ClassLabel(names=CLASSES)), (None, ClassLabel(names=CLASSES)), (-1, Value("int64")), (None, Value("string"))],
)
def test_images_without_a_label_are_counted(missing, feature, folder):
    labels = [missing, *([0, 1, 2] if feature.dtype != "string" else ["a", "b", "c"]) * 3, missing, missing]
    with pytest.raises(DatasetError, match=r"made/all: 3 of 12 images have no label in the column 'label'"):
        _open_labels(folder, labels, feature)


def test_a_label_that_training_lacks_is_named(folder):
    DatasetDict(
        train=rows(6, labels=["a", "b"] * 3, feature=Value("string")),
        test=rows(3, labels=["a", "b", "c"], feature=Value("string")),
    ).save_to_disk(folder)
    with pytest.raises(DatasetError, match=r"test, column 'label': class 'c' is not among the classes of the training"):
        open_dataset(f"hf:{folder}", offline=True)


def test_classes_in_another_order_than_in_training_are_refused(folder):
    """Otherwise, label 0 would mean a different class in each subset."""
    whole = splits("train", "test")
    whole["test"] = rows(6, feature=ClassLabel(names=CLASSES[::-1]))
    for name, subset in whole.items():
        subset.save_to_disk(folder / name)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DatasetError, match="the column 'label' has different classes than in train"):
        open_dataset(f"hf:{folder}", offline=True)


def _with_columns(folder, **columns):
    table = rows(12)
    for name, (feature, values) in columns.items():
        table = table.add_column(name, values * 12).cast_column(name, feature)
    table.save_to_disk(folder)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"coarse": (ClassLabel(names=["a"]), [0])},
            "",
            r"several columns could hold the labels; the columns are image \(Image\), label \(ClassLabel of 3\), "
            r"coarse \(ClassLabel of 1\): choose one with \?label=COLUMN",
        ),
        (
            {"second": (ImageFeature(), [{"bytes": picture(0), "path": None}])},
            "",
            r"several columns could hold the images; .* choose one with \?image=COLUMN",
        ),
        ({}, "?image=img", r"column 'img' does not exist; the columns are image \(Image\), label .*\?image=COLUMN"),
        ({}, "?label=fine", r"column 'fine' does not exist; the columns are image \(Image\), label .*\?label=COLUMN"),
        ({}, "?image=label", r"the column 'label' cannot hold images; the columns are"),
        (
            {"width": (Value("binary"), [b"1"])},
            "?label=width",
            r"the column 'width' cannot hold labels; .*width \(binary",
        ),
    ],
)
def test_a_column_that_is_not_clear_is_asked_for(columns, options, message, folder):
    _with_columns(folder, **columns)
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"hf:{folder}{options}", offline=True)


def test_without_a_column_of_labels_the_columns_are_listed(folder):
    rows(12, label="height", feature=Value("int32")).save_to_disk(folder)
    with pytest.raises(
        DatasetError, match=r"no column could hold the labels; the columns are image .*, height \(int32\)"
    ):
        open_dataset(f"hf:{folder}", offline=True)
    assert open_dataset(f"hf:{folder}?label=height", offline=True).subsets["all"].labels.tolist() == [0, 1, 2] * 4


def test_a_column_of_labels_is_found_by_its_name(folder):
    table = rows(12, label="fine_label", feature=Value("int32"))
    table.add_column("height", [5] * 12).save_to_disk(folder)
    assert open_dataset(f"hf:{folder}", offline=True).subsets["all"].labels.tolist() == [0, 1, 2] * 4


# A hub.


def _write_configs(folder):
    """Write two configurations. The card describes the columns of the second one only."""
    write_parquet(folder, splits("train", "test", feature=ClassLabel(names=["a", "b", "c"])), prefix="first/")
    write_parquet(folder, splits("train", "test", feature=ClassLabel(names=["x", "y", "z"])), prefix="second/")
    names = "".join(f"          '{i}': {name}\n" for i, name in enumerate(CLASSES))
    files = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", "test"))
        for name in ("first", "second")
    )
    sizes = "".join(f"  - name: {split}\n    num_examples: {SIZES[split]}\n" for split in ("train", "test"))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n{files}dataset_info:\n- config_name: second\n  features:\n  - name: image\n    dtype: image\n"
        f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names}  splits:\n{sizes}---\n"
    )


@pytest.fixture
def repositories(tmp_path):
    return tmp_path / "repositories"


@pytest.fixture
def hub(repositories, monkeypatch):
    """Start a local hub that serves a folder of repositories, and point the client to it."""
    repositories.mkdir()
    with serve(repositories, gated=frozenset({"org/gated"})) as running:
        _point_to(running.endpoint, monkeypatch)
        yield running


def _point_to(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_repository_is_fetched_once_and_then_needs_no_network(hub, repositories, monkeypatch):
    write_parquet(repositories / "org" / "small", splits("train", "test"))
    with pytest.raises(
        DatasetMissingError, match=r"/datasets/org/small .* and --offline forbids the download; download it"
    ):
        open_dataset("hf:org/small", offline=True)
    assert not hub.requests
    check(open_dataset("hf:org/small"))
    assert hub.files() == ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    check(open_dataset("hf:org/small", offline=True))
    check(open_dataset("hf:org/small"))


def test_nothing_is_printed(hub, repositories, capfd):
    """Stdout is for results, and progress bars are shown only on a terminal."""
    write_parquet(repositories / "org" / "small", splits("train", "test"))
    datasets.enable_progress_bars()
    capfd.readouterr()
    open_dataset("hf:org/small")
    assert capfd.readouterr() == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()


def test_to_name_a_repository_asks_nobody(hub):
    spec = get_dataset("hf:org/small?revision=v1&label=fine_label")
    assert (spec.name, spec.num_classes) == ("hf:org/small?revision=v1&label=fine_label", None)
    assert [(subset.name, subset.size) for subset in spec.subsets] == [("train", None), ("test", None)]
    assert not hub.requests


@pytest.mark.parametrize(("config", "fetched"), [("first", "first"), ("second", "second")])
def test_only_the_files_of_the_configuration_are_fetched(config, fetched, hub, repositories):
    _write_configs(repositories / "org" / "two")
    opened = open_dataset(f"hf:org/two?config={config}")
    assert {file.partition("/")[0] for file in hub.files()} == {fetched}
    assert list(opened.subsets["test"].class_names) == (["a", "b", "c"] if config == "first" else CLASSES)
    hub.requests.clear()
    open_dataset(f"hf:org/two?config={config}", offline=True)
    assert not hub.requests


# Splits that are not requested.


def _card(splits, *, folder="data", sizes=None):
    """Return a card as `push_to_hub` writes it: the files of every split, and the numbers of rows in `sizes`."""
    files = "".join(f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in splits)
    rows_of = "".join(f"  - name: {split}\n    num_examples: {n}\n" for split, n in (sizes or {}).items())
    info = f"dataset_info:\n  splits:\n{rows_of}" if sizes else ""
    return f"---\n{info}configs:\n- config_name: default\n  data_files:\n{files}---\n"


def _nine_splits():
    """Return nine splits, as tanganke/stanford_cars has them: two splits, and seven damaged copies of one of them."""
    damaged = ("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "spatter")
    return DatasetDict({**splits("train", "test"), **{name: rows(6) for name in damaged}})


NEEDED = ["test", "train"]


def _fetched(hub):
    """Return the splits whose files were sent."""
    names = [file.removeprefix("data/").removeprefix("default/") for file in hub.files()]
    return sorted({name.partition("/")[0].rpartition("-of-")[0].rpartition("-")[0] or name for name in names})


@pytest.mark.parametrize("sizes", [False, True])
def test_only_the_splits_that_are_asked_for_are_fetched(sizes, hub, repositories):
    made = _nine_splits()
    folder = write_parquet(repositories / "org" / "nine", made)
    counts = {split: len(subset) for split, subset in made.items()} if sizes else None
    (folder / "README.md").write_text(_card(made, sizes=counts))
    check(open_dataset("hf:org/nine"))
    assert _fetched(hub) == NEEDED
    hub.requests.clear()
    check(open_dataset("hf:org/nine", offline=True))
    assert not hub.requests


@pytest.mark.parametrize("suffix", ["", "-5eab84e1c6a2fc27"])
def test_only_the_splits_that_are_asked_for_are_fetched_without_a_card(suffix, hub, repositories):
    """Older repositories have no `configs` in their card, and can have a digest in the names of files."""
    folder = write_parquet(repositories / "org" / "nine", _nine_splits())
    for path in [*(folder / "data").iterdir()]:
        path.rename(path.with_name(f"{path.stem}{suffix}.parquet"))
    check(open_dataset("hf:org/nine"))
    assert _fetched(hub) == NEEDED
    check(open_dataset("hf:org/nine", offline=True))


def test_only_the_splits_of_a_conversion_that_are_asked_for_are_fetched(hub, repositories):
    (repositories / "org" / "nine").mkdir(parents=True)
    folder = repositories / "org" / "nine@refs--convert--parquet"
    for split, subset in _nine_splits().items():
        (folder / "default" / split).mkdir(parents=True)
        subset.to_parquet(folder / "default" / split / "0000.parquet")
    check(open_dataset("hf:org/nine?revision=refs/convert/parquet&config=default"))
    assert hub.files() == ["default/test/0000.parquet", "default/train/0000.parquet"]


@pytest.mark.parametrize(("prefix", "has_card"), [("data/", True), ("data/", False), ("", False)])
def test_a_split_that_is_spelled_otherwise_is_fetched_alone(prefix, has_card, hub, repositories):
    """`Train` is found as train, and no other split is fetched."""
    made = DatasetDict(Train=rows(SIZES["train"]), Testing=rows(SIZES["test"]), extra=rows(6))
    folder = write_parquet(repositories / "org" / "spelled", made, prefix=prefix)
    if has_card:
        (folder / "README.md").write_text(_card(made))
    check(open_dataset("hf:org/spelled"))
    expected = [f"{prefix}{split}-00000-of-00001.parquet" for split in ("Testing", "Train")]
    assert hub.files() == expected
    hub.requests.clear()
    check(open_dataset("hf:org/spelled", offline=True))
    assert not hub.requests


def test_a_split_of_a_conversion_that_is_spelled_otherwise_is_fetched_alone(hub, repositories):
    (repositories / "org" / "spelled").mkdir(parents=True)
    folder = repositories / "org" / "spelled@refs--convert--parquet" / "default"
    for split, n in (("Train", 12), ("eval", 6), ("train1k", 3)):
        (folder / split).mkdir(parents=True)
        rows(n).to_parquet(folder / split / "0000.parquet")
    check(open_dataset("hf:org/spelled?revision=refs/convert/parquet&config=default"))
    assert hub.files() == ["default/Train/0000.parquet", "default/eval/0000.parquet"]


def test_only_images_of_the_splits_that_are_asked_for_are_fetched(hub, repositories):
    """Images in other folders are not downloaded, nor are files that are not images."""
    folder = repositories / "org" / "images"
    _save_tree(folder, "Training", "Testing", "extra")
    for name in ("all.zip", "Training/model.safetensors", "Training/red/notes.txt"):
        (folder / name).write_bytes(b"-")
    opened = open_dataset("hf:org/images")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 6, "test": 6}
    assert {file.split("/")[0] for file in hub.files()} == {"Training", "Testing"}
    assert all(file.endswith(".png") for file in hub.files())
    assert len(open_dataset("hf:org/images", offline=True).subsets["test"]) == 6


@pytest.mark.slow
def test_a_card_that_names_a_folder_alone_is_left_to_the_library(hub, repositories):
    """Only the chosen configuration is read, although the splits of both are in one repository."""
    folder = repositories / "org" / "two"
    for config, order in (("first", [0, 1]), ("second", [1, 2])):
        for split, n in SIZES.items():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows(n, labels=(order * n)[:n]).to_parquet(path)
    configs = "".join(f"- config_name: {config}\n  data_dir: {config}\n" for config in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for k, config in enumerate(("first", "second")):
        for place in ("org/two", folder):
            opened = open_dataset(f"hf:{place}?config={config}")
            assert opened.subsets["train"].labels.tolist() == [k, k + 1] * 6
            assert len(opened.subsets["test"]) == SIZES["test"]


def test_a_path_with_other_numbers_of_rows_than_its_card_says_is_refused(folder):
    made = splits("train", "test")
    write_parquet(folder, made)
    (folder / "README.md").write_text("---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: 13\n---\n")
    with pytest.raises(DatasetError, match="the card says 13 rows for train, and there are 12; get its files again"):
        open_dataset(f"hf:{folder}")


def test_a_split_that_the_hub_converted_in_part_is_found(hub, repositories):
    """The folder of a partly converted split is called partial-train; the split is train."""
    (repositories / "org" / "part").mkdir(parents=True)
    folder = repositories / "org" / "part@refs--convert--parquet" / "default"
    for split, subset in splits("train", "test").items():
        name = "partial-train" if split == "train" else split
        (folder / name).mkdir(parents=True)
        subset.to_parquet(folder / name / "0000.parquet")
    check(open_dataset("hf:org/part?revision=refs/convert/parquet&config=default"))


@pytest.mark.parametrize(("prefix", "extra"), [("data/", "extra.parquet"), ("", None)])
def test_other_names_of_files_are_left_to_the_library(prefix, extra, hub, repositories):
    """Splits are taken from the names of files only if the names of all files contain a split."""
    folder = write_parquet(repositories / "org" / "mixed", splits("train", "test"), prefix=prefix)
    if extra:
        rows(6).to_parquet(folder / extra)
    assert sorted(datasets.load_dataset(str(folder))) == NEEDED
    check(open_dataset("hf:org/mixed"))


def test_a_split_that_there_is_not_is_named_before_anything_is_fetched(hub, repositories):
    made = _nine_splits()
    folder = write_parquet(repositories / "org" / "nine", made)
    (folder / "README.md").write_text(_card(made))
    with pytest.raises(DatasetError, match=r"org/nine has no split 'dev'; its splits are train, test, contrast"):
        open_dataset("hf:org/nine?test=dev")
    assert not hub.files()


def test_a_validation_split_that_is_not_fetched_is_still_spoken_of(hub, repositories, caplog):
    made = splits("train", "validation", "test")
    folder = write_parquet(repositories / "org" / "three", made)
    (folder / "README.md").write_text(_card(made))
    check(open_dataset("hf:org/three"))
    assert _fetched(hub) == NEEDED
    assert "the split 'validation' is not used; take it with ?val=validation" in caplog.text
    check(open_dataset("hf:org/three?val=validation"), ("train", "val", "test"))
    assert _fetched(hub) == ["test", "train", "validation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"org/two has the configurations first, second; choose one with \?config=NAME"),
        ("?config=third", r"org/two has no configuration 'third', but first, second; choose one"),
    ],
)
def test_configurations_are_listed(options, message, hub, repositories):
    _write_configs(repositories / "org" / "two")
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"hf:org/two{options}")
    assert not hub.files()


def test_a_card_that_says_other_sizes_is_named(hub, repositories):
    """If the card states a different number of rows, a part of the files may be missing."""
    _write_configs(repositories / "org" / "two")
    few = rows(5, feature=ClassLabel(names=["x", "y", "z"]))
    few.to_parquet(repositories / "org" / "two" / "second" / "test-00000-of-00001.parquet")
    with pytest.raises(DatasetError, match=r"org/two.*6.*5"):
        open_dataset("hf:org/two?config=second")


@pytest.mark.parametrize(
    "path", ["/etc/*", "../other/*", "https://example.org/a.parquet", "hf://datasets/a/b/c.parquet"]
)
def test_a_card_that_names_files_elsewhere_is_refused(path, hub, repositories):
    folder = write_parquet(repositories / "org" / "small", splits("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n")
    with pytest.raises(DatasetError, match="the card of org/small names files outside of the repository"):
        open_dataset("hf:org/small")


def test_a_card_of_a_path_that_names_an_address_is_refused(folder):
    """With --offline, nothing must be downloaded."""
    write_parquet(folder, splits("train", "test"))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: https://example.org/a\n---\n")
    with pytest.raises(DatasetError, match=r"names files outside of the repository, 'https://example\.org/a'"):
        open_dataset(f"hf:{folder}", offline=True)


def test_folders_of_a_pattern_may_be_none(hub, repositories):
    """For the library, the pattern `data/**/x` also matches `data/x`."""
    folder = write_parquet(repositories / "org" / "small", splits("train", "test"))
    files = "".join(f"  - split: {split}\n    path: data/**/{split}-*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    check(open_dataset("hf:org/small"))


def test_a_script_is_not_run(hub, repositories, tmp_path):
    folder = repositories / "org" / "script"
    folder.mkdir(parents=True)
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "dataset_infos.json").write_text("{}")
    with pytest.raises(
        DatasetError,
        match=r"org/script has no data files, only code, which probe does not run.*\?revision=refs/convert/parquet",
    ):
        open_dataset("hf:org/script")
    assert not hub.files()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def converted(repositories):
    """Write a repository with a script, and the hub's conversion of it, which has a folder for each configuration."""
    (repositories / "org" / "script").mkdir(parents=True)
    folder = repositories / "org" / "script@refs--convert--parquet"
    for config, feature in (("default", None), ("other", ClassLabel(names=["a", "b", "c"]))):
        for split, subset in splits("train", "test", feature=feature).items():
            (folder / config / split).mkdir(parents=True)
            subset.to_parquet(folder / config / split / "0000.parquet")
    return folder


def test_a_conversion_of_the_hub_is_opened(hub, converted):
    check(open_dataset("hf:org/script?revision=refs/convert/parquet&config=default"))
    assert hub.files() == ["default/test/0000.parquet", "default/train/0000.parquet"]


def test_configurations_of_a_conversion_are_not_mixed(hub, converted):
    with pytest.raises(DatasetError, match=r"has the configurations default, other; choose one with \?config=NAME"):
        open_dataset("hf:org/script?revision=refs/convert/parquet")
    assert not hub.files()


def test_a_conversion_of_one_configuration_needs_no_choice(hub, converted):
    shutil.rmtree(converted / "other")
    check(open_dataset("hf:org/script?revision=refs/convert/parquet"))


def test_a_repository_of_images_is_opened(hub, repositories):
    _save_images(repositories / "org" / "images")
    opened = open_dataset("hf:org/images")
    assert opened.subsets["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert opened.subsets["test"][0][0].getpixel((0, 0)) == COLOURS[2]


def test_splits_of_a_repository_go_by_all_usual_names(hub, repositories):
    """`datasets` would merge these folders into one split called train."""
    _save_tree(repositories / "org" / "images", "Training", "Testing")
    opened = open_dataset("hf:org/images")
    for k, subset in enumerate(("train", "test")):
        assert {opened.subsets[subset][i][0].width for i in range(6)} == {8 + k}
    with pytest.raises(DatasetError, match=r"takes the split 'Testing' for val and for test; give each its own"):
        open_dataset("hf:org/images?val=eval")


def test_the_types_of_columns_are_those_of_the_card(hub, repositories):
    """The card has no configurations, so splits are found by the names of files. Labels in the files are numbers."""
    import yaml

    for split, n in (("Training", 12), ("Testing", 6)):
        path = repositories / "org" / "typed" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows(n, feature=Value("int64")).to_parquet(path)
    features = rows(1).features._to_yaml_list()
    card = {"dataset_info": {"features": features, "splits": [{"name": "Training", "num_examples": 12}]}}
    (path.parent / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    check(open_dataset("hf:org/typed"))
    check(open_dataset(f"hf:{path.parent}"))


def test_a_missing_split_says_which_there_are(hub, repositories):
    write_parquet(repositories / "org" / "small", splits("train", "validation"))
    with pytest.raises(
        DatasetError, match=r"org/small has no split 'test'; its splits are train, validation: write \?test=validation"
    ):
        open_dataset("hf:org/small")
    assert tuple(open_dataset("hf:org/small?test=validation").subsets) == ("train", "test")


def test_a_single_split_of_a_repository_can_be_divided(hub, repositories):
    write_parquet(repositories / "org" / "small", splits("train"))
    with pytest.raises(DatasetError, match=r"write \?test=SPLIT, or \?all=train to divide it"):
        open_dataset("hf:org/small")
    check(open_dataset("hf:org/small?all=train"), ("all",))


def test_a_validation_split_is_taken_when_it_is_named(hub, repositories):
    write_parquet(repositories / "org" / "small", splits("train", "validation", "test"))
    check(open_dataset("hf:org/small"))
    check(open_dataset("hf:org/small?val=validation"), ("train", "val", "test"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf:org/none",
            "no dataset 'org/none' at http.*; check the name; if the dataset is private, log in with `hf auth",
        ),
        ("hf:org/gated", r"org/gated is gated; accept its terms at http.*/datasets/org/gated and log in with `hf auth"),
        ("hf:org/small?revision=v9", "/datasets/org/small has no revision 'v9'; give a branch, a tag or a commit"),
        ("hf:org/text", "org/text has no Parquet, Arrow or image files; give a different repository"),
        ("hf:org/shards", "org/shards contains WebDataset shards; open it as wds:org/shards"),
    ],
)
def test_what_cannot_be_had_is_missing_so_that_the_next_source_is_tried(name, message, hub, repositories):
    write_parquet(repositories / "org" / "small", splits("train", "test"))
    for repo, file in (("text", "notes.txt"), ("shards", "train/0.tar"), ("gated", "a.parquet")):
        path = repositories / "org" / repo / file
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(DatasetMissingError, match=message):
        open_dataset(name)


@pytest.mark.parametrize(
    ("denial", "message"),
    [
        pytest.param(
            Denial(401, {"X-Error-Code": "GatedRepo"}, files_only=True),
            r"org/small is gated; accept its terms at http\S+/datasets/org/small and log in with `hf auth login`",
            id="the card is public",
        ),
        pytest.param(
            Denial(401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            r"the hub refuses access to http\S+/datasets/org/small; log in with `hf auth login`, or set HF_TOKEN",
            id="expired token",
        ),
        pytest.param(
            Denial(403), r"the hub refuses access to http\S+/org/small; log in", id="token without permission"
        ),
        pytest.param(Denial(403, files_only=True), r"the hub refuses access to \S+/org/small; log in", id="data"),
    ],
)
def test_a_repository_that_may_not_be_read_says_to_log_in(denial, message, repositories, monkeypatch):
    write_parquet(repositories / "org" / "small", splits("train", "test"))
    with serve(repositories, denied={"org/small": denial}) as running:
        _point_to(running.endpoint, monkeypatch)
        with pytest.raises(DatasetMissingError, match=message) as caught:
            open_dataset("hf:org/small")
    assert len(str(caught.value)) < 300


def test_no_network_is_named(hub, monkeypatch):
    _point_to("http://127.0.0.1:9", monkeypatch)  # no server listens on this port, `discard`
    with pytest.raises(
        DatasetMissingError, match=r"http://127\.0\.0\.1:9/datasets/org/small is not cached .*the download failed"
    ):
        open_dataset("hf:org/small")


@pytest.mark.parametrize("list_is_kept", [True, False])
def test_a_fetch_that_was_interrupted_goes_on(list_is_kept, hub, repositories, cache, monkeypatch):
    """This works with and without the client's list of the files in a repository."""
    folder = write_parquet(repositories / "org" / "small", splits("train", "test"))
    rows(6).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    rows(12).select(range(6, 12)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    (folder / "data" / "train-00000-of-00001.parquet").unlink()
    check(open_dataset("hf:org/small"))
    (snapshot_of(cache, "org/small", folder) / "data" / "train-00001-of-00002.parquet").unlink()
    if not list_is_kept:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copy_without_lists(cache)))
    with pytest.raises(DatasetMissingError, match=r"org/small.*--offline forbids the download"):
        open_dataset("hf:org/small", offline=True)
    check(open_dataset("hf:org/small"))


def test_what_other_libraries_have_fetched_is_used(hub, repositories, cache, monkeypatch):
    """Other libraries leave no list of the files in a repository. The names of the files show that none is missing."""
    write_parquet(repositories / "org" / "small", splits("train", "test"))
    check(open_dataset("hf:org/small"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copy_without_lists(cache)))
    hub.requests.clear()
    check(open_dataset("hf:org/small"))
    assert not hub.requests


def test_a_split_that_was_never_fetched_is_missing_not_wrong(hub, repositories, cache, monkeypatch):
    folder = write_parquet(repositories / "org" / "small", splits("train", "test"))
    check(open_dataset("hf:org/small"))
    (snapshot_of(cache, "org/small", folder) / "data" / "test-00000-of-00001.parquet").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copy_without_lists(cache)))
    with pytest.raises(DatasetMissingError, match="org/small seems to be incomplete on this machine"):
        open_dataset("hf:org/small", offline=True)
    check(open_dataset("hf:org/small"))


def test_a_download_that_differs_from_what_was_published_is_not_kept(hub, repositories, cache):
    """The size does not show such damage: a file made of the halves of two downloads has the right size."""
    folder = write_parquet(repositories / "org" / "small", splits("train", "test"))
    check(open_dataset("hf:org/small"))
    snapshot = snapshot_of(cache, "org/small", folder)
    content = bytearray((snapshot / "data" / "train-00000-of-00001.parquet").read_bytes())
    content[100] ^= 1
    (snapshot / "data" / "train-00000-of-00001.parquet").resolve().write_bytes(content)
    (snapshot / "data" / "test-00000-of-00001.parquet").unlink()  # so that it is fetched again
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.parquet differed from the published file and was"):
        open_dataset("hf:org/small")
    check(open_dataset("hf:org/small"))


def _full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_when_fetching(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _full)
    with pytest.raises(
        DatasetMissingError, match=r"no space left on the disk for http.*; free some space and run again"
    ):
        open_dataset("hf:org/small")


def test_a_full_disk_is_named_when_reading(folder, monkeypatch):
    _save_parquet(folder)
    monkeypatch.setattr(datasets, "load_dataset", _full)
    with pytest.raises(DatasetError, match=r"no space left to read .*; make room in .*hf_home/datasets"):
        open_dataset(f"hf:{folder}")


# Rows of the catalogue.


def _row(name, location=None):
    """Return a row of the catalogue with the sizes of the generated files and a single repository of the hub."""
    spec = get_dataset(name)
    sizes = {"train": SIZES["train"], "val": SIZES["validation"], "test": SIZES["test"]}
    found = [source for source in spec.sources if source.form == "huggingface" and location in (None, source.location)]
    return replace(
        spec,
        subsets=tuple(Subset(subset.name, sizes[subset.name]) for subset in spec.subsets),
        sources=tuple(found[:1]),
        num_classes=3,
        recipe="",
        split_sizes=(),
    )


def _serve_row(repositories, spec, **settings):
    """Serve the repository of a row at the row's revision, with one unused split and one unused configuration."""
    (source,) = spec.sources
    options = dict(source.options)
    splits_of = {source.arguments(subset.name)["split"]: subset.size for subset in spec.subsets}
    made = DatasetDict(
        {
            split: rows(n, image=options["image"], label=options["label"], **settings)
            for split, n in (splits_of | {"extra": 6}).items()
        }
    )
    at = f"@{options['revision']}" if options.get("revision") else ""
    folder = repositories / f"{source.location}{at}"
    config = options["config"] or "default"
    write_parquet(folder, made, prefix=f"{config}/")
    files = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in made)
    other = "- config_name: another\n  data_files: another/*\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{other}- config_name: {config}\n  data_files:\n{files}---\n")
    if at:  # main holds a different version
        (repositories / source.location).mkdir()
    return [f"{config}/{split}-00000-of-00001.parquet" for split in sorted(splits_of)]


HUB_SOURCES = [
    (spec.name, source.location) for spec in DATASETS for source in spec.sources if source.form == "huggingface"
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "location"), HUB_SOURCES)
def test_a_row_of_the_catalogue_opens_its_repository(name, location, hub, repositories):
    """The columns, splits, configuration and revision of the row are used. No other split is fetched."""
    spec = _row(name, location)
    expected = _serve_row(repositories, spec)
    opened = open_dataset(spec)
    check(opened, tuple(subset.name for subset in spec.subsets))
    assert hub.files() == expected
    revision = dict(spec.sources[0].options).get("revision", "")
    folder = repositories / (f"{location}@{revision}" if revision else location)
    assert {images.revision for images in opened.subsets.values()} == {commit_of(folder)}


CHECKED = ("fer2013", "fgvc_aircraft", "kitti", "clevr_counts", "imagenet", "sun397")  # copies that we did not examine


@pytest.mark.slow
@pytest.mark.parametrize(("name", "location"), [found for found in HUB_SOURCES if found[0] in CHECKED])
def test_a_copy_of_another_size_is_refused(name, location, hub, repositories):
    """The message has both numbers, and says which files the user can put in place instead."""
    spec = _row(name, location)
    _serve_row(repositories, spec)
    full = replace(spec, subsets=get_dataset(name).subsets, sources=(get_dataset(name).sources[0], *spec.sources))
    with pytest.raises(DatasetError) as caught:
        open_dataset(full, data_dir=repositories)
    message = str(caught.value)
    assert message.startswith(
        f"{name}/train: expected {full.subsets[0].size} images, found 12; instead of using {location}, put"
    )
    assert len(message) <= 500


def test_a_copy_with_the_classes_in_another_order_is_refused(hub, repositories):
    """Most copies of FER 2013 list classes alphabetically; the makers' order is angry, ..., sad, surprise, neutral."""
    spec = _row("fer2013")
    spec = replace(spec, subsets=(Subset("train", 12, class_counts=(6, 2, 4)), *spec.subsets[1:]))
    _serve_row(repositories, replace(spec, subsets=_row("fer2013").subsets))
    with pytest.raises(
        DatasetError, match=r"fer2013/train: expected 6 images of class 0, found 4; this copy is divided"
    ):
        open_dataset(spec)


def test_kmnist_does_not_wait_for_its_host(hub, repositories, tmp_path, monkeypatch):
    """The only server that torchvision knows does not answer, so torchvision must not be used to download."""

    def fail(*_, **__):
        raise AssertionError("torchvision was asked to download")

    monkeypatch.setattr(torchvision.datasets.KMNIST, "download", fail)
    spec = _row("kmnist")
    _serve_row(repositories, spec)
    spec = replace(spec, sources=get_dataset("kmnist").sources)
    assert open_dataset(spec, data_dir=tmp_path / "data").source.form == "huggingface"


def test_imagenet_says_to_accept_the_terms_and_to_log_in(repositories, tmp_path, monkeypatch):
    """Both repositories of ImageNet are gated, but their cards are public."""
    gated = Denial(401, {"X-Error-Code": "GatedRepo"}, files_only=True)
    write_parquet(repositories / "ILSVRC" / "imagenet-1k", splits("train", "validation", "test"))
    shard = repositories / "timm" / "imagenet-1k-wds" / "imagenet1k-train-0000.tar"
    shard.parent.mkdir(parents=True)
    for name in (".gitattributes", "imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"):
        (shard.parent / name).touch()
    with serve(repositories, denied={"ILSVRC/imagenet-1k": gated, "timm/imagenet-1k-wds": gated}) as running:
        _point_to(running.endpoint, monkeypatch)
        with pytest.raises(DatasetMissingError) as caught:
            open_dataset("imagenet", data_dir=tmp_path / "data")
    message = str(caught.value)
    assert "ILSVRC/imagenet-1k is gated; accept its terms at http" in message
    assert "log in with `hf auth login`, or set HF_TOKEN" in message
    assert "put a folder imagenet with train/WNID/*.JPEG and val/WNID/*.JPEG into" in message
    assert len(message) <= 500


def test_an_option_that_a_row_misspells_is_named(hub):
    spec = _row("cifar100")
    source = replace(spec.sources[0], options=(("lable", "fine_label"),))
    with pytest.raises(DatasetError, match="cifar100: its source has the option 'lable'; the options are image, label"):
        open_dataset(replace(spec, sources=(source,)))


def test_a_row_of_other_sizes_is_refused(hub, repositories):
    write_parquet(repositories / "uoft-cs" / "cifar10", splits("train", "test", image="img"))
    spec = replace(_row("cifar10"), subsets=get_dataset("cifar10").subsets)
    with pytest.raises(DatasetError, match="cifar10/train: expected 50000 images, found 12"):
        open_dataset(spec)


def test_parquet_files_whose_classes_are_in_another_order_are_refused(folder):
    """`datasets` would read the labels of the second file with the class names of the first file."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in (("train", ["a", "b", "c"]), ("test", ["a", "c", "b"])):
        rows(12, labels=[0, 1, 2] * 4, feature=ClassLabel(names=names)).to_parquet(folder / f"{split}.parquet")
    with pytest.raises(
        DatasetError, match=r"the column 'label' in \w+\.parquet has different classes than the other files"
    ):
        open_dataset(f"hf:{folder}", offline=True)


def test_a_damaged_image_in_bytes_has_a_message_that_stays_the_same(folder):
    """Records contain the message, so there must be no memory address in it."""
    rows(12, pictures=[b"no image", *map(picture, range(11))]).save_to_disk(folder)
    with pytest.raises(DatasetError, match=r"image 0 \(all/0\) cannot be read \(cannot identify image file it\)"):
        open_dataset(f"hf:{folder}", offline=True)
