"""Files that appear completely or not at all, also in folders that several users write to.

Files are written under a temporary name and renamed. New files and folders get the modes of their folder, and a lock
of another user is replaced by a lock with a different name.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

TEMPORARY = ".tmp"  # suffix of incomplete files, which `probe cache gc` removes
MAX_STEM = 200  # characters of a temporary name; file systems take 255 bytes


def temporary_beside(path: Path) -> Path:
    """Return a hidden name in the same folder that no other process uses, also not in another container or machine.

    Raises:
        IsADirectoryError: the path has no file name.
    """
    if not path.name:  # such as `.`
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f".{path.name[:MAX_STEM]}.{uuid.uuid4().hex[:8]}{TEMPORARY}")


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces the one at `path` in one step, when the block ends without an error.

    After an error or Ctrl-C, an existing file is unchanged. The folder must exist.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            share(temporary)
            yield file
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and the missing folders above it, and `share` each of them.

    Raises:
        OSError: a folder cannot be made, or a file has its name.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # another process made it
        if not folder.is_dir():
            raise
    else:
        share(folder)


def share(path: Path) -> None:
    """Give others the rights to a new file or folder that they have to the folder around it.

    The group gets read and write access if the folder has setgid and is writable by its group. Everybody gets access if
    everybody may write to the folder and remove the files of others in it. Otherwise the umask decides.
    """
    bits = _shared_bits(path.parent)
    if bits:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            bits |= (bits & 0o044) >> 2
        with suppress(PermissionError):  # the file system has no modes
            path.chmod(mode | bits)


def lock(path: Path) -> FileLock:
    """Return the lock at a path. If another user made it and this process may not open it, use a different name.

    In that case, both users can do the same work at the same time. Files that are written under such a lock need a name
    that contains the name of the lock, until they are renamed to their final names in one step. If two
    processes write the same result, one of the two equal files remains.
    """
    user = getattr(os, "geteuid", os.getpid)()
    if is_closed(path) or _is_refused(path, user):
        path = path.with_name(f"{path.stem}.{user}{path.suffix}")
    bits = _shared_bits(path.parent)
    return FileLock(path, mode=0o600 | bits) if bits else FileLock(path)


def is_closed(path: Path) -> bool:
    """Return True if a file exists that this process may not read or write, such as a file of another user."""
    try:
        path.open("r+b").close()
    except PermissionError:
        return True
    except OSError:  # the file does not exist, or opening it later raises the error again
        pass
    return False


def _is_refused(path: Path, user: int) -> bool:
    """Return True if filelock refuses a lock that its owner could replace, as filelock 4 does in sticky folders."""
    try:
        folder, owner = path.parent.stat(), path.stat().st_uid
    except OSError:
        return False
    return bool(folder.st_mode & stat.S_ISVTX) and owner not in (user, folder.st_uid)


def _shared_bits(folder: Path) -> int:
    """Return the permissions that new files get from their folder."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return 0o066
    return 0o060 if mode & stat.S_IWGRP and mode & stat.S_ISGID else 0
