"""k-nearest neighbours: training images that are similar to an image vote for their labels."""

from __future__ import annotations

from probe.features.arrays import Features
from probe.probes.result import ProbeResult
from probe.specs import Protocol


def fit_knn(
    train: Features,
    val: Features | None,
    test: Features,
    rules: Protocol,
    *,
    metric: str,
    num_classes: int,
    label_values: tuple[int, ...],
    device: str,
) -> ProbeResult:
    """Choose k on the validation split, and score the test split with the votes of training and validation images."""
    raise NotImplementedError
