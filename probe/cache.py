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
import io
import json
import logging
import os
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
LOCK = ".lock"
# What reading a file raises that is not as it was written; a disk that cannot be read at the moment is no damage.
DAMAGE = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, IndexError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


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
    """The features of a cell, if they are there and whole; damaged ones are named in a warning and removed.

    Raises:
        CacheError: they cannot be read, or be removed.
    """
    folder = cell.folder(root)
    if not folder.is_dir():
        return None
    try:
        try:
            found = _read(folder)
        except DAMAGE:
            with FileLock(root / LOCK):  # another process may have made it again
                reason = damage(folder)
                if reason and folder.exists():
                    logger.warning("the features in %s are damaged (%s); they are made again", folder, reason)
                    shutil.rmtree(folder)
            return None if reason else find(root, cell)
    except OSError as err:
        if isinstance(err, CacheError):
            raise
        raise CacheError(
            f"cannot read {folder} ({err.strerror or err}); free it, or name another folder with --cache-dir"
        ) from err
    with suppress(OSError):  # of a folder that others own; and it is there for `collect` alone
        os.utime(folder / SIDECAR)
    return found


def remove(root: Path, entry: Entry) -> None:
    """Remove an entry.

    Raises:
        CacheError: it cannot be removed.
    """
    try:
        with FileLock(root / LOCK):
            shutil.rmtree(entry.path)
    except FileNotFoundError:
        return  # by another process
    except OSError as err:
        raise CacheError(f"cannot remove {entry.path} ({err.strerror or err}); free it") from err


def damage(folder: Path) -> str:
    """What is wrong with an entry; empty where nothing is."""
    try:
        _read(folder)
    except FileNotFoundError as err:
        return f"there is no {Path(err.filename or folder).name}"
    except DAMAGE as err:
        return _why(err)
    return ""


def _why(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__


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
    about = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise TypeError(f"{SIDECAR} holds no object")
    written = about.pop("sha256")
    if digest(about) != written:
        raise ValueError(f"{SIDECAR} says something else than was written")
    if about["version"] != VERSION:
        raise ValueError(f"{SIDECAR} has the version {about['version']}, not {VERSION}")
    return about


@dataclass(frozen=True)
class _Piece:
    """A piece that is there and whole: the shapes of its arrays, and the images that have no row in them."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    skipped: Sequence[tuple[int, str]]


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
        about = {"label": self.cell.label, "key": dict(self.cell.key), "num_pieces": self.cell.num_pieces}
        with self._writing():
            while not (self.folder / ABOUT).is_file() and not self.target.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another process has just made the entry, and removed the folder
                    _write(self.folder / ABOUT, lambda path: path.write_text(json.dumps(about), encoding="utf-8"))

    def has(self, piece: int) -> bool:
        """Whether a piece is there, here or in a whole entry."""
        return self._path(piece).is_file() or self.target.is_dir()

    def claim(self, piece: int) -> bool:
        """Take a piece that nobody has made or is making; it is this process's until it is written or dropped."""
        lock = FileLock(self.folder / f"{piece:06}{LOCK}")
        with self._writing():
            try:
                lock.acquire(timeout=0)
            except (Timeout, FileNotFoundError):  # another process has it, or has put all pieces together
                return False
        if self.has(piece):
            lock.release()
            if self.target.is_dir():  # to take the lock was to make the folder again
                shutil.rmtree(self.folder, ignore_errors=True)
            return False
        self._claims[piece] = lock
        return True

    def write(self, piece: int, features: Features) -> None:
        """Keep a piece.

        Raises:
            CacheError: there is no space, or the folder cannot be written to; what was kept before stays.
        """
        before, skipped = features.at(PRE_PROJECTION), np.array(json.dumps(features.skipped))

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, projected=features.x, pre_projection=before, labels=features.y, skipped=skipped)

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
        # Beside the folder: who waits for a lock in it could not take it any more once it is removed.
        with self._writing(), FileLock(self.target.with_name(f".{self.target.name}{LOCK}")):
            if not self.target.is_dir():
                pieces = [self._check(piece) for piece in range(self.cell.num_pieces)]
                whole = [piece for piece in pieces if piece is not None]
                if len(whole) < len(pieces):
                    return False
                self._build(whole, encoder=encoder, extraction=extraction)
            shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _build(self, pieces: Sequence[_Piece], *, encoder: Mapping[str, Any], extraction: Mapping[str, Any]) -> None:
        building = self.target.with_name(_temporary(self.target.name))
        building.mkdir()
        try:
            about = {
                "version": VERSION,
                "label": self.cell.label,
                "key": dict(self.cell.key),
                "num_images": self.cell.num_images,
                "arrays": {name: self._join(name, pieces, building) for name in ARRAYS},
                "skipped": [skipped for piece in pieces for skipped in piece.skipped],
                "encoder": dict(encoder),
                "extraction": dict(extraction),
            }
            about = json.loads(canonical_json(about))
            _write_synced(building / SIDECAR, json.dumps({**about, "sha256": digest(about)}, indent=2).encode())
            building.rename(self.target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise

    def is_complete(self) -> bool:
        """Whether all pieces are there."""
        return all(self.has(piece) for piece in range(self.cell.num_pieces))

    def state(self) -> str:
        """How many pieces there are, and where."""
        made = sum(self.has(piece) for piece in range(self.cell.num_pieces))
        return f"{self.cell}: {made} of {self.cell.num_pieces} pieces are in {self.folder}, other shards make the rest"

    def skipped(self) -> set[int]:
        """The positions of images without features in the pieces that are there."""
        pieces = [self._check(piece) for piece in range(self.cell.num_pieces) if self._path(piece).is_file()]
        return {int(position) for piece in pieces if piece is not None for position, _ in piece.skipped}

    def _path(self, piece: int) -> Path:
        return self.folder / f"{piece:06}.npz"

    def _check(self, piece: int) -> _Piece | None:
        """What is in a piece; None where it is not there, or is damaged, and then removed."""
        path, size = self._path(piece), piece_size(self.cell.batch_size)
        try:
            with _open_piece(path) as found:  # which compares all that is read with its checksum
                shapes = {name: found[name].shape for name in ARRAYS}
                skipped = [(int(position), str(message)) for position, message in json.loads(str(found["skipped"]))]
            n, whole = shapes[LABELS][0], min(size, self.cell.num_images - piece * size)
            if {shape[0] for shape in shapes.values()} != {n} or n + len(skipped) != whole:
                raise ValueError(f"it has {n} images of {whole}")
        except FileNotFoundError:
            return None
        except DAMAGE as err:
            logger.warning("%s is damaged (%s); it is made again", path, _why(err))
            path.unlink(missing_ok=True)
            return None
        return _Piece(path, shapes, skipped)

    def _join(self, name: str, pieces: Sequence[_Piece], building: Path) -> dict[str, Any]:
        """Write one array of all pieces, one piece in memory at a time; what the sidecar says of it."""
        filled = [piece for piece in pieces if piece.shapes[name][0]] or pieces[:1]  # an empty one has no true shape
        shape = (sum(piece.shapes[name][0] for piece in filled), *filled[0].shapes[name][1:])
        dtype = np.dtype(np.int64 if name == LABELS else np.float32)
        path = building / f"{name}.npy"
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
            for piece in filled:
                with _open_piece(piece.path) as found:
                    array = np.ascontiguousarray(found[name], dtype=dtype)
                file.write(array.data)  # not in there, where a full disk would pass for damage
            file.flush()
            os.fsync(file.fileno())
        return {"shape": list(shape), "dtype": str(dtype), "sha256": file_sha256(path)}

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
    """The arrays of a piece; whatever is raised of what the file holds is one of `DAMAGE`."""
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as found:
            yield found
    except OSError as err:  # a place before the beginning, which a damaged directory names
        raise ValueError(str(err)) from err


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file in one step: under a name of its own, then renamed."""
    temporary = path.with_name(_temporary(path.name))
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(name: str) -> str:
    # Not made of the process's number, which those of two containers can share.
    return f".{name}.{uuid.uuid4().hex[:8]}{REMOVED}"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def survey(root: Path) -> list[Kept]:
    """What lies in the store, sorted by path; arrays are not compared with their digests."""
    folders = sorted(path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith("."))
    return [kept for folder in folders if (kept := _survey(folder)) is not None]


def _survey(folder: Path) -> Kept | None:
    """What is in a folder of the store; None where another process has just removed it, or is making it."""
    try:
        used = folder.stat().st_mtime
        size = _size(folder)
        if folder.name.endswith(PIECES):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            state, n = f"{len(list(folder.glob('*.npz')))} of {about['num_pieces']} pieces", 0
        else:
            about, used = _read_sidecar(folder), (folder / SIDECAR).stat().st_mtime
            state, n = "whole", about["num_images"]
        return Kept(folder, about["label"], about["key"], state, n, size, used)
    except DAMAGE:
        is_begun = folder.name.endswith(PIECES) and not _is_abandoned(folder)
        return None if is_begun or not folder.is_dir() else Kept(folder, {}, {}, "damaged", 0, size, used)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # under its passing name a moment ago
            total += file.stat().st_size
    return total


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


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

    Raises:
        CacheError: something cannot be removed.
    """
    removed: list[Kept] = []
    if not root.is_dir():
        return removed
    try:
        with FileLock(root / LOCK):
            for left in root.glob("*/.*"):
                if left.name.endswith((REMOVED, LOCK)) and _is_abandoned(left):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            all_kept = survey(root)
            whole = {kept.path.name for kept in all_kept if kept.state == "whole"}
            total = sum(kept.size for kept in all_kept)
            for kept in sorted(all_kept, key=lambda kept: kept.used):
                of_no_use = kept.state == "damaged" or kept.path.name.removesuffix(PIECES) in whole - {kept.path.name}
                too_much = max_size is not None and total > max_size
                if (of_no_use or too_much) and not _is_in_use(kept.path):
                    shutil.rmtree(kept.path)
                    removed.append(kept)
                    total -= kept.size
    except OSError as err:
        raise CacheError(f"cannot remove from {root} ({err.strerror or err}); free it") from err
    return removed


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
