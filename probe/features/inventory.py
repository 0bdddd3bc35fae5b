"""Inventory of the feature cache: list entries, explain a miss, verify digests, remove entries.

Entries are folders with the features of images, and files with the texts of classes or the digests of pixels, see
`text_store.py` and `pixels.py`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from probe.atomic import TEMPORARY, lock
from probe.decoder import decode
from probe.errors import CacheError
from probe.features.file_entries import FileSidecar, damage_of_file, read_file_entry
from probe.features.pixels import PIXELS, PixelSidecar
from probe.features.sidecars import ENTRY, Key, read_chunks_sidecar, read_sidecar
from probe.features.store import CHUNKS, DAMAGE, FITS, LOCK, EntrySpec, damage
from probe.features.text_store import TEXTS, TextSidecar
from probe.specs import canonical_json

FILES: dict[str, type[FileSidecar]] = {TEXTS: TextSidecar, PIXELS: PixelSidecar}  # ends of the names of entries
ABANDONED_SECONDS = 24 * 3600  # age at which temporary files count as left by a killed process


@dataclass(frozen=True)
class CachedEntry:
    """Entry of the cache, complete or being extracted.

    `state` is `complete`, `damaged`, `unreadable` (the entry belongs to another user), or a text such as
    `2 of 8 chunks`. `num_images` is 0 for files. `used` is in seconds since the epoch, `size` in bytes.
    """

    path: Path
    label: Mapping[str, str]
    key: Key
    state: str
    num_images: int
    size: int
    used: float


def survey(root: Path) -> list[CachedEntry]:
    """Return the entries of the cache, sorted by path. Arrays are not compared with their digests.

    Raises:
        CacheError: the cache cannot be read.
    """
    try:
        paths = sorted(path for path in root.glob("*/*") if not path.name.startswith("."))
        found = (
            _survey_file(path, kind) if (kind := _kind(path)) else _survey(path) for path in paths if _is_entry(path)
        )
        return [cached for cached in found if cached is not None]
    except OSError as err:
        raise CacheError(f"cannot read {root} ({err.strerror or err}); make it readable") from err


def _survey(folder: Path) -> CachedEntry | None:
    """Describe a folder of the cache; return None if another process has just removed it or has just created it."""
    size, used = 0, 0.0
    try:
        size, used = _size(folder), folder.stat().st_mtime
        if folder.name.endswith(CHUNKS):
            chunks = read_chunks_sidecar(folder)
            label, key = chunks.label, chunks.key
            state, n = f"{len(list(folder.glob('*.npz')))} of {chunks.num_pieces} chunks", 0
        else:
            entry, used = read_sidecar(folder), (folder / ENTRY).stat().st_mtime
            label, key, state, n = entry.label, entry.key, "complete", entry.num_images
        label.setdefault("subset", label.pop("part", ""))  # its name in entries of earlier versions
        return CachedEntry(folder, label, key, state, n, size, used)
    except PermissionError:  # the entry of another user
        return CachedEntry(folder, {}, {}, "unreadable", 0, size, used)
    except DAMAGE:
        is_begun = folder.name.endswith(CHUNKS) and not _is_abandoned(folder)
        return None if is_begun or not folder.is_dir() else CachedEntry(folder, {}, {}, "damaged", 0, size, used)


def _is_entry(path: Path) -> bool:
    return path.is_dir() or _kind(path) is not None


def _kind(path: Path) -> type[FileSidecar] | None:
    """Return the type of the description of an entry that is a file; None for a folder and for other files."""
    kind = next((kind for suffix, kind in FILES.items() if path.name.endswith(suffix)), None)
    return kind if kind is not None and path.is_file() else None


def _survey_file(path: Path, kind: type[FileSidecar]) -> CachedEntry | None:
    """Describe an entry that is a file; return None if another process has just removed it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    try:
        sidecar, _ = read_file_entry(path, kind)
    except PermissionError:  # the entry of another user
        return CachedEntry(path, {}, {}, "unreadable", 0, status.st_size, status.st_mtime)
    except DAMAGE:
        return CachedEntry(path, {}, {}, "damaged", 0, status.st_size, status.st_mtime) if path.exists() else None
    return CachedEntry(path, sidecar.label, sidecar.key, "complete", 0, status.st_size, status.st_mtime)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
            total += file.stat().st_size
    return total


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def verify(root: Path) -> tuple[int, dict[Path, str]]:
    """Compare complete entries with their digests; return their number, and the reason for each damaged entry."""
    paths = [cached.path for cached in survey(root) if not cached.path.name.endswith(CHUNKS)]
    reasons = {path: damage_of_file(path, kind) if (kind := _kind(path)) else damage(path) for path in paths}
    return len(paths), {path: reason for path, reason in reasons.items() if reason}


def differing(wanted: EntrySpec, cached: CachedEntry) -> dict[str, tuple[Any, Any]]:
    """Return the fields of the key in which a cached entry differs from the wanted one: both values of each."""
    key = decode(json.loads(canonical_json(wanted.key)), Key)
    return {
        name: (cached.key.get(name), key.get(name))
        for name in sorted({*key, *cached.key})
        if cached.key.get(name) != key.get(name)
    }


def nearest(root: Path, spec: EntrySpec) -> CachedEntry | None:
    """Return the entry of the same subset of the same dataset that differs in the fewest fields of the key."""
    of_subset = [
        cached
        for cached in survey(root)
        if (cached.label.get("dataset"), cached.label.get("subset")) == (spec.dataset, spec.subset)
    ]
    same_model = [cached for cached in of_subset if cached.label.get("model") == spec.model] or of_subset
    return min(same_model, key=lambda cached: (len(differing(spec, cached)), -cached.used), default=None)


def collect(root: Path, *, max_size: int | None = None) -> list[CachedEntry]:
    """Remove useless entries, then the least recently used ones down to `max_size` bytes; return the removed entries.

    Useless entries are damaged entries, chunks of complete entries, fits of interrupted sweeps, and temporary files of
    killed processes. Entries that another process is extracting are not removed.

    Raises:
        CacheError: an entry cannot be removed.
    """
    removed: list[CachedEntry] = []
    if not root.is_dir():
        return removed
    try:
        with lock(root / LOCK):
            for left in root.glob("*/.*"):
                if left.name.endswith((TEMPORARY, LOCK)) and _is_abandoned(left):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            for fit in (root / FITS).glob("*"):  # fits of interrupted sweeps, which can be repeated
                if fit.is_file() and _is_abandoned(fit):  # a dataset can have the same name
                    fit.unlink(missing_ok=True)
            entries = survey(root)
            complete = {cached.path.name for cached in entries if cached.state == "complete"}
            total = sum(cached.size for cached in entries)
            for cached in sorted(entries, key=lambda cached: cached.used):
                of_no_use = cached.state == "damaged" or cached.path.name.removesuffix(CHUNKS) in complete - {
                    cached.path.name
                }
                too_much = max_size is not None and total > max_size
                if (of_no_use or too_much) and not _is_in_use(cached.path):
                    shutil.rmtree(cached.path) if cached.path.is_dir() else cached.path.unlink(missing_ok=True)
                    removed.append(cached)
                    total -= cached.size
    except OSError as err:
        raise CacheError(f"cannot remove entries from {root} ({err.strerror or err}); make it writable") from err
    return removed


def _is_in_use(folder: Path) -> bool:
    for path in folder.glob("*.lock"):
        taken = FileLock(path)
        try:
            taken.acquire(timeout=0)
        except (Timeout, OSError):  # OSError for a lock of another user
            return True
        taken.release()
    return False
