"""Cache entries that are one small file: arrays, and their description as JSON, in a `.npz` file.

The array `about` holds the description, with a digest of its other fields. For each other array it has the field
`<array>_sha256`. A damaged entry is named in a warning, removed and computed again; it is never used.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from probe.atomic import make_folder, write_atomically
from probe.decoder import decode
from probe.errors import CacheError, summarize
from probe.features.sidecars import Key
from probe.features.store import DAMAGE
from probe.specs import canonical_json, digest

logger = logging.getLogger(__name__)

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class FileSidecar:
    """Description of an entry: `LAYOUT_VERSION`, its names for people, and everything that changes its bytes."""

    version: int
    label: dict[str, str]
    key: Key


SidecarType = TypeVar("SidecarType", bound=FileSidecar)


def find_file(path: Path, kind: type[SidecarType], what: str) -> tuple[SidecarType, dict[str, np.ndarray]] | None:
    """Read an entry; return None if it is not cached. A damaged entry is named in a warning and removed.

    Args:
        path: the file of the entry.
        kind: type of its description.
        what: name of its content, for messages.

    Raises:
        CacheError: the entry cannot be read, or cannot be removed.
    """
    try:
        found = read_file_entry(path, kind)
    except FileNotFoundError:
        return None
    except DAMAGE as err:
        logger.warning("the %s in %s are damaged (%s); computing them again", what, path, summarize(err))
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"cannot remove {path} ({error.strerror or error}); make it writable") from error
        return None
    except OSError as err:
        raise CacheError(
            f"cannot read {path} ({err.strerror or err}); check its permissions, or name a different folder with "
            "--cache-dir"
        ) from err
    with suppress(OSError):  # in a folder of another user; only `inventory.collect` reads the time
        os.utime(path)
    return found


def store_file(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Write an entry atomically. If the folder is not writable, log a warning and continue.

    Args:
        path: the file of the entry.
        about: fields of its description, without the version and the digests of the arrays.
        arrays: the arrays.
        what: name of its content, for messages.
    """
    digests = {f"{name}_sha256": _sha256(array) for name, array in arrays.items()}
    plain = json.loads(canonical_json({**about, **digests, "version": LAYOUT_VERSION}))
    text = json.dumps({**plain, "sha256": digest(plain)})
    try:
        make_folder(path.parent)
        with write_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays, about=np.array(text))
    except OSError as err:
        logger.warning(
            "cannot cache %s in %s (%s); other runs will compute them again", what, path, err.strerror or err
        )


def damage_of_file(path: Path, kind: type[FileSidecar]) -> str:
    """Return the reason why an entry is damaged; empty if it is not."""
    try:
        read_file_entry(path, kind)
    except DAMAGE as err:
        return summarize(err)
    return ""


def read_file_entry(path: Path, kind: type[SidecarType]) -> tuple[SidecarType, dict[str, np.ndarray]]:
    """Read an entry, after comparing it with its digests.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError, TypeError, EOFError, BadZipFile: the file is damaged.
    """
    # The file is opened here because `np.load` does not close a damaged file that it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "about"}
        plain = json.loads(archive["about"].item())
    if digest({name: value for name, value in plain.items() if name != "sha256"}) != plain["sha256"]:
        raise ValueError("the digest of its description differs")
    sidecar = decode(plain, kind)
    if sidecar.version != LAYOUT_VERSION:
        raise ValueError(f"it has the version {sidecar.version}, not {LAYOUT_VERSION}")
    described = asdict(sidecar)
    for name in {*arrays, *(field.removesuffix("_sha256") for field in described if field.endswith("_sha256"))}:
        if _sha256(arrays[name]) != described[f"{name}_sha256"]:
            raise ValueError(f"the digest of the {name} differs")
    return sidecar, arrays


def _sha256(array: np.ndarray) -> str:
    return sha256(f"{array.dtype} {array.shape}\n".encode() + array.tobytes()).hexdigest()
