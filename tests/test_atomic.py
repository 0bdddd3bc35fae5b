"""Files are written atomically, and files of another user never block a folder that is writable."""

import encodings.ascii
import encodings.cp437  # noqa: F401 - both are imported late, when a library below /root can no longer be read
import io
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make.entries import PROVENANCE, chunk_of, make_entry_spec

from probe import fetch as fetching
from probe.atomic import lock, make_folder, share, write_atomically
from probe.datasets import archives
from probe.datasets.archives import unpack_missing
from probe.errors import CacheError, DownloadError
from probe.features import chunks
from probe.features.chunks import Work
from probe.features.files import save
from probe.features.inventory import collect, survey
from probe.features.store import find
from probe.probes.cached_fits import FitCache
from probe.records.record import write_bytes
from probe.records.schema import EncoderRecord
from probe.specs import Source

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "a.json").write_bytes(b"before")

    def write_half():
        with write_atomically(tmp_path / "a.json") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert (tmp_path / "a.json").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_two_processes_with_the_same_id_never_write_to_the_same_file(tmp_path, monkeypatch):
    """Processes in two containers can have the same id. The complete file of the last process remains."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with write_atomically(tmp_path / "a.json") as one:
        one.write(b"one ")
        with write_atomically(tmp_path / "a.json") as two:
            two.write(b"two")
        one.write(b"whole")
        assert (tmp_path / "a.json").read_bytes() == b"two"
    assert (tmp_path / "a.json").read_bytes() == b"one whole"


def test_a_file_with_a_name_of_nearly_maximal_length_can_be_written(tmp_path):
    with write_atomically(tmp_path / ("a" * 250)) as file:
        file.write(b"whole")
    assert (tmp_path / ("a" * 250)).read_bytes() == b"whole"


@pytest.fixture
def folder():
    """Yield a folder that is writable for everybody, in a process without the rights of root."""
    before, mask = os.geteuid(), os.umask(0o022)
    if before == 0:
        os.seteuid(12345)
    made = Path(tempfile.mkdtemp())  # `tmp_path` is below a folder that other users may not enter
    made.chmod(0o777)
    try:
        yield made
    finally:
        os.umask(mask)
        os.seteuid(before)
        for path in made.rglob("*"):
            path.chmod(0o777)
        shutil.rmtree(made)


def of_another_user(path, mode=0o444):
    """Make a file that this process may not write, or with mode 0 neither read nor write, like another user's file."""
    path.touch()
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o444, 0])
@pytest.mark.parametrize("is_sticky", [False, True])
def test_a_lock_of_another_user_is_bypassed(folder, mode, is_sticky):
    if is_sticky:  # then only the owner may remove the file
        folder.chmod(0o1777)
    path = of_another_user(folder / "000002.lock", mode)
    with lock(path) as taken:
        assert taken.is_locked
        assert not lock(path).is_locked
        with pytest.raises(TimeoutError):  # processes of the same user still wait for each other
            lock(path).acquire(timeout=0)
    assert path.exists()


def test_in_a_sticky_folder_a_lock_of_another_user_is_bypassed_even_if_it_can_be_opened(folder):
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    folder.chmod(0o1777)
    path = of_another_user(folder / "a.lock", 0o666)
    os.seteuid(0)
    os.chown(path, 54321, 54321)
    os.seteuid(12345)
    with lock(path) as taken:
        assert taken.is_locked


def test_a_lock_that_can_be_opened_is_acquired(folder):
    with lock(folder / "a.lock"), pytest.raises(TimeoutError):
        lock(folder / "a.lock").acquire(timeout=0)
    assert [path.name for path in folder.iterdir()] == ["a.lock"]


def test_a_lock_in_a_folder_that_cannot_be_written_to_is_named(folder):
    (folder / "closed").mkdir()
    of_another_user(folder / "closed" / "a.lock")
    (folder / "closed").chmod(0o555)
    with pytest.raises(PermissionError, match=r"closed/a\."):
        lock(folder / "closed" / "a.lock").acquire()


def test_features_that_another_user_began_are_finished(folder):
    """The process can read one chunk. It cannot open the lock, the other chunk and the description."""
    others = Work(folder, make_entry_spec())
    others.start()
    for chunk in (0, 1):
        others.write(chunk, chunk_of(make_entry_spec(), chunk))
    others.describe(PROVENANCE)
    for name in ("000001.npz", "making.json"):
        of_another_user(others.folder / name, 0)
    for path in (
        others.folder / "000002.lock",
        others.target.with_name(f".{others.target.name}.lock"),
    ):
        of_another_user(path)
    work = Work(folder, make_entry_spec())
    work.start()
    assert not work.finish_whole()
    assert work.claim(2)
    work.write(2, chunk_of(make_entry_spec(), 2))
    assert not work.finish_whole()  # the description of the features cannot be read
    assert not work.finish(PROVENANCE)
    assert work.claim(1)  # this chunk could not be read
    work.write(1, chunk_of(make_entry_spec(), 1))
    assert work.finish(PROVENANCE)
    assert np.array_equal(find(folder, make_entry_spec()).features.x[:, 0], np.arange(600))


def test_if_two_users_finish_at_once_the_entry_of_the_first_is_used(folder, monkeypatch):
    first, second = Work(folder, make_entry_spec()), Work(folder, make_entry_spec())
    first.start()
    for chunk in range(make_entry_spec().num_chunks):
        first.write(chunk, chunk_of(make_entry_spec(), chunk))
    build = Work._build

    def build_later(self, *args, **settings):
        if self is second:
            monkeypatch.setattr(chunks, "lock", lambda path: lock(path.with_name("another.lock")))
            assert first.finish(replace(PROVENANCE, encoder=EncoderRecord(license="first")))
        build(self, *args, **settings)

    monkeypatch.setattr(Work, "_build", build_later)
    assert second.finish(replace(PROVENANCE, encoder=EncoderRecord(license="second")))
    assert find(folder, make_entry_spec()).provenance.encoder.license == "first"
    assert [
        path.name for path in find(folder, make_entry_spec()).path.parent.iterdir() if path.name.endswith(".tmp")
    ] == []


def test_the_error_for_a_cache_that_is_not_writable_names_the_file(folder):
    work = Work(folder, make_entry_spec())
    work.start()
    work.folder.chmod(0o555)
    with pytest.raises(CacheError, match=rf"cannot write to {work.folder}/000000\.lock \(Permission denied\)"):
        work.claim(0)


def test_entries_that_another_user_protects_are_listed_and_not_removed(folder):
    work = Work(folder, make_entry_spec())
    work.start()
    of_another_user(work.folder / "about.json", 0)
    of_another_user(work.folder / "000000.lock")
    assert [kept.state for kept in survey(folder)] == ["unreadable"]
    assert collect(folder) == []
    assert collect(folder, max_size=0) == []  # it may be in use
    assert work.folder.is_dir()


MODES = {  # mode of a folder, umask, modes of new files and folders in it
    "of a group": (0o2775, 0o022, 0o664, 0o2775),
    "of a group, with a strict umask": (0o2770, 0o077, 0o660, 0o2770),
    "of everybody": (0o777, 0o022, 0o666, 0o777),
    "of everybody, where each removes their own": (0o1777, 0o022, 0o644, 0o755),
    "of a user": (0o755, 0o022, 0o644, 0o755),
    "of a user, with a strict umask": (0o755, 0o077, 0o600, 0o700),
    "of a user, whose umask shares with a group": (0o775, 0o002, 0o664, 0o775),
    "of a user, though the group may write": (0o775, 0o022, 0o644, 0o755),
}


@pytest.mark.parametrize("case", MODES)
def test_modes_of_new_files_follow_the_mode_of_the_folder(case, folder):
    mode, mask, of_files, of_folders = MODES[case]
    top = folder / "shared"
    top.mkdir()
    top.chmod(mode)
    os.umask(mask)
    make_folder(top / "a" / "b")
    (top / "a" / "file").touch()
    share(top / "a" / "file")
    write_bytes(top / "results" / "record.json", b"{}")
    save(top / "features" / "all.npz", {}, [], {})
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in top.rglob("*")}
    for path, mode in found.items():
        assert oct(mode) == oct(of_folders if path.is_dir() else of_files), path


def test_all_files_of_a_cache_follow_the_mode_of_its_folder(folder):
    folder.chmod(0o2770)
    os.umask(0o077)
    work = Work(folder, make_entry_spec())
    work.start()
    for chunk in range(make_entry_spec().num_chunks):
        assert work.claim(chunk)
        work.write(chunk, chunk_of(make_entry_spec(), chunk))
    assert work.finish(PROVENANCE)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o2770 if path.is_dir() else 0o660), path


def test_downloads_ignore_partial_files_of_another_user(folder, monkeypatch):
    """Another user left a lock and a partial download, or only the partial download. Neither can be resumed."""

    def refuse(request, **settings):
        assert "Range" not in request.headers
        raise urllib.error.URLError("asked from the start")

    monkeypatch.setattr(fetching.urllib.request, "urlopen", refuse)
    part, lock_of_other = (of_another_user(folder / name) for name in ("model.pt.part", "model.pt.lock"))
    with pytest.raises(DownloadError, match="asked from the start"):
        fetching.fetch("http://host/model.pt", folder / "model.pt")
    assert part.exists()
    lock_of_other.unlink()
    with pytest.raises(DownloadError, match="asked from the start"):
        fetching.fetch("http://host/model.pt", folder / "model.pt")
    assert not part.exists()


def test_two_users_never_download_to_the_same_file(folder, monkeypatch):
    """Otherwise, without a digest, the first download to end would rename the unfinished file of the other."""

    class Response(io.BytesIO):
        status, headers = 200, {"Content-Length": "6"}

        def read(self, size=-1):
            if self.before_the_end:
                other, self.before_the_end = self.before_the_end, None
                return super().read(3) if other() is None else b""
            return super().read(size)

    def response(content, before_the_end=None):
        made = Response(content)
        made.before_the_end = before_the_end
        return made

    target = folder / "model.pt"
    contents = []

    def second_user():
        contents.append(target.exists())
        of_another_user(folder / "model.pt.lock")  # the first user holds this lock
        monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: response(b"second"))
        fetching.fetch("http://host/model.pt", target)
        contents.append(target.read_bytes())

    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: response(b"first!", second_user))
    fetching.fetch("http://host/model.pt", target)
    assert contents == [False, b"second"]
    assert target.read_bytes() == b"first!"
    assert not list(folder.glob("*.part"))


def test_archives_are_unpacked_into_a_folder_that_another_user_began(folder):
    _write_archive(folder / "images.tar")
    source = Source(form="folder", location="x", archives=(("images.tar", "x"),), paths=("x/image.png",))
    for name in ("images.tar.lock", "images.tar.unpacking.lock", ".images.tar.begun"):
        of_another_user(folder / name)
    (folder / "x" / ".images.tar-left").mkdir(parents=True)
    (folder / "x" / ".images.tar-left").chmod(0)
    unpack_missing(source, folder)
    assert (folder / "x" / "image.png").is_file()
    assert not (folder / ".images.tar.begun").exists()


def _write_archive(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("image.png"))


@pytest.fixture
def images(folder):
    """Return a source with an archive in the folder."""
    _write_archive(folder / "images.tar")
    return Source(form="folder", location="x", archives=(("images.tar", "x"),), paths=("x/image.png",))


@pytest.mark.parametrize("has_lock", [True, False])
def test_archives_are_unpacked_once_if_a_marker_of_another_user_cannot_be_removed(
    has_lock, folder, images, monkeypatch
):
    """In a sticky folder, each user can remove only their own files."""
    unlink = Path.unlink

    def refuse(path, *, missing_ok=False):
        if path.name == ".images.tar.begun":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    of_another_user(folder / ".images.tar.begun")
    if has_lock:
        of_another_user(folder / "images.tar.lock")
    monkeypatch.setattr(Path, "unlink", refuse)
    unpack_missing(images, folder)
    (folder / "x" / "image.png").write_text("unpacked once")
    monkeypatch.setattr(archives, "unpack_archive", lambda *_: pytest.fail("unpacked again"))
    unpack_missing(images, folder)
    monkeypatch.undo()
    (folder / "x" / "image.png").unlink()
    unpack_missing(images, folder)
    assert (folder / "x" / "image.png").is_file()


def test_a_marker_that_another_user_removed_first_is_not_an_error(folder, images, monkeypatch):
    unpack = archives.unpack_archive

    def unpack_and_remove(*paths):
        unpack(*paths)
        (folder / ".images.tar.begun").unlink()

    monkeypatch.setattr(archives, "unpack_archive", unpack_and_remove)
    unpack_missing(images, folder)
    assert (folder / "x" / "image.png").is_file()


def test_archives_that_were_partly_unpacked_are_downloaded_again(folder, images, monkeypatch):
    (folder / "x").mkdir()
    (folder / "x" / "image.png").touch()
    (folder / ".images.tar.begun").touch()
    monkeypatch.setattr(archives, "fetch", lambda url, target, *, md5: fetched.append(target))
    fetched = []
    archives.fetch_missing(replace(images, downloads=(("http://host/images.tar", ""),)), folder)
    assert fetched == [folder / "images.tar"]
    assert not (folder / ".images.tar.begun").exists()


def test_fits_are_cached_in_a_shared_folder(folder):
    of_another_user(folder / "other.npz", 0)
    assert FitCache(folder).find("nothing") is None


def test_a_path_without_a_file_name_is_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError), write_atomically(Path()):
        pass
