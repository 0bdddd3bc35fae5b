"""One split of a labelled image dataset, opened: images are read when they are asked for, labels are there at once."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from probe.datasets import decoding
from probe.errors import DatasetError, ProbeError, listed, summarize

logger = logging.getLogger(__name__)

SAMPLE = 64  # images that stand for all in a fingerprint, where nothing else can
BUFFER = re.compile(r"<_io\.\w+ object at 0x[0-9a-f]+>")  # how Pillow calls what has no file name


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels, in a fixed order. `len` and `[i] -> (RGB image, label)` are all that extraction needs.

    Args:
        name: the dataset's and the split's, such as `digits/train`.
        labels: int64 (n,), class indices in [0, len(class_names)); or (n, k) where an image can show several of k
            classes: 1 where it shows the class, 0 where not, -1 where it does not count.
        class_names: in the order of the labels.
        read: position -> image of any mode; raises where it cannot. Worker processes call it, so it is made of
            functions that have a name, not of lambdas.
        ids: what tells an image from others, in order: a path, or a position in the source.
        groups: for each image the group that it came in, such as the video of a frame; a split takes whole groups.
            Empty where images are on their own.
        revision: the version of the source that was read, such as a commit; empty where it has none.
        content: computes the fingerprint; None where nothing but the images themselves tells.
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
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int | np.ndarray]:
        """The image at a position, in RGB, and its label, or its row of labels.

        Raises:
            IndexError: there is no such position.
            DatasetError: the image cannot be read; the message names it.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has no image {i}; it has {len(self)}")
        try:
            with decoding.reading() as remarks:
                image = self.read(i)
                if image.mode != "RGB":  # `convert` always copies
                    image = image.convert("RGB")
                image.load()  # finds damage
        except ProbeError:
            raise
        except Exception as err:  # Pillow's readers raise whatever comes up in a damaged file, also AttributeError
            why, remedy = decoding.refused_for_size(err) or (BUFFER.sub("it", summarize(err)), "get its files again")
            raise DatasetError(
                f"{self.name}: image {i} ({self.ids[i]}) cannot be read ({why}); {remedy}, or pass over up to N such "
                "images with --skip-corrupt N"
            ) from err
        if remarks:
            logger.warning(
                "%s: image %d (%s) is damaged (%s), and some of its pixels may be wrong; get its file again",
                *(self.name, i, self.ids[i], listed(dict.fromkeys(remarks), most=2)),
            )
        return image, int(self.labels[i]) if self.labels.ndim == 1 else self.labels[i]

    def compute_sha256(self) -> str:
        """Return the hex SHA-256 over ids and labels in order: the same for the same split of the same source."""
        sha = hashlib.sha256()
        for key, label in zip(self.ids, self.labels.tolist(), strict=True):
            shown = label if self.labels.ndim == 1 else ",".join(map(str, label))
            sha.update(f"{key}\t{shown}\n".encode(errors="surrogateescape"))  # names of files need not be text
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
        """The images at `positions`, int64 (m,), in that order."""
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


def read_file(folder: Path, names: Sequence[str], i: int) -> Image.Image:
    """The image in the file `names[i]` of a folder; names take a fourth of the memory that paths do."""
    with Image.open(folder / names[i]) as image:
        image.load()
        return image
