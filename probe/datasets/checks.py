"""Compare the images of a dataset with its specification: numbers, labels, classes, and the first and last image."""

from __future__ import annotations

import logging
from itertools import zip_longest

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.splits.folds import (
    REPAIR,
)
from probe.datasets.subsets import subset_of
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset
from probe.stats.metrics import find_mismatch

logger = logging.getLogger(__name__)


def say_what_is_test(spec: DatasetSpec, source: Source) -> None:
    """Log a note if the official validation subset is the test split."""
    names = {
        subset: str(arguments.get("split") or arguments.get("folder"))
        for subset in ("train", "test")
        if (arguments := dict(dict(source.subsets).get(subset, ())))
    }
    if len(names) == 2 and subset_of(names["test"]) == "val" and all(subset.name != "val" for subset in spec.subsets):
        logger.info(
            "%s: %r is the test split; validation images are held out of %r", spec.name, names["test"], names["train"]
        )


def check_subset(
    spec: DatasetSpec, source: Source, subset: Subset, images: ImageDataset, *, allow_partial: bool
) -> int | None:
    """Compare a subset with the specification; return the expected number of images if a different one is accepted.

    The labels of the first and the last image are compared only for the first source, because the order of other
    sources can differ.
    """
    n = len(images)
    if n == 0:
        raise DatasetError(f"{images.name}: the subset has no images; {REPAIR}")
    _check_labels(spec, images)
    if subset.size is not None and n != subset.size:
        can_be_partial = n < subset.size or bool(spec.gone)  # another crawl of dead links can have more images
        if not (can_be_partial and allow_partial):
            or_partial = ", or evaluate on the images that are present with --allow-partial" if can_be_partial else ""
            raise DatasetError(
                f"{images.name}: expected {subset.size} images, found {n}; {_repair(spec, source)}{or_partial}"
            )
        logger.warning("%s: found %d of %d images; the result is marked as partial", images.name, n, subset.size)
        return subset.size
    _check_counts(subset, images, _repair(spec, source))
    if source != spec.sources[0]:
        return None
    for where, expected, i in (("first", subset.first_label, 0), ("last", subset.last_label, n - 1)):
        if expected is not None and images.labels[i] != expected:
            raise DatasetError(
                f"{images.name}: expected the label {expected} for its {where} image, found {images.labels[i]}; "
                f"{REPAIR}"
            )
    return None


def _check_counts(subset: Subset, images: ImageDataset, repair: str) -> None:
    """Compare the number of images of each class with the specification.

    Raises:
        DatasetError: a number differs, so the copy has different splits, or a different order of classes.
    """
    if not subset.class_counts:
        return
    if images.labels.ndim == 2:
        counts = (images.labels == 1).sum(axis=0).tolist()
    else:
        counts = np.bincount(images.labels).tolist()
    for label, (expected, n) in enumerate(zip_longest(subset.class_counts, counts, fillvalue=0)):
        if n != expected:
            raise DatasetError(
                f"{images.name}: expected {expected} images of class {label}, found {n}; this copy is divided "
                f"differently, or its classes are in a different order: {repair}"
            )


def _repair(spec: DatasetSpec, source: Source) -> str:
    """Return how to repair wrong files: replace them, or use the makers' files instead of a copy."""
    files = next((other.files for other in spec.sources if other.files), "")
    if source.files or not files:
        return REPAIR
    return f"instead of using {source.location}, put {files} into the data folder"


def _check_labels(spec: DatasetSpec, images: ImageDataset) -> None:
    reason = find_mismatch(spec.metric, num_classes=len(images.class_names), is_multi_label=images.labels.ndim == 2)
    if reason:
        raise DatasetError(f"{images.name}: {reason}")
    low, high = int(images.labels.min()), int(images.labels.max())
    if images.labels.ndim == 2:
        if images.labels.shape[1] != (spec.num_classes or images.labels.shape[1]) or low < -1 or high > 1:
            raise DatasetError(
                f"{images.name}: expected -1, 0 or 1 for each of {spec.num_classes} classes, found {low} to {high} for "
                f"{images.labels.shape[1]}; {REPAIR}"
            )
        return
    num_classes = spec.num_classes or len(images.class_names)
    if low < 0 or high >= num_classes:
        raise DatasetError(f"{images.name}: expected labels 0 to {num_classes - 1}, found {low} to {high}; {REPAIR}")


def check_ends(images: ImageDataset) -> None:
    """Read the first and the last image, so that a problem of all files is found before any work."""
    for i in {0, len(images) - 1}:
        images[i]


def check_num_classes(spec: DatasetSpec, images: ImageDataset, *, allow_partial: bool) -> None:
    """Compare the number of classes with images with the specification."""
    if images.labels.ndim == 2:
        num_classes = int((images.labels == 1).any(axis=0).sum())
    else:
        num_classes = len(np.unique(images.labels))
    expected = spec.num_classes  # None accepts a named class without images
    if expected is not None and num_classes != expected and not allow_partial:
        raise DatasetError(f"{images.name}: expected images of {expected} classes, found {num_classes}; {REPAIR}")
    if num_classes < 2 and not spec.is_test_set:
        raise DatasetError(f"{images.name}: all images belong to one class; a probe needs at least two classes")
