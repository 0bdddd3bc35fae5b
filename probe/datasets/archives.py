"""Archives in the data folder -> their files, unpacked once and safely.

Nothing is written outside the data folder. No link or device is created: a link within an archive becomes a file. An
archive that would grow beyond reason is refused. Files are unpacked to a temporary folder, and moved to their places
when all are complete.
"""

from __future__ import annotations

import errno
import glob
import logging
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, cast

from probe.atomic import lock, make_folder, share
from probe.errors import ChecksumError, DatasetError, DatasetMissingError, DownloadError, summarize
from probe.fetch import fetch
from probe.specs import Source

logger = logging.getLogger(__name__)

# Compression hardly shrinks images and shrinks text tenfold. An archive that grows a hundredfold and beyond is a bomb.
MAX_RATIO, ALWAYS_FINE = 100, 1 << 30
BLOCK = 1 << 20  # bytes read at a time
# Errors of the readers for archives that are damaged, or of a different format than their names say.
DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


def fetch_missing(source: Source, root: Path, *, only: str = "") -> None:
    """Fetch and unpack the archives of a source that has `downloads`.

    Args:
        source: if it has no `downloads`, or if its files exist, nothing is done.
        root: the data folder.
        only: name of the one archive that is needed; empty for all.

    Raises:
        DatasetMissingError: an archive could not be downloaded, or its checksum differs from the published one.
        DatasetError: see `unpack_missing`.
    """
    _check_places(source)
    if not source.downloads or _is_unpacked(source, root):
        return
    for (name, _), (url, md5) in zip(source.archives, source.downloads, strict=True):
        if only in ("", name):
            try:
                fetch(url, root / name, md5=md5)
            except (DownloadError, ChecksumError) as err:
                raise DatasetMissingError(str(err)) from err
    unpack_missing(source, root, only=only)


def unpack_missing(source: Source, root: Path, *, only: str = "") -> None:
    """Unpack the archives of a source if its files are missing and all of its archives are present.

    Args:
        source: the source whose archives are unpacked.
        root: the data folder.
        only: name of the one archive that is needed; empty for all.

    Raises:
        DatasetError: an archive is damaged, unsafe, or lacks the expected files; the disk is full; or an archive or
            its folder would lie outside `root`.
    """
    _check_places(source)
    archives = [(root / name, root / folder) for name, folder in source.archives if only in ("", name)]
    if not archives or not all(archive.is_file() for archive, _ in archives):
        return
    if _is_unpacked(source, root):
        return
    try:
        taken = lock(root / f"{archives[0][0].name}.lock")
        # While files are moved to their places, all seem to be present. The marker tells the next process that this
        # one was killed. It has the name of the lock, because another user's marker cannot be changed.
        begun = root / f".{Path(taken.lock_file).stem}.begun"
        with taken:
            if _is_unpacked(source, root):  # another process was faster
                return
            with suppress(PermissionError):  # the marker of another user, who has left no lock
                begun.touch()
            for archive, folder in archives:
                with lock(archive.with_name(f"{archive.name}.unpacking.lock")):  # two sources can share an archive
                    unpack_archive(archive, folder)
            for marker in _markers(root, [archive.name for archive, _ in archives], "begun"):
                with suppress(PermissionError):  # of another user, in a folder where each user removes only their own
                    marker.unlink(missing_ok=True)
                if marker.exists():
                    begun.with_suffix(".done").touch()
    except OSError as err:
        raise DatasetError(
            f"cannot unpack into {err.filename or root} ({err.strerror}); make it writable, or unpack by hand"
        ) from err
    absent = [path for path in source.paths if not (root / path).exists()]
    if absent and not only:
        names = " and ".join(archive.name for archive, _ in archives)
        raise DatasetError(
            f"{names} in {root} do not contain {absent[0]}; download them again, or put {source.files} into this folder"
        )


def _is_unpacked(source: Source, root: Path) -> bool:
    """Return True if all paths exist, and no process was killed while it moved them, unless a later one finished."""
    names = [PurePosixPath(name).name for name, _ in source.archives]
    begun, done = (max(map(_changed, _markers(root, names, kind)), default=0) for kind in ("begun", "done"))
    return done >= begun and all((root / path).exists() for path in source.paths)


def _markers(root: Path, names: Iterable[str], kind: str) -> list[Path]:
    """Return the markers of archives, including the markers of other users, whose names contain a number."""
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, names))})(\.\d+)?\.{kind}")
    return [path for path in root.glob(f".*.{kind}") if pattern.fullmatch(path.name)]


def _changed(path: Path) -> int:
    """Return the time of the last change in nanoseconds; 0 if another process has removed the file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder. The folder is created; existing files are not replaced.

    Raises:
        DatasetError: the archive is damaged, a member or a link leaves the folder, the archive is a bomb, or the disk
            is full.
        OSError: the folder cannot be written to.
    """
    logger.info("unpacking %s", archive)
    make_folder(folder)
    prefix = f".{archive.name}-"
    for left in folder.glob(f"{glob.escape(prefix)}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)  # files of another user may remain
    with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as temporary:
        top = Path(temporary)
        try:
            _write(archive, _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive), top)
        except DAMAGES as err:
            if getattr(err, "errno", None) == errno.ENOSPC:
                raise DatasetError(f"no space left to unpack {archive}; make room and run again") from err
            raise DatasetError(f"cannot unpack {archive} ({summarize(err)}); download it again") from err
        for path in sorted(top.rglob("*")):
            target = folder / path.relative_to(top)
            if path.is_dir():
                make_folder(target)
            elif not target.exists():
                path.replace(target)
                share(target)


def is_below(name: str) -> bool:
    """Return True if a relative path with `/` cannot leave the folder that it is joined to, on any operating system."""
    path = PurePosixPath(name)
    is_relative = not path.is_absolute() and not os.path.splitdrive(name)[0]
    return is_relative and ".." not in path.parts and "\\" not in name and "\0" not in name


def _check_places(source: Source) -> None:
    """Raise an error for an archive or folder outside the data folder. Links in the data folder are the user's own."""
    outside = [place for pair in source.archives for place in pair if not is_below(place)]
    if outside:
        raise DatasetError(
            f"{source.location}: {outside[0]!r} in `archives` is outside the data folder; give a path below it"
        )


def check_member(archive: Path, name: str) -> PurePosixPath:
    """Check that the name of a member stays below the folder that it would be unpacked to.

    Raises:
        DatasetError: the name leaves the folder.
    """
    if not is_below(name):
        raise DatasetError(f"{archive} has a file {name!r} that would be written outside of its folder; do not use it")
    return PurePosixPath(name)


def _write(archive: Path, members: Iterable[tuple[str, IO[bytes]]], top: Path) -> None:
    limit = max(ALWAYS_FINE, MAX_RATIO * archive.stat().st_size)
    written = 0
    for name, file in members:
        target = top / check_member(archive, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            while block := file.read(BLOCK):  # sizes that an archive states are not believed
                written += len(block)
                if written > limit:
                    raise DatasetError(f"{archive} unpacks to more than {limit / 1e9:.0f} GB; do not use it")
                out.write(block)


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.is_dir():
                with opened.open(info) as file:
                    yield info.filename, file


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as opened:
        for info in opened:
            if info.isdir():
                continue
            try:
                file = opened.extractfile(info)  # for a link, its target, which must be in the archive
            except (KeyError, RecursionError):  # a missing target, or a link to itself
                file = None
            if file is None:
                raise DatasetError(
                    f"{archive} has {info.name!r}, which is neither a file nor a link to a file in it; do not use it"
                )
            with file:
                yield info.name, file
        check_end(cast("IO[bytes]", opened.fileobj), opened.offset)  # which a tar that is read has


def check_end(file: IO[bytes], offset: int) -> None:
    """Check that only zeros follow, because tarfile mistakes a damaged header for the end and ignores a missing end.

    Reading to the end also compares the checksum of a compressed archive.

    Raises:
        tarfile.ReadError: the archive is truncated or damaged.
    """
    file.seek(offset)
    zeros = file.read(tarfile.BLOCKSIZE)
    if len(zeros) < tarfile.BLOCKSIZE or any(zeros):
        raise tarfile.ReadError("it is truncated, or damaged in the middle")
    while block := file.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("there are data after its end")
