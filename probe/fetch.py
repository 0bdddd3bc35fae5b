"""Download a file from a URL and verify its SHA-256 or MD5, or check that it is complete if no digest is published.

A download is written to a `.part` file next to the target, and is hashed at the same time. An interrupted download is
resumed. The file is renamed to the target only if the digest is right. A lock prevents two processes from downloading
the same target.
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
        url: address of the file; starts with http:// or https://.
        target: path of the local file.
        sha256: published SHA-256; empty if none is published. An existing file is then used without a check.
        md5: published MD5, if no SHA-256 is published.
        check: function that raises an error if the downloaded file is not complete. The file is deleted then.
        offline: never use the network.

    Raises:
        DownloadError: the network failed, the disk is full, `offline` forbids the download, or `url` is not HTTP.
        ChecksumError: the downloaded file has a different digest; it is deleted.
    """
    if not re.match(r"https?://", url):  # urllib would also copy local files to `target`
        raise DownloadError(f"{url} is not a web address; give an address that starts with https:// or http://")
    published = Digest("md5", md5) if md5 else Digest("sha256", sha256)
    if _is_right(target, published):
        return target
    if offline:
        fault = "differs from the published file" if target.is_file() else "is missing"
        raise DownloadError(
            f"{target} {fault}, and --offline forbids the download; run without --offline, or put the file from {url} "
            "there"
        )
    if target.is_file():
        logger.warning("%s: %s mismatch (expected %s); downloading again", target, published.name, published.value)
    try:
        make_folder(target.parent)
        file_lock = lock(target.with_name(f"{target.name}.lock"))
        # Users with different locks can download at the same time, so each lock has its own .part file.
        part = Path(file_lock.lock_file).with_suffix(".part")
        with file_lock:
            if not _is_right(target, published):  # another process may have downloaded it
                _download_file(url, target, part, published, check)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as err:
        if isinstance(err, ProbeError):
            raise
        if isinstance(err, urllib.error.HTTPError):
            err.close()  # releases the connection
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise DownloadError(
                f"no space left on the disk for {target}; free some space and run again to resume the download"
            ) from err
        raise DownloadError(
            f"could not download {url} ({err}); run again to resume the download, or put the file at {target}"
        ) from err
    return target


def _is_right(target: Path, published: Digest) -> bool:
    if not target.is_file() or not published.value:
        return target.is_file()
    if published.algorithm == "sha256":
        return weights_sha256(target) == published.value
    with target.open("rb") as file:
        return hashlib.file_digest(file, published.new).hexdigest() == published.value


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. A process hashes a file only once unless the file changes."""
    status = path.stat()
    return _file_sha256_once(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_sha256_once(path: Path, *_: int) -> str:
    return file_sha256(path)


def _download_file(url: str, target: Path, part: Path, published: Digest, check: Callable[[Path], None] | None) -> None:
    if is_closed(part):  # another user began the download
        part.unlink()
    hasher = published.new()
    if part.is_file():
        with part.open("rb") as file:
            hasher = hashlib.file_digest(file, published.new)
        if hasher.hexdigest() == published.value:  # a process was killed before it renamed the complete file
            part.replace(target)
            return
    num_bytes = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_bytes}-"} if num_bytes else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        if err.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        err.close()
        part.unlink()  # at least as long as the file, but a different file: start again
        _download_file(url, target, part, published, check)
        return
    with response:
        if num_bytes and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            num_bytes, hasher = 0, published.new()  # the server sends the whole file
        total = num_bytes + int(response.headers.get("Content-Length") or 0)
        _stream(response, part, hasher, num_bytes=num_bytes, total=total)
    if published.value and hasher.hexdigest() != published.value:
        part.unlink()
        raise ChecksumError(
            f"{url}: {published.name} mismatch (expected {published.value}, got {hasher.hexdigest()}); "
            "the download was deleted; try again later"
        )
    if check is not None:
        try:
            check(part)
        except BaseException:
            part.unlink()
            raise
    part.replace(target)


def _stream(
    response: http.client.HTTPResponse, part: Path, hasher: hashlib._Hash, *, num_bytes: int, total: int
) -> None:
    with (
        part.open("ab" if num_bytes else "wb") as file,
        tqdm(total=total, initial=num_bytes, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
    ):
        share(part)
        while block := response.read(BLOCK):
            file.write(block)
            hasher.update(block)
            num_bytes += len(block)
            bar.update(len(block))
    if num_bytes < total:
        raise http.client.IncompleteRead(b"", total - num_bytes)
