"""Class names and templates of zero-shot prompts: where they come from, and the checks before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probe.errors import PromptsError, listed
from probe.specs import DatasetSpec, digest

TEMPLATE = "a photo of a {}."  # openai/CLIP README, 'Zero-Shot Prediction'
TEMPLATE_FROM = "the example of OpenAI's README"
CATALOG, FILES = "the catalogue", "the files of the dataset"


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
        PromptsError: a template or class name cannot be used.
        ExtraMissingError: the prompts come from a package that is not installed.
    """
    origin = spec.prompts_from or CATALOG
    prompts = Prompts(
        class_names=spec.class_names,
        class_names_from=origin if spec.class_names else FILES,
        templates=spec.templates or (TEMPLATE,),
        templates_from=origin if spec.templates else TEMPLATE_FROM,
    )
    check_prompts(prompts, where=spec.name)
    return prompts


def complete(prompts: Prompts, class_names: Sequence[str], *, num_classes: int, where: str) -> Prompts:
    """Return prompts that have a name for each class.

    Args:
        prompts: the prompts that are known before the dataset is opened.
        class_names: the names in the files of the dataset.
        num_classes: number of classes of the dataset.
        where: name of the dataset, for messages.

    Raises:
        PromptsError: a class has no name, or a name cannot be used.
    """
    names = prompts.class_names or tuple(class_names)
    if not prompts.class_names and names == tuple(map(str, range(len(names)))):
        raise PromptsError(
            f"the files of {where} number its classes and do not name them; give class_names in a TOML file of the "
            "dataset"
        )
    if len(names) != num_classes:
        raise PromptsError(
            f"{where} has {num_classes} classes, but there are {len(names)} class names; give one name for each class"
        )
    completed = replace(prompts, class_names=names)
    check_prompts(completed, where=where)
    return completed


def check_prompts(prompts: Prompts, *, where: str) -> None:
    """Check that all templates and class names can be used.

    Raises:
        PromptsError: a template has no `{}` or several, a class has no name, or a text has a line break.
    """
    for template in prompts.templates:
        if template.count("{}") != 1:
            raise PromptsError(
                f"{where}: the template {template!r} has {template.count('{}')} places for the class name; write {{}} "
                f"once, as in {TEMPLATE!r}"
            )
    for label, name in enumerate(prompts.class_names):
        if not name.strip():
            raise PromptsError(f"{where}: class {label} has no name; give a name for each class in class_names")
    for text in (*prompts.templates, *prompts.class_names):
        if len(text.splitlines()) > 1:
            raise PromptsError(f"{where}: {text!r} has a line break; write it in one line")


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
    for name, labels in find_duplicates(prompts).items():
        raise PromptsError(
            f"{where}: the classes {listed(labels)} have the same name {name!r}, so their prompts are equal; give "
            "different names in class_names, or permit it with --allow-duplicate-names"
        )
