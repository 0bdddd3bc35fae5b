"""Read prompts from a user's TOML file. They replace the prompts of the datasets for one command.

templates = ["a photo of a {}.", "a drawing of a {}."]
class_names = ["cat", "dog"]    # in the order of the labels; only for a single dataset
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from probe import paths
from probe.datasets.prompts import Prompts, check_prompts
from probe.decoder import decode_strictly, with_advice
from probe.errors import PromptsError, UnknownNameError, listed
from probe.specs import DatasetSpec


@dataclass(frozen=True)
class _PromptsTable:
    """The keys of the file. At least one of them is given."""

    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


def with_prompts(specs: Sequence[DatasetSpec], path: str) -> list[DatasetSpec]:
    """Return datasets with the class names and templates of a TOML file in place of their own.

    Args:
        specs: the datasets, one or more.
        path: path of the file. Keys that the file does not set are unchanged.

    Raises:
        UnknownNameError: the file does not exist.
        PromptsError: the file cannot be read, has an unknown key or an empty list, or has class names for several
            datasets; or a class name or template cannot be used.
    """
    file = paths.expand_home(path)
    try:
        content = file.read_bytes()
        given = tomllib.loads(content.decode("utf-8"))
        table = decode_strictly(given, _PromptsTable)
    except FileNotFoundError as err:
        raise UnknownNameError(f"{file} does not exist; give the path of a TOML file with templates") from err
    except OSError as err:
        raise PromptsError(f"{file} cannot be read ({err.strerror}); give the path of a TOML file") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise PromptsError(f"{file} is not valid TOML ({err}); write a line such as templates = ['a {{}}']") from err
    except ValueError as err:
        advice = "write a list of texts, such as templates = ['a {}']"
        raise PromptsError(f"{file}: {with_advice(err, advice)}") from err
    for name, texts in given.items():
        if not texts:
            raise PromptsError(f"{file}: the list {name} is empty; give at least one text, or remove {name}")
    if not (table.class_names or table.templates):
        raise PromptsError(f"{file} has neither templates nor class_names; give one of them or both")
    if table.class_names and len(specs) > 1:
        raise PromptsError(
            f"{file} has class_names, which fit only one dataset, but the command has {len(specs)} datasets "
            f"({listed(spec.name for spec in specs)}); run them separately, or remove class_names"
        )
    prompts = Prompts(table.class_names, "", table.templates, "")
    check_prompts(prompts, num_classes=specs[0].num_classes, where=str(file))
    origin = f"{file.name}, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"
    changes: dict[str, tuple[str, ...] | str] = {}
    if table.class_names:
        changes |= {"class_names": table.class_names, "class_names_from": origin}
    if table.templates:
        changes |= {"templates": table.templates, "templates_from": origin}
    return [replace(spec, **changes) for spec in specs]  # type: ignore[arg-type]  # the names decide the types
