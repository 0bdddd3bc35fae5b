"""Fingerprints, which show that images were replaced under the same names."""

import io
import os
import tarfile
from functools import partial

import datasets
import numpy as np
import pytest
from PIL import Image

from probe.datasets import fingerprints
from probe.datasets.fingerprints import BLOCK, MAX_BLOCKS, MAX_FILES, of_array, of_files
from probe.datasets.images import SAMPLE, ImageDataset
from probe.datasets.opening import open_dataset


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (1000, 1000))
    return tmp_path


def test_files_count_by_name_size_and_time(folder):
    names = ["a.png", "b.png"]
    before = of_files(folder, names)
    assert of_files(folder, names) == before
    assert of_files(folder, names[::-1]) != before
    os.utime(folder / "b.png", (1000, 1001))
    later = of_files(folder, names)
    assert later != before
    (folder / "b.png").write_bytes(b"123456")
    os.utime(folder / "b.png", (1000, 1001))
    assert of_files(folder, names) != later
    (folder / "b.png").unlink()
    assert of_files(folder, names) not in (before, later)


def _write(path, content):
    """Write a file as a reproducible build does: with a fixed date."""
    path.write_bytes(content)
    os.utime(path, (1000, 1000))


def test_other_contents_of_equal_size_and_date_count(folder):
    names = ["a.png", "b.png"]
    before = of_files(folder, names)
    _write(folder / "b.png", b"12346")
    assert of_files(folder, names) != before
    _write(folder / "b.png", b"12345")
    assert of_files(folder, names) == before


@pytest.mark.parametrize("num_files", [1, 3, 100])
def test_files_of_up_to_their_share_are_read_in_full(tmp_path, num_files, monkeypatch):
    """The fingerprint differs if one byte differs, anywhere in the file."""
    monkeypatch.setattr(fingerprints, "BLOCK", 16)
    size = MAX_BLOCKS // num_files * 16
    names = [f"{i}" for i in range(num_files)]
    for name in names:
        _write(tmp_path / name, bytes(size))
    before = of_files(tmp_path, names)
    for place in (0, size // 3, size - 1):
        content = bytearray(size)
        content[place] = 1
        _write(tmp_path / names[-1], content)
        assert of_files(tmp_path, names) != before


def test_of_a_larger_file_the_first_block_the_last_and_some_between_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "BLOCK", 16)
    size = 4 * MAX_BLOCKS * 16
    found = set()
    for content in (
        bytes(size),
        b"1" + bytes(size - 1),
        bytes(size - 1) + b"1",
        bytes(16) + b"1" * (size - 32) + bytes(16),
    ):
        _write(tmp_path / "shard.tar", content)
        found.add(of_files(tmp_path, ["shard.tar"]))
    assert len(found) == 4


def test_of_many_files_the_first_the_last_and_some_between_are_read(tmp_path):
    names = [f"{i:04}" for i in range(MAX_FILES + 100)]
    for name in names:
        _write(tmp_path / name, b"0")
    before = of_files(tmp_path, names)
    assert of_files(tmp_path, names) == before
    for replaced in (names[:1], names[-1:], names[1:-1:20]):  # 57 files in between: one in twenty
        for name in replaced:
            _write(tmp_path / name, b"1")
        assert of_files(tmp_path, names) != before
        for name in replaced:
            _write(tmp_path / name, b"0")
    assert of_files(tmp_path, names) == before


def test_no_more_than_a_bounded_number_of_files_and_bytes_is_read(tmp_path, monkeypatch):
    """A dataset of 1.28 million images must not be read completely to find its cached features."""
    read = []
    monkeypatch.setattr(fingerprints, "_read_blocks", lambda path, blocks: read.append(len(blocks)) or b"")
    monkeypatch.setattr(fingerprints, "_size_and_date", lambda path: (100 * BLOCK, 0))
    for num_files in (1, 2, 1000, 100_000):
        read.clear()
        of_files(tmp_path, [str(i) for i in range(num_files)])
        assert min(num_files, 1000) <= len(read) <= MAX_FILES
        assert sum(read) <= MAX_BLOCKS
        assert min(read) >= 3


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "locked"])
def test_what_cannot_be_read_counts_as_empty(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(path)
    elif kind == "locked":
        _write(path, b"1")
        path.chmod(0)
    assert of_files(tmp_path, ["a.png"]) == of_files(tmp_path, ["a.png"])


def _replace_folder(top, seed):
    for i, name in enumerate(("train/a/0", "train/a/1", "train/b/2", "train/b/3", "test/a/4", "test/b/5")):
        path = top / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, _picture(seed + i))


def _replace_shards(top, seed):
    for split in ("train", "test"):
        (top / split).mkdir(parents=True, exist_ok=True)
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            for i in range(4):
                for name, content in ((f"{i}.bmp", _picture(seed + i)), (f"{i}.cls", b"%d" % (i // 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        _write(top / split / "0.tar", shard.getvalue())


def _replace_parquet(top, seed):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    top.mkdir(exist_ok=True)
    for split in ("train", "test"):
        images = [{"bytes": _picture(seed + i), "path": None} for i in range(4)]
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 0, 1, 1]}, features=features)
        rows.to_parquet(top / f"{split}.parquet")
        os.utime(top / f"{split}.parquet", (1000, 1000))


def _picture(seed):
    """Return an image file without compression, so that all files have the same size."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(file, "BMP")
    return file.getvalue()


FORMS = {
    "folder": ("folder:", _replace_folder),
    "hf folder": ("hf:", _replace_folder),
    "hf parquet": ("hf:", _replace_parquet),
    "shards": ("wds:", _replace_shards),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_that_a_reproducible_build_replaces_are_read_and_have_another_fingerprint(form, tmp_path, monkeypatch):
    """This holds for every kind of path. The library `datasets` itself compares only dates."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    prefix, replace = FORMS[form]
    top, found = tmp_path / "images", []
    for seed in (0, 100, 0):
        replace(top, seed)
        images = open_dataset(f"{prefix}{top}", offline=True).subsets["train"]
        assert np.array_equal(np.asarray(images[0][0]), np.asarray(Image.open(io.BytesIO(_picture(seed)))))
        found.append((images.compute_sha256(), images.compute_fingerprint()))
    assert found[0] == found[2]
    assert found[0][0] == found[1][0]  # ids and labels are the same
    assert found[0][1] != found[1][1]


def test_a_folder_that_moves_stays_what_it_is(folder, tmp_path_factory):
    before = of_files(folder, ["a.png"])
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "images")
    assert of_files(moved, ["a.png"]) == before


def test_arrays_count_by_shape_and_bytes():
    array = np.arange(12, dtype=np.uint8)
    assert of_array(array) == of_array(array.copy())
    assert (
        len({of_array(array), of_array(array.reshape(3, 4)), of_array(array.astype(np.int8)), of_array(array[::-1])})
        == 4
    )


def _shade(shades, i):
    return Image.new("RGB", (3, 3), (int(shades[i]), 0, 0))


def test_without_files_or_arrays_some_images_are_looked_at():
    """All images of a small dataset are read."""
    shades = np.arange(SAMPLE) % 200
    make = partial(ImageDataset, "shades", np.zeros(SAMPLE, np.int64), ["a"], ids=[str(i) for i in range(SAMPLE)])
    before = make(read=partial(_shade, shades.copy())).compute_fingerprint()
    assert make(read=partial(_shade, shades.copy())).compute_fingerprint() == before
    shades[SAMPLE // 2] += 1
    assert make(read=partial(_shade, shades)).compute_fingerprint() != before


def test_a_subset_has_the_fingerprint_of_its_dataset():
    digits = open_dataset("digits").subsets["all"]
    assert digits.select("some", np.arange(5)).compute_fingerprint() == digits.compute_fingerprint()
