"""Features of further test sets. A set that only relabels the test images of the dataset uses their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probe.datasets.opening import OpenedDataset
from probe.errors import DatasetError
from probe.features.arrays import Extraction, Features
from probe.records.schema import ReadRecord, SkippedImage, SplitRecord


@dataclass(frozen=True)
class FurtherTest:
    """Features of a further test set.

    Args:
        features: features of its images; labels int64 (n,) of its classes.
        class_names: names of its classes, in the order of the labels.
        split: its images.
        read: how the images were read.
        ids: id of each image that has features.
    """

    features: Features
    class_names: tuple[str, ...]
    split: SplitRecord
    read: ReadRecord
    ids: Sequence[str] = ()


def from_extraction(extraction: Extraction, dataset: OpenedDataset | None = None) -> FurtherTest:
    """Return a further test set whose features were extracted, with the ids of its images if it is open."""
    (fold,) = extraction.cut(("test",))
    read = extraction.read
    ids = () if dataset is None else next(extraction.test_ids(dataset))
    return FurtherTest(fold["test"], read.class_names, extraction.splits["test"], replace(read, class_names=()), ids)


def relabel(test: OpenedDataset, dataset: OpenedDataset, extraction: Extraction) -> FurtherTest:
    """Return a further test set with the features of the dataset's own test images, which are found by their ids.

    Args:
        test: the test set, with `relabels`.
        dataset: the dataset, with one fold.
        extraction: features of the dataset. Images that could not be read for it are skipped.

    Raises:
        DatasetError: an image of the test set is not a test image of the dataset.
    """
    images = test.subsets["test"]
    if len(extraction.rows) > 1:
        raise DatasetError(f"{test.spec.name} relabels the test split of {dataset.spec.name}, which has several folds")
    subset, rows = extraction.rows[0]["test"]
    skipped = dict(extraction.features[subset].skipped)
    used = dataset.used[subset].images.ids
    readable = [key for i, key in enumerate(used) if i not in skipped]
    row_of = {readable[row]: row for row in rows.tolist()}
    unread = {used[i]: message for i, message in skipped.items()}
    strange = next((key for key in images.ids if key not in row_of and key not in unread), None)
    if strange is not None:
        raise DatasetError(
            f"{test.spec.name}: {strange} is not a test image of {dataset.spec.name}, as read from "
            f"{dataset.source.location} ({dataset.source.form}); read both from the same files"
        )
    kept = np.array([i for i, key in enumerate(images.ids) if key in row_of], dtype=np.int64)
    chosen = images.select(images.name, kept)
    found = extraction.features[subset].take(np.array([row_of[key] for key in chosen.ids], dtype=np.int64))
    return FurtherTest(
        replace(found, y=chosen.labels),
        tuple(images.class_names),
        SplitRecord(chosen.compute_sha256(), len(chosen)),
        ReadRecord(
            source=test.source,
            partial={name: (len(test.subsets[name]), size) for name, size in test.incomplete.items()},
            skipped=tuple(SkippedImage("test", key, unread[key]) for key in images.ids if key in unread),
        ),
        chosen.ids,
    )
