"""A row of the user's own, in a TOML file, with the fields of `DatasetSpec`.

name = "moths"
title = "Moths of our garden"
num_classes = 12
metric = "mean_per_class"
parts = [{ name = "train", size = 900 }, { name = "test", size = 300 }]

[[sources]]
form = "folder"
location = "moths"                    # below the data folder; a path with ./ or ../ is below the TOML file's
parts = { train = { folder = "train" }, test = { folder = "test" } }
"""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from probe.datasets.opening import FORMS
from probe.datasets.recipes import RECIPES
from probe.errors import DatasetError, DatasetMissingError
from probe.metrics import METRICS
from probe.names import unknown_name
from probe.specs import DatasetSpec, Part, Source

PART_NAMES = ("train", "val", "test", "all")


def make_spec(path: str) -> DatasetSpec:
    """Read a row.

    Raises:
        DatasetMissingError: no such file.
        DatasetError: it is no TOML, or a field is missing, unknown, or of the wrong type.
        UnknownNameError: a metric, form or recipe that there is none of.
    """
    file = Path(path).expanduser()
    try:
        row = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise DatasetMissingError(f"no file {file}; give the path of a row in TOML") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise DatasetError(f"{file} is no TOML ({err}); see the README for an example") from err
    row["parts"] = tuple(_make(Part, part, f"{file}: a part") for part in _list(row, "parts", file))
    row["sources"] = tuple(_make_source(source, file) for source in _list(row, "sources", file))
    if isinstance(row.get("split_sizes"), dict):
        row["split_sizes"] = tuple(row["split_sizes"].items())
    spec: DatasetSpec = _make(DatasetSpec, {"title": row.get("name", ""), **row}, str(file))
    _check(spec, file)
    return spec


def _list(row: dict[str, Any], name: str, file: Path) -> list[dict[str, Any]]:
    found = row.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) for item in found):
        raise DatasetError(f"{file} has no list of tables {name!r}; give one or more")
    return found


def _make_source(row: dict[str, Any], file: Path) -> Source:
    values = dict(row)
    location = str(values.get("location", ""))
    if values.get("form") == "folder" and location.startswith("."):
        values["location"] = str((file.parent / location).resolve())
    parts = values.get("parts", {})
    if not isinstance(parts, dict) or not all(isinstance(arguments, dict) for arguments in parts.values()):
        raise DatasetError(f"{file}: the parts of a source are no tables; write parts = {{ train = {{ ... }} }}")
    values["parts"] = tuple((part, _items(arguments)) for part, arguments in parts.items())
    values["options"] = _items(values.get("options", {}))
    values["paths"] = tuple(values.get("paths", ()))
    values["archives"] = tuple(map(tuple, values.get("archives", ())))
    source: Source = _make(Source, values, f"{file}: a source")
    return source


def _items(table: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A table as a tuple of pairs, lists as tuples, since rows are keys of dictionaries."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in table.items())


def _make(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise DatasetError(f"{where} has the field {unknown[0]!r}; the fields are {', '.join(known)}")
    for name, value in values.items():
        if not _fits(value, str(known[name].type)):
            raise DatasetError(f"{where}: {name} = {value!r} is no {known[name].type}; see the README for an example")
    try:
        return kind(**values)
    except TypeError as err:
        raise DatasetError(f"{where} is not whole ({err}); add what is missing") from err


def _fits(value: object, annotation: str) -> bool:
    """Whether a value has the type that a field's annotation begins with."""
    allowed = {"str": str, "int": int, "float": (int, float), "bool": bool, "tuple": tuple}
    wanted = allowed[annotation.partition("[")[0].partition(" ")[0]]
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))  # type: ignore[arg-type]  # a type or a pair


def _check(spec: DatasetSpec, file: Path) -> None:
    """See that what a row names exists, before anything is opened."""
    if spec.metric not in METRICS:
        raise unknown_name("metric", spec.metric, METRICS)
    if spec.recipe and spec.recipe not in RECIPES:
        raise unknown_name("recipe", spec.recipe, RECIPES)
    names = [part.name for part in spec.parts]
    if len(set(names)) < len(names) or not set(names) <= set(PART_NAMES):
        raise DatasetError(f"{file}: the parts are {', '.join(names)}; give each of train, val, test or all once")
    if ("all" in names) == ("train" in names):
        raise DatasetError(f"{file}: the parts are {', '.join(names)}; give either train and test, or all")
    for source in spec.sources:
        if source.form not in FORMS:
            raise unknown_name("form", source.form, FORMS)
    for name in ("val_fraction", "test_fraction"):
        if not 0 < getattr(spec, name) < 1:
            raise DatasetError(f"{file}: {name} is {getattr(spec, name)}; give a number between 0 and 1")
