"""URL and SHA-256 or MD5 -> a verified local file; without a published digest, a file that passed a completeness check.

A download goes to a `.part` file beside its target, resumes where it broke, is hashed as it streams, and takes its name
only when the hash is right. A lock keeps a second process from the same target.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from probe.atomic import is_closed, lock, make_folder, share
from probe.errors import ChecksumError, DownloadError, ProbeError

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Digest:
    """Published digest of a file; `value` is empty if no digest is published."""

    algorithm: str
    value: str

    @property
    def name(self) -> str:
        """Name of the algorithm, for messages."""
        return {"sha256": "SHA-256", "md5": "MD5"}[self.algorithm]

    def new(self) -> hashlib._Hash:
        """Return a new hash object. It only detects damage, so MD5 is used even if a policy forbids it for security."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    md5: str = "",
    check: Callable[[Path], None] | None = None,
    offline: bool = False,
) -> Path:
    """Return `target`, downloaded from `url` unless it exists with the right digest.

    Args:
        url: where it is.
        target: where it will be.
        sha256: what was published; empty where nothing was, and what is there is taken as it is.
        md5: the MD5 of the file, if no SHA-256 is published.
        check: sees that a download is whole before it takes its name, and raises if not; nothing is kept then.
        offline: never touch the network.

    Raises:
        DownloadError: the network failed, the disk is full, `offline` forbids the download, or `url` is not HTTP.
        ChecksumError: the downloaded file has a different digest; it is deleted.
    """
    if not re.match(r"https?://", url):  # urllib would also read local files, and write what it reads to `target`
        raise DownloadError(f"{url} is not an address of the web; write one that starts with https:// or http://")
    published = Digest("md5", md5) if md5 else Digest("sha256", sha256)
    if _is_right(target, published):
        return target
    if target.is_file():
        logger.warning("%s: %s mismatch (expected %s); downloading again", target, published.name, published.value)
    if offline:
        raise DownloadError(
            f"{target} is not here, or not as published, and --offline forbids to fetch it; put the file of {url} there"
        )
    try:
        make_folder(target.parent)
        taken = lock(target.with_name(f"{target.name}.lock"))
        # Two users with different locks can download at the same time, so the file has the name of the lock.
        part = Path(taken.lock_file).with_suffix(".part")
        with taken:
            if not _is_right(target, published):  # another process may have downloaded it
                _download(url, target, part, published, check)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as err:
        if isinstance(err, ProbeError):
            raise
        if isinstance(err, urllib.error.HTTPError):
            err.close()  # releases the connection
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise DownloadError(f"no space left for {target}; make room and run again, which resumes") from err
        raise DownloadError(f"could not fetch {url} ({err}); run again to resume, or put the file at {target}") from err
    return target


def _is_right(target: Path, published: Digest) -> bool:
    if not target.is_file() or not published.value:
        return target.is_file()
    if published.algorithm == "sha256":
        return weights_sha256(target) == published.value
    with target.open("rb") as file:
        return hashlib.file_digest(file, published.new).hexdigest() == published.value


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file of weights, which a process hashes once unless the file changes."""
    status = path.stat()
    return _file_sha256_once(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_sha256_once(path: Path, *_: int) -> str:
    return file_sha256(path)


def _download(url: str, target: Path, part: Path, published: Digest, check: Callable[[Path], None] | None) -> None:
    if is_closed(part):  # begun by another user
        part.unlink()
    found = published.new()
    if part.is_file():
        with part.open("rb") as file:
            found = hashlib.file_digest(file, published.new)
        if found.hexdigest() == published.value:  # a process was killed before it renamed the complete file
            part.replace(target)
            return
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        if err.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        err.close()
        part.unlink()  # as long as the file or longer, and not the file: begin again
        _download(url, target, part, published, check)
        return
    with response:
        if have and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have, found = 0, published.new()  # the server sends the whole file
        total = have + int(response.headers.get("Content-Length") or 0)
        _stream(response, part, found, have=have, total=total)
    if published.value and found.hexdigest() != published.value:
        part.unlink()
        raise ChecksumError(
            f"{url} has the {published.name} {found.hexdigest()} where {published.value} was expected; nothing was "
            "kept, try again later"
        )
    if check is not None:
        try:
            check(part)
        except BaseException:
            part.unlink()
            raise
    part.replace(target)


def _stream(response: http.client.HTTPResponse, part: Path, found: hashlib._Hash, *, have: int, total: int) -> None:
    with (
        part.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
    ):
        share(part)
        while block := response.read(BLOCK):
            file.write(block)
            found.update(block)
            have += len(block)
            bar.update(len(block))
    if have < total:
        raise http.client.IncompleteRead(b"", total - have)
