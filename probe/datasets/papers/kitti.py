"""KITTI as VTAB's task closest_vehicle_distance: distance to the nearest vehicle. Splits take whole videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probe.datasets.class_names import KITTI
from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset

VEHICLES = frozenset({"Car", "Van", "Truck"})
THRESHOLDS = np.array([8, 20, 999], dtype=np.float32)  # metres; up to the first is class 0
NO_VEHICLE = 1000.0  # metres, beyond the last threshold
# Fields of a label file: type, truncated, occluded, alpha, box (4), height, width, length, x, y, z, rotation.
NUM_FIELDS, Z = 15, 13


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset: the images of its videos, in the order of their numbers. The group of an image is its video.

    Raises:
        DatasetError: the mapping or a label file is damaged, or a label file is missing.
    """
    top = root / source.location
    videos = _read_videos(top / "mapping", source)
    taken = split_videos(videos)[subset.name]
    numbers = [i for i, video in enumerate(videos) if video in taken]
    labels = [_read_label(top / "training" / "label_2" / f"{i:06}.txt", source) for i in numbers]
    ids = [f"training/image_2/{i:06}.png" for i in numbers]
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array(labels, dtype=np.int64),
        class_names=KITTI,
        ids=ids,
        groups=[videos[i] for i in numbers],
        **in_files(top, ids),
    )


def split_videos(videos: list[str]) -> dict[str, set[str]]:
    """Divide videos as TensorFlow Datasets does: a tenth for testing, a tenth for validation, at least one each.

    Returns:
        The names of the videos of `train`, `val` and `test`.
    """
    # The published splits were drawn after numpy.random.seed(123), which is this generator. numpy guarantees its
    # stream; `default_rng` has a different one.
    generator = np.random.RandomState(123)
    names = sorted(set(videos))
    count = max(1, len(names) // 10)
    test = {str(name) for name in generator.choice(names, count, replace=False)}
    rest = [name for name in names if name not in test]
    val = {str(name) for name in generator.choice(rest, count, replace=False)}
    return {"train": set(rest) - val, "val": val, "test": test}


def distance_class(distances: list[float]) -> int:
    """Return the class of an image by the depths of its vehicles in metres: 0 is nearest, 3 means no vehicle.

    >>> [distance_class(d) for d in ([8.0, 30.0], [8.01], [20.01], [])]
    [0, 1, 2, 3]
    """
    nearest = np.array([*distances, NO_VEHICLE], dtype=np.float32).min()  # VTAB compares in float32
    return int((nearest > THRESHOLDS).sum())


def _read_videos(folder: Path, source: Source) -> list[str]:
    """Read the video of each image: train_rand.txt gives, from 1 on, the line of each image in train_mapping.txt."""
    lines = [line.split() for line in read_lines(folder / "train_mapping.txt", source)]
    listed = ",".join(read_lines(folder / "train_rand.txt", source))
    try:
        numbers = [int(number) for number in listed.split(",")]
        if min(numbers) < 1:
            raise IndexError(f"line {min(numbers)} does not exist")
        return [lines[number - 1][1] for number in numbers]  # date, video, frame
    except (ValueError, IndexError) as err:
        raise DatasetError(
            f"train_rand.txt and train_mapping.txt in {folder} do not give each image its video ({err}); "
            f"get {source.files} again"
        ) from err


def _read_label(path: Path, source: Source) -> int:
    objects = [line.split() for line in read_lines(path, source)]
    try:
        if any(len(fields) != NUM_FIELDS for fields in objects):
            raise ValueError(f"expected {NUM_FIELDS} fields in each line")
        return distance_class([float(fields[Z]) for fields in objects if fields[0] in VEHICLES])
    except ValueError as err:
        raise DatasetError(f"{path} cannot be read ({err}); get {source.files} again") from err
