"""JSON files that describe a cache entry and its chunks.

entry.json     a complete entry, see `Sidecar`
about.json     a folder of chunks: names and key of the entry, and the number of its chunks, see `ChunksSidecar`
making.json    how the chunks are extracted, see `Provenance`
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from probe.decoder import decode
from probe.records.schema import EncoderRecord, MeterRecord
from probe.specs import canonical_json, digest

ENTRY, ABOUT, MAKING = "entry.json", "about.json", "making.json"
LAYOUT_VERSION = 1  # version of the layout of entries

Key: TypeAlias = dict[str, Any]  # everything that changes the bytes of features, as plain JSON values


@dataclass(frozen=True)
class Provenance:
    """How the features of an entry are extracted: the encoder, and measurements of the extraction."""

    encoder: EncoderRecord
    extraction: MeterRecord


@dataclass(frozen=True)
class ArrayFile:
    """Description of a `.npy` file of an entry."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Sidecar:
    """Content of `entry.json`.

    Args:
        version: `LAYOUT_VERSION`.
        label: names of the entry, for people. Entries of earlier versions have `part` instead of `subset`.
        key: see `Key`.
        num_images: number of images, including skipped images.
        arrays: description of the file of each array.
        skipped: positions of images that could not be read, ascending, each with its error.
        encoder: see `Provenance`.
        extraction: see `Provenance`.
    """

    version: int
    label: dict[str, str]
    key: Key
    num_images: int
    arrays: dict[str, ArrayFile]
    skipped: tuple[tuple[int, str], ...]
    encoder: EncoderRecord
    extraction: MeterRecord


@dataclass(frozen=True)
class ChunksSidecar:
    """Content of `about.json`. The number of chunks is called `num_pieces` there since the first version."""

    label: dict[str, str]
    key: Key
    num_pieces: int


def encode_sidecar(sidecar: Sidecar) -> bytes:
    """Return the content of `entry.json`, which includes a digest of its other fields."""
    plain = json.loads(canonical_json(sidecar))
    return json.dumps({**plain, "sha256": digest(plain)}, indent=2).encode()


def read_sidecar(folder: Path) -> Sidecar:
    """Read the sidecar of an entry.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError, TypeError: the file is damaged.
    """
    plain = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    if not isinstance(plain, dict):
        raise TypeError(f"{ENTRY} is not a JSON object")
    written = plain.pop("sha256")
    if digest(plain) != written:
        raise ValueError(f"the digest of {ENTRY} differs")
    sidecar = decode(plain, Sidecar)
    if sidecar.version != LAYOUT_VERSION:
        raise ValueError(f"{ENTRY} has the version {sidecar.version}, not {LAYOUT_VERSION}")
    return sidecar


def encode_plain(content: ChunksSidecar | Provenance) -> bytes:
    """Return the content of `about.json` or `making.json`."""
    return json.dumps(asdict(content)).encode()


def read_chunks_sidecar(folder: Path) -> ChunksSidecar:
    """Read the sidecar of a folder of chunks; see `read_sidecar` for errors."""
    return decode(json.loads((folder / ABOUT).read_text(encoding="utf-8")), ChunksSidecar)


def read_provenance(folder: Path) -> Provenance:
    """Read how the chunks of a folder are extracted; see `read_sidecar` for errors."""
    return decode(json.loads((folder / MAKING).read_text(encoding="utf-8")), Provenance)
