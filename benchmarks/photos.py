"""Images that replace photos: noise that is smooth enough for JPEG to compress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 16  # different files; the other files are copies


def write_photos(root: Path, n: int, size: tuple[int, int]) -> None:
    """Write n JPEG files of a width and height, in the folders of two classes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (DISTINCT, size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    for i in range(n):
        path = root / "ab"[i % 2] / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT:
            Image.fromarray(coarse[i]).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.write_bytes((root / "ab"[i % 2] / f"{i % DISTINCT:06}.jpg").read_bytes())
