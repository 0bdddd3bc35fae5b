"""Images of files and folders: which files are read, and which are skipped."""

import pytest
from make.images import write_image

from probe.datasets.images import image_suffixes, open_files
from probe.errors import DatasetError


def test_files_of_no_known_type_are_counted_and_named(tmp_path, caplog):
    for name in ("a.png", "deep/b.JPG"):
        write_image(tmp_path / name, (200, 30, 30))
    for name in ("notes.txt", "deep/c.heic", "paper.pdf", "arrays.h5", ".DS_Store", ".hidden/d.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert open_files([tmp_path]).ids == [str(tmp_path / "a.png"), str(tmp_path / "deep/b.JPG")]
    (message,) = caplog.messages
    assert message == (
        f"skipped 4 files of an unknown type of image in {tmp_path}: arrays.h5, deep/c.heic, notes.txt, paper.pdf"
    )


def test_a_folder_of_images_needs_no_warning(tmp_path, caplog):
    write_image(tmp_path / "a.png", (200, 30, 30))
    assert len(open_files([tmp_path])) == 1
    assert caplog.messages == []


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(DatasetError, match="no images in"):
        open_files([tmp_path])


def test_suffixes_are_those_of_images_that_can_be_read():
    assert {".png", ".jpg", ".jpeg", ".mpo", ".webp", ".tif"} <= set(image_suffixes())
    assert not {".pdf", ".hdf", ".mpg", ".txt"} & set(image_suffixes())
