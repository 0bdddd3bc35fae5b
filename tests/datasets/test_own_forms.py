"""Datasets with a module of their own: each opens a miniature of its true layout, and names what is wrong in it."""

import csv
import gzip
import hashlib
import pickle
import shutil
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torchvision.datasets
from make import own_layouts
from PIL import Image

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.papers.kitti import distance_class, split_videos
from probe.errors import DatasetError, DatasetMissingError, ExtraMissingError
from probe.specs import SPLITS, Subset

NAMES = sorted(own_layouts.WRITERS)
IN_FILES = sorted({*NAMES} - {"fer2013", "pcam"})  # every image is a file
IGNORED = -1  # equals `probe.stats.metrics.IGNORED`


def _row(name, written=None):
    """Return the row of a dataset with the source that has its own form, and with the sizes of a miniature."""
    spec = get_dataset(name)
    spec = replace(spec, sources=spec.sources[:1])
    if written is None:
        return spec
    labels = [label for subset in written.values() for label in subset.values()]
    return replace(
        spec,
        subsets=tuple(
            Subset(subset.name, len(written[subset.name]) if subset.name in written else None)
            for subset in spec.subsets
        ),
        fold_sizes=(),
        num_classes=20 if name == "voc2007" else max(labels) + 1,
        val_fraction=0.34,
    )


@pytest.fixture
def small(tmp_path):
    """Return a function that writes a miniature, and returns its row."""
    return lambda name, **options: _row(name, own_layouts.WRITERS[name](tmp_path, **options))


def _by_value(images):
    """Return the labels of images by grey value, in the form in which the generators return them."""
    found = {}
    for i in range(len(images)):
        image, label = images[i]
        value = int(np.asarray(image)[5, 5, 0])
        found[value] = label if isinstance(label, int) else label.tolist()
    return found


def _nearest(value, written):
    near = [known for known in written if abs(known - value) <= own_layouts.APART // 2]
    assert len(near) == 1
    return near[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_its_label(name, tmp_path):
    written = own_layouts.WRITERS[name](tmp_path)
    opened = open_dataset(_row(name, written), data_dir=tmp_path, offline=True)
    expected = {value: label for subset in written.values() for value, label in subset.items()}
    if name == "voc2007":  # the files have -1 for a class that is not shown, and 0 for one that does not count
        meaning = {1: 1, -1: 0, 0: IGNORED}
        expected = {value: [meaning[label] for label in labels] for value, labels in expected.items()}
    found = {}
    for images in opened.subsets.values():
        assert images.labels.dtype == np.int64
        found |= {_nearest(value, expected): label for value, label in _by_value(images).items()}
    assert found == expected


@pytest.mark.parametrize("name", sorted({*NAMES} - {"kitti", "ucf101"}))
def test_every_part_has_the_images_of_its_list(name, tmp_path):
    written = own_layouts.WRITERS[name](tmp_path)
    opened = open_dataset(_row(name, written), data_dir=tmp_path, offline=True)
    found = {
        subset: [_nearest(value, written[subset]) for value in _by_value(opened.subsets[subset])] for subset in written
    }
    assert {subset: sorted(values) for subset, values in found.items()} == {
        subset: sorted(values) for subset, values in written.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_images_can_be_read_in_another_process(name, small, tmp_path):
    """Worker processes receive the images as a pickle."""
    for images in open_dataset(small(name), data_dir=tmp_path, offline=True).subsets.values():
        copy = pickle.loads(pickle.dumps(images))
        assert np.array_equal(copy[len(copy) - 1][0], images[len(images) - 1][0])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_images_are_the_same_split_wherever_they_are(name, tmp_path):
    digests = []
    for folder in ("here", "there"):
        written = own_layouts.WRITERS[name](tmp_path / folder)
        opened = open_dataset(_row(name, written), data_dir=tmp_path / folder, offline=True)
        digests.append([opened.split(split).compute_sha256() for split in SPLITS])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_images_have_one_id(name, small, tmp_path):
    for images in open_dataset(small(name), data_dir=tmp_path, offline=True).subsets.values():
        assert len(set(images.ids)) == len(images)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_here_says_what_to_put_where(name, tmp_path):
    with pytest.raises(DatasetMissingError) as caught:
        open_dataset(_row(name), data_dir=tmp_path, offline=True)
    assert f"put {get_dataset(name).sources[0].files} into {tmp_path}" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted({*NAMES} - {"voc2007"}))
def test_each_path_of_the_row_must_be_there(name, small, tmp_path):
    """The module of a dataset needs each of the paths in the row."""
    spec = small(name)
    for path in spec.sources[0].paths:
        hidden = (tmp_path / path).rename(tmp_path / "hidden")
        with pytest.raises(DatasetMissingError):
            open_dataset(spec, data_dir=tmp_path, offline=True)
        hidden.rename(tmp_path / path)
    open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_images_is_named(name, tmp_path):
    written = own_layouts.WRITERS[name](tmp_path)
    subset = get_dataset(name).subsets[0]
    found = len(written[subset.name]) if subset.name in written else "[0-9]+"
    with pytest.raises(DatasetError, match=f"{name}/{subset.name}: expected {subset.size} images, found {found};"):
        open_dataset(_row(name), data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", IN_FILES)
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_image_is_named(name, content, small, tmp_path):
    """The first and the last image are read on opening."""
    spec = small(name)
    for path in [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png", ".ppm", ".avi")]:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"(\.(jpg|png|ppm|avi)|image \d+ \(\d+\)|\)) cannot be read"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", sorted({*IN_FILES} - {"birdsnap", "gtsrb_39209"}))
def test_an_image_that_is_listed_and_gone_is_named(name, small, tmp_path):
    """Birdsnap and GTSRB are left out: they use the images that exist, so only the number of images shows it."""
    spec = small(name)
    for path in [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png", ".avi")]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"cannot be read .*No such file"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


VOC_LIST = "VOCdevkit/VOC2007/ImageSets/Main/dog_train.txt"
UCF_LISTS = "ucf101/ucfTrainTestlist"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("sun397", "SUN397/ClassName.txt", "/c/cathedral/outdoor", "/c/castle", "whose class /c/cathedral/outdoor is"),
        ("sun397", "SUN397/Training_01.txt", "/a/abbey/sun_000.jpg", "abbey", r"lists /abbey, whose class"),
        ("birdsnap", "birdsnap/images.txt", "\tnull\n", "\n", "has the line 'http.*, which does not fit its columns"),
        ("birdsnap", "birdsnap/images.txt", "species_id", "species", "which does not fit its columns"),
        ("birdsnap", "birdsnap/images.txt", "\t3\t1\t2", "\t0\t1\t2", "has the species 0, and there are 1 to 3"),
        ("birdsnap", "birdsnap/images.txt", "\t3\t1\t2", "\t4\t1\t2", "has the species 4, and there are 1 to 3"),
        (
            "birdsnap",
            "birdsnap/test_images.txt",
            "Hawk/0010",
            "Hawk/0011",
            "Coopers_Hawk/0011.jpg', which is not in images.txt",
        ),
        ("birdsnap", "birdsnap/test_images.txt", "path\n", "", r"Coopers_Hawk/0010\.jpg', which is not in images.txt"),
        (
            "fer2013",
            "fer2013/fer2013.csv",
            "Usage",
            "usage",
            r"expected the columns emotion, pixels and Usage, got \['emotion', 'pixels', 'usage'\]",
        ),
        ("fer2013", "fer2013/fer2013.csv", "\n0,5 ", "\n0,", "line 2, cannot be read .expected 2304 pixels"),
        ("fer2013", "fer2013/fer2013.csv", "\n0,5 ", "\n0,256 ", "line 2, .*expected 2304 pixels from 0 to 255"),
        ("fer2013", "fer2013/fer2013.csv", "\n0,5 ", "\n0,-5 ", "line 2, cannot be read"),
        ("fer2013", "fer2013/fer2013.csv", "\n0,5 ", "\n0,x ", "line 2, cannot be read"),
        (
            "fer2013",
            "fer2013/fer2013.csv",
            "\n0,5 ",
            "\n7,5 ",
            "line 2, cannot be read .expected an emotion from 0 to 6, got '7'",
        ),
        ("fer2013", "fer2013/fer2013.csv", "Training", "Test", "line 2, cannot be read .'Test' is not a Usage"),
        ("fer2013", "fer2013/fer2013.csv", ",Training", "", "line 2, cannot be read"),
        ("kitti", "Kitti/raw/mapping/train_rand.txt", "24", "25", "do not give each image its video"),
        ("kitti", "Kitti/raw/mapping/train_rand.txt", "24", "0", "do not give each image its video"),
        ("kitti", "Kitti/raw/mapping/train_rand.txt", "24", "", "do not give each image its video"),
        ("kitti", "Kitti/raw/mapping/train_mapping.txt", " ", "_", "do not give each image its video"),
        (
            "kitti",
            "Kitti/raw/training/label_2/000003.txt",
            " 20.01 ",
            " ",
            "000003.txt cannot be read .expected 15 fields",
        ),
        ("kitti", "Kitti/raw/training/label_2/000003.txt", " 20.01 ", " far ", "000003.txt cannot be read"),
        ("hateful_memes", "hateful_memes/train.jsonl", "{", "", 'train.jsonl has the line \'"id": 0'),
        (
            "hateful_memes",
            "hateful_memes/dev.jsonl",
            '"label": 1, ',
            "",
            "dev.jsonl has the line .* no image with label",
        ),
        ("hateful_memes", "hateful_memes/dev.jsonl", '"label": 1', '"label": 2', "dev.jsonl has the line"),
        ("ucf101", f"{UCF_LISTS}/classInd.txt", "2 Hand", "3 Hand", "does not number the classes from 1 on"),
        (
            "ucf101",
            f"{UCF_LISTS}/classInd.txt",
            "2 Hand",
            "2 Foot",
            "trainlist01.txt has the line .*does not agree with classInd",
        ),
        (
            "ucf101",
            f"{UCF_LISTS}/trainlist02.txt",
            ".avi 2",
            ".avi 1",
            "trainlist02.txt has the line 'HandstandPushups",
        ),
        ("ucf101", f"{UCF_LISTS}/testlist03.txt", "_g05_c01", "_x_c01", "_x_c01.* does not match"),
        (
            "ucf101",
            f"{UCF_LISTS}/testlist03.txt",
            "_g05_",
            "_g01_",
            "trainlist03.txt and testlist03.txt in .* both have",
        ),
        ("voc2007", VOC_LIST, "000000", "000001", "dog_train.txt and aeroplane_train.txt list different images"),
        ("voc2007", VOC_LIST, "000000 -1", "000000 -2", "dog_train.txt has the line '000000 -2'"),
        ("voc2007", VOC_LIST, "000000 -1", "000000", "dog_train.txt has the line '000000'"),
        ("gtsrb_39209", "gtsrb/GT-final_test.csv", ";ClassId", "", "is damaged"),
    ],
)
def test_a_damaged_list_is_named(name, file, old, new, message, small, tmp_path):
    spec = small(name)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, -1 if old == " " else 1))
    with pytest.raises(DatasetError, match=message):
        open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sun397", "SUN397/Training_01.txt"),
        ("birdsnap", "birdsnap/images.txt"),
        ("fer2013", "fer2013/fer2013.csv"),
        ("kitti", "Kitti/raw/mapping/train_mapping.txt"),
        ("hateful_memes", "hateful_memes/train.jsonl"),
        ("ucf101", f"{UCF_LISTS}/testlist01.txt"),
        ("voc2007", VOC_LIST),
    ],
)
def test_a_list_that_is_no_text_is_named(name, file, small, tmp_path):
    spec = small(name)
    (tmp_path / file).write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DatasetError, match=f"{file.rpartition('/')[2]}.* cannot be read"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kitti", "Kitti/raw/training/label_2/000007.txt"),
        ("ucf101", f"{UCF_LISTS}/trainlist02.txt"),
        ("voc2007", VOC_LIST),
    ],
)
def test_a_list_that_is_missing_beside_others_is_named(name, file, small, tmp_path):
    spec = small(name)
    (tmp_path / file).unlink()
    with pytest.raises(DatasetError, match=f"{file.rpartition('/')[2]} cannot be read") as caught:
        open_dataset(spec, data_dir=tmp_path, offline=True)
    assert not isinstance(caught.value, DatasetMissingError)


def test_scenes_keep_the_names_of_both_levels(small, tmp_path):
    images = open_dataset(small("sun397"), data_dir=tmp_path, offline=True).subsets["train"]
    assert images.class_names == ["abbey", "cathedral/indoor", "cathedral/outdoor"]
    assert images.ids[0] == "a/abbey/sun_000.jpg"


def test_birds_are_numbered_by_species_and_named_by_folder(small, tmp_path):
    images = open_dataset(small("birdsnap"), data_dir=tmp_path, offline=True).subsets["test"]
    assert [(images.class_names[k], key) for k, key in zip(images.labels, images.ids, strict=True)] == [
        (name, f"{name}/{value:04}.jpg") for name, value in zip(own_layouts.BIRDS, (10, 50, 90), strict=True)
    ]


def test_birds_that_are_gone_are_refused_unless_partial_is_allowed(small, tmp_path):
    spec = small("birdsnap")
    (tmp_path / "birdsnap" / "download" / "images" / "Snail_Kite" / "0040.jpg").unlink()
    with pytest.raises(DatasetError, match=r"birdsnap/train: expected 9 images, found 8; .*--allow-partial"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_birds_that_are_gone_are_left_out_where_partial_is_allowed(small, tmp_path):
    spec = small("birdsnap")
    (tmp_path / "birdsnap" / "download" / "images" / "Snail_Kite" / "0040.jpg").unlink()
    opened = open_dataset(spec, data_dir=tmp_path, offline=True, allow_partial=True)
    assert opened.incomplete == {"train": 9}
    assert "images/Snail_Kite/0040.jpg" not in opened.subsets["train"].ids
    assert len(_by_value(opened.subsets["train"])) == 8


def test_a_species_whose_folder_is_gone_keeps_its_number(small, tmp_path):
    """The labels of the other species must not shift."""
    spec = small("birdsnap")
    shutil.rmtree(tmp_path / "birdsnap" / "download" / "images" / "Coopers_Hawk")
    opened = open_dataset(spec, data_dir=tmp_path, offline=True, allow_partial=True)
    assert set(opened.subsets["test"].labels.tolist()) == {1, 2}


@pytest.mark.parametrize("columns", [("emotion", "pixels", "Usage"), ("emotion", " Usage", " pixels")])
def test_faces_are_those_that_torchvision_reads(columns, tmp_path, monkeypatch):
    """Two files are in circulation, which torchvision tells apart by name and MD5. It has both test subsets in one."""
    own_layouts.fer2013(tmp_path, columns)
    path = tmp_path / "fer2013" / "fer2013.csv"
    key, name = ("fer", "fer2013.csv") if columns[1] == "pixels" else ("icml", "icml_face_data.csv")
    (tmp_path / "copy" / "fer2013").mkdir(parents=True)
    shutil.copy(path, tmp_path / "copy" / "fer2013" / name)
    entry = (name, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(torchvision.datasets.FER2013._RESOURCES, key, entry)
    theirs = torchvision.datasets.FER2013(tmp_path / "copy", split="train")
    ours = open_dataset(_row("fer2013", own_layouts.fer2013(tmp_path, columns)), data_dir=tmp_path).subsets["train"]
    assert len(ours) == len(theirs)
    for (image, label), (expected, expected_label) in zip(ours, theirs, strict=True):
        assert label == expected_label
        assert np.array_equal(image, expected.convert("RGB"))


def test_both_files_of_faces_are_one_split(tmp_path):
    """The files differ in the order of columns, which does not change the split."""
    digests = set()
    for i, columns in enumerate([("emotion", "pixels", "Usage"), ("emotion", " Usage", " pixels")]):
        spec = _row("fer2013", own_layouts.fer2013(tmp_path / str(i), columns))
        digests.add(open_dataset(spec, data_dir=tmp_path / str(i), offline=True).split("test").compute_sha256())
    assert len(digests) == 1


def test_faces_take_one_byte_a_pixel(small, tmp_path):
    (pixels,) = open_dataset(small("fer2013"), data_dir=tmp_path, offline=True).subsets["train"].read.args
    assert (pixels.dtype, pixels.nbytes) == (np.uint8, 14 * 48 * 48)


@pytest.mark.parametrize(
    ("distances", "label"),
    [
        ([8.0], 0),
        ([8.01], 1),
        ([20.0], 1),
        ([20.01], 2),
        ([999.0], 2),
        ([], 3),
        ([30.0, 7.0, 12.0], 0),
        ([-0.5], 0),
        ([20.0000001], 1),  # is 20.0 in float32, in which VTAB compares
    ],
)
def test_distances_are_classed_as_in_vtab(distances, label):
    """The classes are: up to 8 m, up to 20 m, farther, and no vehicle. A limit belongs to the nearer class."""
    assert distance_class(distances) == label


@pytest.mark.parametrize("num_videos", [3, 12, 19, 20, 141])
def test_videos_are_drawn_as_in_tensorflow_datasets(num_videos):
    """The test repeats the rule of TensorFlow Datasets, which seeds NumPy's global generator."""
    videos = [f"2011_09_26_drive_{5 * v % num_videos if num_videos % 5 else v:04}_sync" for v in range(num_videos)]
    state = np.random.get_state()  # noqa: NPY002 - what TensorFlow Datasets uses
    np.random.seed(123)  # noqa: NPY002 - what TensorFlow Datasets uses
    tenth = max(1, 10 * num_videos // 100)
    test = set(np.random.choice(sorted(set(videos)), tenth, replace=False))  # noqa: NPY002 - as above
    val = set(np.random.choice(sorted(set(videos) - test), tenth, replace=False))  # noqa: NPY002 - as above
    np.random.set_state(state)  # noqa: NPY002 - as above
    assert split_videos(videos * 2) == {"train": set(videos) - test - val, "val": val, "test": test}


def test_drawing_videos_leaves_the_global_generator_alone():
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the test is about the global generator
    split_videos(["a", "b", "c"])
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002 - as above


def test_frames_of_a_video_are_in_one_split(small, tmp_path):
    opened = open_dataset(small("kitti"), data_dir=tmp_path, offline=True)
    videos = [set(opened.split(split).groups) for split in SPLITS]
    assert [len(names) for names in videos] == [10, 1, 1]
    assert len(set.union(*videos)) == 12


def test_frames_have_the_video_that_the_mapping_gives_them(small, tmp_path):
    """Image i is line train_rand[i], counted from 1, of train_mapping.txt."""
    opened = open_dataset(small("kitti"), data_dir=tmp_path, offline=True)
    found = {
        key: video for subset in opened.subsets.values() for key, video in zip(subset.ids, subset.groups, strict=True)
    }
    frames, order = own_layouts.kitti_frames(), own_layouts.kitti_order()
    assert found == {f"training/image_2/{i:06}.png": frames[order[i]][0] for i in range(24)}


def test_memes_are_tested_on_the_development_list_of_either_phase(small, tmp_path):
    opened = open_dataset(small("hateful_memes", dev="dev_seen.jsonl"), data_dir=tmp_path, offline=True)
    assert opened.subsets["test"].ids == ["img/00120.png", "img/00140.png", "img/00160.png"]


def test_memes_without_a_development_list_say_which(small, tmp_path):
    spec = small("hateful_memes")
    (tmp_path / "hateful_memes" / "dev.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"has no dev\.jsonl or dev_seen\.jsonl; put a folder hateful_memes"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_patches_are_those_that_torchvision_reads(small, tmp_path):
    opened = open_dataset(small("pcam"), data_dir=tmp_path, offline=True)
    for split in SPLITS:
        theirs = torchvision.datasets.PCAM(tmp_path, split=split)
        assert len(opened.split(split)) == len(theirs)
        for (image, label), (expected, expected_label) in zip(opened.split(split), theirs, strict=True):
            assert label == expected_label
            assert np.array_equal(image, expected)


@pytest.mark.parametrize("kind", ["x", "y"])
def test_a_damaged_file_of_patches_is_named(kind, small, tmp_path):
    spec = small("pcam")
    path = tmp_path / "pcam" / f"camelyonpatch_level_2_split_train_{kind}.h5"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"camelyonpatch_level_2_split_train_x\.h5 or .* is damaged .*; remove it"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_patches_of_another_part_are_refused(small, tmp_path):
    spec = small("pcam")
    files = tmp_path / "pcam" / "camelyonpatch_level_2_split_"
    shutil.copy(f"{files}test_x.h5", f"{files}train_x.h5")
    with pytest.raises(DatasetError, match=r"train_x\.h5 has images \(3, 96, 96, 3\) of uint8 for 4 labels; remove it"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_patches_name_the_extra_that_reads_them(small, tmp_path, monkeypatch):
    spec = small("pcam")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ExtraMissingError, match=r"are read with h5py, which is not installed; pip install h5py"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def test_patches_that_are_not_here_are_downloaded_by_torchvision(tmp_path, monkeypatch):
    """A replacement of Google Drive sends the compressed files of a miniature."""
    spec = _row("pcam", own_layouts.pcam(tmp_path / "drive"))

    def fetch(file_id, root, filename, md5):
        (tmp_path / "data" / "pcam").mkdir(parents=True, exist_ok=True)
        content = (tmp_path / "drive" / "pcam" / filename.removesuffix(".gz")).read_bytes()
        (tmp_path / "data" / "pcam" / filename).write_bytes(gzip.compress(content))

    monkeypatch.setattr("torchvision.datasets.pcam.download_file_from_google_drive", fetch)
    opened = open_dataset(spec, data_dir=tmp_path / "data")
    assert [len(opened.split(split)) for split in SPLITS] == [4, 2, 3]


def test_patches_that_cannot_be_downloaded_say_why(tmp_path, monkeypatch):
    def fetch(*_, **__):
        raise RuntimeError("'gdown' is required")

    monkeypatch.setattr("torchvision.datasets.pcam.download_file_from_google_drive", fetch)
    with pytest.raises(DatasetMissingError, match=r"could not be downloaded \(torchvision: 'gdown' is required\); put"):
        open_dataset(_row("pcam"), data_dir=tmp_path)


def test_clips_are_shown_by_their_middle_frame(tmp_path):
    """In a miniature, the middle frames have different grey values, and the other frames are black or white."""
    written = own_layouts.ucf101(tmp_path)["all"]
    images = open_dataset(_row("ucf101", {"all": written}), data_dir=tmp_path, offline=True).subsets["all"]
    assert [_nearest(value, written) for value in _by_value(images)] == sorted(written)


def test_clips_are_in_the_folds_of_the_lists(small, tmp_path):
    """Training and validation together are the k-th list for training, and the test split is the k-th for testing."""
    opened = open_dataset(small("ucf101"), data_dir=tmp_path, offline=True)
    for k in range(3):
        found = {split: set(opened.split(split, k).ids) for split in SPLITS}
        for kind, ids in (("train", found["train"] | found["val"]), ("test", found["test"])):
            lines = (tmp_path / UCF_LISTS / f"{kind}list{k + 1:02}.txt").read_text().split("\n")
            assert ids == {line.split()[0] for line in lines if line}
        assert not found["train"] & found["val"]


def test_clips_of_a_video_are_not_divided_between_training_and_validation(small, tmp_path):
    opened = open_dataset(small("ucf101"), data_dir=tmp_path, offline=True)
    assert opened.subsets["all"].groups[:3] == ["ApplyEyeMakeup/g01", "ApplyEyeMakeup/g01", "ApplyEyeMakeup/g02"]
    for k in range(3):
        train, val = (set(opened.split(split, k).groups) for split in ("train", "val"))
        assert len(val) == 2
        assert not train & val


def test_clips_are_sorted_by_class_and_name(small, tmp_path):
    """The order depends on the number of the class, not on the lists, so positions are the same in every fold."""
    spec = small("ucf101")
    lists = tmp_path / UCF_LISTS
    before = open_dataset(spec, data_dir=tmp_path, offline=True).subsets["all"].ids
    for path in lists.glob("t*list*.txt"):
        path.write_text("\n".join(reversed(path.read_text().split("\n"))))
    assert open_dataset(spec, data_dir=tmp_path, offline=True).subsets["all"].ids == before


def test_clips_are_found_where_a_copy_spells_them_otherwise(small, tmp_path):
    """The lists have v_HandStandPushups, and some archives v_HandstandPushups, which most file systems tell apart."""
    spec = small("ucf101")
    expected = _by_value(open_dataset(spec, data_dir=tmp_path, offline=True).subsets["all"])
    for path in (tmp_path / "ucf101" / "UCF-101" / "HandstandPushups").iterdir():
        path.rename(path.with_name(path.name.replace("HandStand", "Handstand")))
    assert _by_value(open_dataset(spec, data_dir=tmp_path, offline=True).subsets["all"]) == expected


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_labels_of_voc_follow_from_its_annotations(subset, small, tmp_path):
    """A class is shown if one of its objects is not difficult. It is ignored if all of its objects are difficult."""
    images = open_dataset(small("voc2007"), data_dir=tmp_path, offline=True).subsets[subset]
    theirs = torchvision.datasets.VOCDetection(tmp_path, year="2007", image_set=subset)
    for (_, label), (_, target) in zip(images, theirs, strict=True):
        objects = [(entry["name"], int(entry["difficult"])) for entry in target["annotation"]["object"]]
        expected = [
            1 if (name, 0) in objects else IGNORED if (name, 1) in objects else 0 for name in images.class_names
        ]
        assert label.tolist() == expected


def test_some_class_of_the_miniature_is_only_difficult_in_an_image(small, tmp_path):
    """Otherwise, the test above would not check ignored labels."""
    labels = open_dataset(small("voc2007"), data_dir=tmp_path, offline=True).subsets["train"].labels
    assert {value: int((labels == value).sum()) for value in (1, 0, -1)} == {1: 20, 0: 97, -1: 3}


def test_voc_without_its_test_archive_is_not_here(tmp_path):
    spec = _row("voc2007", own_layouts.voc2007(tmp_path, sets=("train", "val")))
    with pytest.raises(DatasetMissingError, match=r"voc2007 is not in .* and --offline forbids .*VOCtest_06-Nov-2007"):
        open_dataset(spec, data_dir=tmp_path, offline=True)


def _pack_voc(tmp_path):
    """Write VOC with the test images in an archive; return a row with dead addresses, and the path of the archive."""
    written = own_layouts.voc2007(tmp_path / "made", sets=("test",))
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "VOCtest_06-Nov-2007.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "made" / "VOCdevkit", arcname="VOCdevkit")
    written |= own_layouts.voc2007(tmp_path / "data", sets=("train", "val"))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    downloads = tuple((f"http://127.0.0.1:9/{k}.tar", md5) for k in range(2))
    spec = _row("voc2007", written)
    return replace(spec, sources=(replace(spec.sources[0], downloads=downloads),)), archive


def test_voc_gets_only_the_archive_that_is_missing(tmp_path):
    """Training and validation images are there, so their archive is not requested. Its address is dead."""
    spec, _ = _pack_voc(tmp_path)
    opened = open_dataset(spec, data_dir=tmp_path / "data")
    assert opened.subsets["test"].ids == [f"{3 * i + 2:06}" for i in range(6)]


def test_voc_that_cannot_be_downloaded_says_why(tmp_path):
    spec, archive = _pack_voc(tmp_path)
    archive.unlink()
    with pytest.raises(DatasetMissingError, match=r"voc2007 .* could not be downloaded \(could not download .*refused"):
        open_dataset(spec, data_dir=tmp_path / "data")


def test_tracks_of_signs_are_not_divided_between_training_and_validation(small, tmp_path):
    opened = open_dataset(small("gtsrb_39209"), data_dir=tmp_path, offline=True)
    train, val = opened.split("train"), opened.split("val")
    assert (len(train), len(val)) == (18, 6)
    assert not set(train.groups) & set(val.groups)
    assert train.ids[0].endswith(f"{train.groups[0]}_00000.ppm")


def test_signs_of_the_test_part_have_the_labels_of_the_table(small, tmp_path):
    images = open_dataset(small("gtsrb_39209"), data_dir=tmp_path, offline=True).subsets["test"]
    with (tmp_path / "gtsrb" / "GT-final_test.csv").open() as file:
        table = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(file, delimiter=";")]
    names = [key.rpartition("/")[2] for key in images.ids]
    assert list(zip(names, images.labels.tolist(), strict=True)) == table


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("00007/00000_00000.ppm", "00007 is not one of the classes 00000 to 00001; remove it"),
        ("stop/00000_00000.ppm", "stop is not one of the classes 00000 to 00001; remove it"),
        ("00001/notes.txt", r"00001/notes\.txt is not a known type of image"),
        ("00001/sign.ppm", r"the name of .*00001/sign\.ppm does not match"),
    ],
)
def test_what_is_no_training_sign_is_named(path, message, small, tmp_path):
    spec = small("gtsrb_39209")
    file = tmp_path / "gtsrb" / "GTSRB" / "Final_Training" / "Images" / path
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(file, format="ppm")
    with pytest.raises(DatasetError, match=message):
        open_dataset(spec, data_dir=tmp_path, offline=True)
