"""The feature store: features under the key of everything that changes their bytes, memory-mapped when they are read.

    <root>/<dataset>/<model>.<mode>.<precision>.<part>.<digest>/            a whole entry, there in one step
        entry.json                                                          what it is of, its key, its digests
        projected.npy  pre_projection.npy  labels.npy
    <root>/<dataset>/<model>.<mode>.<precision>.<part>.<digest>.pieces/     one that is being made
        about.json  000000.npz  000001.npz ...

A piece is written under another name and renamed, so that whatever is killed leaves whole pieces; a lock for each lets
processes share the work, and falls with the process that holds it. The pieces become an entry when the last is there.
What is read is compared with its digests: a damaged piece or entry is named, removed and made again, never used.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from probe.errors import CacheError
from probe.features import PRE_PROJECTION, PROJECTED, Features, num_pieces, piece_size
from probe.fetch import file_sha256
from probe.specs import canonical_json, digest, slug

logger = logging.getLogger(__name__)

VERSION = 1  # of the layout of entries
SIDECAR, ABOUT, PIECES, REMOVED = "entry.json", "about.json", ".pieces", ".tmp"
LABELS = "labels"
ARRAYS = (PROJECTED, PRE_PROJECTION, LABELS)
ABANDONED_SECONDS = 24 * 3600  # after which what a killed process left under another name is nobody's
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Cell:
    """The features of a part of a dataset under a model, by what they are called and by what they depend on.

    Args:
        dataset: its name; `part`, `model`, `mode` and `precision` likewise. They make the names of folders, for people.
        key: everything that changes the bytes, as JSON has it.
        num_images: how many images there are to encode.
        batch_size: images encoded at a time.
    """

    dataset: str
    part: str
    model: str
    mode: str
    precision: str
    key: Mapping[str, Any]
    num_images: int
    batch_size: int

    def __str__(self) -> str:
        """The cell in a few words, for messages."""
        return f"{self.dataset}/{self.part} / {self.model} / {self.mode}"

    @property
    def label(self) -> dict[str, str]:
        """What it is called."""
        return {name: getattr(self, name) for name in ("dataset", "part", "model", "mode", "precision")}

    @property
    def num_pieces(self) -> int:
        """How many pieces its images make."""
        return num_pieces(self.num_images, self.batch_size)

    def folder(self, root: Path) -> Path:
        """Where its entry is."""
        model = slug(self.model, is_path="/" in self.model and ":" not in self.model)
        name = f"{model}.{self.mode}.{self.precision}.{slug(self.part)}.{digest(self.key)[:16]}"
        return root / slug(self.dataset, is_path=":" in self.dataset) / name


@dataclass(frozen=True)
class Entry:
    """Features that were read from the store, memory-mapped, and what was written with them.

    Args:
        features: of all images of the cell that could be read.
        encoder: what `RunRecord.encoder` says.
        extraction: what `Meter.describe` says of how they were made.
        path: the folder.
    """

    features: Features
    encoder: Mapping[str, Any]
    extraction: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class Kept:
    """What lies in the store, for people: `state` is `whole`, `damaged`, or how many pieces of how many there are.

    `used` is seconds since the epoch, `size` in bytes.
    """

    path: Path
    label: Mapping[str, str]
    key: Mapping[str, Any]
    state: str
    num_images: int
    size: int
    used: float


def find(root: Path, cell: Cell) -> Entry | None:
    """The features of a cell, if they are there and whole; damaged ones are named in a warning and removed."""
    folder = cell.folder(root)
    if not folder.is_dir():
        return None
    try:
        found = _read(folder)
    except DAMAGE:
        with FileLock(root / ".lock"):  # another process may have made it again
            reason = damage(folder)
            if reason:
                logger.warning("the features in %s are damaged (%s); they are made again", folder, reason)
                shutil.rmtree(folder, ignore_errors=True)
        return find(root, cell) if not reason else None
    os.utime(folder / SIDECAR)  # when it was last of use, for `collect`
    return found


def damage(folder: Path) -> str:
    """What is wrong with an entry; empty where nothing is."""
    try:
        _read(folder)
    except FileNotFoundError as err:
        return f"there is no {Path(err.filename or folder).name}"
    except DAMAGE as err:
        return " ".join(str(err).split())
    return ""


def _read(folder: Path) -> Entry:
    about = _read_sidecar(folder)
    arrays = {}
    for name in ARRAYS:
        path, listed = folder / f"{name}.npy", about["arrays"][name]
        if file_sha256(path) != listed["sha256"]:
            raise ValueError(f"{path.name} has other bytes than were written")
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    skipped = tuple((int(position), str(message)) for position, message in about["skipped"])
    features = Features(arrays[PROJECTED], np.array(arrays[LABELS]), arrays[PRE_PROJECTION], skipped)
    return Entry(features, about["encoder"], about["extraction"], folder)


def _read_sidecar(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    written = about.pop("sha256")
    if digest(about) != written:
        raise ValueError(f"{SIDECAR} says something else than was written")
    if about["version"] != VERSION:
        raise ValueError(f"{SIDECAR} has the version {about['version']}, not {VERSION}")
    return about


class Work:
    """The pieces of a cell whose features are being made, by this process and perhaps by others."""

    def __init__(self, root: Path, cell: Cell) -> None:
        self.cell, self.root = cell, root
        self.target = cell.folder(root)
        self.folder = self.target.with_name(self.target.name + PIECES)
        self._claims: dict[int, FileLock] = {}

    def start(self) -> None:
        """Make the folder.

        Raises:
            CacheError: it cannot be written to.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            about = {"label": self.cell.label, "key": dict(self.cell.key), "num_pieces": self.cell.num_pieces}
            _write(self.folder / ABOUT, lambda path: path.write_text(json.dumps(about, indent=2), encoding="utf-8"))

    def has(self, piece: int) -> bool:
        """Whether a piece is there, here or in a whole entry."""
        return self._path(piece).is_file() or self.target.is_dir()

    def claim(self, piece: int) -> bool:
        """Take a piece that nobody has made or is making; it is this process's until it is written or dropped."""
        lock = FileLock(self.folder / f"{piece:06}.lock")
        with self._writing():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        if self.has(piece):
            lock.release()
            return False
        self._claims[piece] = lock
        return True

    def write(self, piece: int, features: Features) -> None:
        """Keep a piece.

        Raises:
            CacheError: there is no space, or the folder cannot be written to; what was kept before stays.
        """
        arrays = {PROJECTED: features.x, PRE_PROJECTION: features.at(PRE_PROJECTION), LABELS: features.y}
        skipped = np.array(json.dumps(features.skipped))

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, skipped=skipped, **arrays)

        with self._writing():
            _write(self._path(piece), save)
        self.drop(piece)

    def drop(self, piece: int) -> None:
        """Leave a piece to others."""
        if piece in self._claims:
            self._claims.pop(piece).release()

    def close(self) -> None:
        """Leave all pieces that were claimed and not written to others."""
        for piece in list(self._claims):
            self.drop(piece)

    def finish(self, *, encoder: Mapping[str, Any], extraction: Mapping[str, Any]) -> bool:
        """Make the entry of the pieces; False where one is damaged, which is removed, or is not there.

        Raises:
            CacheError: there is no space, or the folder cannot be written to.
        """
        if self.target.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            return True
        with self._writing(), FileLock(self.folder / "join.lock"):
            if self.target.is_dir():
                return True
            shapes = [self._check(piece) for piece in range(self.cell.num_pieces)]
            if None in shapes:
                return False
            building = self.target.with_name(f".{self.target.name}.{os.getpid()}{REMOVED}")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            try:
                about = {
                    "version": VERSION,
                    "label": self.cell.label,
                    "key": dict(self.cell.key),
                    "num_images": self.cell.num_images,
                    "arrays": {name: self._join(name, building) for name in ARRAYS},
                    "skipped": [skipped for piece in range(self.cell.num_pieces) for skipped in self._skipped(piece)],
                    "encoder": dict(encoder),
                    "extraction": dict(extraction),
                }
                about = json.loads(canonical_json(about))
                _write_synced(building / SIDECAR, json.dumps({**about, "sha256": digest(about)}, indent=2).encode())
                building.rename(self.target)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def is_complete(self) -> bool:
        """Whether all pieces are there."""
        return all(self.has(piece) for piece in range(self.cell.num_pieces))

    def state(self) -> str:
        """How many pieces there are, and where."""
        made = sum(self.has(piece) for piece in range(self.cell.num_pieces))
        return f"{self.cell}: {made} of {self.cell.num_pieces} pieces are in {self.folder}"

    def num_skipped(self) -> int:
        """Images without features in the pieces that are there."""
        pieces = [piece for piece in range(self.cell.num_pieces) if self._path(piece).is_file()]
        return sum(len(self._skipped(piece)) for piece in pieces if self._check(piece) is not None)

    def _path(self, piece: int) -> Path:
        return self.folder / f"{piece:06}.npz"

    def _check(self, piece: int) -> tuple[int, ...] | None:
        """The shape of the labels of a piece; None where it is not there, or is damaged, and then removed."""
        path = self._path(piece)
        try:
            with _open_piece(path) as found:
                n = len(found[LABELS])
                whole = min(
                    piece_size(self.cell.batch_size), self.cell.num_images - piece * piece_size(self.cell.batch_size)
                )
                widths = [found[name].shape for name in (PROJECTED, PRE_PROJECTION)]
                if any(shape[0] != n for shape in widths) or n + len(json.loads(str(found["skipped"]))) != whole:
                    raise ValueError(f"it has {n} images of {whole}")
                shape: tuple[int, ...] = found[LABELS].shape
                return shape
        except FileNotFoundError:
            return None
        except DAMAGE as err:
            logger.warning("%s is damaged (%s); it is made again", path, " ".join(str(err).split()))
            path.unlink(missing_ok=True)
            return None

    def _skipped(self, piece: int) -> list[list[Any]]:
        with _open_piece(self._path(piece)) as found:
            skipped: list[list[Any]] = json.loads(str(found["skipped"]))
            return skipped

    def _join(self, name: str, building: Path) -> dict[str, Any]:
        """Write one array of all pieces, one piece in memory at a time; what the sidecar says of it."""
        shapes, dtype = [], None
        for piece in range(self.cell.num_pieces):
            with _open_piece(self._path(piece)) as found:
                array = found[name]
                if len(array):  # one of which no image could be read knows no shape of labels
                    shapes.append(array.shape)
                    dtype = array.dtype
        shape = (sum(shape[0] for shape in shapes), *(shapes[0][1:] if shapes else (0,)))
        path = building / f"{name}.npy"
        with path.open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in range(self.cell.num_pieces):
                with _open_piece(self._path(piece)) as found:
                    if len(found[name]):
                        file.write(np.ascontiguousarray(found[name]).data)
            file.flush()
            os.fsync(file.fileno())
        return {"shape": list(shape), "dtype": str(np.dtype(dtype)), "sha256": file_sha256(path)}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if isinstance(err, CacheError):
                raise
            kept = sum(1 for piece in range(self.cell.num_pieces) if self._path(piece).is_file())
            what = (
                f"{kept} of {self.cell.num_pieces} pieces of {self.cell} are kept, and a further run goes on from there"
            )
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(
                    f"no space left in {self.root}; make room, python -m probe cache gc --max-size 10GB does, or name "
                    f"another folder with --cache-dir; {what}"
                ) from err
            raise CacheError(
                f"cannot write to {self.root} ({err.strerror or err}); free it, or name another folder with "
                f"--cache-dir; {what}"
            ) from err


@contextmanager
def _open_piece(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    # The file is opened here, as NumPy leaves one open that turns out to be no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        yield found


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file in one step: under a name of this process, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{REMOVED}")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def survey(root: Path) -> list[Kept]:
    """What lies in the store, sorted by path; arrays are not compared with their digests."""
    found = []
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith(".")):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        try:
            if folder.name.endswith(PIECES):
                about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
                made = len(list(folder.glob("*.npz")))
                state, used, n = f"{made} of {about['num_pieces']} pieces", folder.stat().st_mtime, 0
            else:
                about = _read_sidecar(folder)
                state, used, n = "whole", (folder / SIDECAR).stat().st_mtime, about["num_images"]
            found.append(Kept(folder, about["label"], about["key"], state, n, size, used))
        except DAMAGE:
            found.append(Kept(folder, {}, {}, "damaged", 0, size, folder.stat().st_mtime))
    return found


def verify(root: Path) -> tuple[int, dict[Path, str]]:
    """Compare whole entries with their digests: how many there are, and what is wrong with those that are damaged."""
    folders = [kept.path for kept in survey(root) if not kept.path.name.endswith(PIECES)]
    return len(folders), {folder: reason for folder in folders if (reason := damage(folder))}


def differing(wanted: Cell, kept: Kept) -> dict[str, tuple[Any, Any]]:
    """The fields of the key in which something that is kept is not what is wanted: there, and wanted."""
    key = json.loads(canonical_json(wanted.key))
    return {
        name: (kept.key.get(name), key.get(name))
        for name in sorted({*key, *kept.key})
        if kept.key.get(name) != key.get(name)
    }


def nearest(root: Path, cell: Cell) -> Kept | None:
    """What is kept of the same part of the same dataset, and differs in the fewest fields of the key."""
    of_part = [
        kept
        for kept in survey(root)
        if (kept.label.get("dataset"), kept.label.get("part")) == (cell.dataset, cell.part)
    ]
    same_model = [kept for kept in of_part if kept.label.get("model") == cell.model] or of_part
    return min(same_model, key=lambda kept: (len(differing(cell, kept)), -kept.used), default=None)


def collect(root: Path, *, max_size: int | None = None) -> list[Kept]:
    """Remove what is of no use, then, down to `max_size` bytes, what was not used for longest; what was removed.

    Of no use are damaged entries, the pieces of whole ones, and what killed processes left under other names. What
    another process is making stays.
    """
    removed: list[Kept] = []
    with FileLock(root / ".lock") if root.is_dir() else _nothing():
        for left in root.glob("*/.*"):
            if left.name.endswith(REMOVED) and time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        all_kept = survey(root)
        whole = {kept.path.name for kept in all_kept if kept.state == "whole"}
        for kept in sorted(all_kept, key=lambda kept: kept.used):
            of_no_use = kept.state == "damaged" or kept.path.name.removesuffix(PIECES) in whole - {kept.path.name}
            total = sum(other.size for other in all_kept) - sum(other.size for other in removed)
            too_much = max_size is not None and total > max_size
            if (of_no_use or too_much) and not _is_in_use(kept.path):
                shutil.rmtree(kept.path, ignore_errors=True)
                removed.append(kept)
    return removed


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _is_in_use(folder: Path) -> bool:
    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        lock.release()
    return False


def shard_of(cell: Cell, shard: tuple[int, int] | None) -> Sequence[int]:
    """The pieces of shard i of n, from 1 on; all of them without one."""
    i, n = shard or (1, 1)
    return range((i - 1) * cell.num_pieces // n, i * cell.num_pieces // n)
