"""A dataset of the user's own, as a row in a TOML file."""

import textwrap
import zipfile

import pytest

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.prompts import complete, get_prompts
from probe.errors import DatasetError, DatasetMissingError, PromptsError, UnknownNameError

ROW = """
name = "colours"
num_classes = 2
metric = "mean_per_class"
val_fraction = 0.34
subsets = [{ name = "train", size = 6 }, { name = "test", size = 4 }]

[[sources]]
form = "folder"
location = "./images"
subsets = { train = { folder = "train" }, test = { folder = "test" } }
"""


DOWNLOAD = 'paths = ["x"]\narchives = [["b.zip", "x"]]\ndownloads = [["{}", ""]]\nform ='


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


def test_parts_of_a_row_go_by_all_usual_names(write):
    text = ROW.replace('name = "train"', 'name = "Training"').replace('name = "test"', 'name = "testing"')
    text = text.replace("train = {", "TRAIN = {").replace("test = {", "eval = {")
    assert get_dataset(write(text)) == get_dataset(write(ROW))


def test_the_readme_has_a_row_that_reads(write):
    """The example in the docstring of the module can be read."""
    from probe.datasets import user_datasets

    example = user_datasets.__doc__.partition("\n\n")[2]
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
        ("num_classes", "classes", "unknown key 'classes'; did you mean 'num_classes', 'class_names' or"),
        ('"mean_per_class"', '"mean_per_clas"', "unknown metric 'mean_per_clas'; did you mean 'mean_per_class'"),
        ('"folder"', '"foldr"', "unknown form 'foldr'; did you mean 'folder'"),
        ("size = 6", 'size = "6"', "subsets[0].size: expected an integer, got a text"),
        ("0.34", "1.5", "val_fraction is 1.5 and test_fraction 0.2; give shares of all images that leave"),
        ('name = "test"', 'name = "tset"', "the subsets are train, tset; give each of train, val, test or all once"),
        ('"train", size', '"val", size', "the subsets are val, test; give train and test, all alone"),
        (
            'folder = "train" }',
            'foldr = "train" }',
            "unknown argument 'foldr' of a subset of a source; the argument of",
        ),
        (
            'form = "folder"\nlocation = "./images"',
            'form = "torchvision"\nlocation = "MNISTT"',
            "unknown class of torchvision 'MNISTT'",
        ),
        (
            'form = "folder"\nlocation = "./images"',
            'form = "torchvision"\nlocation = "MNIST"',
            "torchvision's MNIST has no argument 'folder'; it has train",
        ),
        ("[[sources]]", "[[source]]", "has no list of tables 'sources'"),
        ('name = "colours"\n', "", "name is missing"),
        ("num_classes = 2", "num_classes = ", "is not valid TOML"),
        ('"colours"', '"cifar10"', "'cifar10' is a name of the catalogue"),
        ('"colours"', '"cifar10!"', "use letters, digits"),
        ('"colours"', '""', "use letters, digits"),
        ("size = 4", "size = 0", "the size of test is 0; give 1 or more"),
        ('"./images"', "5", "sources[0].location: expected a text, got an integer"),
        ("form =", "paths = 5\nform =", "sources[0].paths: expected a list, got an integer"),
        ("form =", 'paths = "images"\nform =', "sources[0].paths: expected a list, got a text"),
        ("form =", 'archives = [["a.zip"]]\nform =', "sources[0].archives[0]: expected a list of length 2, got 1"),
        ("form =", 'downloads = ["http://a/b.zip"]\nform =', "sources[0].downloads[0]: expected a list, got a text"),
        ("form =", 'downloads = [["http://a/b.zip", ""]]\nform =', "has 0 archives and 1 downloads; give as many"),
        ("form =", 'archives = [["../a.zip", "x"]]\nform =', "has '../a.zip', outside the data folder; give paths"),
        ("form =", 'archives = [["/tmp/a.zip", "x"]]\nform =', "has '/tmp/a.zip', outside the data folder"),
        ("form =", 'archives = [["a.zip", "x/../.."]]\nform =', "has 'x/../..', outside the data folder"),
        ("form =", 'archives = [["a.zip", "/tmp"]]\nform =', "has '/tmp', outside the data folder"),
        ("form =", 'archives = [["a\\\\b.zip", "x"]]\nform =', "outside the data folder"),
        ("form =", 'paths = ["../x"]\nform =', "has '../x', outside the data folder"),
        ("form =", 'archives = [["", "x"]]\nform =', "has '' in archives or paths; give the name of a file"),
        ("form =", 'paths = ["."]\nform =', "has '.' in archives or paths"),
        ("form =", 'archives = [["a.zip", "x"]]\nform =', "has archives but no paths"),
        ("form =", DOWNLOAD.format("file:///etc/hosts"), "has the download 'file:///etc/hosts'; give an address that"),
        ("form =", DOWNLOAD.format("ftp://a/b.zip"), "has the download 'ftp://a/b.zip'"),
        ("form =", DOWNLOAD.format("b.zip"), "has the download 'b.zip'"),
        ("size = 6", "size = 6, class_counts = 3", "subsets[0].class_counts: expected a list, got an integer"),
        ("size = 6", "size = 6, class_counts = [3, -3]", "train has -3 images of a class; give 0 or more"),
        ("form =", "options = 5\nform =", "options: expected a table such as { name = value }, got 5"),
        (
            "form =",
            "options = { groups = [[1]] }\nform =",
            "expected a string, a number or a list of these for groups, got [[1]]",
        ),
        (
            "form =",
            'options = { grups = "a" }\nform =',
            "unknown option 'grups' of a source; the options of folder are groups, ignore",
        ),
        ("form =", 'options = { ignore = "x" }\nform =', "ignore = 'x' is not a list; write ['x']"),
        ("form =", 'options = { media = "foo" }\nform =', "media = 'foo'; give 'video'"),
        ("form =", 'options = { groups = "[" }\nform =', "write a pattern with a group ()"),
        ("form =", 'options = { groups = "a" }\nform =', "the pattern has no group"),
        ('{ folder = "test" }', '{ folder = "train" }', "two subsets of a source have the same arguments"),
        ('{ folder = "test" }', '{ folder = "/test" }', "is not below the location"),
        ('{ folder = "test" }', '{ folder = "./train/" }', "two subsets of a source have the same arguments"),
        (', test = { folder = "test" }', "", "a source does not say where test is; add test = { folder = ... }"),
        ('{ folder = "train" }', "{ split = 1 }", "unknown argument 'split' of a subset"),
        ('{ folder = "train" }', "{}", "does not say where train is"),
        ("val_fraction = 0.34", 'recipe = "eurosat"', "the recipe 'eurosat' divides all; give these subsets"),
        ("val_fraction = 0.34", 'recipe = "eurosatt"', "unknown recipe 'eurosatt'; did you mean 'eurosat'"),
        ("val_fraction = 0.34", "num_folds = 3", "only datasets of the catalogue can have folds"),
        ("val_fraction = 0.34", "split_sizes = { tets = 3 }", "split_sizes may only have train, val, test"),
        ("val_fraction = 0.34", "split_sizes = 3", "split_sizes: expected a table such as { name = value }, got 3"),
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


def test_the_images_of_each_class_are_compared_as_in_the_catalogue(write):
    opened = open_dataset(write(ROW.replace("size = 4", "size = 4, class_counts = [2, 2]")))
    assert opened.subsets["test"].labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DatasetError, match="colours/test: expected 1 images of class 0, found 2"):
        open_dataset(write(ROW.replace("size = 4", "size = 4, class_counts = [1, 3]")))


def test_a_row_may_give_addresses_of_its_archives(write):
    text = 'paths = ["a"]\narchives = [["a.zip", "."]]\ndownloads = [["https://example.org/a.zip", ""]]\nform ='
    source = get_dataset(write(ROW.replace("form =", text))).sources[0]
    assert source.downloads == (("https://example.org/a.zip", ""),)
    assert source.can_download


def test_a_form_without_archives_refuses_them(write):
    text = ROW.replace('form = "folder"', 'form = "webdataset"\npaths = ["x"]\narchives = [["a.zip", "x"]]')
    with pytest.raises(DatasetError, match="a source of webdataset has archives, which it does not read; remove them"):
        get_dataset(write(text.replace("folder =", "split =")))


def test_a_row_cannot_send_torchvision_to_another_folder(write):
    text = ROW.replace('form = "folder"', 'form = "torchvision"').replace('folder = "train"', 'root = "/tmp/elsewhere"')
    with pytest.raises(DatasetError, match="a subset has the argument root, which is the data folder"):
        get_dataset(write(text))


@pytest.mark.parametrize("arguments", ["{}", '{ split = "" }'])
def test_each_part_of_a_table_names_its_split(arguments, write):
    """Without a split, the subset would be the whole file, and the probe would be tested on its training images."""
    text = ROW.replace('form = "folder"', 'form = "table"').replace('{ folder = "train" }', '{ split = "train" }')
    with pytest.raises(DatasetError, match=r"does not say where test is; add test = \{ split = "):
        get_dataset(write(text.replace('{ folder = "test" }', arguments)))


def test_archives_of_a_row_are_unpacked_below_the_data_folder(write, tmp_path, monkeypatch):
    """This also holds if the images are next to the TOML file, outside the data folder."""
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    with zipfile.ZipFile(data / "a.zip", "w") as opened:
        opened.writestr("note.txt", "")
    text = 'paths = ["extra/note.txt"]\narchives = [["a.zip", "extra"]]\nform ='
    open_dataset(write(ROW.replace("form =", text)), data_dir=data, offline=True)
    assert (data / "extra" / "note.txt").is_file()
    assert not list(work.iterdir())


def test_a_wrong_size_is_found_as_in_the_catalogue(write):
    with pytest.raises(DatasetError, match="colours/test: expected 5 images, found 4"):
        open_dataset(write(ROW.replace("size = 4", "size = 5")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('templates = ["a photo"]', "colours.toml: the template 'a photo' has 0 places for the class name"),
        ('class_names = ["red"]', "colours.toml: there are 2 classes and 1 class names; give one name for each class"),
        ('class_names = ["red", ""]', "colours.toml: class 1 has no name"),
        (r'class_names = ["red", "gr\neen"]', r"colours.toml: 'gr\neen' has a line break; write it on one line"),
    ],
)
def test_wrong_prompts_are_refused_when_the_file_is_read(line, message, write):
    with pytest.raises(PromptsError) as caught:
        get_dataset(write(f"{line}\n{ROW}"))
    assert message in str(caught.value)


def test_a_list_of_prompts_has_the_type_of_the_catalogue(write):
    with pytest.raises(DatasetError, match=r"templates: expected a list, got a text"):
        get_dataset(write(f'templates = "a {{}}"\n{ROW}'))


def test_prompts_of_a_row_name_their_file(write):
    spec = get_dataset(write(f'class_names = ["green", "red"]\ntemplates = ["a {{}} image."]\n{ROW}'))
    prompts = get_prompts(spec)
    assert prompts.texts == [["a green image."], ["a red image."]]
    assert prompts.class_names_from == prompts.templates_from == "colours.toml"


def test_a_row_without_prompts_takes_the_names_of_its_folders(write):
    opened = open_dataset(write(ROW))
    names = opened.split("train").class_names
    assert complete(get_prompts(opened.spec), names, num_classes=2, where="colours").class_names == ("green", "red")
