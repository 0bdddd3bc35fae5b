"""Lists of images and labels in CSV."""

import unicodedata
from dataclasses import replace

import numpy as np
import pandas
import pytest
from PIL import Image

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import DatasetError, DatasetMissingError, UnknownNameError
from probe.specs import SPLITS

CLASSES = ["blue", "green", "red"]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture
def make(tmp_path):
    """Return a function that writes images and the table that lists them. Image i has the width i + 8."""

    def write(n=12, *, file="list.csv", sep=",", folder="images", start=0, **columns):
        names = [f"{folder}/{i:02}.png" for i in range(start, start + n)]
        labels = [CLASSES[i % 3] for i in range(n)]
        for i, (name, label) in enumerate(zip(names, labels, strict=True)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + i, 5), COLOURS[label]).save(tmp_path / name)
        table = pandas.DataFrame({"path": names, "label": labels, **columns})
        table = table[[column for column in table if table[column].notna().any()]]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(tmp_path / file, index=False, sep=sep)
        return tmp_path / file

    return write


def check(images, labels, class_names=CLASSES):
    """Check that labels are as given, and that each line has its own image."""
    assert (images.labels.tolist(), images.labels.dtype, images.class_names) == (labels, np.int64, class_names)
    for i in range(len(images)):
        image, label = images[i]
        assert (image.size[0], label) == (8 + int(images.ids[i][-6:-4]), labels[i])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_without_splits_is_divided(separator, make):
    opened = open_dataset(f"csv:{make(sep=separator)}")
    check(opened.subsets["all"], [0, 1, 2] * 4)
    assert opened.subsets["all"].ids[3] == "images/03.png"
    assert [len(opened.split(split)) for split in SPLITS] == [6, 3, 3]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_a_column_names_the_splits(names, make):
    opened = open_dataset(f"csv:{make(split=[names[0]] * 6 + [names[1]] * 3 + [names[2]] * 3)}")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 6, "val": 3, "test": 3}
    check(opened.subsets["test"], [0, 1, 2])


@pytest.mark.parametrize("options", ["", "?test=val", "?test=validation"])
def test_training_and_validation_lines_alone_are_train_and_test(options, make):
    opened = open_dataset(f"csv:{make(set=['train'] * 9 + ['val'] * 3)}{options}")
    assert {subset: len(images) for subset, images in opened.subsets.items()} == {"train": 9, "test": 3}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"] * 9 + ["holdout"] * 3, r"no test subset; say which split of train, holdout it is with \?test=SPLIT"),
        (["train"] * 6 + ["val"] * 3 + ["valid"] * 3, "has 'val', 'valid', which all mean val"),
        (["train"] * 6 + [" "] * 6, "line 8 has no split; add it, or drop the line"),
    ],
)
def test_splits_that_are_not_clear_are_named(splits, message, make):
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"csv:{make(split=splits)}")


def test_a_folder_has_a_file_for_each_split(make, tmp_path):
    make(9, file="lists/train.csv", folder="lists/a")
    path = make(3, file="lists/Test.csv", folder="lists/b", start=20)
    for i in range(3):
        Image.new("RGB", (28 + i, 5), COLOURS[CLASSES[i]]).save(tmp_path / f"lists/b/{20 + i}.png")
    (path.parent / "sample_submission.txt").touch()
    table = pandas.read_csv(path)
    table["path"] = table["path"].str.removeprefix("lists/")
    table.to_csv(path, index=False)
    train = pandas.read_csv(path.with_name("train.csv"))
    train["path"] = train["path"].str.removeprefix("lists/")
    train.to_csv(path.with_name("train.csv"), index=False)
    opened = open_dataset(f"csv:{path.parent}")
    check(opened.subsets["train"], [0, 1, 2] * 3)
    check(opened.subsets["test"], [0, 1, 2])


def test_an_image_in_two_parts_is_named(make, tmp_path):
    """The image is in the files of two splits, or has two spellings of its path in one file."""
    make(9, file="train.csv")
    make(3, file="val.csv", start=20)
    make(3, file="test.csv", start=8)
    with pytest.raises(DatasetError, match=r"the image images/08\.png is in train and in test; list it in one of"):
        open_dataset(f"csv:{tmp_path}")
    paths = [f"images/{i:02}.png" for i in range(11)]
    path = make(path=[*paths, "./images/03.png"], split=["train"] * 9 + ["test"] * 3)
    with pytest.raises(DatasetError, match=r"lists images/03\.png more than once"):
        open_dataset(f"csv:{path}")


def test_a_part_without_a_split_is_not_all_images(make):
    spec = get_dataset(f"csv:{make(split=['train'] * 6 + ['test'] * 6)}")
    subsets = (("train", (("split", "train"),)), ("test", ()))
    spec = replace(spec, sources=(replace(spec.sources[0], subsets=subsets),))
    with pytest.raises(DatasetError, match=r"no split of .*list\.csv is named for test, which would be all of its im"):
        open_dataset(spec)


def test_options_name_columns_and_the_folder_of_the_images(make, tmp_path):
    path = make(file="lists/list.csv", folder="images", species=["a", "b"] * 6)
    table = pandas.read_csv(path).rename(columns={"path": "picture"})
    table["picture"] = table["picture"].str.removeprefix("images/")
    table.to_csv(path, index=False)
    opened = open_dataset(f"csv:{path}?image=picture&label=species&folder=../images")
    check(opened.subsets["all"], [0, 1] * 6, ["a", "b"])


def test_a_row_in_toml_may_use_a_table(make, tmp_path):
    make(split=["train"] * 6 + ["test"] * 6)
    path = tmp_path / "row.toml"
    path.write_text(
        'name = "colours"\nnum_classes = 3\nval_fraction = 0.34\n'
        'subsets = [{ name = "train", size = 6 }, { name = "test", size = 6 }]\n'
        '[[sources]]\nform = "table"\nlocation = "./list.csv"\n'
        'subsets = { train = { split = "train" }, test = { split = "test" } }\n'
    )
    check(open_dataset(str(path)).subsets["test"], [0, 1, 2] * 2)


@pytest.mark.parametrize(
    ("written", "labels", "class_names"),
    [
        (["901243", "2000", "145563"], [2, 0, 1], ["2000", "145563", "901243"]),
        (["10", "9", "1"], [2, 1, 0], ["1", "9", "10"]),
        (["1.0", "0.0", "2."], [1, 0, 2], ["0", "1", "2"]),
        (["007", "10", "9"], [0, 1, 2], ["007", "10", "9"]),
        (["b", "10", "a"], [2, 0, 1], ["10", "a", "b"]),
    ],
)
def test_whole_numbers_are_in_their_order_and_texts_in_that_of_the_alphabet(written, labels, class_names, make):
    opened = open_dataset(f"csv:{make(label=written * 4)}")
    check(opened.subsets["all"], labels * 4, class_names)


def test_two_unicode_forms_of_a_class_or_path_are_one(make):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    path = make(folder=forms[1], label=[*forms, "eau"] * 4, path=[f"{forms[0]}/{i:02}.png" for i in range(12)])
    check(open_dataset(f"csv:{path}").subsets["all"], [0, 0, 1] * 4, ["caf\xe9", "eau"])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": ["a", None] * 6}, "", "line 3 has no label; add it, or drop the line"),
        ({"label": ["0.5", "1"] * 6}, "", r"0\.5 is not a class; a class is a text or an integer >= 0: take"),
        ({"label": ["-1", "1"] * 6}, "", "a negative number is not a class"),
        ({"path": ["images/00.png"] * 12}, "", "lists images/00.png more than once; give each image one line"),
        (
            {"path": [f"{i}.png" for i in range(12)]},
            "",
            r"12 of 12 images are not in .*, such as 0\.png; name the fold",
        ),
        ({"class": ["a", "b"] * 6}, "", "has several columns for the label; the columns are 'path', 'label', 'class'"),
        ({}, "?label=species", "has no column 'species' for the label; the columns are 'path', 'label': choose one"),
        ({}, "?split=fold", "has no column 'fold' for the split"),
        ({}, "?colour=x", "has the option 'colour'; the options are image, label, split, folder, metric, train, val"),
        ({}, "?test=train", "has no train subset"),
        ({"split": ["train", "test"] * 6, "label": ["a", "b"] * 6}, "", "class 'b' is not among the classes of the tr"),
        (
            {"split": ["train", "train", "test"] * 4, "label": ["a", "b", "A "] * 4},
            "",
            "class 'A' is written 'a' in the",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(columns, options, message, make):
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"csv:{make(**columns)}{options}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column for the image"),
        (b"a.png,cat\nb.png,dog\n", "no column for the image; .* or add a first line with the names of the columns"),
        (b"path,label\n", "has no images in the split"),
        (b"path,label\na.png,caf\xe9\n", "cannot be read as CSV in UTF-8"),
        (b'path,label\n"a.png,cat\n', "cannot be read as CSV in UTF-8"),
        (b"path,label\n" + b"x" * 200_000 + b",cat\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_named(content, message, tmp_path):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"csv:{tmp_path / 'list.csv'}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        DatasetMissingError, match=r"no file .*list\.csv; give csv:PATH with a file of images and labels"
    ):
        get_dataset(f"csv:{tmp_path / 'list.csv'}")
    with pytest.raises(DatasetMissingError, match=r"no files \*\.csv or \*\.tsv in"):
        get_dataset(f"csv:{tmp_path}")
    with pytest.raises(UnknownNameError, match="unknown metric 'f1'"):
        get_dataset(f"csv:{tmp_path}?metric=f1")


def test_a_table_opens_as_the_folder_that_it_lists(image_folder, tmp_path):
    """The labels of `csv:` equal the labels of `folder:`, image by image."""
    root = image_folder({f"{split}/{name}": 3 for split in ("train", "test") for name in ("red", "blue")})
    files = sorted(path.relative_to(tmp_path).as_posix() for path in root.rglob("*.png"))
    lines = [f"{file},{file.split('/')[2]},{file.split('/')[1]}" for file in files]
    (tmp_path / "list.csv").write_text("\n".join(["\ufeffFilename,Label,Split", *lines]), encoding="utf-8")
    table, folder = open_dataset(f"csv:{tmp_path / 'list.csv'}"), open_dataset(f"folder:{root}")
    for subset in ("train", "test"):
        assert table.subsets[subset].labels.tolist() == folder.subsets[subset].labels.tolist()
        assert all(np.array_equal(table.subsets[subset][i][0], folder.subsets[subset][i][0]) for i in range(6))
