"""Further test sets: the layouts of their makers, and the positions of their classes in the dataset."""

import json
from dataclasses import replace

import numpy as np
import pytest
from make.images import write_image
from make.shifted_layouts import WNIDS, shrink, write_cifar10_shifts, write_further, write_imagenet, write_objectnet
from PIL import Image

from probe.datasets import find_tests, get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.test_classes import map_classes, read_timm
from probe.datasets.test_sets import TEST_SETS
from probe.errors import DatasetError, UnknownNameError
from probe.specs import CLASS_IDS, Subset, identity

IDS = read_timm("imagenet_synsets.txt").split()  # the WordNet ids of ImageNet, in the order of its labels


def open_test(spec, root):
    return open_dataset(spec, data_dir=root).subsets["test"]


def right_labels(spec, images, dataset="imagenet", names=IDS):
    """Return the labels that are right for each image."""
    is_right = map_classes(spec, images.class_names, get_dataset(dataset), names)
    return [np.flatnonzero(is_right[label]).tolist() for label in images.labels]


def test_every_dataset_names_test_sets_of_the_catalogue():
    named = [name for dataset in ("imagenet", "cifar10") for name in get_dataset(dataset).tests]
    assert sorted(named) == sorted(spec.name for spec in TEST_SETS)
    assert all(spec.is_test_set and spec.class_ids in CLASS_IDS for spec in TEST_SETS)


def test_the_names_of_test_sets_are_not_part_of_the_identity_of_a_dataset():
    assert identity(get_dataset("imagenet")) == identity(replace(get_dataset("imagenet"), tests=()))


@pytest.mark.parametrize("letter", ["a", "r"])
def test_a_folder_for_each_wordnet_id_has_the_label_of_this_id(tmp_path, letter):
    chosen = read_timm(f"imagenet_{letter}_synsets.txt").split()[:3]
    for wnid in chosen:
        write_image(tmp_path / f"imagenet-{letter}" / wnid / "0.jpg", (1, 2, 3))
    (tmp_path / f"imagenet-{letter}" / "README.txt").write_text("about these images")
    spec = shrink(f"imagenet_{letter}", 3, 3)
    assert right_labels(spec, open_test(spec, tmp_path)) == [[IDS.index(wnid)] for wnid in chosen]


@pytest.mark.parametrize("letter", ["a", "r"])
def test_labels_of_wordnet_ids_equal_the_indices_that_timm_lists(letter):
    names = read_timm(f"imagenet_{letter}_synsets.txt").split()
    indices = list(map(int, read_timm(f"imagenet_{letter}_indices.txt").split()))
    is_right = map_classes(get_dataset(f"imagenet_{letter}"), names, get_dataset("imagenet"), ["a name"] * 1000)
    assert len(names) == 200
    assert [np.flatnonzero(row).tolist() for row in is_right] == [[index] for index in indices]


def test_wordnet_ids_are_compared_with_the_folders_of_the_dataset_first():
    is_right = map_classes(get_dataset("imagenet_a"), [WNIDS[2]], get_dataset("imagenet"), list(reversed(WNIDS)))
    assert is_right.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("imagenet_v2_matched", "imagenetv2-matched-frequency-format-val"),
        ("imagenet_v2_threshold", "imagenetv2-threshold0.7-format-val"),
        ("imagenet_v2_top", "imagenetv2-top-images-format-val"),
    ],
)
def test_folders_of_imagenet_v2_are_named_by_labels(tmp_path, name, folder):
    for label in (0, 1, 2, 10):
        write_image(tmp_path / folder / str(label) / "0.jpeg", (1, 2, 3))
    spec = replace(get_dataset(name), subsets=(Subset("test", 4),))
    with pytest.raises(DatasetError, match="expected images of 1000 classes, found 4"):
        open_test(spec, tmp_path)
    images = open_dataset(replace(spec, subsets=(Subset("test", 5),)), data_dir=tmp_path, allow_partial=True)
    assert right_labels(spec, images.subsets["test"]) == [[0], [1], [10], [2]]


def test_sketches_are_in_folders_of_wordnet_ids(tmp_path):
    write_image(tmp_path / "sketch" / WNIDS[1] / "sketch_0.JPEG", (1, 2, 3))
    spec = shrink("imagenet_sketch", 1, 1)
    assert right_labels(spec, open_test(spec, tmp_path)) == [[1]]


def test_objectnet_has_the_classes_of_imagenet_without_the_red_border(tmp_path):
    write_objectnet(tmp_path)
    spec = shrink("objectnet", 2, 2)
    images = open_test(spec, tmp_path)
    assert list(images.ids) == ["images/big_fish/a.png", "images/tench_folder/a.png"]
    assert right_labels(spec, images) == [[2, 3], [0]]
    with Image.open(tmp_path / "objectnet-1.0/images/big_fish/a.png") as whole:
        assert images[0][0].size == (whole.width - 4, whole.height - 4)


def test_a_damaged_mapping_of_objectnet_is_named(tmp_path):
    write_objectnet(tmp_path)
    path = tmp_path / "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json"
    path.write_text(json.dumps({"Big fish": "unicorn"}))
    with pytest.raises(DatasetError, match=r"mappings of ObjectNet .* damaged \(KeyError: .*unicorn"):
        open_test(shrink("objectnet", 2, 2), tmp_path)


def test_each_reassessed_label_is_right_and_images_without_labels_do_not_count(tmp_path):
    write_imagenet(tmp_path)
    written = [[0], [3, 1], [], *[[label] for label in (1, 1, 1, 2, 2, 2, 3, 3, 3)]]
    (tmp_path / "imagenet/real.json").write_text(json.dumps(written))
    spec = shrink("imagenet_real", 11, None)
    images = open_test(spec, tmp_path)
    assert right_labels(spec, images) == [[0], [1, 3], *written[3:]]
    assert images.ids[1].endswith("_00000002.JPEG")


def test_reassessed_labels_are_those_of_timm_without_a_file(tmp_path):
    write_imagenet(tmp_path)
    listed = json.loads(read_timm("imagenet_real_labels.json"))[:12]
    spec = shrink("imagenet_real", sum(map(bool, listed)), None)
    images = open_test(spec, tmp_path)
    assert right_labels(spec, images) == [sorted(labels) for labels in listed if labels]


@pytest.mark.parametrize("name", ["cifar10_1", "cifar10_2"])
def test_further_test_sets_of_cifar10_are_arrays(tmp_path, name):
    labels = [*range(10), 3, 3]
    arrays = write_cifar10_shifts(tmp_path, labels)
    spec = shrink(name, 12, 10)
    images = open_test(spec, tmp_path)
    assert right_labels(spec, images, "cifar10", [f"class {i}" for i in range(10)]) == [[label] for label in labels]
    assert np.array_equal(np.asarray(images[11][0]), arrays[11])


def test_a_pickle_in_place_of_the_images_is_never_loaded(tmp_path):
    write_cifar10_shifts(tmp_path, range(10))
    np.save(tmp_path / "cifar10.1/cifar10.1_v6_data.npy", np.array([{}], dtype=object))
    with pytest.raises(DatasetError, match=r"cifar10.1 is damaged .*get a folder"):
        open_test(shrink("cifar10_1", 10, 10), tmp_path)


def test_a_missing_test_set_names_its_files(tmp_path):
    with pytest.raises(DatasetError, match=r"put the folder imagenet-a of imagenet-a.tar into"):
        open_test(get_dataset("imagenet_a"), tmp_path)


def test_classes_that_are_not_a_subset_are_named():
    with pytest.raises(DatasetError, match="imagenet_a: 'n00000001' is not a WordNet id of a class of imagenet"):
        map_classes(get_dataset("imagenet_a"), ["n00000001"], get_dataset("imagenet"), IDS)


def test_a_class_map_gives_one_or_several_right_classes(tmp_path):
    path = write_further(
        tmp_path, "shift", "shift", {"bee": [0], "cat": [1]}, fields='class_map = { bee = ["wasp", "fly"] }'
    )
    spec = get_dataset(path)
    is_right = map_classes(spec, ["bee", "cat"], get_dataset("imagenet"), ["fly", "cat", "dog", "wasp"])
    assert is_right.tolist() == [[True, False, False, True], [False, True, False, False]]
    with pytest.raises(DatasetError, match=r"class_map of shift has 'bee', which is not a class of its images"):
        map_classes(spec, ["cat"], get_dataset("imagenet"), ["cat"])


def test_the_test_sets_of_a_dataset_are_found_by_name_by_all_or_by_file(tmp_path):
    path = write_further(tmp_path, "shift", "shift", {"bee": [0]})
    imagenet = get_dataset("imagenet")
    assert [spec.name for spec in find_tests(imagenet, ["all"])] == list(imagenet.tests)
    assert [spec.name for spec in find_tests(imagenet, ["imagenet_r", "cifar10_1", path])] == ["imagenet_r", "shift"]
    with pytest.raises(DatasetError, match=r"mini is not a further test set, because it has more subsets"):
        find_tests(imagenet, [write_imagenet(tmp_path)])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ('class_ids = "wordnets"', UnknownNameError, "unknown value of class_ids 'wordnets'; did you mean 'wordnet'"),
        ("class_map = { bee = 3 }", DatasetError, "class_map"),
    ],
)
def test_wrong_fields_of_a_further_test_set_are_named(tmp_path, fields, error, message):
    with pytest.raises(error, match=message):
        get_dataset(write_further(tmp_path, "shift", "shift", {"bee": [0]}, fields=fields))
