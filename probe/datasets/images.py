"""Labelled images of a subset or split: labels are in memory, images are read on request."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeAlias, TypedDict, cast

import numpy as np
from PIL import Image

from probe.datasets import decoding
from probe.datasets.fingerprints import of_array, of_files
from probe.errors import DatasetError, DatasetMissingError, ProbeError, listed, summarize

logger = logging.getLogger(__name__)

LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini")  # files in folders of images that are skipped
UNREADABLE = frozenset((".pdf", ".palm", ".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg"))  # see `image_suffixes`
MISSING = "does not exist"
OR_SKIP = ", or skip up to N such images with --skip-corrupt N"
SAMPLE = 64  # images in a fingerprint, for sources without files or arrays
BUFFER = re.compile(r"<_io\.\w+ object at 0x[0-9a-f]+>")  # Pillow's name of an image without a file name


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels, in a fixed order. `len` and `[i] -> (RGB image, label)` are all that extraction needs.

    Args:
        name: name of the dataset and of the subset or split, such as `digits/train`.
        labels: int64 (n,), class indices in [0, len(class_names)); or (n, k) if an image can show several of k classes:
            1 if the image shows the class, 0 if not, -1 if the image does not count for the class.
        class_names: names in the order of the class indices.
        read: position -> image of any mode; raises an error if the image cannot be read. Worker processes call it, so
            it must not be a lambda.
        ids: for each image a path, or a position in the source.
        groups: for each image its group, such as the video of a frame; a split takes whole groups. Empty if images
            have no groups.
        revision: version of the source, such as a commit; empty if the source has none.
        content: function that computes the fingerprint; None to compute the fingerprint from images.
    """

    is_thread_safe: ClassVar[bool] = True  # several threads may read images: every form opens its files for each image

    name: str
    labels: np.ndarray
    class_names: Sequence[str]
    read: Callable[[int], Image.Image] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    groups: Sequence[str] = field(default=(), repr=False)
    revision: str = ""
    content: Callable[[], str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int | np.ndarray]:
        """Return the image at a position, in RGB, and its label or row of labels.

        Raises:
            IndexError: the position is out of range.
            DatasetError: the image cannot be read; the message names it.
        """
        image, _ = self.read_rgb(i)
        return image, int(self.labels[i]) if self.labels.ndim == 1 else self.labels[i]

    def read_rgb(self, i: int) -> tuple[Image.Image, str]:
        """Return the image at a position, in RGB, and the mode that it was stored in, such as `L`.

        Raises:
            IndexError: the position is out of range.
            DatasetError: the image cannot be read; the message names it.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has no image {i}; it has {len(self)}")
        try:
            with decoding.reading() as remarks:
                image = self.read(i)
                mode = image.mode
                if mode != "RGB":  # `convert` always copies
                    image = image.convert("RGB")
                image.load()  # raises an error if the file is damaged
        except ProbeError:
            raise
        except Exception as err:  # Pillow's readers raise many types for a damaged file, even AttributeError
            why, remedy = decoding.refused_for_size(err) or (BUFFER.sub("it", summarize(err)), "replace its file")
            raise DatasetError(
                f"{self.name}: image {i} ({self.ids[i]}) cannot be read ({why}); {remedy}{OR_SKIP}"
            ) from err
        if remarks:
            logger.warning(
                "%s: image %d (%s) is damaged (%s), and some of its pixels may be wrong; replace its file",
                *(self.name, i, self.ids[i], listed(dict.fromkeys(remarks), most=2)),
            )
        return image, mode

    def can_read_any(self, positions: Iterable[int]) -> bool:
        """Return True if one of some images can be read, such as an unreadable image after a change of permissions."""
        for i in positions:
            with suppress(DatasetError):
                self[i]
                return True
        return False

    def compute_sha256(self) -> str:
        """Return the hex SHA-256 over ids and labels, in their order."""
        sha = hashlib.sha256()
        for key, label in zip(self.ids, self.labels.tolist(), strict=True):
            shown = label if self.labels.ndim == 1 else ",".join(map(str, label))
            sha.update(f"{key}\t{shown}\n".encode(errors="surrogateescape"))  # file names can be any bytes
        return sha.hexdigest()

    def compute_fingerprint(self) -> str:
        """Return a digest that changes when images are replaced under the same ids.

        It covers the sizes, dates and a sample of the contents of files, or it covers arrays. For a source without
        files and arrays, it covers some images, evenly spread over all.
        """
        return self.content() if self.content is not None else self._sample()

    def _sample(self) -> str:
        sha = hashlib.sha256()
        for i in np.unique(np.linspace(0, len(self) - 1, SAMPLE, dtype=np.int64)).tolist():
            try:
                image, _ = self[i]
            except DatasetError as err:
                sha.update(str(err).encode(errors="surrogateescape"))
            else:
                sha.update(f"{image.size}".encode() + image.tobytes())
        return sha.hexdigest()

    def select(self, name: str, positions: np.ndarray) -> ImageDataset:
        """Return the images at `positions`, int64 (m,), in that order."""
        return ImageDataset(
            name=name,
            labels=self.labels[positions],
            class_names=self.class_names,
            read=partial(_read_at, self.read, positions),
            ids=[self.ids[p] for p in positions],
            groups=[self.groups[p] for p in positions] if self.groups else (),
            revision=self.revision,
            content=self.content,
        )


def _read_at(read: Callable[[int], Image.Image], positions: np.ndarray, i: int) -> Image.Image:
    return read(int(positions[i]))


def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files that Pillow can read, in lower case and with the dot, the most frequent first.

    Pillow also registers suffixes of files that it can only write, such as .pdf, or only recognise, such as .hdf.
    """
    return tuple(suffix for suffix in Image.registered_extensions() if suffix not in UNREADABLE)


def read_file(folder: Path, names: Sequence[str], i: int) -> Image.Image:
    """Read the image in the file `names[i]` of a folder; names take a fourth of the memory of paths."""
    with Image.open(folder / names[i]) as image:
        image.load()
        return image


class Reading(TypedDict):
    """Fields of an `ImageDataset` that read its images, and compute their fingerprint."""

    read: Callable[[int], Image.Image]
    content: Callable[[], str]


def in_files(
    folder: Path, names: Sequence[str], *, read: Callable[[Path, Sequence[str], int], Image.Image] = read_file
) -> Reading:
    """Return how images in files of their own are read: one in each of the files `names` of a folder."""
    return {"read": partial(read, folder, names), "content": partial(of_files, folder, names)}


def in_array(pixels: np.ndarray) -> Reading:
    """Return how images in memory are read: uint8 (n, height, width), or (n, height, width, 3) in RGB."""
    return {"read": partial(_read_row, pixels), "content": partial(of_array, pixels)}


def _read_row(pixels: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(pixels[i])


def make_thumbnail(image: Image.Image, side: int) -> bytes:
    """Return an RGB image as JPEG, with its longer side at most `side` pixels."""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


class _PillowImages(ImageDataset):
    is_thread_safe: ClassVar[bool] = False  # Pillow loads the pixels of an image when they are first used


ImageInput: TypeAlias = str | Path | Image.Image
Images: TypeAlias = ImageDataset | ImageInput | Sequence[ImageInput]


def open_images(images: Images) -> ImageDataset:
    """Return images as a dataset: paths as `open_files`, and Pillow's images with their positions as ids.

    Raises:
        DatasetMissingError: none of the paths exists.
        DatasetError: a folder has no image, paths and Pillow's images are mixed, or an item is neither.
    """
    if isinstance(images, ImageDataset):
        return images
    try:
        items = [images] if isinstance(images, str | bytes | Path | Image.Image) else list(images)
    except TypeError:  # not iterable
        items = [cast(ImageInput, images)]
    strange = [item for item in items if not isinstance(item, str | Path | Image.Image)]
    if strange:
        raise DatasetError(
            f"expected paths or Pillow's images, got {type(strange[0]).__qualname__}; make images of arrays with "
            "PIL.Image.fromarray; for features there is `head.logits`"
        )
    loaded = [item for item in items if isinstance(item, Image.Image)]
    named = [item for item in items if not isinstance(item, Image.Image)]
    if not loaded:
        return open_files(named)
    if named:
        raise DatasetError("some images are paths, and others are Pillow's images; give images of one kind")
    return _PillowImages(
        name="the images",
        labels=np.zeros(len(loaded), np.int64),
        class_names=("",),
        read=loaded.__getitem__,
        ids=[str(i) for i in range(len(loaded))],
    )


def open_files(paths: Sequence[str | Path]) -> ImageDataset:
    """Return images in files and folders, with labels of 0. Files in folders are taken at any depth, sorted by name.

    A path that does not exist counts as an image that cannot be read. Files in folders that are not images are skipped,
    and a warning names them. Hidden files, and files such as Thumbs.db, are skipped without a warning.

    Raises:
        DatasetMissingError: none of the paths exists.
        DatasetError: a folder has no image.
    """
    if paths and not any(map(os.path.exists, paths)):
        verb = "does" if len(paths) == 1 else "do"
        raise DatasetMissingError(f"{listed(map(str, paths))} {verb} not exist; name files or folders of images")
    files: list[str] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises if a name is too long
            files += _find_files(path)
        else:
            files.append(str(path))
    return ImageDataset(
        name="the images",
        labels=np.zeros(len(files), np.int64),
        class_names=("",),
        read=partial(_read_path, files),
        ids=files,
    )


def _find_files(folder: Path) -> list[str]:
    """Return the paths of the images in a folder, at any depth, sorted by name."""
    visible = [
        file
        for file in folder.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.name not in LEFT_BY_SYSTEMS
        and not file.is_dir()
    ]
    suffixes = frozenset(image_suffixes())
    others = sorted(str(file.relative_to(folder)) for file in visible if file.suffix.lower() not in suffixes)
    if others:
        num = f"{len(others)} file{'' if len(others) == 1 else 's'}"
        logger.warning("skipped %s of an unknown type of image in %s: %s", num, folder, listed(others, most=5))
    found = sorted(str(file) for file in visible if file.suffix.lower() in suffixes)
    if not found:
        raise DatasetError(f"no images in {folder}; name a folder with images")
    return found


def _read_path(files: Sequence[str], i: int) -> Image.Image:
    try:
        return read_file(Path(), files, i)
    except FileNotFoundError as err:
        raise DatasetMissingError(f"the images: image {i} ({files[i]}) {MISSING}; correct the path") from err
