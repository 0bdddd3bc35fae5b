"""The feature store: every field of the key counts, and damage of any kind is found, reported and repaired."""

import json
import logging
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from make.entries import KEY, PROVENANCE, chunk_of, make_entry_spec

from probe.errors import CacheError
from probe.features import store
from probe.features.arrays import Features, chunk_range
from probe.features.chunks import Work
from probe.features.inventory import ABANDONED_SECONDS, collect, differing, nearest, survey, verify
from probe.features.store import check_usable, damage, find


def fill(root, spec, labels=1):
    """Write a complete entry, and return its folder."""
    work = Work(root, spec)
    work.start()
    for chunk in range(spec.num_chunks):
        assert work.claim(chunk)
        work.write(chunk, chunk_of(spec, chunk, labels))
    assert work.finish(PROVENANCE)
    return spec.folder(root)


@pytest.mark.parametrize("labels", [1, 2])
def test_what_is_written_is_read(tmp_path, labels):
    fill(tmp_path, make_entry_spec(), labels)
    found = find(tmp_path, make_entry_spec())
    assert found.features.x[:, 0].tolist() == list(range(600))
    assert found.features.pre_projection.shape == (600, 4)
    assert found.features.y.shape == ((600,) if labels == 1 else (600, 2))
    assert found.features.x.dtype == np.float32
    assert found.features.x.flags.c_contiguous
    assert isinstance(found.features.x, np.memmap)
    assert found.provenance == PROVENANCE


def test_chunks_are_gone_when_the_entry_is_there(tmp_path):
    folder = fill(tmp_path, make_entry_spec())
    assert [path for path in folder.parent.iterdir() if not path.name.startswith(".")] == [folder]


@pytest.mark.parametrize("field", KEY)
def test_every_field_of_the_key_counts(tmp_path, field):
    fill(tmp_path, make_entry_spec())
    assert find(tmp_path, make_entry_spec(**{field: "another"})) is None
    assert find(tmp_path, make_entry_spec()) is not None


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit of features": lambda folder: _flip_a_byte(folder / "projected.npy"),
    "a flipped bit of labels": lambda folder: _flip_a_byte(folder / "labels.npy"),
    "a flipped bit before the projection": lambda folder: _flip_a_byte(folder / "pre_projection.npy"),
    "a file cut short": lambda folder: os.truncate(folder / "projected.npy", 1000),
    "a longer file": lambda folder: (folder / "projected.npy").write_bytes(
        (folder / "projected.npy").read_bytes() + b"more"
    ),
    "an empty file": lambda folder: os.truncate(folder / "labels.npy", 0),
    "a missing file": lambda folder: (folder / "pre_projection.npy").unlink(),
    "a missing sidecar": lambda folder: (folder / "entry.json").unlink(),
    "a sidecar cut short": lambda folder: os.truncate(folder / "entry.json", 100),
    "an empty sidecar": lambda folder: os.truncate(folder / "entry.json", 0),
    "a sidecar of another kind": lambda folder: (folder / "entry.json").write_text("[1, 2]"),
    "a sidecar that is no text": lambda folder: (folder / "entry.json").write_bytes(b"\xff\xfe\x00"),
    **{
        f"a sidecar of {content}": lambda folder, content=content: (folder / "entry.json").write_text(content)
        for content in ("0", "null", '"x"', "{}")
    },
    "another number in the sidecar": lambda folder: (folder / "entry.json").write_text(
        (folder / "entry.json").read_text().replace('"embed_dim": 2', '"embed_dim": 3')
    ),
    "a folder in place of a file": lambda folder: (
        (folder / "projected.npy").unlink(),
        (folder / "projected.npy").mkdir(),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_said_and_never_used(tmp_path, caplog, kind):
    folder = fill(tmp_path, make_entry_spec())
    DAMAGES[kind](folder)
    assert damage(folder)
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path, make_entry_spec()) is None
    assert f"the features in {folder} are damaged (" in caplog.text
    assert not folder.exists()
    fill(tmp_path, make_entry_spec())
    assert find(tmp_path, make_entry_spec()) is not None


@pytest.mark.parametrize("kind", ["flipped", "short", "empty", "another"])
def test_a_damaged_chunk_is_made_again(tmp_path, caplog, kind):
    work = Work(tmp_path, make_entry_spec())
    work.start()
    for chunk in range(3):
        work.claim(chunk)
        work.write(chunk, chunk_of(make_entry_spec(), chunk))
    path = work.folder / "000001.npz"
    if kind == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "another":  # a complete chunk of other images
        path.write_bytes((work.folder / "000002.npz").read_bytes())
    else:
        os.truncate(path, 100 if kind == "short" else 0)
    with caplog.at_level(logging.WARNING):
        assert not work.finish(PROVENANCE)
    assert "000001.npz is damaged" in caplog.text
    assert [work.has(chunk) for chunk in range(3)] == [True, False, True]
    assert work.claim(1)
    work.write(1, chunk_of(make_entry_spec(), 1))
    assert work.finish(PROVENANCE)
    assert find(tmp_path, make_entry_spec()).features.x[:, 0].tolist() == list(range(600))


def test_no_flipped_bit_of_a_chunk_is_used_or_stops_for_good(tmp_path):
    """Whatever error zipfile or NumPy raises, a damaged chunk is removed. Otherwise, its features are unchanged."""
    small = make_entry_spec(n=3)
    work = Work(tmp_path, small)
    work.start()
    work.write(0, chunk_of(small, 0))
    path = work.folder / "000000.npz"
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        content = bytearray(whole)
        content[i] ^= 1 << i % 8
        path.write_bytes(content)
        if not work.finish(PROVENANCE):
            assert not path.exists()
            continue
        assert find(tmp_path, small).features.x[:, 0].tolist() == [0, 1, 2]
        shutil.rmtree(small.folder(tmp_path))
        work.start()


def _finish(root, queue):
    try:
        queue.put(Work(root, make_entry_spec()).finish(PROVENANCE))
    except CacheError as err:
        queue.put(str(err))


@pytest.mark.slow
def test_processes_that_finish_together_all_have_the_entry(tmp_path):
    """One of them puts the chunks together and removes them while the others wait."""
    context = multiprocessing.get_context("fork")
    for n in range(5):
        root, queue = tmp_path / str(n), context.Queue()
        work = Work(root, make_entry_spec())
        work.start()
        for chunk in range(3):
            work.write(chunk, chunk_of(make_entry_spec(), chunk))
        processes = [context.Process(target=_finish, args=(root, queue)) for _ in range(3)]
        for process in processes:
            process.start()
        assert [queue.get(timeout=300) for _ in processes] == [True] * 3
        for process in processes:
            process.join()
        assert find(root, make_entry_spec()) is not None
        assert [kept.state for kept in survey(root)] == ["complete"]


def test_who_comes_late_leaves_nothing_behind(tmp_path):
    late = Work(tmp_path, make_entry_spec())
    fill(tmp_path, make_entry_spec())
    late.start()
    assert not late.claim(0)
    assert [kept.state for kept in survey(tmp_path)] == ["complete"]


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    """The entry is not removed, and nothing is extracted again."""
    folder = fill(tmp_path, make_entry_spec())

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "file_sha256", refused)
    with pytest.raises(CacheError, match=r"cannot read .*Permission denied"):
        find(tmp_path, make_entry_spec())
    assert folder.is_dir()


def test_damage_that_cannot_be_removed_is_one_sentence(tmp_path, monkeypatch):
    folder = fill(tmp_path, make_entry_spec())
    _flip_a_byte(folder / "labels.npy")

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(CacheError, match="check its permissions, or name a different folder"):
        find(tmp_path, make_entry_spec())


def test_features_of_others_that_may_only_be_read_are_used(tmp_path, monkeypatch):
    fill(tmp_path, make_entry_spec())

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert find(tmp_path, make_entry_spec()) is not None


def test_a_chunk_is_claimed_once(tmp_path):
    one, other = Work(tmp_path, make_entry_spec()), Work(tmp_path, make_entry_spec())
    one.start()
    other.start()
    assert one.claim(0)
    assert not other.claim(0)
    assert other.claim(1)
    one.close()  # as if it were killed
    assert other.claim(0)
    other.write(0, chunk_of(make_entry_spec(), 0))
    assert not one.claim(0)


def test_skipped_images_have_no_row_and_are_named(tmp_path):
    small = make_entry_spec(n=300)
    work = Work(tmp_path, small)
    work.start()
    first, second = chunk_of(small, 0), chunk_of(small, 1)
    work.write(0, Features(first.x[1:], first.y[1:], first.pre_projection[1:], ((0, "image 0 cannot be read"),)))
    work.write(1, second)
    assert work.skipped() == {0}
    assert work.finish(PROVENANCE)
    found = find(tmp_path, small).features
    assert found.x[:, 0].tolist() == list(range(1, 300))
    assert found.skipped == ((0, "image 0 cannot be read"),)


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(
        CacheError, match=r"cannot write to .*features \(.*\); make it writable, or name a different folder"
    ):
        Work(tmp_path / "features", make_entry_spec()).start()


def test_a_cache_folder_that_cannot_be_used_is_found_early(tmp_path):
    """A file in place of the folder is an error. A missing folder is created."""
    (tmp_path / "features").write_text("a file")
    with pytest.raises(CacheError, match=r"cannot write to the cache folder .*features \("):
        check_usable(tmp_path / "features")
    check_usable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_full_disk_keeps_what_was_made(tmp_path, monkeypatch):
    """`tests/features/test_extraction.py` fills a real file system, if it has the permission to mount one."""
    work = Work(tmp_path, make_entry_spec())
    work.start()
    work.write(0, chunk_of(make_entry_spec(), 0))

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(CacheError, match=r"no space left .*1 of 3 chunks of digits/all / tiny / eager are cached"):
        work.write(1, chunk_of(make_entry_spec(), 1))
    assert work.has(0)
    assert not [path for path in work.folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs the list of open files in /proc/self/maps")
def test_no_file_is_open_when_it_is_removed(tmp_path, monkeypatch):
    """Windows refuses to remove an open file."""
    folder = fill(tmp_path, make_entry_spec())
    np.save(folder / "labels.npy", np.zeros(3))  # read after the other arrays have been mapped
    removed = []

    def check(path):
        assert str(folder) not in Path("/proc/self/maps").read_text()
        removed.append(path)
        rmtree(path)

    rmtree = shutil.rmtree
    monkeypatch.setattr(store.shutil, "rmtree", check)
    assert find(tmp_path, make_entry_spec()) is None
    assert removed == [folder]


def test_explaining_names_the_fields_that_differ(tmp_path):
    fill(tmp_path, make_entry_spec())
    fill(tmp_path, make_entry_spec(batch_size=32, torch="2.14.0"))
    wanted = make_entry_spec(batch_size=16)
    kept = nearest(tmp_path, wanted)
    assert differing(wanted, kept) == {"batch_size": (64, 16)}
    assert nearest(tmp_path, replace(wanted, subset="train")) is None


def test_surveying_tells_complete_from_begun_and_damaged(tmp_path):
    fill(tmp_path, make_entry_spec())
    begun = Work(tmp_path, make_entry_spec(batch_size=32))
    begun.start()
    begun.write(0, chunk_of(make_entry_spec(), 0))
    (fill(tmp_path, make_entry_spec(batch_size=16)) / "entry.json").write_text("{}")
    assert sorted(kept.state for kept in survey(tmp_path)) == ["1 of 3 chunks", "complete", "damaged"]
    checked, damaged = verify(tmp_path)
    assert (checked, len(damaged)) == (2, 1)
    assert survey(tmp_path / "nowhere") == []


def test_collecting_takes_the_damaged_then_what_was_not_used_for_longest(tmp_path):
    folders = [fill(tmp_path, make_entry_spec(batch_size=size)) for size in (16, 32, 64, 128)]
    for age, folder in zip((300, 100, 200), folders, strict=False):
        os.utime(folder / "entry.json", ((folder / "entry.json").stat().st_mtime - age,) * 2)
    (folders[3] / "entry.json").write_text("{}")
    assert [kept.path for kept in collect(tmp_path)] == [folders[3]]
    size = survey(tmp_path)[0].size
    assert [kept.path for kept in collect(tmp_path, max_size=2 * size)] == [folders[0]]
    find(tmp_path, make_entry_spec(batch_size=64))  # counts as a use
    assert [kept.path for kept in collect(tmp_path, max_size=size)] == [folders[1]]
    assert [kept.path for kept in collect(tmp_path, max_size=0)] == [folders[2]]
    assert collect(tmp_path / "nowhere") == []


def test_collecting_leaves_what_another_process_is_making(tmp_path):
    work = Work(tmp_path, make_entry_spec())
    work.start()
    work.write(0, chunk_of(make_entry_spec(), 0))
    with FileLock(work.folder / "000001.lock"):
        assert collect(tmp_path, max_size=0) == []
    assert len(collect(tmp_path, max_size=0)) == 1


def test_collecting_takes_what_was_abandoned(tmp_path):
    folder = fill(tmp_path, make_entry_spec())
    left = folder.with_name(f".{folder.name}.1.tmp")
    left.mkdir()
    collect(tmp_path)
    assert left.exists()
    os.utime(left, (left.stat().st_mtime - 2 * ABANDONED_SECONDS,) * 2)
    collect(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_shards_share_all_chunks(n):
    of_ten = make_entry_spec(n=2500)
    chunks = [chunk for i in range(1, n + 1) for chunk in chunk_range(of_ten.num_images, of_ten.batch_size, (i, n))]
    assert chunks == list(range(of_ten.num_chunks)) == list(chunk_range(of_ten.num_images, of_ten.batch_size))


def test_the_sidecar_is_clear_text(tmp_path):
    about = json.loads((fill(tmp_path, make_entry_spec()) / "entry.json").read_text())
    assert about["label"] == {
        "dataset": "digits",
        "subset": "all",
        "model": "tiny",
        "mode": "eager",
        "precision": "fp32",
    }
    assert about["key"] == KEY
    assert about["arrays"]["projected"]["shape"] == [600, 2]
