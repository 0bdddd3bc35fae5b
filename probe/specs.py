"""The frozen types that name a run: what is evaluated, on what, how. Plain data; imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

SPLITS = ("train", "val", "test")
LONGEST_SLUG = 100  # characters of a name in that of a file; file systems take 255 bytes for all of it
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10))}  # on Windows
FEATURE_POINTS = ("projected", "pre_projection")  # where image features are taken: after the projection, or before it


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP model, which can be read off its state dict, and what cannot: activation and head widths.

    `vision_layers` is a number of blocks for a ViT and the four stage lengths for a ResNet, whose `vision_patch_size`
    is None. Widths are in channels, `image_resolution` and `vision_patch_size` in pixels. `activation` is `quick_gelu`,
    that of all OpenAI models, or `gelu`; `*_head_width` is the number of channels of one attention head, `*_mlp_width`
    the hidden width of a transformer's MLP; None means four times the width of the transformer.
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
    vision_mlp_width: int | None = None
    transformer_mlp_width: int | None = None

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

    DESCRIPTIVE: ClassVar = ("license", "profile")

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
class Subset:
    """A part of a dataset as its makers divided it: `train`, `val`, `test`, or `all` where they did not.

    `size` is None where only the files know. `first_label` and `last_label` are those of its first and last image in
    the order of the source, None where nothing but the files says. `class_counts` are the numbers of images of each
    class, in the order of the labels, for all sources; empty if the numbers are not known.
    """

    DESCRIPTIVE: ClassVar = ("first_label", "last_label", "class_counts")  # they check images, and change none

    name: str
    size: int | None = None
    first_label: int | None = None
    last_label: int | None = None
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """A place where a dataset can be had, and how its subsets are found there.

    `form` is the module of `probe.datasets` that reads it, and says what `location` is: a class of torchvision, a
    repository of the Hugging Face hub, a folder below the data folder. `subsets` gives for each subset the arguments
    that select it, `options` what holds for all subsets. `paths` are the files or folders below the data folder that
    are there when it is ready, `archives` the archives that are unpacked if it is not, each with the folder it is
    unpacked into. `downloads` are the address and the MD5 of each archive, in the same order. An MD5 is empty if none
    is published. `downloads` is empty if the addresses are unknown or known only to a library. `files` tells a user
    without a network what to put where; it is empty where nothing can be put by hand. `can_download` says whether probe
    can fetch it.
    """

    DESCRIPTIVE: ClassVar = ("downloads", "files", "can_download")

    form: str
    location: str
    subsets: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    paths: tuple[str, ...] = ()
    archives: tuple[tuple[str, str], ...] = ()
    downloads: tuple[tuple[str, str], ...] = ()
    files: str = ""
    can_download: bool = False

    def arguments(self, subset: str) -> dict[str, Any]:
        """The arguments that select a subset; those of `options` come with them."""
        return {**dict(self.options), **dict(dict(self.subsets).get(subset, ()))}


@dataclass(frozen=True)
class DatasetSpec:
    """One labelled image dataset, by name.

    `subsets` are the official ones, `sources` where they are to be had, in order of preference. A missing `test` or
    `val` is held out, stratified by class and by whole groups where images come in groups, from `all` or `train`, with
    these fractions and the fixed order of `datasets.splits`; or `recipe` names the rule of `datasets.splits.recipes`
    that makes the splits, whose sizes are then `split_sizes`. A probe is fitted on each of `num_folds` folds, and the
    score is their mean; `fold_sizes` are their images for training and validation, and for testing. `num_classes` is
    None where only the files know.

    `numbers_from` says where sizes, classes and labels come from, `notes` what a reader of scores must know, `gone` why
    the whole of it can no longer be had. `in_paper` marks those of the CLIP paper's table 9.
    """

    DESCRIPTIVE: ClassVar = ("title", "homepage", "license", "numbers_from", "notes", "gone", "in_paper")

    name: str
    title: str
    subsets: tuple[Subset, ...]
    sources: tuple[Source, ...]
    num_classes: int | None = None
    metric: str = "accuracy"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    recipe: str = ""
    split_sizes: tuple[tuple[str, int], ...] = ()
    num_folds: int = 1
    fold_sizes: tuple[tuple[int, int], ...] = ()
    homepage: str = ""
    license: str = ""
    numbers_from: str = ""
    notes: str = ""
    gone: str = ""
    in_paper: bool = False


@dataclass(frozen=True)
class Protocol:
    """How a probe is fitted.

    A single `C` is fitted as it is. Several, in `grid`, are searched: every `coarse_step`-th first, then the neighbours
    of the best at half the distance, down to one; a `coarse_step` of 1 tries all. The best on the validation split, by
    the dataset's metric, wins. Features are those of `feature_point`, one of `FEATURE_POINTS`; with `normalize` those
    of each image are divided by their length.

    A few-shot protocol draws `shots` images of each class from train, 0 being all, once for each of `num_seeds` seeds
    (0, 1, ...), and the score is the mean. With `held_out`, so many further images of each class are drawn from train,
    and C is chosen on them instead of on the validation split; they do not join the final fit.

    The final fit is on train and validation images together, or, where `refit` is False, on train alone; a few-shot
    protocol must have it False, since images of the validation split would be more shots.

    `tol` bounds the largest component of the gradient of the mean loss, where the solver stops; `max_iter` its
    iterations. With `warm_start` each fit of scikit-learn's solver begins at the weights of the nearest C before it.

    `source` says where the rules are from, and what of them is not known. `probes.protocols.validate` finds fields that
    do not go together.
    """

    DESCRIPTIVE: ClassVar = ("title", "source")

    name: str
    title: str
    feature_point: str
    grid: tuple[float, ...]
    coarse_step: int
    max_iter: int
    tol: float
    source: str
    shots: int = 0
    num_seeds: int = 1
    held_out: int = 0
    refit: bool = True
    normalize: bool = False
    warm_start: bool = False


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
    compiled: bool = False

    @property
    def mode(self) -> str:
        """`eager`, `jit` or `compiled`."""
        return "jit" if self.jit else "compiled" if self.compiled else "eager"

    @property
    def of_all_modes(self) -> RunSpec:
        """One cell for all modes of the model, whose probes are compared."""
        return replace(self, jit=False, compiled=False)

    def __str__(self) -> str:
        """The cell in a few words, for messages."""
        return f"{self.dataset.name} / {self.model.name} / {self.mode} / {self.protocol.name}"


def identity_fields(spec: Any) -> Any:
    """Return the fields of a specification that can change a result, as JSON has them.

    `DESCRIPTIVE` names the fields of each class that only describe: titles, notes, licences, addresses of downloads.
    """
    if is_dataclass(spec):
        descriptive = getattr(spec, "DESCRIPTIVE", ())
        names = [own.name for own in fields(spec) if own.name not in descriptive]
        return {name: identity_fields(getattr(spec, name)) for name in names}
    return [identity_fields(item) for item in spec] if isinstance(spec, tuple | list) else spec


def identity(spec: Architecture | ModelSpec | Source | DatasetSpec | Protocol | RunSpec) -> str:
    """Return what a specification is of, as text: equal for two that give the same result.

    >>> from dataclasses import replace
    >>> spec = Protocol("mine", "a title", "projected", (1.0,), 1, 100, 1e-6, source="a paper")
    >>> identity(spec) == identity(replace(spec, source="a paper, page 3"))
    True
    """
    return canonical_json(identity_fields(spec))


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces; dataclasses as objects.

    >>> canonical_json({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=asdict)


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def slug(name: str, *, is_path: bool = False) -> str:
    """Return the name of a model, dataset or protocol as a part of a file name, for people.

    Two names can have the same slug, unless `is_path`: the slug of a path or address is its last part and the start of
    its digest. Use `unique_slug` for files that must not overwrite one another.

    >>> slug("ViT-L/14@336px")
    'ViT-L-14-336px'
    """
    if is_path:
        kind, _, path = name.partition(":") if re.match(r"\w+:", name) else ("", "", name)
        last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        name = f"{kind} {last} {digest(name)[:8]}"
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")
    if plain.partition(".")[0].upper() in RESERVED:
        return f"{plain.replace('.', '-')}-{digest(name)[:8]}"
    is_usable = 0 < len(plain) <= LONGEST_SLUG  # else it would be a hidden file, or none that can be made
    return plain if is_usable else f"{plain[:LONGEST_SLUG]}-{digest(name)[:8]}".strip("-.")


def unique_slug(name: str, *, is_path: bool = False, catalog: Collection[str] = ()) -> str:
    """Return the name of a model, dataset or protocol as a part of a file name, different for every name.

    Names of lower-case letters, digits, `_` and `-` do not change. Any other name gets the start of its digest, because
    names can share a slug: file systems may ignore case, and dots also join the parts of file names.

    Args:
        name: any text.
        is_path: see `slug`.
        catalog: names that keep their plain slug, because the files of their records are published. Any other name
            with the same slug gets a digest.

    >>> unique_slug("my-model"), unique_slug("my/model"), unique_slug("ViT-B/32", catalog=["ViT-B/32"])
    ('my-model', 'my-model-8c770b93', 'ViT-B-32')
    """
    plain, ending = slug(name, is_path=is_path), digest(name)[:8]
    if is_path or name in catalog or plain.endswith(ending):
        return plain
    is_taken = plain.lower() in {slug(known).lower() for known in catalog}
    is_same = plain == name and re.fullmatch(r"[a-z0-9_-]+", name) is not None
    return plain if is_same and not is_taken else f"{plain}-{ending}"
