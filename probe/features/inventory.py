"""What lies in the feature store, for people: list it, explain a miss, compare it with its digests, remove some."""

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

from probe.atomic import lock
from probe.errors import CacheError
from probe.features.store import ABOUT, CHUNKS, DAMAGE, FITS, LOCK, REMOVED, SIDECAR, EntrySpec, damage, read_sidecar
from probe.specs import canonical_json

ABANDONED_SECONDS = 24 * 3600  # after which what a killed process left under another name is nobody's


@dataclass(frozen=True)
class Kept:
    """What lies in the store, for people.

    `state` is `whole`, `damaged`, `unreadable` (it belongs to another user), or the number of chunks so far and in all.
    `used` is in seconds since the epoch, `size` in bytes.
    """

    path: Path
    label: Mapping[str, str]
    key: Mapping[str, Any]
    state: str
    num_images: int
    size: int
    used: float


def survey(root: Path) -> list[Kept]:
    """What lies in the store, sorted by path; arrays are not compared with their digests.

    Raises:
        CacheError: it cannot be read, or is no folder.
    """
    if root.exists() and not root.is_dir():
        raise CacheError(f"{root} is no folder; name that of features with --cache-dir")
    try:
        folders = sorted(path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith("."))
        return [kept for folder in folders if (kept := _survey(folder)) is not None]
    except OSError as err:
        raise CacheError(f"cannot read {root} ({err.strerror or err}); free it") from err


def _survey(folder: Path) -> Kept | None:
    """What is in a folder of the store; None where another process has just removed it, or is making it."""
    size, used = 0, 0.0
    try:
        size, used = _size(folder), folder.stat().st_mtime
        if folder.name.endswith(CHUNKS):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            state, n = f"{len(list(folder.glob('*.npz')))} of {about['num_pieces']} chunks", 0
        else:
            about, used = read_sidecar(folder), (folder / SIDECAR).stat().st_mtime
            state, n = "whole", about["num_images"]
        return Kept(folder, about["label"], about["key"], state, n, size, used)
    except PermissionError:  # it belongs to another user, who did not share it
        return Kept(folder, {}, {}, "unreadable", 0, size, used)
    except DAMAGE:
        is_begun = folder.name.endswith(CHUNKS) and not _is_abandoned(folder)
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
    folders = [kept.path for kept in survey(root) if not kept.path.name.endswith(CHUNKS)]
    return len(folders), {folder: reason for folder in folders if (reason := damage(folder))}


def differing(wanted: EntrySpec, kept: Kept) -> dict[str, tuple[Any, Any]]:
    """The fields of the key in which something that is kept is not what is wanted: there, and wanted."""
    key = json.loads(canonical_json(wanted.key))
    return {
        name: (kept.key.get(name), key.get(name))
        for name in sorted({*key, *kept.key})
        if kept.key.get(name) != key.get(name)
    }


def nearest(root: Path, spec: EntrySpec) -> Kept | None:
    """What is kept of the same part of the same dataset, and differs in the fewest fields of the key."""
    of_part = [
        kept
        for kept in survey(root)
        if (kept.label.get("dataset"), kept.label.get("part")) == (spec.dataset, spec.part)
    ]
    same_model = [kept for kept in of_part if kept.label.get("model") == spec.model] or of_part
    return min(same_model, key=lambda kept: (len(differing(spec, kept)), -kept.used), default=None)


def collect(root: Path, *, max_size: int | None = None) -> list[Kept]:
    """Remove what is of no use, then, down to `max_size` bytes, what was not used for longest; what was removed.

    Of no use are damaged entries, the chunks of whole ones, the fits of sweeps that were interrupted, and what killed
    processes left under other names. What
    another process is making stays.

    Raises:
        CacheError: something cannot be removed.
    """
    removed: list[Kept] = []
    if not root.is_dir():
        return removed
    try:
        with lock(root / LOCK):
            for left in root.glob("*/.*"):
                if left.name.endswith((REMOVED, LOCK)) and _is_abandoned(left):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            for fit in (root / FITS).glob("*"):  # of sweeps that were interrupted, and can be made again
                if fit.is_file() and _is_abandoned(fit):  # a dataset can have the same name
                    fit.unlink(missing_ok=True)
            all_kept = survey(root)
            whole = {kept.path.name for kept in all_kept if kept.state == "whole"}
            total = sum(kept.size for kept in all_kept)
            for kept in sorted(all_kept, key=lambda kept: kept.used):
                of_no_use = kept.state == "damaged" or kept.path.name.removesuffix(CHUNKS) in whole - {kept.path.name}
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
        taken = FileLock(path)
        try:
            taken.acquire(timeout=0)
        except (Timeout, OSError):  # or another user's lock, which this process may not open
            return True
        taken.release()
    return False
