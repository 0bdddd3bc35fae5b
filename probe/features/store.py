"""Entries of the feature cache: their keys, and memory-mapped reading.

    <root>/<dataset>/<model>.<mode>.<precision>.<subset>.<digest>/            a complete entry, created in one step
        entry.json                                                          names, key and digests
        projected.npy  pre_projection.npy  labels.npy
    <root>/<dataset>/<model>.<mode>.<precision>.<subset>.<digest>.pieces/     chunks of an entry, see `chunks.py`
        about.json  making.json  000000.npz  000001.npz ...
    <root>/<dataset>/<model>.<mode>.<precision>.<digest>.texts.npz            texts of classes, see `text_store.py`
    <root>/<dataset>/<subset>.<digest>.pixels.npz                            digests of pixels, see `pixels.py`

The key of an entry holds everything that changes the bytes of its features. All bytes that are read are compared with
their digests. A damaged entry is named in a warning, removed and extracted again; it is never used.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.atomic import lock, make_folder, temporary_beside
from probe.datasets.opening import OpenedDataset
from probe.environment import library_versions
from probe.errors import CacheError, summarize
from probe.features.arrays import PRE_PROJECTION, PROJECTED, Features, chunk_range
from probe.features.sidecars import ENTRY, Key, Provenance, read_sidecar
from probe.fetch import file_sha256
from probe.models.devices import hardware
from probe.models.preprocess import PREPROCESS_VERSION, libjpeg_version
from probe.specs import RunSpec, Source, digest, slug

logger = logging.getLogger(__name__)

EXTRACTION_VERSION = 1  # raised with every change of the suite that changes the bytes of features
NOT_READING = ("groups", "ignore")  # options of sources that do not change how an image is read
CHUNKS = ".pieces"  # end of the name of a folder of chunks; caches of earlier versions have this name
FITS = "fits"  # folder of `probes.cached_fits`: finished fits of sweeps that may be interrupted
LABELS = "labels"
ARRAYS = (PROJECTED, PRE_PROJECTION, LABELS)
LOCK = ".lock"
# Errors of reading a damaged file. Errors of a disk that cannot be read at the moment are not among them.
DAMAGE = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, IndexError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class EntrySpec:
    """Specification of a cache entry: the features of a subset under an encoder.

    Args:
        dataset: name of the dataset. `subset`, `model`, `mode` and `precision` are names too, for readable folders.
        key: everything that changes the bytes of the features.
        num_images: number of images to encode.
        batch_size: images encoded at a time.
    """

    dataset: str
    subset: str
    model: str
    mode: str
    precision: str
    key: Key
    num_images: int
    batch_size: int

    def __str__(self) -> str:
        """Return the names of the entry, for messages."""
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
        names = (self.mode, self.precision, slug(self.subset), digest(self.key)[:16])
        return entry_path(root, self.dataset, self.model, *names)


@dataclass(frozen=True)
class Entry:
    """Features of a cache entry, memory-mapped, with their description.

    Args:
        features: features of all images that could be read.
        provenance: how the features were extracted.
        path: folder of the entry.
    """

    features: Features
    provenance: Provenance
    path: Path


def entry_path(root: Path, dataset: str, model: str, *names: str) -> Path:
    """Return the path of a cache entry, with the names of the dataset and the model as parts of file names."""
    model = slug(model, is_path="/" in model and ":" not in model)
    return root / slug(dataset, is_path=":" in dataset) / ".".join([model, *names])


def cache_entries(spec: RunSpec, weights: str, dataset: OpenedDataset) -> dict[str, EntrySpec]:
    """Return the specification of the cache entry of each subset that some split uses."""
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
        key = {
            **around,
            "batch_size": batch_size,
            "images": used.sha256,
            "content": used.fingerprint,
            "reading": describe_reading(source, subset),
        }
        names = (spec.dataset.name, subset, spec.model.name, spec.mode, spec.precision)
        entries[subset] = EntrySpec(*names, key, len(used.images), batch_size)
    return entries


def describe_reading(source: Source, subset: str) -> dict[str, Any]:
    """Return how the images of a subset are read, for the key of an entry."""
    arguments = source.arguments(subset).items()
    return {"form": source.form, **{name: value for name, value in arguments if name not in NOT_READING}}


def check_usable(root: Path) -> None:
    """Check that features can be cached, before the work of a grid begins. A folder with entries may be read-only.

    Raises:
        CacheError: the folder cannot be written to, and has no entries.
    """
    marker = temporary_beside(root / "writable")
    try:
        make_folder(root)
        marker.touch()
        marker.unlink(missing_ok=True)
    except OSError as err:
        with suppress(OSError):
            if any(root.iterdir()):
                return
        raise CacheError(
            f"cannot write to the cache folder {root} ({err.strerror}); name another one with --cache-dir"
        ) from err


def find(root: Path, spec: EntrySpec) -> Entry | None:
    """Read an entry; return None if it is not cached. A damaged entry is named in a warning and removed.

    Raises:
        CacheError: the entry cannot be read, or cannot be removed.
    """
    folder = spec.folder(root)
    if not folder.is_dir():
        return None
    entry = None
    try:
        with suppress(*DAMAGE):
            entry = _read(folder)
        if entry is None:  # its arrays are closed by now: Windows does not remove an open file
            with lock(root / LOCK):  # another process may have extracted it again
                reason = damage(folder)
                if reason and folder.exists():
                    logger.warning("the features in %s are damaged (%s); extracting them again", folder, reason)
                    shutil.rmtree(folder)
            return None if reason else find(root, spec)
    except OSError as err:
        if isinstance(err, CacheError):
            raise
        raise CacheError(
            f"cannot read or remove {err.filename or folder} ({err.strerror or err}); check its permissions, or name a "
            "different folder with --cache-dir"
        ) from err
    with suppress(OSError):  # in a folder of another user; only `inventory.collect` reads the time
        os.utime(folder / ENTRY)
    shutil.rmtree(f"{folder}{CHUNKS}", ignore_errors=True)  # left by a process killed between the last two steps
    return entry


def remove(root: Path, folder: Path) -> None:
    """Remove an entry. No process may have its arrays open: Windows does not remove an open file.

    Raises:
        CacheError: the entry cannot be removed.
    """
    try:
        with lock(root / LOCK):
            shutil.rmtree(folder)
    except FileNotFoundError:
        return  # by another process
    except OSError as err:
        raise CacheError(f"cannot remove {err.filename or folder} ({err.strerror or err}); make it writable") from err


def damage(folder: Path) -> str:
    """Return the reason why an entry is damaged; empty if it is not."""
    try:
        _read(folder)
    except FileNotFoundError as err:
        return f"{Path(err.filename or folder).name} is missing"
    except DAMAGE as err:
        return summarize(err)
    return ""


def _read(folder: Path) -> Entry:
    sidecar = read_sidecar(folder)
    arrays = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if file_sha256(path) != sidecar.arrays[name].sha256:
            raise ValueError(f"the digest of {path.name} differs")
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    features = Features(arrays[PROJECTED], np.array(arrays[LABELS]), arrays[PRE_PROJECTION], sidecar.skipped)
    return Entry(features, Provenance(sidecar.encoder, sidecar.extraction), folder)
