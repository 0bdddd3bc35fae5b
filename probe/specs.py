"""Frozen types that specify a run: dataset, model, protocol, and how the model runs. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar

SPLITS = ("train", "val", "test")
LONGEST_SLUG = 100  # characters of a name in a file name; file systems limit file names to 255 bytes
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10))}  # on Windows
DEFAULT_SOLVER = "fast"
NO_SOLVER = "none"  # solver of runs whose protocol fits nothing
LOGISTIC, KNN, ZERO_SHOT = "logistic-regression", "knn", "zero-shot"
SUPPLIED = "supplied"  # form of the models, and mode of the runs, whose features were supplied in a file
METHODS = (LOGISTIC, KNN, ZERO_SHOT)  # what a protocol does with features
OPEN_CLIP = "open_clip"  # origin of ImageNet's class names and templates in `DatasetSpec`
NAMES, WORDNET, LABELS = "names", "wordnet", "labels"
CLASS_IDS = (NAMES, WORDNET, LABELS)  # what the class names of a further test set are, see `datasets.test_classes`
FEATURE_POINTS = ("projected", "pre_projection")  # where image features are taken: after the projection, or before it


@dataclass(frozen=True)
class Architecture:
    """Architecture of a CLIP model. A state dict determines all sizes except the activation and the head widths.

    `vision_layers` is the number of blocks of a ViT, or the four stage lengths of a ResNet, whose `vision_patch_size`
    is None. Widths are in channels, `image_resolution` and `vision_patch_size` in pixels. `activation` is `gelu`, or
    `quick_gelu` as in all OpenAI models. `*_head_width` is the number of channels of one attention head, `*_mlp_width`
    the hidden width of the MLP of a transformer; None means four times the width of the transformer.
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
        """Attention heads of the image tower: the channels that it attends over, divided by the width of a head."""
        return self.pre_projection_dim // self.vision_head_width

    @property
    def transformer_heads(self) -> int:
        """Attention heads of the text tower."""
        return self.transformer_width // self.transformer_head_width


@dataclass(frozen=True)
class Profile:
    """Cost of a model: parameters of the image tower and of the whole model, and operations per image.

    `flops` counts a multiplication and an addition as two, in convolutions and matrix products.
    """

    image_parameters: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class ModelSpec:
    """Specification of an image encoder.

    `form` is the kind of `source`:

    - `embedded`: a file of this package.
    - `url`: an address.
    - `file`: the path of a checkpoint, or of a folder written by Hugging Face's libraries.
    - `random`: the name of a model; the weights are random, seeded, and have the sizes of this model.
    - `open_clip`: `ARCH/TAG` or `ARCH/PATH`.
    - `timm`: `ARCH.TAG` or `ARCH/PATH`; with a seed, the weights are random.
    - `hf`: `ORG/NAME` on the Hugging Face hub.
    - `supplied`: unknown; the features were supplied in a file, and the name is `supplied:NAME`.
    - `transformers`: `ORG/NAME` or the path of a folder, with or without `?pool=POOLING`.
    - `module`: `FILE.py:FUNCTION` for a module that a function of the user returns; for an `Encoder` that the user made
      in this process, a digest.

    `architecture` and `profile` are None if only the file tells them. `sha256` and `license` are empty if they are not
    known. `merges` is the file of this package with the vocabulary of the model; empty means OpenAI's vocabulary.
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
    """Subset of a dataset as its makers ship it: `train`, `val` and `test`, or `all` for an undivided dataset.

    `size` is the number of images. `first_label` and `last_label` are the labels of the first and the last image in the
    order of the first source. These fields are None if only the files tell. `class_counts` is the number of images of
    each class, in the order of the labels, in all sources; it is empty if the numbers are not known.
    """

    DESCRIPTIVE: ClassVar = ("first_label", "last_label", "class_counts")  # only compared with the files

    name: str
    size: int | None = None
    first_label: int | None = None
    last_label: int | None = None
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """Source of a dataset: a place where it can be read from, and how its subsets are found there.

    Args:
        form: name of the module that reads the source, see `datasets.opening.MODULES`.
        location: a class of torchvision, a repository of the Hugging Face hub, a folder below the data folder, and so
            on, depending on the form.
        subsets: for each subset the arguments that select it.
        options: arguments for all subsets.
        paths: files or folders below the data folder that exist when the source is ready.
        archives: archives to unpack if the source is not ready, each with the folder to unpack it into.
        downloads: address and MD5 of each archive, in the same order. An MD5 is empty if none is published. There are
            no downloads if the addresses are unknown or known only to a library.
        files: files that a user without a network must put into the data folder, as text; empty if none can be.
        can_download: probe can download the source.
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

    def __post_init__(self) -> None:
        """Make tuples of lists, as JSON and TOML have them, because a source must be hashable."""
        for name in ("subsets", "options"):
            object.__setattr__(self, name, _with_tuples(getattr(self, name)))

    def arguments(self, subset: str) -> dict[str, Any]:
        """Return the arguments that select a subset, together with `options`."""
        return {**dict(self.options), **dict(dict(self.subsets).get(subset, ()))}


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of a labelled image dataset, such as an entry of the catalogue.

    A missing `test` or `val` split is held out of `all` or `train`, stratified by class and by whole groups of images,
    in the fixed order of `datasets.splits`. A dataset with a `recipe` is split by a rule of `datasets.splits.recipes`.

    Args:
        name: name on the command line and in records.
        title: name in tables.
        subsets: official subsets.
        sources: sources, in order of preference.
        num_classes: number of classes; None if only the files tell.
        metric: name of the metric, see `stats.metrics`.
        val_fraction: share of images to hold out for validation.
        test_fraction: share of images to hold out for testing.
        recipe: name of a rule; empty for none.
        split_sizes: expected number of images of some splits of the recipe.
        num_folds: number of folds; a probe is fitted on each, and the score is their mean.
        fold_sizes: for each fold the number of images for training and validation, and for testing.
        homepage: address of the makers.
        license: licence of the images.
        numbers_from: origin of sizes, classes and labels.
        notes: notes for readers of scores.
        gone: reason why the complete dataset is no longer available; empty if it is.
        in_paper: the dataset is in table 9 of the CLIP paper.
        class_names: names of the classes for zero-shot prompts, in the order of the labels; empty for the names that
            the files of the dataset have.
        templates: zero-shot prompts with `{}` in place of the class name; empty for `datasets.prompts.TEMPLATE`.
        class_names_from: origin of the class names; `OPEN_CLIP` for those of an installed open_clip.
        templates_from: origin of the templates; `OPEN_CLIP` for those of an installed open_clip.
        tests: names of further test sets, see `datasets.test_sets`: their images show classes of this dataset, and the
            same probe is scored on them. Only runs that ask for them use them.
        class_ids: meaning of the class names of a further test set, one of `CLASS_IDS`.
        class_map: for each class name of a further test set, the classes of the dataset that are right for its images;
            empty if `class_ids` says all.
        relabels: the images of a further test set are test images of the dataset, with the same ids and other labels.
            Their features are not extracted again.
    """

    # Prompts are not part of the identity: only zero-shot runs use them, and `RunSpec.prompts` has their digest.
    DESCRIPTIVE: ClassVar = (
        *("title", "homepage", "license", "numbers_from", "notes", "gone", "in_paper"),
        *("class_names", "class_names_from", "templates", "templates_from"),
        "tests",  # `RunSpec.tests` are those that a run uses
    )

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
    class_names: tuple[str, ...] = ()
    class_names_from: str = ""
    templates: tuple[str, ...] = ()
    templates_from: str = ""
    tests: tuple[str, ...] = ()
    class_ids: str = NAMES
    class_map: tuple[tuple[str, tuple[str, ...]], ...] = ()
    relabels: bool = False

    @property
    def is_test_set(self) -> bool:
        """True for a further test set, which has no images to fit a probe on."""
        return [subset.name for subset in self.subsets] == ["test"]


@dataclass(frozen=True)
class Protocol:
    """Protocol: the rules by which features are scored.

    The method `logistic-regression` fits a probe. It searches the values of C in `grid`: first every `coarse_step`-th
    value, then the adjacent values of the best value at half the distance, until the distance is 1. The value with the
    best score on the validation split wins. A single value is used without a search. With `bisections`, the search
    continues between the values of the grid, see `probes.sweep.bisect`.

    The method `knn` lets the nearest training images vote, see `probes.knn`. The method `zero-shot` compares images
    with texts of the class names, see `probes.zero_shot`. Neither fits anything, so the fields of the fit have their
    defaults.

    `probes.protocols.validate` finds fields that contradict each other.

    Args:
        name: name on the command line and in records.
        title: name in tables.
        feature_point: one of `FEATURE_POINTS`.
        grid: values of C, ascending; empty if the method is not `logistic-regression`.
        coarse_step: step of the first round of the sweep; 1 tries all values.
        max_iter: limit for the iterations of the solver.
        tol: the solver stops when the largest component of the gradient of the mean loss is smaller.
        source: origin of the rules, and what is not known about them.
        shots: number of images of each class to draw from train; 0 uses all images.
        num_seeds: number of draws, with the seeds 0, 1, ...; the score is their mean.
        held_out: number of further images of each class to draw from train. C is chosen on these images instead of on
            the validation split.
        refit: fit on train and validation images together; otherwise on train alone. With `held_out`, these are the
            drawn images and the held-out images. Other few-shot protocols do not refit, because the images of the
            validation split would be more shots.
        normalize: divide the features of each image by their length.
        warm_start: start each fit of scikit-learn's solver at the weights of the nearest C before it.
        method: one of `METHODS`.
        neighbours: values of k for `knn`, ascending. If there are several, the value with the best score on the
            validation split wins.
        temperature: a neighbour with cosine similarity s has the weight exp(s / `temperature`) in the vote of `knn`; 0
            gives all neighbours the same weight.
        standardize: shift and scale each feature to mean 0 and variance 1 over the images that the probe is fitted on,
            after `normalize`.
        mean_loss: the values of `grid` weigh the mean of the losses, not their sum: C is a value of the grid divided by
            the number of images that the probe is fitted on.
        bisections: number of steps of the search that follows the values of `grid`, see `probes.sweep.bisect`; 0 for
            none.
        per_class: `shots` and `held_out` are numbers of images of each class; otherwise numbers of images of all
            classes together.
    """

    DESCRIPTIVE: ClassVar = ("title", "source")
    LATER: ClassVar = ("standardize", "mean_loss", "bisections", "per_class")  # so that digests of rules stay the same

    name: str
    title: str
    feature_point: str
    grid: tuple[float, ...] = ()
    coarse_step: int = 1
    max_iter: int = 1000
    tol: float = 1e-6
    source: str = ""
    shots: int = 0
    num_seeds: int = 1
    held_out: int = 0
    refit: bool = True
    normalize: bool = False
    warm_start: bool = False
    method: str = LOGISTIC
    neighbours: tuple[int, ...] = ()
    temperature: float = 0.0
    standardize: bool = False
    mean_loss: bool = False
    bisections: int = 0
    per_class: bool = True


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run: a dataset, a model, a protocol, and how the model runs.

    `device` and `precision` come from `resolve_execution`, and are never `auto`. `solver` is `NO_SOLVER` if the
    protocol fits nothing. `prompts` is the digest of the class names and templates of a zero-shot run, see
    `datasets.prompts.Prompts`; it is empty for other runs. `tests` are further test sets that the same probe is scored
    on. `clean` asks for the clean score, see `probes.clean`. Neither changes the run's own score, so neither is part of
    its identity.
    """

    DESCRIPTIVE: ClassVar = ("tests", "clean")

    dataset: DatasetSpec
    model: ModelSpec
    protocol: Protocol
    jit: bool
    device: str
    precision: str
    batch_size: int
    solver: str = DEFAULT_SOLVER
    compiled: bool = False
    prompts: str = ""
    tests: tuple[DatasetSpec, ...] = ()
    clean: bool = False

    @property
    def mode(self) -> str:
        """Mode of the encoder: `eager`, `jit` or `compiled`; `supplied` if the features were supplied in a file."""
        if self.model.form == SUPPLIED:
            return SUPPLIED
        return "jit" if self.jit else "compiled" if self.compiled else "eager"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits whose images the run needs."""
        return ("test",) if self.protocol.method == ZERO_SHOT or self.dataset.is_test_set else SPLITS

    @property
    def on_tests(self) -> list[RunSpec]:
        """The run on each of its further test sets that has images of its own, for their features."""
        return [replace(self, dataset=test, tests=(), clean=False) for test in self.tests if not test.relabels]

    @property
    def num_images(self) -> int:
        """Number of images of the subsets that the run needs; a subset whose size is not known counts as 0."""
        names = {subset.name for subset in self.dataset.subsets}
        needed = {"test"} if self.splits == ("test",) and "test" in names else names
        return sum(subset.size or 0 for subset in self.dataset.subsets if subset.name in needed)

    @property
    def of_all_modes(self) -> RunSpec:
        """Run in eager mode, which is the same for all modes of the model, so that their probes can be compared."""
        return replace(self, jit=False, compiled=False, tests=(), clean=False)

    def __str__(self) -> str:
        """Return the names of the run, for messages."""
        return f"{self.dataset.name} / {self.model.name} / {self.mode} / {self.protocol.name}"


def identity_fields(spec: Any) -> Any:
    """Return the fields of a specification that can change a result, as plain JSON values.

    `DESCRIPTIVE` names the fields of each class that only describe: titles, notes, licences, addresses of downloads.
    `LATER` names fields that were added after records were published. They are left out if they have their defaults.
    """
    if is_dataclass(spec):
        descriptive, later = getattr(spec, "DESCRIPTIVE", ()), getattr(spec, "LATER", ())
        own = [one for one in fields(spec) if one.name not in descriptive]
        names = [one.name for one in own if one.name not in later or getattr(spec, one.name) != one.default]
        return {name: identity_fields(getattr(spec, name)) for name in names}
    return [identity_fields(item) for item in spec] if isinstance(spec, tuple | list) else spec


def identity(spec: Architecture | ModelSpec | Source | DatasetSpec | Protocol | RunSpec) -> str:
    """Return the identity of a specification as text: equal for specifications that give the same result.

    >>> from dataclasses import replace
    >>> spec = Protocol("mine", "a title", "projected", (1.0,), 1, 100, 1e-6, source="a paper")
    >>> identity(spec) == identity(replace(spec, source="a paper, page 3"))
    True
    """
    return canonical_json(identity_fields(spec))


def canonical_json(value: Any) -> str:
    """Return a value as JSON with sorted keys and without spaces; dataclasses become objects.

    >>> canonical_json({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=asdict)


def digest(value: Any) -> str:
    """Return the hex SHA-256 of the canonical JSON of a value."""
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
    is_usable = 0 < len(plain) <= LONGEST_SLUG  # otherwise an invalid or hidden file
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
    plain = slug(name, is_path=is_path)
    if is_path or name in catalog:
        return plain
    if plain == name and re.fullmatch(r"[a-z0-9_-]+", name) and plain not in _lower_slugs(tuple(catalog)):
        return plain
    ending = digest(name)[:8]
    return plain if plain.endswith(ending) else f"{plain}-{ending}"


@cache
def _lower_slugs(catalog: tuple[str, ...]) -> frozenset[str]:
    return frozenset(slug(known).lower() for known in catalog)
