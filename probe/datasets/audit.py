"""Audit of a dataset: equal images, candidates for near-duplicates, class balance, sizes, and unreadable images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probe.datasets.duplicates import (
    PLACES,
    UNUSED,
    ImageTable,
    NearPair,
    PlacePairs,
    count_pairs,
    find_near,
    find_test_leaks,
    group_equal,
)
from probe.datasets.opening import OpenedDataset
from probe.datasets.pixel_digests import PixelDigests
from probe.specs import SPLITS
from probe.stats.equal_images import number_labels

MAX_SIZES = 5  # most frequent sizes in a report


@dataclass(frozen=True)
class AuditedImage:
    """Image of a report: its subset and id, its split in the first fold or `unused`, and the names of its classes."""

    subset: str
    id: str
    split: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class EqualGroup:
    """Images with equal pixels."""

    images: tuple[AuditedImage, ...]
    labels_differ: bool

    @property
    def is_across(self) -> bool:
        """True if the images are in different splits."""
        return len({image.split for image in self.images}) > 1


@dataclass(frozen=True)
class EqualImages:
    """Equal images of a dataset.

    Args:
        groups: the groups. Groups across splits come first, and among them groups with different labels.
        pairs: numbers of equal pairs within each split and across each two splits.
        leaked: number of test images that equal a training or validation image.
        leaked_differing: number of these test images for which such an image has a different label.
    """

    groups: tuple[EqualGroup, ...]
    pairs: tuple[PlacePairs, ...]
    leaked: int
    leaked_differing: int


@dataclass(frozen=True)
class CandidatePair:
    """Two images with close perceptual hashes and different pixels."""

    images: tuple[AuditedImage, AuditedImage]
    distance: int
    is_across: bool


@dataclass(frozen=True)
class Candidates:
    """Candidates for near-duplicates; `counts` and the order of `closest` are as in `duplicates.NearPairs`."""

    distance: int
    counts: tuple[tuple[int, int], ...]
    closest: tuple[CandidatePair, ...]


@dataclass(frozen=True)
class ClassBalance:
    """Number of images of each class in a split of the first fold, in the order of the labels.

    Unreadable images count. An image that shows several classes counts for each of them.
    """

    split: str
    counts: tuple[int, ...]

    @property
    def ratio(self) -> float | None:
        """Largest number divided by the smallest number above 0; None if no class has images."""
        counts = [n for n in self.counts if n]
        return max(counts) / min(counts) if counts else None


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of the readable images as (width, height) in pixels. Smallest, median and largest are by area.

    `frequent` has the most frequent sizes, each with its number of images. `modes` has the number of images of each
    mode in which images are stored, such as `L`.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    num_sizes: int
    frequent: tuple[tuple[tuple[int, int], int], ...]
    modes: Mapping[str, int]


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read: its subset, its id and the error."""

    subset: str
    id: str
    message: str


@dataclass(frozen=True)
class Audit:
    """Report on a dataset.

    Args:
        dataset: name of the dataset.
        subsets: number of images of each subset.
        splits: number of images of each split of the first fold, and of unused images if there are any.
        num_folds: number of folds. The report uses the splits of the first fold.
        class_names: names of the classes in the order of the labels.
        equal: equal images.
        candidates: candidates for near-duplicates.
        balance: number of images of each class in each split.
        sizes: sizes of the images; None if no image can be read.
        unreadable: images that cannot be read.
    """

    dataset: str
    subsets: Mapping[str, int]
    splits: Mapping[str, int]
    num_folds: int
    class_names: tuple[str, ...]
    equal: EqualImages
    candidates: Candidates
    balance: tuple[ClassBalance, ...]
    sizes: ImageSizes | None
    unreadable: tuple[UnreadableImage, ...]


def make_audit(dataset: OpenedDataset, digests: Mapping[str, PixelDigests], *, distance: int, most: int) -> Audit:
    """Make the report on a dataset from the digests of its subsets.

    Args:
        dataset: the dataset.
        digests: digests of all images of each subset.
        distance: largest Hamming distance of the hashes of near-duplicates, at most `near_hashes.MAX_DISTANCE`.
        most: number of candidates to list.
    """
    places = _find_places(dataset)
    names = list(dataset.subsets)
    readable = {name: digests[name].readable for name in names}
    labels = number_labels(np.concatenate([dataset.subsets[name].labels for name in names]))
    kept = np.concatenate(
        [offset + readable[name] for name, offset in zip(names, _offsets(dataset), strict=True)]
    )  # rows of the readable images among all images
    table = ImageTable(
        np.concatenate([digests[name].sha256[readable[name]] for name in names]),
        np.concatenate([digests[name].hashes[readable[name]] for name in names]),
        labels[kept],
        np.concatenate([places[name][readable[name]] for name in names]),
    )
    lookup = _Lookup(dataset, places, kept)
    counts = np.bincount(np.concatenate([places[name] for name in names]), minlength=len(PLACES))
    near = find_near(table, distance, most=most)
    return Audit(
        dataset.spec.name,
        {name: len(images) for name, images in dataset.subsets.items()},
        {split: int(n) for split, n in zip(PLACES, counts, strict=True) if n},
        len(dataset.folds),
        tuple(dataset.class_names),
        _describe_equal(table, lookup),
        Candidates(distance, near.counts, tuple(lookup.candidate(pair) for pair in near.closest)),
        tuple(_count_classes(dataset, places)),
        _describe_sizes([digests[name] for name in names]),
        tuple(
            UnreadableImage(name, dataset.subsets[name].ids[position], message)
            for name in names
            for position, message in digests[name].unreadable
        ),
    )


def _find_places(dataset: OpenedDataset) -> dict[str, np.ndarray]:
    """Return for each subset the index of `PLACES` of each image, in the first fold."""
    places = {name: np.full(len(images), UNUSED) for name, images in dataset.subsets.items()}
    for i, split in enumerate(SPLITS):
        selection = dataset.folds[0][split]
        places[selection.subset][selection.positions] = i
    return places


def _offsets(dataset: OpenedDataset) -> list[int]:
    """Return the row of the first image of each subset among the images of all subsets."""
    return np.cumsum([0, *map(len, dataset.subsets.values())])[:-1].tolist()


class _Lookup:
    """Images of a report by their rows among the readable images of all subsets."""

    def __init__(self, dataset: OpenedDataset, places: Mapping[str, np.ndarray], kept: np.ndarray) -> None:
        self.dataset, self.places, self.kept = dataset, places, kept
        self.names, self.offsets = list(dataset.subsets), _offsets(dataset)

    def image(self, row: int) -> AuditedImage:
        """Return the image of a row."""
        number = int(self.kept[row])
        i = int(np.searchsorted(self.offsets, number, side="right")) - 1
        name, position = self.names[i], number - self.offsets[i]
        images = self.dataset.subsets[name]
        label = images.labels[position]
        shown = [int(label)] if images.labels.ndim == 1 else np.flatnonzero(label == 1).tolist()
        classes = tuple(images.class_names[k] for k in shown)
        return AuditedImage(name, images.ids[position], PLACES[self.places[name][position]], classes)

    def candidate(self, pair: NearPair) -> CandidatePair:
        """Return a pair of near images."""
        return CandidatePair((self.image(pair.a), self.image(pair.b)), pair.distance, pair.is_across)


def _describe_equal(table: ImageTable, lookup: _Lookup) -> EqualImages:
    rows = group_equal(table)
    groups = [
        EqualGroup(tuple(map(lookup.image, group.tolist())), len(np.unique(table.labels[group])) > 1) for group in rows
    ]
    leaks = find_test_leaks(table)
    return EqualImages(
        tuple(sorted(groups, key=lambda group: (not group.is_across, not group.labels_differ))),
        tuple(count_pairs(rows, table)),
        int(leaks.leaked.sum()),
        int(leaks.differing.sum()),
    )


def _count_classes(dataset: OpenedDataset, places: Mapping[str, np.ndarray]) -> Iterator[ClassBalance]:
    """Yield the balance of each split that has images."""
    for i, split in enumerate(SPLITS):
        counts = np.zeros(len(dataset.class_names), np.int64)
        for name, images in dataset.subsets.items():
            labels = images.labels[places[name] == i]
            own = np.bincount(labels, minlength=len(counts)) if labels.ndim == 1 else (labels == 1).sum(axis=0)
            counts += own[: len(counts)]
        if counts.any():
            yield ClassBalance(split, tuple(counts.tolist()))


def _describe_sizes(digests: Sequence[PixelDigests]) -> ImageSizes | None:
    sizes = np.concatenate([one.sizes[one.readable] for one in digests])
    if not len(sizes):
        return None
    modes: dict[str, int] = {}
    for one in digests:
        for i, name in enumerate(one.mode_names):
            modes[name] = modes.get(name, 0) + int((one.modes[one.readable] == i).sum())
    ordered = sizes[np.lexsort((sizes[:, 1], sizes[:, 0], sizes.astype(np.int64).prod(axis=1)))]
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:MAX_SIZES]
    smallest, median, largest = ((int(w), int(h)) for w, h in ordered[[0, (len(ordered) - 1) // 2, -1]])
    return ImageSizes(
        smallest,
        median,
        largest,
        len(different),
        tuple(((int(different[i, 0]), int(different[i, 1])), int(counts[i])) for i in frequent),
        {name: modes[name] for name in sorted(modes, key=lambda name: (-modes[name], name))},
    )
