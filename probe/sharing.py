"""Folders that several users write to: modes of new files and folders, and locks that another user may hold."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from filelock import FileLock


def make_folder(folder: Path) -> None:
    """Make a folder and the folders above it that are missing, each as `share` does.

    Raises:
        OSError: a folder cannot be made, or a file is there.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # by another process
        if not folder.is_dir():
            raise
    else:
        share(folder)


def share(path: Path) -> None:
    """Let others use a new file or folder as they may use the folder that it is in.

    The group may read and write it if the folder belongs to a group (setgid) that may write to it, and everybody if
    everybody may write to the folder and remove files of others there. Else the umask alone counts.
    """
    bits = _shared_bits(path.parent)
    if bits:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            bits |= (bits & 0o044) >> 2
        with suppress(PermissionError):  # of a file system that has no modes
            path.chmod(mode | bits)


def lock(path: Path) -> FileLock:
    """Return the lock at a path; if this process may not open it, as another user made it, one with a name of its own.

    Then both users can do the same work at the same time. Whatever is written under such a lock is renamed to its
    place in one step, so that one of two equal results stays.
    """
    user = getattr(os, "geteuid", os.getpid)()
    if is_closed(path) or _is_refused(path, user):
        path = path.with_name(f"{path.stem}.{user}{path.suffix}")
    bits = _shared_bits(path.parent)
    return FileLock(path, mode=0o600 | bits) if bits else FileLock(path)


def is_closed(path: Path) -> bool:
    """Return whether a file is there that this process may not read or write, as one that another user made."""
    try:
        path.open("r+b").close()
    except PermissionError:
        return True
    except OSError:  # there is no such file, or whoever opens it meets the error again
        pass
    return False


def _is_refused(path: Path, user: int) -> bool:
    """Return whether filelock refuses a lock for its owner, who could replace it: filelock 4 in sticky folders."""
    try:
        folder, owner = path.parent.stat(), path.stat().st_uid
    except OSError:
        return False
    return bool(folder.st_mode & stat.S_ISVTX) and owner not in (user, folder.st_uid)


def _shared_bits(folder: Path) -> int:
    """Return the permissions that a folder has its files shared with."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return 0o066
    return 0o060 if mode & stat.S_IWGRP and mode & stat.S_ISGID else 0
