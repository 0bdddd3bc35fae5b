"""Opening folders of small images: the order of sources, checks, partial datasets and unreadable images."""

import inspect
from dataclasses import replace

import pytest
from make.images import write_image
from make.sources import place

from probe.datasets import get_dataset
from probe.datasets.catalog import DATASETS
from probe.datasets.opening import MODULES, form_module, open_dataset, open_split
from probe.errors import DatasetError, DatasetMissingError, UnknownNameError
from probe.specs import DatasetSpec, Source, Subset


def row(*sources, train=6, test=4, **fields):
    """Return a row of two colours, with the numbers of images that the fixture `colours` writes."""
    return DatasetSpec(
        name="colours",
        title="two colours",
        subsets=(Subset("train", train), Subset("test", test)),
        sources=sources or (place("images"),),
        num_classes=2,
        **fields,
    )


@pytest.fixture
def colours(image_folder):
    return image_folder({"train/green": 3, "train/red": 3, "test/green": 2, "test/red": 2})


def test_the_first_source_that_is_here_is_taken(colours):
    spec = row(place("nowhere"), place("images"))
    opened = open_dataset(spec, data_dir=colours.parent)
    assert opened.source.location == "images"


def test_what_is_nowhere_says_what_to_put_where(tmp_path):
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(row(place("nowhere"), place("images")), data_dir=tmp_path)
    assert str(caught.value) == (
        f"colours is not in {tmp_path} and probe cannot download it; put a folder nowhere into {tmp_path}, or name "
        "another folder with --data-dir"
    )


def test_what_is_gone_says_why(tmp_path):
    with pytest.raises(DatasetMissingError, match="and its links are dead; put"):
        open_dataset(row(gone="its links are dead"), data_dir=tmp_path)


def test_a_damaged_source_is_not_passed_over(colours):
    """The next source may have different images, so the error of the first source is raised instead."""
    (colours / "train" / "red" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"notes\.txt is not a known type of image"):
        open_dataset(row(place("images"), place("nowhere")), data_dir=colours.parent)


def test_too_few_images_are_an_error_that_offers_to_go_on(colours):
    with pytest.raises(DatasetError, match=r"colours/test: expected 9 images, found 4; .* with --allow-partial"):
        open_dataset(row(test=9), data_dir=colours.parent)


def test_a_partial_dataset_is_opened_on_request_and_marked(colours):
    opened = open_dataset(row(test=9), data_dir=colours.parent, allow_partial=True)
    assert opened.incomplete == {"test": 9}
    assert len(opened.split("test")) == 4


@pytest.mark.parametrize("allow_partial", [False, True])
def test_too_many_images_are_an_error_always(colours, allow_partial):
    with pytest.raises(DatasetError, match="colours/test: expected 3 images, found 4; replace its files, or correct"):
        open_dataset(row(test=3), data_dir=colours.parent, allow_partial=allow_partial)


def test_a_wrong_number_of_classes_gives_both(colours):
    with pytest.raises(DatasetError, match="colours/train: expected images of 3 classes, found 2"):
        open_dataset(replace(row(), num_classes=3), data_dir=colours.parent)


@pytest.mark.parametrize(
    ("where", "subset"), [("first", Subset("test", 4, first_label=1)), ("last", Subset("test", 4, last_label=0))]
)
def test_another_order_of_labels_gives_both(colours, where, subset):
    spec = replace(row(), subsets=(Subset("train", 6), subset))
    expected = 1 if where == "first" else 0
    with pytest.raises(DatasetError, match=f"the label {expected} for its {where} image, found {1 - expected}"):
        open_dataset(spec, data_dir=colours.parent)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            (1, 3),
            "colours/test: expected 1 images of class 0, found 2; this copy is divided differently, or its classes",
        ),
        ((2, 1, 1), "colours/test: expected 1 images of class 1, found 2"),
        ((2,), "colours/test: expected 0 images of class 1, found 2"),
    ],
)
def test_other_numbers_of_images_of_a_class_give_both(counts, message, colours):
    """The message has both numbers. A copy of the right size can be divided differently."""
    spec = replace(row(), subsets=(Subset("train", 6, class_counts=(3, 3)), Subset("test", 4, class_counts=counts)))
    with pytest.raises(DatasetError, match=message):
        open_dataset(spec, data_dir=colours.parent)


def test_classes_in_another_order_than_in_the_row_are_refused(image_folder):
    """The numbers of images show it. Some copies of FER 2013 have the classes in alphabetical order."""
    root = image_folder({"train/green": 3, "train/red": 5, "test/green": 2, "test/red": 2})
    spec = replace(row(), subsets=(Subset("train", 8, class_counts=(5, 3)), Subset("test", 4)))
    with pytest.raises(DatasetError, match="colours/train: expected 5 images of class 0, found 3"):
        open_dataset(spec, data_dir=root.parent)


def test_a_partial_dataset_is_not_compared_class_by_class(colours):
    spec = replace(row(), subsets=(Subset("train", 6), Subset("test", 9, class_counts=(5, 4))))
    assert open_dataset(spec, data_dir=colours.parent, allow_partial=True).incomplete == {"test": 9}


def test_a_wrong_copy_says_to_use_the_makers_files(colours):
    """Fetching the files of a wrong copy again does not help."""
    copy = replace(place("images"), files="")
    with pytest.raises(DatasetError, match="found 4; instead of using images, put a folder nowhere into"):
        open_dataset(row(place("nowhere"), copy, test=3), data_dir=colours.parent)


def test_an_unreadable_last_image_is_found_before_any_work(colours):
    (colours / "test" / "red" / "001.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"colours/test: image 3 \(test/red/001\.png\) cannot be read"):
        open_dataset(row(), data_dir=colours.parent)
    assert open_dataset(row(), data_dir=colours.parent, skip_corrupt=True).split("test").labels.tolist() == [0, 0, 1, 1]


def test_an_unknown_form_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown form 'foldr'"):
        open_dataset(row(Source("foldr", "images")), data_dir=tmp_path)


def test_a_fold_that_there_is_not_is_named():
    with pytest.raises(DatasetError, match="digits has no fold 1; give 0 to 0"):
        open_split("digits", "train", fold=1)


def test_every_form_has_a_module_and_every_row_a_form():
    assert {source.form for spec in DATASETS for source in spec.sources} <= set(MODULES)
    for form in MODULES:
        assert list(inspect.signature(form_module(form).open_subset).parameters) == [
            *("spec", "source", "subset", "root", "offline")
        ]


def test_images_of_a_group_stay_together(image_folder):
    """Frames of a video are an example: a validation image must not have a twin among the training images."""
    root = image_folder({"train/green": 12, "train/red": 12, "test/green": 2, "test/red": 2})
    source = place(
        "images", options=(("groups", r"(\w+/\d\d)\d\.png"),)
    )  # 000 to 009 are one group, 010 and 011 another
    opened = open_dataset(row(source, train=24), data_dir=root.parent)
    groups = {name: {key[:-5] for key in opened.split(name).ids} for name in ("train", "val")}
    assert groups["train"]
    assert groups["val"]
    assert not groups["train"] & groups["val"]


def test_a_file_whose_group_cannot_be_told_is_named(colours):
    source = place("images", options=(("groups", r"track(\d+)_"),))
    with pytest.raises(DatasetError, match=r"the name of train/green/000\.png does not match"):
        open_dataset(row(source), data_dir=colours.parent)


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path, image_folder):
    """ImageNetV2 names its folders 0 to 999, whose alphabetical order differs from their numerical order."""
    root = tmp_path / "images"
    for k in range(11):
        for i in range(2):
            write_image(root / "train" / f"n{k:03}" / f"{i}.png", (20 * k, 0, 0))
        write_image(root / "test" / str(k) / "0.png", (20 * k, 0, 0))
    source = place("images", options=(("numbered", ("test",)),))
    spec = replace(row(source, train=22, test=11), num_classes=11)
    test = open_dataset(spec, data_dir=tmp_path).split("test")
    assert [(key.split("/")[1], label) for key, label in zip(test.ids, test.labels, strict=True)] == [
        (str(k), k) for k in sorted(range(11), key=str)
    ]


def test_the_middle_images_of_the_catalogue_are_not_needed_to_open(colours):
    """Reading is lazy: only the first and the last image of a subset are read on opening."""
    (colours / "train" / "green" / "001.png").write_bytes(b"")
    train = open_dataset(row(), data_dir=colours.parent)
    assert get_dataset("digits").num_folds == 1
    assert len(train.subsets["train"]) == 6
