"""The feature store: features under the key of everything that changes their bytes, memory-mapped when they are read.

    <root>/<dataset>/<model>.<mode>.<precision>.<subset>.<digest>/            a whole entry, there in one step
        entry.json                                                          what it is of, its key, its digests
        projected.npy  pre_projection.npy  labels.npy
    <root>/<dataset>/<model>.<mode>.<precision>.<subset>.<digest>.chunks/     one that is being made
        about.json  making.json  000000.npz  000001.npz ...

A chunk is written under another name and renamed, so that whatever is killed leaves whole chunks; a lock for each lets
processes share the work, and falls with the process that holds it. The chunks become an entry when the last is there.
What is read is compared with its digests: a damaged chunk or entry is named, removed and made again, never used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.atomic import TEMPORARY, lock
from probe.datasets.opening import OpenedDataset
from probe.environment import library_versions
from probe.errors import CacheError, summarize
from probe.features.arrays import PRE_PROJECTION, PROJECTED, Features, chunk_range
from probe.fetch import file_sha256
from probe.models.devices import hardware
from probe.models.preprocess import VERSION as PREPROCESS_VERSION
from probe.models.preprocess import libjpeg_version
from probe.specs import RunSpec, digest, slug

logger = logging.getLogger(__name__)

EXTRACTION_VERSION = 1  # raised with every change of the suite that changes the bytes of features
NOT_READING = ("groups", "ignore")  # options of sources that choose images and do not change how one is read
VERSION = 1  # of the layout of entries
SIDECAR, ABOUT, MAKING, CHUNKS, REMOVED = "entry.json", "about.json", "making.json", ".pieces", TEMPORARY
FITS = "fits"  # folder in which `probes.kept` has the finished fits of sweeps that were interrupted
LABELS = "labels"
ARRAYS = (PROJECTED, PRE_PROJECTION, LABELS)
LOCK = ".lock"
# What reading a file raises that is not as it was written; a disk that cannot be read at the moment is no damage.
DAMAGE = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, IndexError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class EntrySpec:
    """Cache entry of a subset under an encoder: its names, and the key of everything that changes its bytes.

    Args:
        dataset: its name. `subset`, `model`, `mode` and `precision` are names too; they make readable folder names.
        key: everything that changes the bytes, as JSON has it.
        num_images: how many images there are to encode.
        batch_size: images encoded at a time.
    """

    dataset: str
    subset: str
    model: str
    mode: str
    precision: str
    key: Mapping[str, Any]
    num_images: int
    batch_size: int

    def __str__(self) -> str:
        """The entry in a few words, for messages."""
        return f"{self.dataset}/{self.subset} / {self.model} / {self.mode}"

    @property
    def label(self) -> dict[str, str]:
        """Its names, for people."""
        return {name: getattr(self, name) for name in ("dataset", "subset", "model", "mode", "precision")}

    @property
    def num_chunks(self) -> int:
        """Number of chunks of its images."""
        return len(chunk_range(self.num_images, self.batch_size))

    def folder(self, root: Path) -> Path:
        """Return the folder of the entry."""
        model = slug(self.model, is_path="/" in self.model and ":" not in self.model)
        name = f"{model}.{self.mode}.{self.precision}.{slug(self.subset)}.{digest(self.key)[:16]}"
        return root / slug(self.dataset, is_path=":" in self.dataset) / name


@dataclass(frozen=True)
class Entry:
    """Features that were read from the store, memory-mapped, and what was written with them.

    Args:
        features: of all images of the entry that could be read.
        encoder: what `RunRecord.encoder` says.
        extraction: what `Meter.describe` says of how they were made.
        path: the folder.
    """

    features: Features
    encoder: Mapping[str, Any]
    extraction: Mapping[str, Any]
    path: Path


def cache_entries(spec: RunSpec, weights: str, dataset: OpenedDataset) -> dict[str, EntrySpec]:
    """Return the cache entry of each subset that some split uses. Its key is everything that changes its bytes.

    Args:
        spec: the run; its protocol and solver do not matter.
        weights: digest of the weights, see `models.loading.identify`.
        dataset: the dataset.
    """
    source = dataset.source
    around = {
        "weights": weights,
        "mode": spec.mode,
        "precision": spec.precision,
        "device": spec.device.partition(":")[0],
        "hardware": hardware(spec.device),
        "preprocess_version": PREPROCESS_VERSION,
        "extraction_version": EXTRACTION_VERSION,
        "libjpeg": libjpeg_version(),
        **library_versions("features", spec.model.form, source.form, str(dict(source.options).get("media", ""))),
    }
    entries = {}
    for subset, used in dataset.used.items():
        batch_size = min(spec.batch_size, len(used.images))
        reading = {name: value for name, value in source.arguments(subset).items() if name not in NOT_READING}
        key = {
            **around,
            "batch_size": batch_size,
            "images": used.sha256,
            "content": used.fingerprint,
            "reading": {"form": source.form, **reading},
        }
        names = (spec.dataset.name, subset, spec.model.name, spec.mode, spec.precision)
        entries[subset] = EntrySpec(*names, key, len(used.images), batch_size)
    return entries


def find(root: Path, spec: EntrySpec) -> Entry | None:
    """Read an entry if it is cached; a damaged one is named in a warning and removed.

    Raises:
        CacheError: they cannot be read, or be removed.
    """
    folder = spec.folder(root)
    if not folder.is_dir():
        return None
    found = None
    try:
        with suppress(*DAMAGE):
            found = _read(folder)
        if found is None:  # its arrays are closed by now: Windows does not remove an open file
            with lock(root / LOCK):  # another process may have made it again
                reason = damage(folder)
                if reason and folder.exists():
                    logger.warning("the features in %s are damaged (%s); they are made again", folder, reason)
                    shutil.rmtree(folder)
            return None if reason else find(root, spec)
    except OSError as err:
        if isinstance(err, CacheError):
            raise
        raise CacheError(
            f"cannot read {err.filename or folder} ({err.strerror or err}); free it, or name another folder with "
            "--cache-dir"
        ) from err
    with suppress(OSError):  # in a folder of another user; only `inventory.collect` reads the time
        os.utime(folder / SIDECAR)
    shutil.rmtree(f"{folder}{CHUNKS}", ignore_errors=True)  # left by a process killed between the last two steps
    return found


def remove(root: Path, folder: Path) -> None:
    """Remove an entry. No process may have its arrays open: Windows does not remove an open file.

    Raises:
        CacheError: it cannot be removed.
    """
    try:
        with lock(root / LOCK):
            shutil.rmtree(folder)
    except FileNotFoundError:
        return  # by another process
    except OSError as err:
        raise CacheError(f"cannot remove {err.filename or folder} ({err.strerror or err}); free it") from err


def damage(folder: Path) -> str:
    """Return the reason why an entry is damaged; empty if it is not."""
    try:
        _read(folder)
    except FileNotFoundError as err:
        return f"there is no {Path(err.filename or folder).name}"
    except DAMAGE as err:
        return summarize(err)
    return ""


def _read(folder: Path) -> Entry:
    about = read_sidecar(folder)
    arrays = {}
    for name in ARRAYS:
        path, listed = folder / f"{name}.npy", about["arrays"][name]
        if file_sha256(path) != listed["sha256"]:
            raise ValueError(f"{path.name} has other bytes than were written")
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    skipped = tuple((int(position), str(message)) for position, message in about["skipped"])
    features = Features(arrays[PROJECTED], np.array(arrays[LABELS]), arrays[PRE_PROJECTION], skipped)
    return Entry(features, about["encoder"], about["extraction"], folder)


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Read the sidecar of an entry.

    Raises:
        One of `DAMAGE`: it is not as it was written.
    """
    about = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise TypeError(f"{SIDECAR} holds no object")
    written = about.pop("sha256")
    if digest(about) != written:
        raise ValueError(f"{SIDECAR} says something else than was written")
    if about["version"] != VERSION:
        raise ValueError(f"{SIDECAR} has the version {about['version']}, not {VERSION}")
    return about
