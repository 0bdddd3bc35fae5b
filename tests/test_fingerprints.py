"""What tells that images were replaced under the same names."""

import os
from functools import partial

import numpy as np
import pytest
from PIL import Image

from probe.datasets.fingerprints import of_array, of_files
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
    """All of them, of a small dataset."""
    shades = np.arange(SAMPLE) % 200
    make = partial(ImageDataset, "shades", np.zeros(SAMPLE, np.int64), ["a"], ids=[str(i) for i in range(SAMPLE)])
    before = make(read=partial(_shade, shades.copy())).fingerprint
    assert make(read=partial(_shade, shades.copy())).fingerprint == before
    shades[SAMPLE // 2] += 1
    assert make(read=partial(_shade, shades)).fingerprint != before


def test_a_subset_has_the_fingerprint_of_its_dataset():
    digits = open_dataset("digits").parts["all"]
    assert digits.subset("some", np.arange(5)).fingerprint == digits.fingerprint
