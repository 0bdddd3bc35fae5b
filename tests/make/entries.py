"""Entries of the feature cache."""

import numpy as np

from probe.features.arrays import Features
from probe.features.sidecars import Provenance
from probe.features.store import EntrySpec
from probe.records.schema import EncoderRecord, MeterRecord

PROVENANCE = Provenance(EncoderRecord(embed_dim=2), MeterRecord(images=600))
KEY = {"weights": "ab", "mode": "eager", "batch_size": 64, "torch": "2.15.0"}


def make_entry_spec(n=600, **changes):
    return EntrySpec("digits", "all", "tiny", "eager", "fp32", {**KEY, **changes}, n, 64)


def chunk_of(spec, chunk, labels=1):
    """Return features that contain the index of their image."""
    positions = np.arange(chunk * 256, min((chunk + 1) * 256, spec.num_images))
    x = np.stack([positions, -positions], axis=1).astype(np.float32)
    y = positions % 10 if labels == 1 else np.stack([positions % 2, positions % 3 - 1], axis=1)
    return Features(x, y.astype(np.int64), np.repeat(x, 2, axis=1))
