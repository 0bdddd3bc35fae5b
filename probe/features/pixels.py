"""Audits of datasets, and the cached digests of pixels that they use: one file per subset, independent of encoders.

    <root>/<dataset>/<subset>.<digest>.pixels.npz      the arrays of `PixelDigests`, and `about` as JSON

The key of an entry holds everything that changes its bytes, as in `store.py`; see `file_entries.py` for the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe import paths
from probe.atomic import lock, make_folder
from probe.datasets.audit import Audit, make_audit
from probe.datasets.images import ImageDataset
from probe.datasets.opening import OpenedDataset, open_dataset
from probe.datasets.pixel_digests import PixelDigests, digest_images
from probe.environment import library_versions
from probe.features.arrays import Extraction
from probe.features.file_entries import FileSidecar, find_file, store_file
from probe.features.reading import processors
from probe.features.sidecars import Key
from probe.features.store import LOCK, describe_reading
from probe.models.preprocess import libjpeg_version
from probe.progress import show_progress
from probe.specs import SPLITS, DatasetSpec, digest, slug
from probe.stats.equal_images import Leaks, find_leaks, number_contents, number_labels
from probe.stats.near_hashes import MAX_DISTANCE

PIXELS = ".pixels.npz"  # end of the name of an entry
PIXELS_VERSION = 1  # raised with every change of the suite that changes digests, hashes, sizes or modes
ARRAYS = ("sha256", "hashes", "sizes", "modes")


@dataclass(frozen=True)
class PixelSidecar(FileSidecar):
    """Description of an entry, with the values that are not arrays, and the digests of the arrays."""

    mode_names: tuple[str, ...]
    unreadable: tuple[tuple[int, str], ...]
    sha256_sha256: str
    hashes_sha256: str
    sizes_sha256: str
    modes_sha256: str


@dataclass(frozen=True)
class PixelSpec:
    """Specification of a cache entry: the digests of all images of a subset. `key` has all that changes its bytes."""

    dataset: str
    subset: str
    key: Key

    def path(self, root: Path) -> Path:
        """Return the file of the entry."""
        name = f"{slug(self.subset)}.{digest(self.key)[:16]}{PIXELS}"
        return root / slug(self.dataset, is_path=":" in self.dataset) / name

    @property
    def label(self) -> dict[str, str]:
        """Names of the entry for listings."""
        return {"dataset": self.dataset, "subset": f"pixels of {self.subset}"}


def audit(
    dataset: str | DatasetSpec,
    *,
    distance: int = 4,
    most: int = 20,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Audit:
    """Report equal images, candidates for near-duplicates, class balance, sizes and unreadable images of a dataset.

    Every image is decoded once. The digests of the pixels are cached, so that a second audit decodes no image.

    Args:
        dataset: a name that `get_dataset` knows, or a specification. Images may be missing or unreadable.
        distance: largest number of bits, from 0 to 16 of 64, in which the perceptual hashes of near-duplicates differ.
        most: number of near-duplicates to list. All groups of equal images are listed.
        data_dir: folder of datasets, see `probe.paths`.
        cache_dir: folder of cached digests.
        offline: never touch the network.

    Raises:
        UnknownNameError: there is no such dataset.
        DatasetError: see `open_dataset`.
        CacheError: a cached file cannot be read.
        ValueError: `distance` is out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"expected a distance from 0 to {MAX_DISTANCE}, got {distance}")
    opened = open_dataset(dataset, data_dir=data_dir, offline=offline, allow_partial=True, skip_corrupt=True)
    digests = find_digests(opened, opened.subsets, paths.cache_dir(cache_dir))
    return make_audit(opened, digests, distance=distance, most=most)


def pixel_entry(dataset: OpenedDataset, subset: str) -> PixelSpec:
    """Return the specification of the cache entry of a subset."""
    source, images, used = dataset.source, dataset.subsets[subset], dataset.used.get(subset)
    is_whole = used is not None and len(used.images) == len(images)
    key = {
        "pixels_version": PIXELS_VERSION,
        "images": used.sha256 if used is not None and is_whole else images.compute_sha256(),
        "content": used.fingerprint if used is not None and is_whole else images.compute_fingerprint(),
        "reading": describe_reading(source, subset),
        "libjpeg": libjpeg_version(),
        "pillow": library_versions("features")["pillow"],
        **library_versions(source.form, str(dict(source.options).get("media", ""))),
    }
    return PixelSpec(dataset.spec.name, subset, key)


def find_digests(dataset: OpenedDataset, subsets: Iterable[str], root: Path) -> dict[str, PixelDigests]:
    """Return the digests of all images of some subsets, from the cache or computed now. Images are decoded once.

    If the cache cannot be written to, a warning says so.

    Args:
        dataset: the dataset.
        subsets: names of its subsets.
        root: the cache folder.

    Raises:
        CacheError: an entry cannot be read.
    """
    return {subset: _find_or_compute(dataset, subset, root) for subset in subsets}


def _find_or_compute(dataset: OpenedDataset, subset: str, root: Path) -> PixelDigests:
    spec, images = pixel_entry(dataset, subset), dataset.subsets[subset]
    path = spec.path(root)
    found = _find(path, images)
    if found is None:
        with _locked(path):
            found = _find(path, images)  # another process may have computed it
            return _compute(spec, images, path) if found is None else found
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of an entry, so that no other process decodes the same images. A read-only folder has no lock."""
    try:
        make_folder(path.parent)
        own = lock(path.with_name(f".{path.name}{LOCK}"))
        own.acquire()
    except OSError:  # storing the entry warns about it
        yield
        return
    try:
        yield
    finally:
        own.release()


def _find(path: Path, images: ImageDataset) -> PixelDigests | None:
    found = find_file(path, PixelSidecar, "digests of pixels")
    if found is None:
        return None
    sidecar, arrays = found
    if images.can_read_any(position for position, _ in sidecar.unreadable):
        return None
    return PixelDigests(
        **{name: arrays[name] for name in ARRAYS}, mode_names=sidecar.mode_names, unreadable=sidecar.unreadable
    )


def _compute(spec: PixelSpec, images: ImageDataset, path: Path) -> PixelDigests:
    with show_progress() as progress:
        progress.name(images.name)
        progress.expect(len(images))
        found = digest_images(images, threads=processors(), advance=progress.advance)
    arrays = {name: getattr(found, name) for name in ARRAYS}
    about = {"label": spec.label, "key": spec.key, "mode_names": found.mode_names, "unreadable": found.unreadable}
    store_file(path, about, arrays, "digests of pixels")
    return found


def find_split_leaks(dataset: OpenedDataset, root: Path) -> list[Leaks]:
    """Return for each fold the test images that have the same pixels as a training or validation image.

    Rows are in the order of the positions of the test split. Images that cannot be read equal no other image.

    Args:
        dataset: the dataset, with all of its splits.
        root: the cache folder.

    Raises:
        CacheError: an entry cannot be read.
    """
    names = list(dataset.subsets)
    found = find_digests(dataset, names, root)
    offsets = dict(zip(names, np.cumsum([0, *(len(found[name]) for name in names)]).tolist(), strict=False))
    contents = number_contents(np.concatenate([found[name].sha256 for name in names]))
    unread = [offsets[name] + position for name in names for position, _ in found[name].unreadable]
    contents[unread] = contents.max() + 1 + np.arange(len(unread))
    labels = number_labels(np.concatenate([dataset.subsets[name].labels for name in names]))
    rows = [{split: offsets[fold[split].subset] + fold[split].positions for split in SPLITS} for fold in dataset.folds]
    return [
        find_leaks(contents, labels, fit=np.concatenate([own["train"], own["val"]]), test=own["test"]) for own in rows
    ]


def leaks_of_features(leaks: Sequence[Leaks], dataset: OpenedDataset, extraction: Extraction) -> Iterator[Leaks]:
    """Yield the leaks of each fold without test images that could not be read, in the order of the features."""
    for own, fold, positions in zip(leaks, dataset.folds, extraction.test_positions(dataset), strict=True):
        rows = np.searchsorted(fold.test.positions, positions)
        yield Leaks(own.leaked[rows], own.differing[rows])
