"""A dataset of small images in folders, with planted twins: equal pixels within and across splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("blue", "red")
# Planted copies: the image, and the file that gets the same pixels. Formats differ, pixels do not.
COPIES = (
    ("train/red/00.png", "test/red/50.bmp"),  # the same label
    ("train/red/01.png", "test/blue/51.png"),  # a different label
    ("train/blue/02.png", "test/blue/52.png"),
    ("train/blue/02.png", "test/blue/53.tiff"),
    ("train/blue/03.png", "train/red/54.png"),  # within a split
    ("test/red/04.png", "test/red/55.png"),
    ("val/blue/05.png", "test/red/56.png"),
    ("val/red/05.png", "train/red/57.png"),
)
LEAKED = ("test/blue/51.png", "test/blue/52.png", "test/blue/53.tiff", "test/red/50.bmp", "test/red/56.png")
DIFFERING = ("test/blue/51.png", "test/red/56.png")


def write_twins(root: Path, *, counts: tuple[int, int, int] = (20, 8, 10)) -> str:
    """Write train, val and test images of two classes with the planted copies, and return the name of the dataset."""
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for name, colour in zip(NAMES, ((60, 90, 200), (200, 80, 60)), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (np.array(colour) + rng.integers(-50, 50, (14, 10, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    for source, target in COPIES:
        Image.open(root / source).save(root / target)
    return f"folder:{root}"


def groups_by_bytes(root: Path) -> list[set[str]]:
    """Return the paths of the images of each group of equal pixels, by a dictionary of their bytes."""
    groups: dict[tuple[object, ...], set[str]] = {}
    for path in sorted(root.glob("*/*/*")):
        image = Image.open(path).convert("RGB")
        groups.setdefault((image.size, image.tobytes()), set()).add(path.relative_to(root).as_posix())
    return [group for group in groups.values() if len(group) > 1]
