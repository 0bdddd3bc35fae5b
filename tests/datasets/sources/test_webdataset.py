"""WebDataset shards, compared with what the library webdataset writes and reads, and errors for damaged shards."""

import io
import os
import tarfile
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import braceexpand
import numpy as np
import pytest
import webdataset
from huggingface_hub import constants
from make.dataset_server import copy_without_lists, serve, snapshot_of
from PIL import Image
from webdataset.autodecode import basichandlers
from webdataset.tariterators import group_by_keys, tar_file_expander

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.sources.shard_names import expand_braces
from probe.errors import DatasetError, DatasetMissingError

CLASSES = ["red", "green", "blue"]
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def picture(i, kind="PNG"):
    """Return the image of a sample. Its colour shows the class, and its width shows the number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + i, 5), COLOURS[i % 3]).save(buffer, kind)
    return buffer.getvalue()


def sample(i, **fields):
    return {"__key__": f"s{i:07}", "png": picture(i), "cls": i % 3} | fields


def write_shards(folder, n=12, *, per_shard=5, pattern="%d.tar", samples=None):
    """Write shards with the library, and return the number of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / pattern), maxcount=per_shard, verbose=0) as writer:
        for i in range(n):
            writer.write(samples[i] if samples else sample(i))
        return writer.shard


def write_collection(folder):
    """Write shards in the layout of clip-benchmark/wds_*, and return the folder."""
    for split, n in (("train", 12), ("test", 6)):
        number = write_shards(folder / split, n)
        (folder / split / "nshards.txt").write_text(str(number))
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def check(opened, subsets=("train", "test"), *, class_names=CLASSES):
    """Check that every image of every subset is the one that was written, and has its label."""
    assert tuple(opened.subsets) == subsets
    for subset, images in opened.subsets.items():
        assert len(images) == {"train": 12, "all": 12, "val": 6, "test": 6}[subset]
        assert list(images.class_names) == class_names
        assert images.labels.dtype == np.int64
        for i in range(len(images)):
            image, label = images[i]
            assert (image.size, image.getpixel((0, 0)), label) == ((8 + i, 5), COLOURS[i % 3], i % 3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


# Layouts.


def test_the_layout_of_the_collection_is_opened(folder):
    write_collection(folder)
    opened = open_dataset(f"wds:{folder}", offline=True)
    check(opened)
    assert opened.subsets["train"].ids[6] == "train/1.tar/s0000006"


def test_samples_are_those_that_the_library_reads(folder):
    """Keys, labels and bytes are equal, and in the same order."""
    write_collection(folder)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / "train" / f"{i}.tar").open("rb")) for i in range(3)]
        theirs = list(group_by_keys(tar_file_expander({"url": file.name, "stream": file} for file in files)))
    ours = open_dataset(f"wds:{folder}", offline=True).subsets["train"]
    assert [key.rpartition("/")[2] for key in ours.ids] == [row["__key__"] for row in theirs]
    assert ours.labels.tolist() == [int(row["cls"]) for row in theirs]
    for i, row in enumerate(theirs):
        with Image.open(io.BytesIO(row["png"])) as image:
            assert np.array_equal(ours[i][0], image.convert("RGB"))


def test_shards_go_by_their_numbers(folder):
    """11.tar comes after 2.tar, so samples are in the order in which they were written."""
    write_shards(folder, 12, per_shard=1)
    check(open_dataset(f"wds:{folder}", offline=True), ("all",), class_names=["0", "1", "2"])


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_folder_for_validation_is_used(name, folder):
    write_collection(folder)
    write_shards(folder / name, 6)
    check(open_dataset(f"wds:{folder}", offline=True), ("train", "val", "test"))


@pytest.mark.parametrize("rest", ["", "/{0..2}.tar", "/{0,1,2}.tar", "?all=.", "?all={0..2}.tar"])
def test_a_flat_folder_and_names_of_shards_are_divided(rest, folder):
    write_shards(folder)
    opened = open_dataset(f"wds:{folder}{rest}", offline=True)
    check(opened, ("all",), class_names=["0", "1", "2"])
    assert [len(opened.split(name)) for name in ("train", "val", "test")] == [6, 3, 3]
    assert opened.subsets["all"].ids[0] == "0.tar/s0000000"


@pytest.mark.parametrize(
    "rest",
    [
        "/a-{train,test}-{00..01}.tar",
        "?train=a-train-{00..01}.tar&test=a-test-{00..01}.tar",
    ],
)
def test_parts_are_told_apart_by_the_names_of_their_shards(rest, folder):
    write_shards(folder, 12, per_shard=6, pattern="a-train-%02d.tar")
    write_shards(folder, 6, per_shard=3, pattern="a-test-%02d.tar")
    check(open_dataset(f"wds:{folder}{rest}", offline=True), class_names=["0", "1", "2"])


@pytest.mark.parametrize(
    ("train", "test", "rest"),
    [
        ("Training", "Testing", ""),
        ("train", "val", ""),
        ("train", "validation", "?test=val"),
        ("TRAIN", "EVAL", "?train=train"),
        ("train", "val", "/{train,val}/{0..1}.tar"),
        ("Train", "Test", "/{Train,Test}/{0..1}.tar"),
    ],
)
def test_folders_of_parts_go_by_all_usual_names(train, test, rest, folder):
    write_shards(folder / train, 12, per_shard=6)
    write_shards(folder / test, 6, per_shard=3)
    check(open_dataset(f"wds:{folder}{rest}", offline=True), class_names=["0", "1", "2"])


def test_a_validation_folder_that_is_named_for_testing_is_not_for_validation(folder):
    write_collection(folder)
    write_shards(folder / "val", 6)
    opened = open_dataset(f"wds:{folder}?test=val", offline=True)
    check(opened)
    assert opened.subsets["test"].ids[0] == "val/0.tar/s0000000"


@pytest.mark.parametrize(
    ("names", "rest", "message"),
    [
        (
            ("train", "val", "valid"),
            "",
            "has 'val', 'valid', which all mean val; rename or merge them, or cho",
        ),
        (("train", "holdout"), "", r"no test subset; say which split of holdout, train it is with \?test=SPLIT"),
        (("train", "holdout"), "/{train,holdout}/{0..2}.tar", "'holdout' in the braces is not a usual name of train"),
        (("train", "Train"), "/{train,Train}/{0..2}.tar", "has 'train', 'Train', which all mean train"),
    ],
)
def test_folders_that_do_not_make_parts_are_named(names, rest, message, folder):
    for name in names:
        write_shards(folder / name)
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"wds:{folder}{rest}")


def test_options_name_the_folders_of_parts(folder):
    write_collection(folder).joinpath("test").rename(folder / "holdout")
    check(open_dataset(f"wds:{folder}?test=holdout&train=train", offline=True))


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        ("{0..1}.tar", "{1..2}.tar", r"1\.tar"),
        ("train", "./train", "train"),
        (".", "{0..1}.tar", r"0\.tar"),
        ("train/{0..1}.tar", "train", "train"),
    ],
)
def test_a_shard_in_two_parts_is_named(train, test, shared, folder):
    write_shards(folder)
    write_shards(folder / "train")
    with pytest.raises(DatasetError, match=f"{shared} is in train and in test; name it for one of them"):
        open_dataset(f"wds:{folder}?train={train}&test={test}")


def test_every_way_to_say_a_path_is_one_dataset(folder, monkeypatch):
    write_shards(folder)
    monkeypatch.chdir(folder)
    assert get_dataset("wds:.") == get_dataset(f"wds:{folder}/../shards") == get_dataset(f"wds:{folder}")
    assert get_dataset("wds:{0..2}.tar") == get_dataset(f"wds:{folder}/{{0..2}}.tar")


@pytest.mark.parametrize(
    "pattern", ["a", "{0..12}", "{08..10}-{a,b}", "x{000..012}y{,z}", "{9..11}", "{train,test}/{0..1}"]
)
def test_braces_are_those_of_the_library(pattern):
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "nothing follows the colon of 'wds:'; write one of"),
        ("{0}/nowhere", "no folder at .*nowhere, and no repository ORG/NAME; check the name"),
        ("name", "no folder at name, and no repository ORG/NAME"),
        ("org/name/{{0..3.tar", r"has braces of an unknown form; write \{000..012\} or \{a,b\}, not nested"),
        ("org/name/{{x}}.tar", "has braces of an unknown form"),
        ("org/name/{{a,{{0..3}}}}.tar", "has braces of an unknown form"),
        ("org/name/{{3..0}}.tar", "counts down from 3 to 0; write the smaller number first"),
        ("org/name/{{a/{{0..3}},b/0}}.tar", "has braces of an unknown form"),
        (
            "org/name/{{a,b}}/{{0..3}}.tar",
            r"names shards in several folders; name the folder of each subset with \?train=\.\.\.&test=",
        ),
        ("{0}/{{0..3}}.tar.gz", "images cannot be read directly from compressed shards; unpack them to .tar"),
        ("ftp://host/{{0..3}}.tar", "is not an address of shards; write https://HOST/FOLDER/, or an address of"),
        ("https://host/folder", "is not an address of shards"),
        (
            "https://host/0.tar?download=true",
            "has the option 'download'; the options are metric, train, val, test, all",
        ),
        ("{0}?revision=main", "has the option 'revision'; the options are metric, train, val, test, all"),
        ("org/name?splits=a", "has the option 'splits'; the options are revision, metric, train, val, test, all"),
        ("org/name?test=train", "takes the split 'train' for train and for test"),
        ("{0}", r"no shards in .*; put \*\.tar files there"),
    ],
)
def test_a_name_that_says_nothing_is_refused(rest, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        get_dataset(f"wds:{rest.format(tmp_path)}")


def test_folders_whose_names_say_nothing_are_asked_for(folder):
    for name in ("a", "b"):
        write_shards(folder / name)
    with pytest.raises(DatasetError, match=r"has shards in a, b; say which split each is with \?train=\.\.\.&test="):
        get_dataset(f"wds:{folder}")


def test_series_of_shards_are_not_mixed(folder):
    """Otherwise, a training and a test set in one folder would become one set."""
    for name in ("train", "val"):
        write_shards(folder, pattern=f"imagenet-{name}-%06d.tar")
    with pytest.raises(
        DatasetError, match=r"several series, imagenet-train-\*\.tar, imagenet-val-\*\.tar; put the shards of each"
    ):
        open_dataset(f"wds:{folder}", offline=True)


# Labels and classes.


def test_labels_may_be_in_json(folder):
    samples = [sample(i, json={("label", "cls")[i % 2]: i % 3}) for i in range(12)]
    for row in samples:
        del row["cls"]
    write_shards(folder, samples=samples)
    check(open_dataset(f"wds:{folder}", offline=True), ("all",), class_names=["0", "1", "2"])


def _write_tar(path, members):
    """Write a tar file from names and contents, or from entries of any kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _members(n=12, **changes):
    """Return the files of n samples. `changes` are new contents by name, with `_` for the dot; None removes a file."""
    members = {f"s{i}.{ending}": content for i in range(n) for ending, content in
               (("png", picture(i)), ("cls", b"%d" % (i % 3)))}  # fmt: skip
    for name, content in changes.items():
        members[name.replace("_", ".")] = content
    return [(name, content) for name, content in members.items() if content is not None]


def _open(folder, members):
    _write_tar(folder / "0.tar", members)
    return open_dataset(f"wds:{folder}", offline=True)


@pytest.mark.parametrize("content", [b"-1", b"one", b"", b"1.5", b"[1]", b"9" * 30])
def test_a_label_that_is_no_number_is_named(content, folder):
    with pytest.raises(DatasetError, match=r"0\.tar: expected a number >= 0 as label in s4\.cls, got '.*'; correct it"):
        _open(folder, _members(s4_cls=content))


@pytest.mark.parametrize("content", [b"{}", b'{"label": "cat"}', b'{"label": true}', b"{", b"[" * 100_000])
def test_a_json_without_a_label_is_named(content, folder):
    with pytest.raises(
        DatasetError, match=r"0\.tar: expected a number >= 0 as label in s4\.json, got '.*'; correct it"
    ):
        _open(folder, _members(s4_cls=None, s4_json=content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s4_png": None}, r"the sample 's4' has no image in its files \.cls; it needs one image and its label as"),
        ({"s4_cls": None}, r"the sample 's4' has no label in its files \.png; it needs"),
        ({"s4_cls": None, "s4_txt": b"a cat"}, r"the sample 's4' has no label in its files \.png, \.txt; it needs"),
        ({"s4_jpg": picture(4, "JPEG")}, r"the sample 's4' has several images in its files \.png, \.cls, \.jpg"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(changes, message, folder):
    with pytest.raises(DatasetError, match=message):
        _open(folder, _members(**changes))


def test_samples_with_dots_in_their_names_are_told_apart_from_missing_images(folder):
    """The library webdataset would read all 500 samples as one. The message gives the reason, but not all names."""
    members = [(f"img_v1.0_{i:06}.{end}", b"0") for i in range(500) for end in ("png", "cls")]
    with pytest.raises(DatasetError) as caught:
        _open(folder, members)
    message = str(caught.value)
    assert "the sample 'img_v1' has no image in its files .0_000000.png, .0_000000.cls, " in message
    assert message.endswith(
        "and 992 more; the name of a sample ends at its first dot: write 'img_v1_0_000000.png' and so on"
    )


def test_a_sample_that_is_there_twice_is_named(folder):
    with pytest.raises(DatasetError, match=r"0\.tar has 's4\.png' twice; give each sample a name of its own"):
        _open(folder, [*_members(), ("s4.png", picture(4)), ("s4.cls", b"1")])


def test_the_same_name_in_two_shards_is_two_samples(folder):
    for shard in range(2):
        _write_tar(folder / f"{shard}.tar", _members(6))
    images = open_dataset(f"wds:{folder}", offline=True).subsets["all"]
    assert (len(images), len(set(images.ids))) == (12, 12)


def test_other_files_of_a_sample_are_passed_over(folder):
    """Captions and masks are skipped. As in the library, so are files whose names do not belong to a sample."""
    members = [*_members(), ("s4.txt", b"a caption"), ("s4.seg.png", picture(1)), ("README", b"x"), (".hidden", b"x")]
    check(_open(folder, members), ("all",), class_names=["0", "1", "2"])


def test_endings_may_be_in_capitals_and_names_in_folders(folder):
    members = [(f"a.b/{name.replace('png', 'PNG')}", content) for name, content in _members()]
    opened = _open(folder, members)
    check(opened, ("all",), class_names=["0", "1", "2"])
    assert opened.subsets["all"].ids[3] == "0.tar/a.b/s3"


def test_a_label_without_a_name_is_refused(folder):
    write_collection(folder)
    (folder / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(
        DatasetError,
        match=r"train: train/0\.tar/s0000002 has the label 2, and there are 2 classes; correct it, or name",
    ):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_label_that_training_lacks_is_refused(folder):
    write_shards(folder / "train", 12)
    write_shards(folder / "test", 6, samples=[sample(i, cls=i % 4) for i in range(6)])
    with pytest.raises(DatasetError, match=r"test: test/0\.tar/s0000003 has the label 3, and there are 3 classes"):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_label_beyond_reason_does_not_fill_the_memory(folder):
    with pytest.raises(DatasetError, match="class '2000000000' has too few images to hold out a split"):
        _open(folder, _members(s4_cls=b"2000000000"))


def test_ids_with_gaps_are_numbered_and_keep_their_names(folder):
    ids = [901243, 2000, 145563]
    write_shards(folder / "train", 12, samples=[sample(i, cls=ids[i % 3]) for i in range(12)])
    write_shards(folder / "test", 6, samples=[sample(i, cls=ids[0]) for i in range(6)])
    opened = open_dataset(f"wds:{folder}", offline=True)
    assert opened.subsets["train"].class_names == opened.subsets["test"].class_names == ["2000", "145563", "901243"]
    assert opened.subsets["train"].labels.tolist() == [2, 0, 1] * 4
    assert opened.subsets["test"].labels.tolist() == [2] * 6


@pytest.mark.parametrize(("ending", "content"), [("cls", b"1.0\n"), ("cls", b"1."), ("json", b"1.0"), ("json", b"[1]")])
def test_whole_numbers_may_be_written_as_floats(ending, content, folder):
    images = _open(folder, _members(**{"s4_cls": None, f"s4_{ending}": content})).subsets["all"]
    assert images.labels.tolist() == [0, 1, 2] * 4


def _as_npy(label):
    buffer = io.BytesIO()
    np.save(buffer, label)
    return buffer.getvalue()


TABLE = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]] * 3


def _write_multilabel(folder, labels, dtype="float32"):
    """Write shards as CLIP_benchmark's `convert_dataset(..., multilabel=True)` does, with float32 arrays."""
    for split, n in (("train", 12), ("test", 6)):
        samples = [
            {"__key__": f"s{i:07}", "webp": picture(i, "WEBP"), "npy": np.array(labels[i], dtype)} for i in range(n)
        ]
        write_shards(folder / split, n, samples=samples)
        (folder / split / "nshards.txt").write_text("3\n" if split == "train" else "2\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\n")
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "dataset_type.txt").write_text("multilabel\n")


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_several_labels_as_clip_benchmark_writes_them(dtype, folder):
    """The labels equal the labels that CLIP_benchmark reads with webdataset's decoder."""
    _write_multilabel(folder, TABLE, dtype)
    opened = open_dataset(f"wds:{folder}", offline=True)
    assert opened.spec.metric == "voc2007_11pt_map"
    for subset, num_shards in (("train", 3), ("test", 2)):
        with ExitStack() as stack:
            files = [stack.enter_context((folder / subset / f"{i}.tar").open("rb")) for i in range(num_shards)]
            rows = group_by_keys(tar_file_expander({"url": file.name, "stream": file} for file in files))
            theirs = [basichandlers("npy", row["npy"]) for row in rows]
        images = opened.subsets[subset]
        assert (images.labels.dtype, images.class_names) == (np.int64, CLASSES)
        assert np.array_equal(images.labels, np.array(theirs))
    assert len(opened.split("val"))


def test_several_labels_need_a_metric_that_can_score_them(folder):
    _write_multilabel(folder, TABLE)
    with pytest.raises(
        DatasetError, match="several labels, which the metric accuracy does not support; use voc2007_11pt"
    ):
        open_dataset(f"wds:{folder}?metric=accuracy", offline=True)


def test_one_hot_labels_are_one_label_under_the_usual_metric(folder):
    _write_multilabel(folder, np.eye(3)[[0, 1, 2] * 4])
    (folder / "dataset_type.txt").unlink()
    assert open_dataset(f"wds:{folder}", offline=True).subsets["train"].labels.tolist() == [0, 1, 2] * 4


def test_lists_of_classes_in_json_are_several_labels(folder):
    shows = [[0], [1, 2], [], [2]] * 3
    samples = [sample(i, json={"label": shows[i]}) for i in range(12)]
    for row in samples:
        del row["cls"]
    write_shards(folder, samples=samples)
    images = open_dataset(f"wds:{folder}?metric=voc2007_11pt_map", offline=True).subsets["all"]
    assert images.labels.tolist() == [[int(k in classes) for k in range(3)] for classes in shows]


@pytest.mark.parametrize(
    "label",
    [np.array(0.5), np.array([-1, 0, 1]), np.zeros((2, 2)), np.array(["a"]), np.array([None]), np.array([np.nan])],
)
def test_an_array_that_is_no_label_is_named(label, folder):
    with pytest.raises(DatasetError, match=r"0\.tar: expected a number >= 0 as label in s4\.npy, got '.*'; correct it"):
        _open(folder, _members(s4_cls=None, s4_npy=_as_npy(label)))


def test_a_label_that_is_longer_than_there_are_classes_is_named(folder):
    _write_multilabel(folder, [[1, 1, 0]] * 12)
    (folder / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DatasetError, match="has 3 labels, with a class twice, and there are 2 classes; give the num"):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_collection_of_captions_is_named(folder):
    write_collection(folder)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(DatasetError, match=r"dataset_type\.txt says retrieval: images with captions have"):
        get_dataset(f"wds:{folder}")


def test_names_of_classes_are_in_composed_form(folder):
    write_collection(folder)
    (folder / "classnames.txt").write_text("cafe\u0301\nthe\u0301\neau\n", encoding="utf-8")
    assert open_dataset(f"wds:{folder}", offline=True).subsets["train"].class_names == ["caf\xe9", "th\xe9", "eau"]


# Shards.


def test_a_gap_among_shards_is_refused(folder):
    """If nothing states the number of shards, a gap is an error. The user can name the shards to use."""
    write_shards(folder, per_shard=3)
    (folder / "2.tar").unlink()
    with pytest.raises(DatasetError, match="has shards up to number 3, but not 2; get it, or name the shards to use"):
        open_dataset(f"wds:{folder}", offline=True)
    assert len(open_dataset(f"wds:{folder}/{{0,1,3}}.tar", offline=True).subsets["all"]) == 9


def test_shards_may_be_called_after_dates(folder):
    _write_tar(folder / "a-20240131.tar", _members(6))
    _write_tar(folder / "a-20250228.tar", _members(6))
    assert len(open_dataset(f"wds:{folder}", offline=True).subsets["all"]) == 12


def test_fewer_shards_than_are_said_to_be_are_refused(folder):
    write_collection(folder)
    (folder / "train" / "2.tar").unlink()
    with pytest.raises(DatasetError, match=r"train/nshards\.txt says 3 shards, and there are 2; get them again"):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_number_of_shards_that_is_none_is_named(folder):
    write_collection(folder)
    (folder / "train" / "nshards.txt").write_text("<html>")
    with pytest.raises(DatasetError, match=r"nshards\.txt has '<html>' instead of the number of shards"):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_shard_of_a_pattern_that_is_not_there_is_named(folder):
    write_shards(folder)
    with pytest.raises(DatasetMissingError, match=r"no shard at .*/3\.tar; put it there, or correct the pattern"):
        open_dataset(f"wds:{folder}/{{0..3}}.tar", offline=True)


@pytest.mark.parametrize("kept", ["half", "to a header", "to the end of a member", "first byte", "nothing"])
def test_a_shard_that_is_cut_short_is_named(kept, folder):
    """Python's tarfile takes a shard that was cut between two files for complete."""
    write_shards(folder, per_shard=12)
    path = folder / "0.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    content = path.read_bytes()
    size = {
        "half": len(content) // 2,
        "to a header": last.offset + 100,
        "to the end of a member": last.offset,
        "first byte": 1,
        "nothing": 0,
    }[kept]
    path.write_bytes(content[:size])
    with pytest.raises(DatasetError, match=r"0\.tar is not a complete tar file \(.*\); download it again"):
        open_dataset(f"wds:{folder}", offline=True)


@pytest.mark.parametrize("what", ["a header", "behind the end", "all"])
def test_a_damaged_shard_is_named(what, folder):
    """Python's tarfile takes a damaged header for the end of the file."""
    write_shards(folder, per_shard=12)
    path = folder / "0.tar"
    with tarfile.open(path) as tar:
        place = {"a header": tar.getmembers()[6].offset, "behind the end": -1, "all": 0}[what]
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content if what != "all" else b"no tar file" * 100)
    with pytest.raises(DatasetError, match=r"0\.tar is not a complete tar file \(.*\); download it again"):
        open_dataset(f"wds:{folder}", offline=True)


def test_a_shard_that_shrank_since_it_was_opened_is_named(folder):
    write_shards(folder, per_shard=12)
    images = open_dataset(f"wds:{folder}", offline=True).subsets["all"]
    os.truncate(folder / "0.tar", 5_000)
    with pytest.raises(DatasetError, match=r"\(0\.tar/s0000011\) cannot be read \(its shard was truncated\)"):
        images[11]


def _special(kind, target="s1.png"):
    info = tarfile.TarInfo("s99.png")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("/etc/s99.png", "that would be written outside of its folder; do not use it"),
        ("../s99.png", "that would be written outside of its folder; do not use it"),
        (_special(tarfile.SYMTYPE), "has 's99.png', which is not a regular file; do not use it"),
        (_special(tarfile.LNKTYPE), "has 's99.png', which is not a regular file; do not use it"),
        (_special(tarfile.CHRTYPE), "has 's99.png', which is not a regular file; do not use it"),
        (_special(tarfile.FIFOTYPE), "has 's99.png', which is not a regular file; do not use it"),
    ],
)
def test_a_shard_that_reaches_out_is_refused(member, message, folder):
    with pytest.raises(DatasetError, match=message):
        _open(folder, [*_members(), (member, b"")])


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar"])
def test_a_compressed_shard_says_to_unpack_it(name, folder):
    """A compressed shard is also recognised if it has the name of an uncompressed shard."""
    folder.mkdir()
    with tarfile.open(folder / name, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("s0.png"), io.BytesIO())
    with pytest.raises(DatasetError, match="images cannot be read directly from compressed shards; unpack them to"):
        open_dataset(f"wds:{folder}", offline=True)


@pytest.mark.parametrize("content", [b"no image", b"", picture(4)[:50]])
def test_an_image_that_cannot_be_read_is_named(content, folder):
    opened = _open(folder, _members(s4_png=content))
    with pytest.raises(DatasetError, match=r"all: image 4 \(0\.tar/s4\) cannot be read"):
        opened.subsets["all"][4]


def test_an_image_that_would_fill_the_memory_is_refused(folder, monkeypatch):
    """Pillow's limit of pixels, a guard against decompression bombs, also applies to images in shards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19)
    with pytest.raises(DatasetError, match=r"cannot be read \(it has [0-9]+ pixels, and the limit is"):
        _open(folder, _members())


def test_the_orientation_of_an_image_is_passed_over(folder):
    """The reference opens files with Pillow and calls `convert("RGB")`, which ignores the orientation."""
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: rotated by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "JPEG", exif=rotated)
    assert _open(folder, _members(s4_png=None, s4_jpg=buffer.getvalue())).subsets["all"][4][0].size == (9, 7)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_worker_processes_read_the_same_images(start, folder):
    write_collection(folder)
    images = open_dataset(f"wds:{folder}", offline=True).split("train")
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        found, label = pool.submit(images.__getitem__, 4).result()
    assert (found.tobytes(), label) == (images[4][0].tobytes(), images[4][1])


# A server.


class _Server(SimpleHTTPRequestHandler):
    """Server of a folder that can resume a download, and that ends the first response for a shard after `cut` bytes."""

    def __init__(self, log, *args, cut=None, **settings):
        self.log, self.cut = log, cut
        super().__init__(*args, **settings)

    def log_message(self, *_):
        """Log nothing to stderr."""

    def do_GET(self):
        path = self.translate_path(self.path)
        self.log.append(self.path + (f" {self.headers['Range']}" if self.headers["Range"] else ""))
        if not os.path.isfile(path):  # noqa: PTH113 - the base class has paths as text
            self.send_error(404)
            return
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            content = file.read()
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = self.cut if self.cut and not start and path.endswith(".tar") else len(content)
        self.wfile.write(content[start:end])


@pytest.fixture
def served(tmp_path):
    """Return a context manager that serves the folder `served/`, and yields its address and the requests."""

    @contextmanager
    def serve_it(**settings):
        log = []
        handler = partial(_Server, log, directory=str(tmp_path), **settings)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/served/", log
        finally:
            server.shutdown()
            server.server_close()

    return serve_it


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.mark.parametrize("rest", ["", "{train,test}/{0..1}.tar", "?train=train/{0..1}.tar&test=test"])
def test_shards_of_a_server_are_fetched_once(rest, served, data_dir, tmp_path):
    for split, n in (("train", 12), ("test", 6)):
        number = write_shards(tmp_path / "served" / split, n, per_shard=n // 2)
        (tmp_path / "served" / split / "nshards.txt").write_text(f"{number}\n")
    (tmp_path / "served" / "classnames.txt").write_text("\n".join(CLASSES))
    with served() as (address, log):
        spec = get_dataset(f"wds:{address}{rest}")
        assert not log
        with pytest.raises(DatasetMissingError, match=r"--offline forbids the download; run without --offline, or put"):
            open_dataset(spec, data_dir=data_dir, offline=True)
        check(open_dataset(spec, data_dir=data_dir))
        assert len(log) == len(set(log))
        log.clear()
        check(open_dataset(spec, data_dir=data_dir))
    check(open_dataset(spec, data_dir=data_dir, offline=True))
    assert not log
    assert not list(data_dir.rglob("*.part"))


def test_shards_of_two_addresses_stay_apart(served, data_dir, tmp_path):
    """The folders at both addresses have the same name."""
    for name, colour in (("a", 0), ("b", 1)):
        samples = [sample(i, png=picture(colour)) for i in range(12)]
        write_shards(tmp_path / "served" / name / "shards", samples=samples)
    with served() as (address, _):
        found = [
            open_dataset(f"wds:{address}{name}/shards/{{0..2}}.tar", data_dir=data_dir).subsets["all"][0][0]
            for name in ("a", "b")
        ]
    assert [image.getpixel((0, 0)) for image in found] == COLOURS[:2]


def test_a_fetch_that_broke_off_is_resumed(served, data_dir, tmp_path):
    write_shards(tmp_path / "served", per_shard=12)
    size = (tmp_path / "served" / "0.tar").stat().st_size
    with served(cut=5_000) as (address, log):
        with pytest.raises(
            DatasetMissingError,
            match=rf"could not download {address}0\.tar .* run again to resume the download, or put",
        ):
            open_dataset(f"wds:{address}0.tar", data_dir=data_dir)
        check(open_dataset(f"wds:{address}0.tar", data_dir=data_dir), ("all",), class_names=["0", "1", "2"])
        assert log[-1] == "/served/0.tar bytes=5000-"
    (kept,) = data_dir.rglob("0.tar")
    assert kept.stat().st_size == size


def test_what_is_there_of_another_file_is_begun_again(served, data_dir, tmp_path):
    """A partial file that is longer than the shard cannot be resumed."""
    write_shards(tmp_path / "served", per_shard=12)
    with served() as (address, _):
        open_dataset(f"wds:{address}0.tar", data_dir=data_dir)
        (kept,) = data_dir.rglob("0.tar")
        kept.with_name("0.tar.part").write_bytes(b"x" * 100_000)
        kept.unlink()
        check(open_dataset(f"wds:{address}0.tar", data_dir=data_dir), ("all",), class_names=["0", "1", "2"])


def test_a_file_of_a_server_that_is_no_shard_is_not_kept(served, data_dir, tmp_path):
    """A server can send an HTML page instead of the shard, such as a page to log in."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "0.tar").write_bytes(b"<html>" * 1000)
    with served() as (address, _), pytest.raises(DatasetError, match=rf"{address}0\.tar is not a complete shard"):
        open_dataset(f"wds:{address}0.tar", data_dir=data_dir)
    assert not list(data_dir.rglob("0.tar*t"))
    assert not list(data_dir.rglob("*.part"))


def test_a_shard_that_a_server_does_not_have_is_named(served, data_dir, tmp_path):
    write_shards(tmp_path / "served")
    with (
        served() as (address, _),
        pytest.raises(DatasetMissingError, match=rf"could not download {address}3\.tar .*404"),
    ):
        open_dataset(f"wds:{address}{{0..3}}.tar", data_dir=data_dir)


def test_a_server_that_does_not_answer_is_named(data_dir):
    with pytest.raises(DatasetMissingError, match=r"could not download http://127\.0\.0\.1:9/"):
        open_dataset("wds:http://127.0.0.1:9/a/", data_dir=data_dir)  # no server listens on this port, `discard`


def test_a_name_that_climbs_out_of_the_data_folder_is_refused(data_dir, tmp_path):
    with pytest.raises(DatasetError, match="would be written outside of its folder"):
        open_dataset("wds:http://127.0.0.1:9/a/?all=../../x.tar", data_dir=data_dir)
    assert not (tmp_path / "x.tar").exists()


# The hub.


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """Yield a folder of repositories, and the local hub that serves it."""
    root = tmp_path / "repositories"
    root.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve(root) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield root, running


def test_a_repository_of_the_collection_is_fetched_once(repositories):
    root, hub = repositories
    write_collection(root / "org" / "wds_small")
    with pytest.raises(DatasetMissingError, match=r"/datasets/org/wds_small .*--offline forbids the download"):
        open_dataset("wds:org/wds_small", offline=True)
    assert not hub.requests
    check(open_dataset("wds:org/wds_small"))
    hub.requests.clear()
    check(open_dataset("wds:org/wds_small", offline=True))
    assert not hub.requests


def test_other_shards_of_a_repository_are_not_fetched(repositories):
    root, hub = repositories
    folder = root / "org" / "flat"
    write_shards(folder, pattern="a-train-%02d.tar")
    write_shards(folder, 6, pattern="a-val-%02d.tar")
    write_shards(folder / "more", 3)
    check(open_dataset("wds:org/flat?train=a-train-{00..02}.tar&test=a-val-{00..01}.tar"), class_names=["0", "1", "2"])
    assert not [file for file in hub.files() if file.startswith("more/")]
    check(open_dataset("wds:org/flat/a-train-{00..02}.tar", offline=True), ("all",), class_names=["0", "1", "2"])


def test_a_repository_laid_out_in_another_way_says_where_shards_are(repositories):
    root, _ = repositories
    write_shards(root / "org" / "other" / "a")
    write_shards(root / "org" / "other")
    with pytest.raises(
        DatasetMissingError, match=r"has no shards train; there are some in \., a: write \?train=FOLDER"
    ):
        open_dataset("wds:org/other")
    check(open_dataset("wds:org/other?all=."), ("all",), class_names=["0", "1", "2"])


@pytest.mark.parametrize("list_is_kept", [True, False])
def test_a_repository_that_is_here_in_part_is_completed(list_is_kept, repositories, tmp_path, monkeypatch):
    """The client's list of files shows what is missing. Without the list, `nshards.txt` does."""
    root, _ = repositories
    folder = write_collection(root / "org" / "wds_small")
    check(open_dataset("wds:org/wds_small"))
    (snapshot_of(tmp_path / "hub", "org/wds_small", folder) / "train" / "1.tar").unlink()
    if not list_is_kept:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copy_without_lists(tmp_path / "hub")))
    with pytest.raises(DatasetMissingError):
        open_dataset("wds:org/wds_small", offline=True)
    check(open_dataset("wds:org/wds_small"))


def test_a_row_of_the_catalogue_opens_its_repository(repositories):
    root, _ = repositories
    write_collection(root / "clip-benchmark" / "wds_cars")
    spec = get_dataset("stanford_cars")
    subsets = tuple(replace(subset, size={"train": 12, "test": 6}[subset.name]) for subset in spec.subsets)
    sources = tuple(source for source in spec.sources if source.form == "webdataset")
    assert sources
    check(open_dataset(replace(spec, subsets=subsets, sources=sources, num_classes=3)))
