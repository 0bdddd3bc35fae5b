"""Files in the layout of MNIST."""

import struct
from dataclasses import replace

import numpy as np

from probe.datasets import get_dataset
from probe.specs import DatasetSpec, Subset

SMALL_MNIST = DatasetSpec(
    name="small_mnist",
    title="MNIST's layout, few images",
    subsets=(Subset("train", 40), Subset("test", 10)),
    sources=(replace(get_dataset("fashion_mnist").sources[0], files="the four IDX files"),),
    num_classes=10,
)


def write_idx_files(root, train=40, test=10):
    """IDX files with images whose first pixel is their position."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.zeros((count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
