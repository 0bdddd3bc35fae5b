"""Specification of a user's dataset in a TOML file, with the fields of `DatasetSpec`.

name = "moths"
title = "Moths of our garden"
num_classes = 12
metric = "mean_per_class"
templates = ["a photo of a {}, a moth."]    # for zero-shot prompts; class_names = [...] if the folders have no names
subsets = [{ name = "train", size = 900 }, { name = "test", size = 300 }]

[[sources]]
form = "folder"
location = "moths"    # below the data folder; with ./ or ../, relative to this file
subsets = { train = { folder = "train" }, test = { folder = "test" } }
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from probe import paths
from probe.datasets.archives import is_below
from probe.datasets.catalog import DATASETS
from probe.datasets.prompts import Prompts, check_prompts
from probe.datasets.sources import torchvision
from probe.datasets.splits.recipes import RECIPES, SUBSETS_OF_RECIPES
from probe.datasets.subsets import subset_of
from probe.datasets.test_sets import TEST_SETS
from probe.decoder import decode_strictly, with_advice
from probe.errors import DatasetError, DatasetMissingError, listed
from probe.names import unknown_name
from probe.specs import CLASS_IDS, NAMES, SPLITS, DatasetSpec, Source
from probe.stats.metrics import METRICS

# Forms that a TOML file can use, with their options. The other forms read the files of one dataset.
OPTIONS = {
    "folder": ("groups", "ignore", "media", "numbered"),
    "huggingface": ("image", "label", "config", "revision"),
    "table": ("image", "label", "split", "folder"),
    "torchvision": ("first_class", "groups"),
    "webdataset": ("revision",),
}
# Argument that selects a subset, by form. For torchvision, it is any argument of the class.
ARGUMENTS = {"folder": "folder", "huggingface": "split", "table": "split", "webdataset": "split"}


def make_spec(path: str) -> DatasetSpec:
    """Read the specification in a TOML file.

    Raises:
        DatasetMissingError: the file does not exist.
        DatasetError: the file is not TOML, or a field is missing, unknown, or of the wrong type.
        PromptsError: a class name or template cannot be used, or the number of class names is wrong.
        UnknownNameError: the metric, form or recipe is unknown.
    """
    file = paths.expand_home(path)
    try:
        row = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise DatasetMissingError(f"no file {file}; give the path of a TOML file") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise DatasetError(f"{file} is not valid TOML ({err}); see docs/your-data.md for an example") from err
    for name in ("subsets", "sources"):
        tables = row.get(name)
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            raise DatasetError(f"{file} has no list of tables {name!r}; give one or more")
    if "class_map" in row:
        pairs = _items(row["class_map"], f"{file}: class_map")
        row["class_map"] = [(name, given if isinstance(given, tuple) else (given,)) for name, given in pairs]
    if isinstance(row.get("tests"), list):
        row["tests"] = [_as_path(name, file) for name in row["tests"]]
    if "split_sizes" in row:
        row["split_sizes"] = _items(row["split_sizes"], f"{file}: split_sizes")
    row["subsets"] = [
        {**subset, **({"name": _as_subset(subset["name"])} if "name" in subset else {})} for subset in row["subsets"]
    ]
    row["sources"] = [_with_pairs(source, file) for source in row["sources"]]
    try:
        spec = decode_strictly({**row, "title": row.get("title", row.get("name", ""))}, DatasetSpec)
    except ValueError as err:
        raise DatasetError(f"{file}: {with_advice(err, 'see docs/your-data.md for an example')}") from err
    _check_names(spec, file)
    _check_splits(spec, file)
    check_prompts(Prompts(spec.class_names, "", spec.templates, ""), num_classes=spec.num_classes, where=str(file))
    for source in spec.sources:
        _check_places(source, f"{file}: a source")
        _check_source(spec, source, file)
    return replace(
        spec,
        class_names_from=spec.class_names_from or (file.name if spec.class_names else ""),
        templates_from=spec.templates_from or (file.name if spec.templates else ""),
    )


def _with_pairs(row: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a source whose tables became pairs, and whose location is relative to the folder of the TOML file."""
    where, values = f"{file}: a source", dict(row)
    if "location" in values:
        values["location"] = _as_path(values["location"], file)
    subsets = values.get("subsets", {})
    if not isinstance(subsets, dict):
        raise DatasetError(
            f"{where} has subsets = {subsets!r}; write subsets = {{ train = {{ ... }}, test = {{ ... }} }}"
        )
    values["subsets"] = [
        (_as_subset(subset), _items(given, f"{where}, subset {subset}")) for subset, given in subsets.items()
    ]
    if len({subset for subset, _ in values["subsets"]}) < len(subsets):
        raise DatasetError(
            f"{where} names a subset twice among {', '.join(subsets)}; give each of train, val, test once"
        )
    values["options"] = _items(values.get("options", {}), f"{where}, options")
    values.setdefault("can_download", bool(values.get("downloads")))
    return values


def _as_path(location: Any, file: Path) -> Any:
    """Return a path that starts with `.` or `~` in full, relative to the folder of the TOML file; others unchanged."""
    if isinstance(location, str) and location.startswith((".", "~")):
        return str((file.parent / paths.expand_home(location)).resolve())
    return location


def _check_places(source: Source, where: str) -> None:
    """Refuse archives and paths outside the data folder, addresses that are not HTTP, and archives without paths."""
    if source.downloads and len(source.downloads) != len(source.archives):
        raise DatasetError(
            f"{where} has {len(source.archives)} archives and {len(source.downloads)} downloads; give as many"
        )
    places = [*source.paths, *(place for pair in source.archives for place in pair)]
    outside = [place for place in places if not is_below(place)]
    if outside:
        raise DatasetError(
            f"{where} has {listed(map(repr, outside), most=3)}, outside the data folder; give paths below it"
        )
    nameless = [name for name in (*source.paths, *(name for name, _ in source.archives)) if not Path(name).parts]
    if nameless:
        raise DatasetError(f"{where} has {nameless[0]!r} in archives or paths; give the name of a file or folder")
    wrong = [url for url, _ in source.downloads if not re.match(r"https?://", url)]
    if wrong:
        raise DatasetError(
            f"{where} has the download {wrong[0]!r}; give an address that starts with https:// or http://"
        )
    if source.archives and not source.paths:
        raise DatasetError(
            f"{where} has archives but no paths, so it is not known if they are unpacked; write paths = [...] with a "
            "file or folder that they hold, as it is called below the data folder"
        )


def _as_subset(name: Any) -> Any:
    """Return `val` for `validation` and so on; return anything else unchanged, to be refused later."""
    return subset_of(name) or name if isinstance(name, str) else name


def _items(table: object, where: str) -> tuple[tuple[str, Any], ...]:
    """Return a table as a tuple of pairs, with lists as tuples, because specifications are keys of dictionaries."""
    if not isinstance(table, dict):
        raise DatasetError(f"{where}: expected a table such as {{ name = value }}, got {table!r}")
    for name, value in table.items():
        if not all(isinstance(item, str | int | float) for item in (value if isinstance(value, list) else [value])):
            raise DatasetError(f"{where}: expected a string, a number or a list of these for {name}, got {value!r}")
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in table.items())


def _check_names(spec: DatasetSpec, file: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.name):
        raise DatasetError(f"{file}: name = {spec.name!r}; use letters, digits, and - _ . between them")
    if spec.name in {row.name for row in (*DATASETS, *TEST_SETS)}:
        raise DatasetError(f"{file}: {spec.name!r} is a name of the catalogue; choose a different name")
    if spec.metric not in METRICS:
        raise unknown_name("metric", spec.metric, METRICS)
    if spec.recipe and spec.recipe not in RECIPES:
        raise unknown_name("recipe", spec.recipe, RECIPES)


def _check_splits(spec: DatasetSpec, file: Path) -> None:
    names = [subset.name for subset in spec.subsets]
    if len(set(names)) < len(names) or not set(names) <= {*SPLITS, "all"}:
        raise DatasetError(f"{file}: the subsets are {listed(names)}; give each of train, val, test or all once")
    if names not in (["all"], ["test"]) and not {"train", "test"} <= set(names) <= set(SPLITS):
        raise DatasetError(
            f"{file}: the subsets are {listed(names)}; give train and test, all alone, or test alone for a further "
            "test set"
        )
    if spec.class_ids not in CLASS_IDS:
        raise unknown_name("value of class_ids", spec.class_ids, CLASS_IDS)
    if (spec.class_map or spec.class_ids != NAMES or spec.relabels) and not spec.is_test_set:
        raise DatasetError(
            f"{file}: class_ids, class_map and relabels are for further test sets, which have only the subset test; "
            "remove them"
        )
    for subset in spec.subsets:
        if min(subset.class_counts, default=0) < 0:
            raise DatasetError(
                f"{file}: {subset.name} has {min(subset.class_counts)} images of a class; give 0 or more"
            )
        if subset.size is not None and subset.size < 1:
            raise DatasetError(f"{file}: the size of {subset.name} is {subset.size}; give 1 or more, or leave it out")
    if not (spec.val_fraction > 0 and spec.test_fraction > 0 and spec.val_fraction + spec.test_fraction < 1):
        raise DatasetError(
            f"{file}: val_fraction is {spec.val_fraction} and test_fraction {spec.test_fraction}; give shares of all "
            "images that leave some for training"
        )
    if spec.recipe and set(names) != (needed := set(SUBSETS_OF_RECIPES[spec.recipe])):
        raise DatasetError(
            f"{file}: the recipe {spec.recipe!r} divides {' and '.join(sorted(needed))}; give these subsets"
        )
    if not {name for name, _ in spec.split_sizes} <= set(SPLITS):
        raise DatasetError(f"{file}: split_sizes may only have {', '.join(SPLITS)}; remove the others")
    if spec.num_folds != 1:
        raise DatasetError(f"{file}: num_folds is {spec.num_folds}; only datasets of the catalogue can have folds")


def _check_source(spec: DatasetSpec, source: Source, file: Path) -> None:
    if source.form not in OPTIONS:
        raise unknown_name("form", source.form, OPTIONS)
    unknown = sorted({name for name, _ in source.options} - set(OPTIONS[source.form]))
    if unknown:
        known = ", ".join(OPTIONS[source.form])
        raise DatasetError(
            f"{file}: unknown option {unknown[0]!r} of a source; the options of {source.form} are {known}"
        )
    options = dict(source.options)
    for name in ("ignore", "numbered"):
        if not isinstance(options.get(name, ()), tuple):
            raise DatasetError(f"{file}: {name} = {options[name]!r} is not a list; write [{options[name]!r}]")
    if options.get("media", "video") != "video":
        raise DatasetError(f"{file}: media = {options['media']!r}; give 'video', or leave it out for images")
    try:
        if re.compile(str(options.get("groups", "()"))).groups < 1:
            raise re.error("the pattern has no group")
    except re.error as err:
        raise DatasetError(f"{file}: groups = {options['groups']!r} ({err}); write a pattern with a group ()") from err
    if source.archives and source.form not in ("folder", "table", "torchvision"):
        raise DatasetError(f"{file}: a source of {source.form} has archives, which it does not read; remove them")
    given = dict(source.subsets)
    if source.form == "torchvision" and any("root" in dict(arguments) for arguments in given.values()):
        raise DatasetError(
            f"{file}: a subset has the argument root, which is the data folder; remove it, use --data-dir"
        )
    arguments_given = dict.fromkeys(name for arguments in given.values() for name, _ in arguments)
    if source.form == "torchvision":
        torchvision.check_class(source.location, arguments_given)
    elif unknown := [name for name in arguments_given if name != ARGUMENTS[source.form]]:
        raise DatasetError(
            f"{file}: unknown argument {unknown[0]!r} of a subset of a source; the argument of {source.form} is "
            f"{ARGUMENTS[source.form]}"
        )
    folders = [str(dict(arguments).get("folder", "")) for arguments in given.values()]
    if any(Path(folder).is_absolute() or ".." in Path(folder).parts for folder in folders):
        raise DatasetError(f"{file}: a folder of {listed(folders)} is not below the location; give a folder below it")
    places = {
        tuple((key, str(Path(value)) if key == "folder" else value) for key, value in arguments)
        for arguments in given.values()
    }
    if len(places) < len(given):
        raise DatasetError(f"{file}: two subsets of a source have the same arguments; give each subset its own")
    for subset in spec.subsets:
        needs = ARGUMENTS.get(source.form)
        if source.form == "table" and subset.name == "all":  # all lines of a file: no argument is needed
            needs = None
        if subset.name not in given or (needs and not dict(given[subset.name]).get(needs)):
            shown = f"{needs} = ..." if needs else "..."
            raise DatasetError(
                f"{file}: a source does not say where {subset.name} is; add {subset.name} = {{ {shown} }}"
            )
