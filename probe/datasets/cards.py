"""The card of a Hugging Face data set, YAML at the top of its README.md -> what to fetch, and how to read it."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from probe.datasets import hub
from probe.errors import DatasetError, DatasetMissingError, listed

TABLES = (".parquet", ".arrow")
DESCRIPTIONS = ("metadata.csv", "metadata.jsonl")  # of images in folders; one as Parquet is data
ALSO = (hub.CARD, "dataset_infos.json")  # what describes the files of a repository
CONVERTED = "refs/convert/parquet"  # where the hub keeps conversions that it makes itself, one folder a configuration
# How the files of a split are named where no card names them: by `push_to_hub`, and in the hub's own conversions.
SHARDED = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.parquet")
CONVERTED_SPLIT = re.compile(r"([^/]+)/\d{4}\.parquet")


@dataclass(frozen=True)
class Plan:
    """The files to fetch of a repository and how to read them.

    Args:
        patterns: the files to fetch.
        arguments: of `load_dataset`.
        sizes: rows of each split, where the card says so.
        splits: names of all splits of the configuration, also of those that are not fetched; empty if only the loaded
            files tell.
    """

    patterns: Sequence[str]
    arguments: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    splits: Sequence[str] = ()


def make_plan(snapshot: hub.Snapshot, options: Mapping[str, str], wanted: Collection[str]) -> Plan:
    """Choose the files of the wanted splits of a configuration, or all data where file names do not tell the split.

    Args:
        snapshot: the repository.
        options: `config` and `revision` are used.
        wanted: names of the splits that are needed; the files of other splits are not fetched.

    Raises:
        DatasetMissingError: nothing can be had without running code.
        DatasetError: there is no such configuration, or several of which none is chosen.
    """
    repo, config = snapshot.repo, options.get("config", "")
    folders = {file.partition("/")[0]: None for file in hub.matching(snapshot.files, ["*/*.parquet"])}
    # What can be read without running code, the frequent first; archived images get wrong labels (datasets#8419).
    data = (*TABLES, *Image.registered_extensions())
    everything = [f"*{suffix}" for suffix in (*data, *map(str.upper, data), *DESCRIPTIONS)]
    is_folder = not _configs(snapshot.folder) and config in folders
    if not config and options.get("revision") == CONVERTED and len(folders) > 1:
        raise _no_config(repo, config, folders)
    chosen = "" if is_folder else choose_config(repo, snapshot.folder, config)
    if is_folder:
        of_split = _converted_files(snapshot.files, config, wanted)
    else:
        of_split = _data_files(repo, _configs(snapshot.folder).get(chosen, {})) or _sharded_files(snapshot.files)
    if of_split:
        plan = _plan_splits(snapshot, chosen, of_split, wanted)
    elif is_folder:
        plan = Plan([f"{glob.escape(config)}/*"], {"data_dir": config})
    else:
        plan = Plan(everything, {"name": chosen or None})
    files = hub.matching(snapshot.files, plan.patterns)
    if snapshot.is_known and not any(Path(file).suffix.lower() in data for file in files):
        raise _no_data(snapshot)
    return replace(plan, patterns=[*plan.patterns, *ALSO])


def _plan_splits(
    snapshot: hub.Snapshot, chosen: str, of_split: Mapping[str, Sequence[str]], wanted: Collection[str]
) -> Plan:
    """Plan the files of the wanted splits.

    `load_dataset` gets their names, since it would look for the files of the first configuration too. It then does not
    look at the rest of the card, so the types of columns and the sizes are taken from the card here.
    """
    needed = {split: list(patterns) for split, patterns in of_split.items() if split in wanted}
    patterns = [pattern for patterns in needed.values() for pattern in patterns]
    patterns += [pattern.replace("**/", "") for pattern in patterns]  # which in a glob may stand for no folder
    info = _infos(snapshot.folder).get(chosen or "default")
    features = {"features": info.features} if info and info.features else {}
    sizes = {name: split.num_examples for name, split in (info.splits or {}).items()} if info else {}
    return Plan(patterns, {"name": chosen or None, "data_files": needed, **features}, sizes, tuple(of_split))


def _sharded_files(files: Sequence[str]) -> dict[str, list[str]]:
    """Split -> patterns of its Parquet files, named as `push_to_hub` names them; empty if any data lies elsewhere."""
    return _group_by_split([file for file in files if file.endswith(TABLES)], SHARDED)


def _converted_files(files: Sequence[str], config: str, wanted: Collection[str]) -> dict[str, list[str]]:
    """Split -> patterns of its files in a conversion of the hub; empty if a wanted split has no folder of its name.

    The hub calls the folder of a split that it converted in part `partial-SPLIT`, which `load_dataset` finds by itself.
    """
    top = f"{config}/"
    below = [file.removeprefix(top) for file in files if file.startswith(top) and file.endswith(".parquet")]
    found = _group_by_split(below, CONVERTED_SPLIT)
    is_found = set(wanted) <= set(found)
    return {s: [f"{glob.escape(top)}{pattern}" for pattern in found[s]] for s in found} if is_found else {}


def _group_by_split(files: Sequence[str], pattern: re.Pattern[str]) -> dict[str, list[str]]:
    """Split -> its files, escaped for a glob; empty unless all files are named by the pattern."""
    of_split: dict[str, list[str]] = {}
    for file in sorted(files):
        match = pattern.fullmatch(file)
        if match is None:
            return {}
        of_split.setdefault(match[1], []).append(glob.escape(file))
    return of_split


def _no_data(snapshot: hub.Snapshot) -> DatasetMissingError:
    suffixes = {Path(file).suffix for file in snapshot.files}
    if ".tar" in suffixes:
        return DatasetMissingError(f"{snapshot.repo} holds shards of WebDataset; open it as wds:{snapshot.repo}")
    if ".py" in suffixes:
        return DatasetMissingError(
            f"{snapshot.repo} wants to run code of its own, which is refused, and holds no data; try the hub's "
            f"conversion with ?revision={CONVERTED}"
        )
    return DatasetMissingError(f"{snapshot.repo} holds no Parquet, Arrow or image files; give another repository")


def _configs(folder: Path) -> dict[str, Any]:
    """The configurations of the card."""
    from huggingface_hub import metadata_load

    card = folder / hub.CARD
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    return {str(entry["config_name"]): entry for entry in metadata.get("configs") or []}


def _infos(folder: Path) -> Any:
    """Configuration -> what the card says of its columns and splits."""
    return datasets.info.DatasetInfosDict.from_directory(str(folder))


def choose_config(where: str, folder: Path, config: str) -> str:
    """The configuration to take; empty where there is none."""
    configs = _configs(folder)
    for entry in configs.values():
        _data_files(where, entry)  # `load_dataset` looks at more of them than the one that is asked for
    if config:
        if config not in (configs or _infos(folder)):
            raise _no_config(where, config, configs)
        return config
    defaults = [name for name, entry in configs.items() if name == "default" or entry.get("default")]
    if len(configs) > 1 and len(defaults) != 1:
        raise _no_config(where, config, configs)
    return next(iter(defaults or configs), "")


def _no_config(where: str, config: str, names: Mapping[str, Any]) -> DatasetError:
    if not names:
        return DatasetError(f"{where} has no configuration {config!r}, and no other; leave ?config= out")
    what = f"has no configuration {config!r}, but" if config else "has the configurations"
    return DatasetError(f"{where} {what} {listed(names)}; choose one with ?config=NAME")


def _data_files(where: str, entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Split -> patterns of its files, from the root of the repository; empty where the card leaves them to be found."""
    given = entry.get("data_files") or []
    given = given if isinstance(given, list) else [given]
    of_split: dict[str, list[str]] = {}
    for item in given:
        split, paths = (item["split"], item["path"]) if isinstance(item, dict) else ("train", item)
        of_split.setdefault(str(split), []).extend(paths if isinstance(paths, list) else [paths])
    folder = str(entry.get("data_dir") or "").strip("/")
    result = {s: [f"{folder}/{path}" if folder else path for path in paths] for s, paths in of_split.items()}
    for path in (path for paths in result.values() for path in paths):
        if "://" in path or path.startswith("/") or ".." in path.split("/"):
            raise DatasetError(f"the card of {where} names files outside of it, {path!r}; do not use it")
    return result
