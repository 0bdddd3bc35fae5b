"""Archives in the data folder are unpacked once, and only into the data folder."""

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from probe.datasets import archives
from probe.datasets.archives import fetch_missing, unpack_archive, unpack_missing
from probe.errors import DatasetError
from probe.specs import Source

FILES = {"pictures/a.txt": b"first", "pictures/deep/b.txt": b"second"}


def write_tar(path, members=FILES, links=()):
    with tarfile.open(path, "w:gz") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            opened.addfile(info)
    return path


def write_zip(path, members=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


WRITERS = {"a.tar.gz": write_tar, "a.zip": write_zip}


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_those_of_the_archive(name, tmp_path):
    archive = WRITERS[name](tmp_path / name)
    target = tmp_path / "data"
    target.mkdir()
    unpack_archive(archive, target)
    assert files_in(target) == FILES


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("member", ["../out.txt", "/tmp/probe-out.txt", "a/../../out.txt", "..\\out.txt"])
def test_a_path_that_climbs_out_is_refused(name, member, tmp_path):
    archive = WRITERS[name](tmp_path / name, {"fine.txt": b"", member: b"out"})
    target = tmp_path / "data"
    target.mkdir()
    with pytest.raises(DatasetError, match="would be written outside of its folder; do not use it"):
        unpack_archive(archive, target)
    assert not list(target.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "data"])


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "link"])
def test_a_link_out_of_the_archive_is_refused(target, tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", links=[("pictures/link", target)])
    with pytest.raises(DatasetError, match="'pictures/link', which is neither a file nor a link to a file in it"):
        unpack_archive(archive, tmp_path / "data")


def test_a_link_within_the_archive_becomes_a_file(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", links=[("pictures/link", "a.txt")])
    unpack_archive(archive, tmp_path / "data")
    assert not (tmp_path / "data" / "pictures" / "link").is_symlink()
    assert files_in(tmp_path / "data") == {**FILES, "pictures/link": b"first"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_bomb_is_refused(name, tmp_path, monkeypatch):
    """The limit counts the bytes that are written, not the sizes that the archive states. The test lowers it."""
    monkeypatch.setattr(archives, "ALWAYS_FINE", 1 << 20)
    archive = WRITERS[name](tmp_path / name, {"zeros": bytes(8 << 20)})
    target = tmp_path / "data"
    target.mkdir()
    with pytest.raises(DatasetError, match="unpacks to more than"):
        unpack_archive(archive, target)
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_archive_leaves_nothing_behind(name, tmp_path):
    archive = WRITERS[name](tmp_path / name, {f"{i}.bin": bytes(range(256)) * 40 for i in range(20)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    target = tmp_path / "data"
    target.mkdir()
    with pytest.raises(DatasetError, match=r"cannot unpack .*a\.(tar\.gz|zip) .*; download it again"):
        unpack_archive(archive, target)
    assert not list(target.iterdir())


def test_a_file_that_is_there_is_kept(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").write_bytes(b"mine")
    unpack_archive(write_tar(tmp_path / "a.tar.gz"), tmp_path)
    assert (tmp_path / "pictures" / "a.txt").read_bytes() == b"mine"


def test_archives_are_unpacked_only_where_their_files_are_missing(tmp_path):
    source = Source("folder", ".", paths=("pictures",), archives=(("a.tar.gz", "."),))
    unpack_missing(source, tmp_path)  # nothing there, nothing to do
    write_tar(tmp_path / "a.tar.gz")
    unpack_missing(source, tmp_path)
    (tmp_path / "pictures" / "a.txt").unlink()
    unpack_missing(source, tmp_path)
    assert not (tmp_path / "pictures" / "a.txt").exists()


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as opened:
        for i in range(10):
            info = tarfile.TarInfo(f"pictures/{i}.txt")
            info.size = 600
            opened.addfile(info, io.BytesIO(bytes(600)))
    content = bytearray(archive.read_bytes())
    content[5 * 1536 + 150] ^= 0xFF  # the checksum of the sixth header
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match="is truncated, or damaged in the middle"):
        unpack_archive(archive, tmp_path / "data")


def test_a_flipped_bit_in_a_compressed_archive_is_found(tmp_path):
    """Gzip's own checksum is at the end of the file, which tarfile does not read."""
    noise = np.random.default_rng(0).bytes(200_000)
    archive = write_tar(tmp_path / "a.tar.gz", {"pictures/noise.bin": noise})
    content = bytearray(archive.read_bytes())
    content[100_000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot unpack .*a\.tar\.gz"):
        unpack_archive(archive, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_what_was_killed_while_unpacking_is_done_again(tmp_path):
    """A killed process leaves some of the files, a marker and a temporary folder. The files alone look complete."""
    source = Source("folder", ".", paths=("pictures",), archives=(("a.tar.gz", "."),), files="a folder pictures")
    write_tar(tmp_path / "a.tar.gz")
    (tmp_path / "pictures").mkdir()
    (tmp_path / ".a.tar.gz.begun").touch()
    (tmp_path / ".a.tar.gz-killed").mkdir()
    unpack_missing(source, tmp_path)
    assert {key for key in files_in(tmp_path) if key.startswith("pictures")} == set(FILES)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".a")]


@pytest.mark.parametrize("place", ["../out", "/tmp/probe-out", "a/../../out", "..\\out"])
@pytest.mark.parametrize("work", [fetch_missing, unpack_missing])
def test_archives_and_their_folders_lie_below_the_data_folder(work, place, tmp_path):
    for pair in ((place, "."), ("a.tar.gz", place)):
        source = Source("folder", ".", paths=("a",), archives=(pair,), downloads=(("http://127.0.0.1:9/a", ""),))
        with pytest.raises(DatasetError, match="in `archives` is outside the data folder; give a path below it"):
            work(source, tmp_path)


def test_two_processes_unpack_once(tmp_path):
    """Each of four simultaneous callers finds all files when its call returns."""
    source = Source("folder", ".", paths=("pictures",), archives=(("a.tar.gz", "."),), files="a folder pictures")
    write_tar(tmp_path / "a.tar.gz", {f"pictures/{i}.txt": b"x" for i in range(300)})
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: (unpack_missing(source, tmp_path), len(files_in(tmp_path)))[1], range(4)))
    assert min(seen) >= 300


def test_an_archive_of_something_else_is_named(tmp_path):
    source = Source("folder", ".", paths=("photos",), archives=(("a.tar.gz", "."),), files="a folder photos")
    write_tar(tmp_path / "a.tar.gz")
    with pytest.raises(DatasetError, match=r"a\.tar\.gz in .* do not contain photos; download them again, or put"):
        unpack_missing(source, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    source = Source("folder", ".", paths=("pictures",), archives=(("a.tar.gz", "."),), files="a folder pictures")
    write_tar(tmp_path / "a.tar.gz")
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match=r"cannot unpack into .*; make it writable"):
        unpack_missing(source, tmp_path)
