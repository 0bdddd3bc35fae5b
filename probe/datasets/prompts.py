"""Class names and templates of zero-shot prompts: where they come from, and the checks before they are used."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from probe.errors import MAX_ITEM, ExtraMissingError, PromptsError, joined, shorten
from probe.specs import OPEN_CLIP, DatasetSpec, digest

TEMPLATE = "a photo of a {}."  # openai/CLIP README, 'Zero-Shot Prediction'
TEMPLATE_FROM = "the example of OpenAI's README"
SPECIFICATION, FILES = "the specification of the dataset", "the files of the dataset"
INSTALLED = "the installed open_clip"
WORDNET_ID = re.compile(r"n\d{8}")
# Special tokens of CLIP's, open_clip's and T5's tokenizers, whose case does not count.
SPECIAL_TOKEN = re.compile(r"<(\|startoftext\||\|endoftext\||start_of_text|end_of_text|/?s|pad)>", re.IGNORECASE)
MAX_CLASSES = 8  # classes that a message names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """Class names and templates. A prompt is a template with a class name in place of `{}`.

    Args:
        class_names: in the order of the labels; empty until the dataset is open if its files have the names.
        class_names_from: origin of the class names.
        templates: texts with one `{}` each.
        templates_from: origin of the templates.
    """

    class_names: tuple[str, ...]
    class_names_from: str
    templates: tuple[str, ...]
    templates_from: str

    @property
    def sha256(self) -> str:
        """Digest of the class names and templates."""
        return digest([self.class_names, self.templates])

    @property
    def texts(self) -> list[list[str]]:
        """The prompts of each class, one for each template."""
        return [[template.replace("{}", name) for template in self.templates] for name in self.class_names]


def get_prompts(spec: DatasetSpec) -> Prompts:
    """Return the prompts of a dataset, as far as they are known before it is opened.

    Raises:
        PromptsError: a template or class name cannot be used, or the number of class names is wrong.
        ExtraMissingError: the prompts come from open_clip, which is not installed.
    """
    prompts = known_prompts(spec)
    if prompts.class_names_from == INSTALLED:
        own = load_open_clip_prompts()
        prompts = replace(prompts, class_names=own.class_names, class_names_from=own.class_names_from)
    if prompts.templates_from == INSTALLED:
        own = load_open_clip_prompts()
        prompts = replace(prompts, templates=own.templates, templates_from=own.templates_from)
    check_prompts(prompts, num_classes=spec.num_classes, where=spec.name)
    return prompts


def known_prompts(spec: DatasetSpec) -> Prompts:
    """Return the prompts that a specification has. Prompts of open_clip and of the files of a dataset are empty."""
    is_from_open_clip = spec.templates_from == OPEN_CLIP
    return Prompts(
        class_names=spec.class_names,
        class_names_from=_origin(spec.class_names, spec.class_names_from, FILES),
        templates=spec.templates or (() if is_from_open_clip else (TEMPLATE,)),
        templates_from=_origin(spec.templates, spec.templates_from, TEMPLATE_FROM),
    )


def _origin(given: tuple[str, ...], origin: str, default: str) -> str:
    if not given:
        return INSTALLED if origin == OPEN_CLIP else default
    return origin if origin not in ("", OPEN_CLIP) else SPECIFICATION


def load_open_clip_prompts() -> Prompts:
    """Return the class names of ImageNet and the 80 templates of the installed open_clip.

    The names are in the order of the sorted WordNet ids, which is the order of the class folders of ImageNet.

    Raises:
        ExtraMissingError: open_clip is not installed.
    """
    try:
        import open_clip
        from open_clip import zero_shot_metadata
    except ModuleNotFoundError as err:
        raise ExtraMissingError(
            "the class names and templates of ImageNet are in open_clip, which is not installed; install the "
            "extra open-clip, or give your own with --prompts FILE.toml"
        ) from err
    origin = f"open_clip {open_clip.__version__}"
    templates = tuple(template("{}") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES)
    return Prompts(tuple(zero_shot_metadata.IMAGENET_CLASSNAMES), origin, templates, origin)


def tidy(name: str) -> str:
    """Return a class name from the files of a dataset as words.

    Underscores become spaces, CamelCase is split, and a number with a dot at the start is removed. In a path such as
    `/c/cathedral/indoor` of SUN397, the folder of the first letter is removed, and the last part comes first. The case
    is unchanged.

    >>> tidy("apple_pie"), tidy("ApplyEyeMakeup"), tidy("001.Black_footed_Albatross")
    ('apple pie', 'Apply Eye Makeup', 'Black footed Albatross')
    >>> tidy("/c/cathedral/indoor"), tidy("ice_skating_rink/outdoor")
    ('indoor cathedral', 'outdoor ice skating rink')
    >>> tidy("F/A-18"), tidy("Boeing 737-200"), tidy("T-shirt/top")
    ('F/A-18', 'Boeing 737-200', 'T-shirt/top')
    """
    name = re.sub(r"^\d+\.\s*(?=[^\W\d])", "", name.strip())
    name = re.sub(r"^/?([a-z])/(?=\1)", "", name)
    if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", name):
        name = " ".join(reversed(name.split("/")))
    if re.fullmatch(r"([A-Z][a-z]+){2,}", name):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(name.replace("_", " ").split())


def complete(prompts: Prompts, class_names: Sequence[str], *, num_classes: int, where: str) -> Prompts:
    """Return prompts that have a name for each class.

    Args:
        prompts: the prompts that are known before the dataset is opened.
        class_names: the names in the files of the dataset, which `tidy` turns into words.
        num_classes: number of classes of the dataset.
        where: name of the dataset, for messages.

    Raises:
        PromptsError: a class has no name, or a name cannot be used.
    """
    assert prompts.class_names or class_names
    if not prompts.class_names and all(re.fullmatch(r"n?\d+", name) for name in class_names):
        raise PromptsError(
            f"the files of {where} have ids such as {class_names[0]!r} in place of class names; give "
            "class_names in the TOML file of the dataset, or with --prompts FILE.toml"
        )
    if not prompts.class_names:
        _check_words(class_names, where=where)
    completed = replace(prompts, class_names=prompts.class_names or tuple(map(tidy, class_names)))
    check_prompts(completed, num_classes=num_classes, where=where)
    return completed


def _check_words(class_names: Sequence[str], *, where: str) -> None:
    """Check that `tidy` finds words in each class name, and warn about single names that look like ids."""
    for label, name in enumerate(class_names):
        if not tidy(name):
            raise PromptsError(
                f"{where}: the folder or label {name!r} gives class {label} an empty name; give class_names"
            )
        if WORDNET_ID.fullmatch(name):
            logger.warning("%s: class %r looks like an id; give class_names", where, name)


def check_prompts(prompts: Prompts, *, num_classes: int | None = None, where: str) -> None:
    """Check that all templates and class names can be used.

    Args:
        prompts: the prompts. They may have no class names yet.
        num_classes: number of classes of the dataset; None if it is not known.
        where: name of the dataset or file, for messages.

    Raises:
        PromptsError: a template has no `{}` or several, or other braces; a class has no name; a text has a line break
            or a special token; or the number of class names differs from the number of classes.
    """
    for template in prompts.templates:
        if template.count("{}") != 1:
            raise PromptsError(
                f"{where}: the template {template!r} has {template.count('{}')} places for the class name; write {{}} "
                f"once, as in {TEMPLATE!r}"
            )
        if set(template.replace("{}", "")) & set("{}"):
            raise PromptsError(f"{where}: the template {template!r} has braces other than {{}}; remove them")
    names = prompts.class_names
    if names and num_classes is not None and len(names) != num_classes:
        raise PromptsError(
            f"{where}: there are {num_classes} classes and {len(names)} class names; give one name for each class"
        )
    for label, name in enumerate(names):
        if not name.strip():
            raise PromptsError(f"{where}: class {label} has no name; give a name for each class in class_names")
    for text in (*prompts.templates, *names):
        if len(text.splitlines()) > 1:
            raise PromptsError(f"{where}: {text!r} has a line break; write it on one line")
        if special := SPECIAL_TOKEN.search(html.unescape(html.unescape(text))):  # tokenizers unescape twice
            raise PromptsError(f"{where}: {text!r} has {special[0]}, a special token of tokenizers; remove it")


def find_duplicates(prompts: Prompts) -> dict[str, list[int]]:
    """Return the labels of the classes that share a name, by name. Tokenizers ignore case and repeated spaces."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(prompts.class_names):
        labels.setdefault(" ".join(name.lower().split()), []).append(label)
    return {name: shared for name, shared in labels.items() if len(shared) > 1}


def check_duplicates(prompts: Prompts, *, where: str) -> None:
    """Check that no two classes have the same name.

    Raises:
        PromptsError: two classes have the same name.
    """
    for labels in find_duplicates(prompts).values():
        raise PromptsError(
            f"{where}: the classes {list_classes(prompts, labels)} have the same name (case and spaces do not count), "
            "so their prompts are equal; give different names in class_names, or permit equal names with "
            "--allow-duplicate-names"
        )


def list_classes(prompts: Prompts, labels: Sequence[int]) -> str:
    """Return the labels and names of classes for a message.

    >>> list_classes(Prompts(("A", "b", "a"), "", (), ""), [0, 2])
    "0 ('A') and 2 ('a')"
    """
    shown = [f"{label} ({shorten(repr(prompts.class_names[label]), MAX_ITEM)})" for label in labels[:MAX_CLASSES]]
    omitted = len(labels) - len(shown)
    return joined([*shown, *([f"{omitted} more"] if omitted else [])], "and")
