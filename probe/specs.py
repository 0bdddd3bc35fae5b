"""The frozen types that name a run: what is evaluated, on what, how. Plain data; imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP model, which can be read off its state dict, and what cannot: activation and head widths.

    `vision_layers` is a number of blocks for a ViT and the four stage lengths for a ResNet, whose `vision_patch_size`
    is None. Widths are in channels, `image_resolution` and `vision_patch_size` in pixels. `activation` is `quick_gelu`,
    that of all OpenAI models, or `gelu`; `*_head_width` is the number of channels of one attention head.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, ...]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_layers: int
    activation: str = "quick_gelu"
    vision_head_width: int = 64
    transformer_head_width: int = 64

    @property
    def pre_projection_dim(self) -> int:
        """Width of the image features before the projection."""
        return self.vision_width if self.vision_patch_size is not None else self.vision_width * 32

    @property
    def vision_heads(self) -> int:
        """Attention heads of the image tower, over the channels of what it attends over."""
        return self.pre_projection_dim // self.vision_head_width

    @property
    def transformer_heads(self) -> int:
        """Attention heads of the text tower."""
        return self.transformer_width // self.transformer_head_width


@dataclass(frozen=True)
class Profile:
    """What a model costs: parameters of the image tower and of the whole, and operations of the image tower an image.

    `flops` counts a multiplication and an addition as two, in convolutions and matrix products.
    """

    image_parameters: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class ModelSpec:
    """One image encoder, by name.

    `form` says what `source` is: `embedded` (a file of this package), `url`, `file` (the path of a checkpoint, or of a
    folder as Hugging Face's libraries write it), `random` (the name of the model whose sizes the seeded random weights
    have), `open_clip` (`ARCH/TAG` or `ARCH/PATH`), or `hf` (`ORG/NAME` on the Hugging Face hub). `sha256` is empty
    where no digest is known, `architecture` and `profile` None where only the file knows, and `license` empty where
    only its publisher knows. `merges` is the file of this package that holds its vocabulary; empty means OpenAI's.
    """

    name: str
    form: str
    source: str
    architecture: Architecture | None = None
    profile: Profile | None = None
    sha256: str = ""
    license: str = ""
    seed: int | None = None
    merges: str = ""


@dataclass(frozen=True)
class Part:
    """An official part of a dataset, as its makers divided it: `train`, `val`, `test`, or `all` where they did not.

    `arguments` are those that select the part in its source.
    """

    name: str
    size: int
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """One labelled image dataset, by name.

    `form` says what `source` is: `embedded`, `torchvision` (a class of it), or `folder` (a path). `parts` are the
    official ones; a missing `test` or `val` is held out, stratified by class, from `all` or `train`, with these
    fractions and the fixed order of `datasets.splits`. `files` tells a user without a network what to put where.
    `in_paper` marks those of the CLIP paper's table 9.
    """

    name: str
    title: str
    form: str
    source: str
    parts: tuple[Part, ...]
    num_classes: int
    metric: str = "accuracy"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    files: str = ""
    homepage: str = ""
    license: str = ""
    in_paper: bool = False


@dataclass(frozen=True)
class Protocol:
    """How a probe is fitted.

    A single `C` is fitted as it is. Several are searched: every `coarse_step`-th first, then the neighbours of the best
    at half the distance, down to one; the best on the validation split, by the dataset's metric, wins. The final fit is
    on train and validation images together.

    `tol` bounds the largest component of the gradient of the mean loss, where the solver stops.
    """

    name: str
    title: str
    feature_point: str
    grid: tuple[float, ...]
    coarse_step: int
    max_iter: int
    tol: float
    source: str


@dataclass(frozen=True)
class RunSpec:
    """One cell of the results: a dataset, a model, a protocol, and how the model is run.

    `device` and `precision` are those of `resolve_execution`, never `auto`.
    """

    dataset: DatasetSpec
    model: ModelSpec
    protocol: Protocol
    jit: bool
    device: str
    precision: str
    batch_size: int
    solver: str = "sklearn"

    @property
    def mode(self) -> str:
        """`eager` or `jit`."""
        return "jit" if self.jit else "eager"

    def __str__(self) -> str:
        """The cell in a few words, for messages."""
        return f"{self.dataset.name} / {self.model.name} / {self.mode} / {self.protocol.name}"


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces; dataclasses as objects.

    >>> canonical_json({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=asdict)


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def slug(name: str, form: str = "") -> str:
    """The name of a model, dataset or protocol as a part of a file name.

    A path keeps its last part and gets the start of its digest, so that two files of one name stay apart.

    >>> slug("ViT-L/14@336px", "url")
    'ViT-L-14-336px'
    """
    if form in ("file", "folder"):
        kind, _, path = name.rpartition(":")
        last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        name = f"{kind} {last} {digest(name)[:8]}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")
