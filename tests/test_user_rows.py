"""A dataset of the user's own, as a row in a TOML file."""

import textwrap

import pytest

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import DatasetError, DatasetMissingError, UnknownNameError

ROW = """
name = "colours"
num_classes = 2
metric = "mean_per_class"
val_fraction = 0.34
parts = [{ name = "train", size = 6 }, { name = "test", size = 4 }]

[[sources]]
form = "folder"
location = "./images"
parts = { train = { folder = "train" }, test = { folder = "test" } }
"""


@pytest.fixture
def write(image_folder, tmp_path):
    image_folder({"train/green": 3, "train/red": 3, "test/green": 2, "test/red": 2})

    def make(text):
        path = tmp_path / "colours.toml"
        path.write_text(text)
        return str(path)

    return make


def test_a_row_opens_like_one_of_the_catalogue(write):
    opened = open_dataset(write(ROW))
    assert opened.spec.metric == "mean_per_class"
    assert [len(opened.split(name)) for name in ("train", "val", "test")] == [4, 2, 4]


def test_the_readme_has_a_row_that_reads(write):
    """The example in the module's docstring, which the README repeats."""
    from probe.datasets import user_rows

    example = user_rows.__doc__.partition("\n\n")[2]
    spec = get_dataset(write(textwrap.dedent(example)))
    assert (spec.name, spec.num_classes, spec.sources[0].location) == ("moths", 12, "moths")


def test_a_row_may_use_a_class_of_torchvision(write):
    text = ROW.replace('form = "folder"', 'form = "torchvision"').replace('"./images"', '"FashionMNIST"')
    text = text.replace('{ folder = "train" }', "{ train = true }").replace('{ folder = "test" }', "{ train = false }")
    source = get_dataset(write(text)).sources[0]
    assert source.arguments("test") == {"train": False}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes", "classes", "has the field 'classes'; the fields are name, title, parts"),
        ('"mean_per_class"', '"mean_per_clas"', "unknown metric 'mean_per_clas'; did you mean 'mean_per_class'"),
        ('"folder"', '"foldr"', "unknown form 'foldr'; did you mean 'folder'"),
        ("size = 6", 'size = "6"', "a part: size = '6' is no int"),
        ("0.34", "1.5", "val_fraction is 1.5; give a number between 0 and 1"),
        ('name = "test"', 'name = "tset"', "the parts are train, tset; give each of train, val, test or all once"),
        ('"train", size', '"val", size', "the parts are val, test; give either train and test, or all"),
        ("[[sources]]", "[[source]]", "has no list of tables 'sources'"),
        ('name = "colours"\n', "", "is not whole"),
        ("num_classes = 2", "num_classes = ", "is no TOML"),
    ],
)
def test_what_is_wrong_with_a_row_is_one_sentence(write, old, new, message):
    path = write(ROW.replace(old, new, 1))
    with pytest.raises((DatasetError, UnknownNameError)) as caught:
        get_dataset(path)
    assert message in str(caught.value)


def test_a_row_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetMissingError, match=r"no file .*none\.toml"):
        get_dataset(str(tmp_path / "none.toml"))


def test_a_wrong_size_is_found_as_in_the_catalogue(write):
    with pytest.raises(DatasetError, match="colours/test: expected 5 images, found 4"):
        open_dataset(write(ROW.replace("size = 4", "size = 5")))
