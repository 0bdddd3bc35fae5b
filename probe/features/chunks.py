"""Chunks of features in files of their own, which are joined to a cache entry when all are written.

A chunk is written to a temporary file and renamed, so a killed process leaves complete chunks. A lock for each chunk
lets processes share the work; the lock of a killed process is released.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from probe.atomic import lock, make_folder, share, temporary_beside, write_atomically
from probe.errors import CacheError, summarize
from probe.features.arrays import PRE_PROJECTION, Features, chunk_size
from probe.features.sidecars import (
    ABOUT,
    ENTRY,
    LAYOUT_VERSION,
    MAKING,
    ArrayFile,
    ChunksSidecar,
    Provenance,
    Sidecar,
    encode_plain,
    encode_sidecar,
    read_provenance,
)
from probe.features.store import ARRAYS, CHUNKS, DAMAGE, LABELS, LOCK, EntrySpec, find
from probe.fetch import file_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Chunk:
    """Cached chunk: the shapes of its arrays, and the skipped images, which have no row."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    skipped: Sequence[tuple[int, str]]


class Work:
    """Chunks of an entry that this process extracts, possibly together with other processes."""

    def __init__(self, root: Path, spec: EntrySpec) -> None:
        self.spec, self.root = spec, root
        self.target = spec.folder(root)
        self.folder = self.target.with_name(self.target.name + CHUNKS)
        self.chunks = range(spec.num_chunks)
        self._claims: dict[int, FileLock] = {}

    def start(self) -> None:
        """Create the folder of the chunks.

        Raises:
            CacheError: the folder cannot be written to.
        """
        about = encode_plain(ChunksSidecar(self.spec.label, self.spec.key, len(self.chunks)))
        with self._writing():
            while not (self.folder / ABOUT).is_file() and not self.target.is_dir():
                make_folder(self.folder)
                with suppress(FileNotFoundError):  # another process has just built the entry, and removed the folder
                    _write(self.folder / ABOUT, about)

    def has(self, chunk: int) -> bool:
        """Return True if a chunk is cached, in its own file or in a complete entry."""
        return self._path(chunk).is_file() or self.target.is_dir()

    def claim(self, chunk: int) -> bool:
        """Claim a chunk until it is written or dropped; return False if it is cached or another process extracts it."""
        if self.has(chunk):
            return False
        claimed = lock(self.folder / f"{chunk:06}{LOCK}")
        with self._writing():
            try:
                claimed.acquire(timeout=0)
            except (Timeout, FileNotFoundError):  # another process has claimed it, or has built the entry
                return False
        if self.has(chunk):
            claimed.release()
            if self.target.is_dir():  # taking the lock has created the folder again
                shutil.rmtree(self.folder, ignore_errors=True)
            return False
        self._claims[chunk] = claimed
        return True

    def write(self, chunk: int, features: Features) -> None:
        """Write a chunk, and release its claim.

        Raises:
            CacheError: the disk is full, or the folder cannot be written to; cached chunks stay.
        """
        with self._writing():
            _write(self._path(chunk), _pack(features))
        self.drop(chunk)

    def describe(self, provenance: Provenance) -> None:
        """Write how the features are extracted, so that the process that builds the entry needs no encoder."""
        with self._writing(), suppress(FileNotFoundError):  # another process has just made the entry
            _write(self.folder / MAKING, encode_plain(provenance))

    def files(self, chunks: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """Yield the names and contents of the files that a different cache needs for some chunks, if they are cached.

        Chunks of a complete entry are cut from its arrays.
        """
        entry = find(self.root, self.spec)
        if entry is not None:
            yield MAKING, encode_plain(entry.provenance)
        elif (self.folder / MAKING).is_file():
            yield MAKING, (self.folder / MAKING).read_bytes()
        for chunk in chunks:
            if entry is not None:
                yield self._path(chunk).name, _pack(self._cut(entry.features, chunk))
            elif self._path(chunk).is_file():
                yield self._path(chunk).name, self._path(chunk).read_bytes()

    def take_in(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write files of a different cache that are missing here; their content is checked when the entry is built.

        Raises:
            CacheError: the disk is full, or the folder cannot be written to.
        """
        self.start()
        for name, content in files:
            path = self.folder / Path(name).name
            with self._writing(), suppress(FileNotFoundError):  # another process has just made the entry
                if not path.is_file() and not self.target.is_dir():
                    _write(path, content)

    def _cut(self, features: Features, chunk: int) -> Features:
        size = chunk_size(self.spec.batch_size)
        first, end = chunk * size, min((chunk + 1) * size, self.spec.num_images)
        skipped = np.array([position for position, _ in features.skipped], np.int64)
        rows = slice(first - int((skipped < first).sum()), end - int((skipped < end).sum()))
        kept = tuple((position, message) for position, message in features.skipped if first <= position < end)
        return Features(features.x[rows], features.y[rows], features.at(PRE_PROJECTION)[rows], kept)

    def drop(self, chunk: int) -> None:
        """Release the claim of a chunk."""
        if chunk in self._claims:
            self._claims.pop(chunk).release()

    def close(self) -> None:
        """Release the claims of all chunks that were not written."""
        for chunk in list(self._claims):
            self.drop(chunk)

    def finish_whole(self) -> bool:
        """Build the entry if all chunks are cached; return True if the entry exists now.

        Raises:
            CacheError: the disk is full, or the folder cannot be written to.
        """
        if not self.is_complete():
            return False
        try:
            provenance = read_provenance(self.folder)
        except (*DAMAGE, PermissionError):  # a new extraction can write the file again
            return self.target.is_dir()
        return self.finish(provenance)

    def finish(self, provenance: Provenance) -> bool:
        """Build the entry from the chunks; return False if a chunk is missing, or damaged and therefore removed.

        Raises:
            CacheError: the disk is full, or the folder cannot be written to.
        """
        # The lock is next to the folder, because the folder is removed while other processes wait for the lock.
        with self._writing(), lock(self.target.with_name(f".{self.target.name}{LOCK}")):
            if not self.target.is_dir():
                chunks = [self._check(chunk) for chunk in self.chunks]
                whole = [chunk for chunk in chunks if chunk is not None]
                if len(whole) < len(chunks):
                    return self.target.is_dir()
                try:
                    self._build(whole, provenance)
                except OSError:  # another user, with a different lock, was faster
                    if not self.target.is_dir():
                        raise
            shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _build(self, chunks: Sequence[_Chunk], provenance: Provenance) -> None:
        building = temporary_beside(self.target)
        building.mkdir()
        share(building)
        try:
            sidecar = Sidecar(
                version=LAYOUT_VERSION,
                label=self.spec.label,
                key=self.spec.key,
                num_images=self.spec.num_images,
                arrays={name: self._join(name, chunks, building) for name in ARRAYS},
                skipped=tuple(skipped for chunk in chunks for skipped in chunk.skipped),
                encoder=provenance.encoder,
                extraction=provenance.extraction,
            )
            _write_synced(building / ENTRY, encode_sidecar(sidecar))
            for file in building.iterdir():
                share(file)
            building.rename(self.target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise

    def is_complete(self) -> bool:
        """Return True if all chunks are cached."""
        return all(self.has(chunk) for chunk in self.chunks)

    def state(self) -> str:
        """Return a sentence that says how many chunks are cached, and where."""
        num_cached = sum(self.has(chunk) for chunk in self.chunks)
        return (
            f"{self.spec}: {num_cached} of {len(self.chunks)} chunks are cached in {self.folder}; extract the other "
            "shards too"
        )

    def skipped(self) -> set[int]:
        """Return the positions of skipped images in the chunks that are cached."""
        chunks = [self._check(chunk) for chunk in self.chunks if self._path(chunk).is_file()]
        return {int(position) for chunk in chunks if chunk is not None for position, _ in chunk.skipped}

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.npz"

    def _check(self, chunk: int) -> _Chunk | None:
        """Return the content of a chunk; None if it is missing, or damaged and therefore removed."""
        path, size = self._path(chunk), chunk_size(self.spec.batch_size)
        try:
            with _open_chunk(path) as arrays:  # zip files compare all bytes with a checksum
                shapes = {name: arrays[name].shape for name in ARRAYS}
                skipped = [(int(position), str(message)) for position, message in json.loads(str(arrays["skipped"]))]
            n, whole = shapes[LABELS][0], min(size, self.spec.num_images - chunk * size)
            if {shape[0] for shape in shapes.values()} != {n} or n + len(skipped) != whole:
                raise ValueError(f"it has {n} images of {whole}")
        except FileNotFoundError:
            return None
        except (*DAMAGE, PermissionError) as err:  # a file of another user
            what = "cannot be read" if isinstance(err, PermissionError) else "is damaged"
            logger.warning("%s %s (%s); extracting it again", path, what, summarize(err))
            path.unlink(missing_ok=True)
            return None
        return _Chunk(path, shapes, skipped)

    def _join(self, name: str, chunks: Sequence[_Chunk], building: Path) -> ArrayFile:
        """Write one array of all chunks, with one chunk in memory at a time; return its description in the sidecar."""
        filled = [chunk for chunk in chunks if chunk.shapes[name][0]] or chunks[:1]  # an empty chunk has no width
        shape = (sum(chunk.shapes[name][0] for chunk in filled), *filled[0].shapes[name][1:])
        dtype = np.dtype(np.int64 if name == LABELS else np.float32)
        path = building / f"{name}.npy"
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
            for chunk in filled:
                with _open_chunk(chunk.path) as arrays:
                    array = np.ascontiguousarray(arrays[name], dtype=dtype)
                file.write(array.data)  # outside of the block above, where a full disk would count as damage
            file.flush()
            os.fsync(file.fileno())
        return ArrayFile(shape, str(dtype), file_sha256(path))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if isinstance(err, CacheError):
                raise
            num_cached = sum(1 for chunk in self.chunks if self._path(chunk).is_file())
            what = f"{num_cached} of {len(self.chunks)} chunks of {self.spec} are cached"
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(
                    f"no space left in {self.root}; make room, for example with python -m probe cache gc --max-size "
                    f"10GB, or name a different folder with --cache-dir; {what}"
                ) from err
            raise CacheError(
                f"cannot write to {err.filename or self.root} ({err.strerror or err}); make it writable, or name a "
                f"different folder with --cache-dir; {what}"
            ) from err


def _pack(features: Features) -> bytes:
    """Return the content of the file of a chunk."""
    assert features.pre_projection is not None  # extraction takes both points
    skipped = np.array(json.dumps(features.skipped))
    file = io.BytesIO()
    np.savez(file, projected=features.x, pre_projection=features.pre_projection, labels=features.y, skipped=skipped)
    return file.getvalue()


@contextmanager
def _open_chunk(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open the arrays of a chunk; errors about the content of the file are among `DAMAGE`."""
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as arrays:
            yield arrays
    except OSError as err:  # a damaged zip directory can name a position before the start of the file
        raise ValueError(str(err)) from err


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as file:
        file.write(content)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
