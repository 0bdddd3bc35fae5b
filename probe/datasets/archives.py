"""Archives that a user has put into the data folder -> their files, unpacked once, and safely.

Nothing is written outside the folder, no link or device is made (a link within an archive becomes a file), and an
archive that would grow beyond reason is refused. What is half unpacked is not there: files go to a folder beside, and
from there to their places at the end.
"""

from __future__ import annotations

import logging
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from probe.errors import DatasetError
from probe.specs import Source

logger = logging.getLogger(__name__)

# Archives of images hardly shrink, those of texts tenfold; what grows a hundredfold, and beyond this, is a bomb.
MAX_RATIO, ALWAYS_FINE = 100, 1 << 30


def unpack_missing(source: Source, root: Path) -> None:
    """Unpack a source's archives where its files are not there and all of its archives are.

    Raises:
        DatasetError: an archive is damaged, or not to be trusted.
    """
    archives = [(root / name, root / folder) for name, folder in source.archives]
    if not archives or _is_unpacked(source, root) or not all(archive.is_file() for archive, _ in archives):
        return
    with FileLock(root / f"{archives[0][0].name}.lock"):
        if not _is_unpacked(source, root):  # another process may have been faster
            for archive, folder in archives:
                unpack(archive, folder)


def _is_unpacked(source: Source, root: Path) -> bool:
    return all((root / path).exists() for path in source.paths)


def unpack(archive: Path, folder: Path) -> None:
    """Put the files of a tar or zip archive into a folder, which is made; files that are there are kept.

    Raises:
        DatasetError: it is damaged, a member climbs out of the folder or is a link, or it is a bomb.
    """
    logger.info("unpacking %s", archive)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
        top = Path(temporary)
        try:
            members = _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive)
            _write(archive, members, top)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as err:
            why = " ".join(str(err).split())  # tarfile lists what it tried, in lines
            raise DatasetError(f"{archive} cannot be unpacked ({why}); get it again") from err
        for path in sorted(top.rglob("*")):
            target = folder / path.relative_to(top)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            elif not target.exists():
                path.replace(target)


def check_member(archive: Path, name: str) -> PurePosixPath:
    """See that a member's name stays below the folder it would be unpacked to.

    Raises:
        DatasetError: it does not.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DatasetError(f"{archive} has a file {name!r}, which would lie outside of its folder; do not use it")
    return path


def _write(archive: Path, members: Iterable[tuple[str, IO[bytes]]], top: Path) -> None:
    limit = max(ALWAYS_FINE, MAX_RATIO * archive.stat().st_size)
    written = 0
    for name, file in members:
        target = top / check_member(archive, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            while block := file.read(1 << 20):  # sizes that an archive states are not believed
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
                file = opened.extractfile(info)  # of a link the file it links to, which has to be in the archive
            except (KeyError, RecursionError):  # the latter for a link to itself
                file = None
            if file is None:
                raise DatasetError(
                    f"{archive} has {info.name!r}, which is neither a file nor a link to one in it; do not use it"
                )
            with file:
                yield info.name, file
