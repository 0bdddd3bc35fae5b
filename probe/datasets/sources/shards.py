"""WebDataset shards, tar files of samples -> the places of their images, and their labels.

Each shard is read once to find its images. Images are then read directly from the tar file; nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image

from probe.datasets.archives import check_end, check_member
from probe.datasets.images import image_suffixes
from probe.datasets.sources.labels import whole_as_integer
from probe.errors import DatasetError, DatasetMissingError, listed, summarize

LABELS = ("cls", "npy", "json")
MAX_LABEL, MAX_LABEL_BYTES = 1 << 31, 1 << 20  # larger values are not labels, and would fill the memory
Label = int | list[int]
_Places = dict[str, dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class Index:
    """Places of images: for each the number of its shard, int32 (n,), and its offset and size there, int64 (n,)."""

    paths: Sequence[Path]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray


def read_image(index: Index, i: int) -> Image.Image:
    """Read the image at a position of the index."""
    size = int(index.size[i])
    with index.paths[index.shard[i]].open("rb") as file:
        file.seek(int(index.offset[i]))
        content = file.read(size)
    if len(content) < size:
        raise OSError("its shard was truncated")
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image


def read_index(folder: Path, names: Sequence[str]) -> tuple[Index, list[Label], list[str]]:
    """Return the places of the images in shards, their labels, and their names relative to the folder of the shards.

    Labels are as written: a number, or a list of numbers for an image that can show several classes.
    """
    ids: list[str] = []
    labels: list[Label] = []
    blocks = [np.empty((0, 3), dtype=np.int64)]
    paths = [folder / name for name in names]
    suffixes = frozenset(suffix[1:] for suffix in image_suffixes())
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        rows = []
        members = find_members(path)
        with path.open("rb") as file:
            for key, fields in members.items():
                image, label = _choose_fields(path, key, fields, suffixes)
                rows.append((number, *fields[image]))
                labels.append(_read_label(file, path, key, label, fields[label]))
                ids.append(f"{name}/{key}")
        blocks.append(np.array(rows, dtype=np.int64).reshape(-1, 3))
    shard, offset, size = np.concatenate(blocks).T
    return Index(paths, shard.astype(np.int32), offset.copy(), size.copy()), labels, ids


def find_members(path: Path) -> _Places:
    """Return sample -> suffix -> offset and size of the file in the shard.

    Raises:
        DatasetMissingError: the shard does not exist.
        DatasetError: the shard is damaged or truncated, or has a link, a device, or the same file twice.
    """
    samples: _Places = {}
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise compressed(path)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    _add_member(path, member, samples)
                check_end(file, tar.offset)
    except FileNotFoundError as err:
        raise DatasetMissingError(f"no shard at {path}; download it again") from err
    except (tarfile.TarError, EOFError, OSError, OverflowError) as err:
        raise DatasetError(f"{path} is not a complete tar file ({summarize(err)}); download it again") from err
    return samples


def _add_member(path: Path, member: tarfile.TarInfo, samples: _Places) -> None:
    if member.isdir():
        return
    check_member(path, member.name)
    if not member.isreg() or member.issparse():
        raise DatasetError(f"{path} has {member.name!r}, which is not a regular file; do not use it")
    folder, slash, base = member.name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not stem or not dot:  # webdataset skips such files too: they are notes of the writer
        return
    fields = samples.setdefault(f"{folder}{slash}{stem}", {})
    if ending.lower() in fields:
        raise DatasetError(f"{path} has {member.name!r} twice; give each sample a name of its own")
    fields[ending.lower()] = member.offset_data, member.size


def _choose_fields(path: Path, key: str, fields: Mapping[str, object], suffixes: frozenset[str]) -> tuple[str, str]:
    """Return the suffixes of the image and of the label of a sample."""
    images = [ending for ending in fields if ending in suffixes]
    label = next((ending for ending in LABELS if ending in fields), None)
    if len(images) == 1 and label:
        return images[0], label
    problem = ("several images" if images else "no image") if len(images) != 1 else "no label"
    advice = "it needs one image and its label as .cls, .npy or .json"
    if dotted := next((ending for ending in fields if "." in ending), ""):  # webdataset ends names at the first dot
        stem, _, suffix = f"{key.rpartition('/')[2]}.{dotted}".rpartition(".")
        advice = f"the name of a sample ends at its first dot: write '{stem.replace('.', '_')}.{suffix}' and so on"
    raise DatasetError(
        f"{path}: the sample {key!r} has {problem} in its files {listed(f'.{ending}' for ending in fields)}; {advice}"
    )


def _read_label(file: IO[bytes], path: Path, key: str, ending: str, place: tuple[int, int]) -> Label:
    offset, size = place
    file.seek(offset)
    content = file.read(min(size, MAX_LABEL_BYTES))
    found = _parse_label(ending, content)
    labels = [whole_as_integer(label) for label in (found if isinstance(found, list) else [found])]
    if not all(isinstance(label, int) and 0 <= label <= MAX_LABEL for label in labels):
        shown = content[:40].decode("utf-8", "replace").strip() if ending != "npy" else str(found)[:40]
        raise DatasetError(f"{path}: expected a number >= 0 as label in {key}.{ending}, got {shown!r}; correct it")
    return cast("Label", labels if isinstance(found, list) else labels[0])


def _parse_label(ending: str, content: bytes) -> object:
    """Return the content of a file: a number or a list of numbers; anything else if it holds no label."""
    if ending == "cls":
        is_number = re.fullmatch(rb"\s*[0-9]{1,19}(\.0*)?\s*", content)
        return float(content) if is_number and is_number[1] else int(content) if is_number else None
    if ending == "npy":
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError):
            return None
        is_label = isinstance(array, np.ndarray) and array.ndim <= 1 and array.dtype.kind in "biuf"
        return (
            np.asarray(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64).tolist() if is_label else None
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = found.get("label", found.get("cls")) if isinstance(found, dict) else found
    numbers = found if isinstance(found, list) else [found]
    return None if any(isinstance(number, bool) for number in numbers) else found


def check_shard(path: Path) -> None:
    """Check that a shard is complete and safe.

    Raises:
        DatasetError: the shard is damaged or unsafe, see `find_members`.
    """
    find_members(path)


def compressed(where: str | Path) -> DatasetError:
    """Return the error for a compressed shard."""
    return DatasetError(f"{where}: images cannot be read directly from compressed shards; unpack them to .tar")
