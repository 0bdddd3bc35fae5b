"""Images of a dataset with equal pixels, and candidates for near-duplicates, within splits and across splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice, product

import numpy as np

from probe.stats.equal_images import Leaks, find_leaks, number_contents
from probe.stats.near_hashes import find_near_hashes

PLACES = ("train", "val", "test", "unused")  # splits of a fold, and images that none of them uses
TRAIN, VAL, TEST, UNUSED = range(len(PLACES))


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Readable images of all subsets of a dataset, as columns of n rows.

    Args:
        sha256: uint8 (n, 32), digests of the pixels.
        hashes: uint64 (n,), perceptual hashes.
        labels: int64 (n,), equal for equal labels.
        places: int64 (n,), indices of `PLACES`.
    """

    sha256: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def test(self) -> np.ndarray:
        """Rows of the test images, int64."""
        return np.flatnonzero(self.places == TEST)


@dataclass(frozen=True)
class PlacePairs:
    """Equal images within a split, or across two splits.

    Args:
        splits: both splits, or one split twice.
        groups: number of groups with a pair of such images.
        pairs: number of such pairs of images.
        differing: number of these pairs with different labels.
    """

    splits: tuple[str, str]
    groups: int
    pairs: int
    differing: int


@dataclass(frozen=True)
class NearPair:
    """Two images with close hashes and different pixels, by their rows, and the distance of the hashes."""

    a: int
    b: int
    distance: int
    is_across: bool


@dataclass(frozen=True)
class NearPairs:
    """Candidates for near-duplicates.

    Args:
        counts: for each distance, the number of pairs of images with different pixels, and how many of these pairs are
            across splits.
        closest: some of the closest pairs, across splits first. Of pairs with equal pixels, one is listed.
    """

    counts: tuple[tuple[int, int], ...]
    closest: tuple[NearPair, ...]


def group_equal(table: ImageTable) -> list[np.ndarray]:
    """Return the rows of each group of equal images, ascending; groups are in the order of their first images."""
    contents = number_contents(table.sha256)
    counts = np.bincount(contents)
    rows = np.flatnonzero(counts[contents] > 1)
    rows = rows[np.argsort(contents[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(contents[rows])) + 1
    groups = np.split(rows, starts) if len(rows) else []
    return sorted(groups, key=lambda group: int(group[0]))


def count_pairs(groups: Sequence[np.ndarray], table: ImageTable) -> list[PlacePairs]:
    """Return the numbers of equal images within each split and across each two splits that have images."""
    sizes = [len(group) for group in groups]
    rows = np.concatenate([np.empty(0, np.int64), *groups])
    numbers = np.repeat(np.arange(len(groups)), sizes)
    by_group = _cross_table(numbers, table.places[rows])
    _, alike = np.unique(np.stack([numbers, table.labels[rows]]), axis=1, return_inverse=True)
    by_label = _cross_table(alike.reshape(-1), table.places[rows])
    present = np.flatnonzero(np.bincount(table.places, minlength=len(PLACES))).tolist()
    found = []
    for one, other in combinations_with_replacement(present, 2):
        pairs, same = (
            _pairs(counts[:, one], counts[:, other], is_same=one == other) for counts in (by_group, by_label)
        )
        splits, num_pairs = (PLACES[one], PLACES[other]), int(pairs.sum())
        found.append(PlacePairs(splits, int((pairs > 0).sum()), num_pairs, num_pairs - int(same.sum())))
    return found


def find_test_leaks(table: ImageTable) -> Leaks:
    """Find the test images that are also training or validation images, in the order of `table.test`."""
    contents, fit = number_contents(table.sha256), np.flatnonzero(np.isin(table.places, (TRAIN, VAL)))
    return find_leaks(contents, table.labels, fit=fit, test=table.test)


def _cross_table(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return how often each row occurs with each place, int64 (number of rows, number of places)."""
    n = int(rows.max(initial=-1)) + 1
    return np.bincount(rows * len(PLACES) + columns, minlength=n * len(PLACES)).reshape(n, len(PLACES))


def _pairs(one: np.ndarray, other: np.ndarray, *, is_same: bool) -> np.ndarray:
    return one * (one - 1) // 2 if is_same else one * other


def find_near(table: ImageTable, distance: int, *, most: int) -> NearPairs:
    """Find all pairs of images with different pixels whose hashes are within a distance.

    Args:
        table: the images.
        distance: largest Hamming distance of the hashes.
        most: number of pairs to list.
    """
    members = _Members(table)
    counts = np.zeros((distance + 1, 2), np.int64)
    closest: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}  # distance, and the numbers of two hashes
    for a, b, found, pairs, across in members.blocks(distance):
        for column, number in enumerate((pairs, across)):
            counts[:, column] += np.bincount(found, weights=number, minlength=distance + 1).astype(np.int64)
        for is_across, number in ((True, across), (False, pairs - across)):
            chosen = np.flatnonzero(number)
            chosen = chosen[np.lexsort((b[chosen], a[chosen], found[chosen]))[:most]]
            own = zip(found[chosen].tolist(), a[chosen].tolist(), b[chosen].tolist(), strict=True)
            closest[is_across] = sorted([*closest[is_across], *own])[:most]
    listed = (
        NearPair(one, other, space, is_across)
        for is_across in (True, False)
        for space, a, b in closest[is_across]
        for one, other in members.expand(a, b, is_across=is_across)
    )
    return NearPairs(tuple((int(pairs), int(across)) for pairs, across in counts), tuple(islice(listed, most)))


class _Members:
    """Images by their hash. A hash has a number, its place in the order of the different hashes."""

    def __init__(self, table: ImageTable) -> None:
        self.hashes, numbers = np.unique(table.hashes, return_inverse=True)
        numbers = numbers.reshape(-1)
        self.places = _cross_table(numbers, table.places)  # number of images of each hash in each place
        self.contents = number_contents(table.sha256)
        of_contents = _cross_table(self.contents, table.places)
        hash_of = np.zeros(len(of_contents), np.int64)
        hash_of[self.contents] = numbers
        # Pairs of images with one hash and different pixels.
        self.within = _within(self.places)
        for own, equal in zip(self.within, _within(of_contents), strict=True):
            own -= np.bincount(hash_of, weights=equal, minlength=len(own)).astype(np.int64)
        # The first image of each content in each place; equal images are listed once.
        _, first = np.unique(np.stack([self.contents, table.places]), axis=1, return_index=True)
        first = first[np.lexsort((first, table.places[first], numbers[first]))]
        self.first, keys = first, numbers[first] * len(PLACES) + table.places[first]
        self.ends = np.searchsorted(keys, np.arange(len(self.hashes) * len(PLACES) + 1))

    def blocks(self, distance: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield pairs of hashes: two numbers, distance, number of pairs of images, and number of pairs across splits.

        A hash is paired with itself if images with different pixels have it.
        """
        pairs, across = self.within
        mixed = np.flatnonzero(pairs)
        yield mixed, mixed, np.zeros(len(mixed), np.uint8), pairs[mixed], across[mixed]
        for a, b, found in find_near_hashes(self.hashes, distance):
            pairs = self.places[a].sum(axis=1) * self.places[b].sum(axis=1)
            yield a, b, found, pairs, pairs - (self.places[a] * self.places[b]).sum(axis=1)

    def expand(self, a: int, b: int, *, is_across: bool) -> Iterator[tuple[int, int]]:
        """Yield the rows of pairs of images with these hashes and different pixels, across splits or within a split."""
        seen = set()
        for one, other in product(range(len(PLACES)), repeat=2):
            if (one != other) == is_across:
                for pair in product(self._rows(a, one), self._rows(b, other)):
                    contents = frozenset(self.contents[list(pair)].tolist())
                    if len(contents) == 2 and contents not in seen:
                        seen.add(contents)
                        yield min(pair), max(pair)

    def _rows(self, number: int, place: int) -> list[int]:
        key = number * len(PLACES) + place
        rows: list[int] = self.first[self.ends[key] : self.ends[key + 1]].tolist()
        return rows


def _within(places: np.ndarray) -> np.ndarray:
    """Return for each row the number of pairs of images, and the number of pairs across splits, int64 (2, n)."""
    totals = places.sum(axis=1)
    pairs = totals * (totals - 1) // 2
    return np.stack([pairs, pairs - (places * (places - 1) // 2).sum(axis=1)])
