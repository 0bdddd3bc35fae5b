"""Images with equal pixels, by the SHA-256 of their pixels, and test images that are also among the images of a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Leaks:
    """Test images that have the same pixels as a training or validation image.

    Args:
        leaked: bool (n,), True for such a test image.
        differing: bool (n,), True if one of these training or validation images has a different label.
    """

    leaked: np.ndarray
    differing: np.ndarray


def number_contents(sha256: np.ndarray) -> np.ndarray:
    """Return a number for each image, int64 (n,), equal for images with equal digests.

    Args:
        sha256: uint8 (n, 32).
    """
    rows = np.ascontiguousarray(sha256).view(np.dtype((np.void, sha256.shape[1]))).ravel()
    return np.unique(rows, return_inverse=True)[1].reshape(-1).astype(np.int64)


def number_labels(labels: np.ndarray) -> np.ndarray:
    """Return a number for each image, int64 (n,), equal for images with equal labels.

    Args:
        labels: int64 (n,), or (n, k) if an image can show several of k classes.
    """
    if labels.ndim == 1:
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def find_leaks(contents: np.ndarray, labels: np.ndarray, *, fit: np.ndarray, test: np.ndarray) -> Leaks:
    """Find the test images that are also training or validation images.

    Args:
        contents: int64 (n,), numbers of `number_contents`.
        labels: int64 (n,), numbers of `number_labels`.
        fit: int64 (m,), positions of the training and validation images.
        test: int64 (t,), positions of the test images.
    """
    pairs = contents * (labels.max(initial=0) + 1) + labels
    num_equal = _count(contents[fit], contents[test])
    return Leaks(num_equal > 0, num_equal > _count(pairs[fit], pairs[test]))


def _count(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how many of the values equal each wanted one, int64."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, wanted, side="right") - np.searchsorted(ordered, wanted, side="left")
