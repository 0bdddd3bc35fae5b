"""Card of a Hugging Face dataset (YAML at the top of its README.md) -> the files to download, and how to read them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets

from probe import hub
from probe.datasets.images import image_suffixes
from probe.datasets.subsets import as_spelled, subset_of
from probe.errors import DatasetError, DatasetMissingError, listed

TABLES = (".parquet", ".arrow")
DESCRIPTIONS = ("metadata.csv", "metadata.jsonl")  # of images in folders; a Parquet file counts as data
ALSO = (hub.CARD, "dataset_infos.json")  # files that describe the files of a repository
CONVERTED = "refs/convert/parquet"  # branch of the hub's own conversions, with a folder for each configuration
# File names of a split in a repository without a card: as `push_to_hub` writes them, and as the hub writes its own
# conversions. The hub calls the folder of a partly converted split partial-SPLIT; the name of the split is SPLIT.
SHARDED = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.(?:parquet|arrow)")
CONVERTED_SPLIT = re.compile(r"([\w.]+)/\d{4}\.parquet")


@dataclass(frozen=True)
class Plan:
    """Files to download of a repository, and how to read them.

    Args:
        patterns: the files to download.
        arguments: arguments of `load_dataset`.
        sizes: split -> number of rows, for the splits whose size is on the card.
        splits: names of all splits of the configuration; empty if they are known only after loading.
    """

    patterns: Sequence[str]
    arguments: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    splits: Sequence[str] = ()


def make_plan(snapshot: hub.Snapshot, options: Mapping[str, str], wanted: Collection[str]) -> Plan:
    """Choose the files of the wanted splits of a configuration, or all data files if the card does not list splits.

    Args:
        snapshot: the repository.
        options: options of the source; only `config` and `revision` are used.
        wanted: the splits to download, in any spelling that `datasets.subsets` knows.

    Raises:
        DatasetMissingError: the repository has no files that can be read without running code.
        DatasetError: the configuration does not exist, none of several configurations is chosen, or the names of files
            do not say to which split they belong.
    """
    repo, config = snapshot.repo, options.get("config", "")
    configs = _configs(snapshot.folder)
    folders = {file.partition("/")[0]: None for file in hub.match_files(snapshot.files, ["*/*.parquet"])}
    is_folder = not configs and config in folders
    if not config and options.get("revision") == CONVERTED and len(folders) > 1:
        raise _no_config(repo, config, folders)
    chosen = "" if is_folder else choose_config(repo, snapshot.folder, config)
    if is_folder:
        of_split = _find_splits_below(repo, f"{config}/", snapshot.files)
    elif chosen in configs:
        of_split = _data_files(repo, configs[chosen])
    else:
        of_split = find_splits(repo, snapshot.files)
    if of_split:
        plan = _plan_splits(snapshot.folder, chosen, of_split, wanted)
    else:
        plan = Plan(_readable_files(), {"name": chosen or None})
    files = hub.match_files(snapshot.files, plan.patterns)
    if snapshot.is_known and not any(Path(file).suffix.lower() in _suffixes() for file in files):
        raise _no_data(snapshot)
    return replace(plan, patterns=[*plan.patterns, *ALSO])


def make_local_plan(path: Path, config: str) -> Plan:
    """Choose the arguments of `load_dataset` for all splits of a configuration in a local folder.

    Raises:
        DatasetError: the configuration does not exist, or the names of files do not say to which split they belong.
    """
    chosen = choose_config(str(path), path, config)
    if chosen in _configs(path):
        return Plan([], {"name": chosen})
    files = sorted(
        (Path(folder) / name).relative_to(path).as_posix() for folder, _, names in os.walk(path) for name in names
    )
    of_split = find_splits(str(path), files)
    archives = [file for file in files if file.lower().endswith(".zip")]
    if archives and not of_split:  # `datasets` gives archived images wrong labels, or none (datasets#8419)
        raise DatasetError(f"{path} contains archives, {listed(archives)}; unpack each into a folder of the same name")
    return _plan_splits(path, chosen, of_split, of_split) if of_split else Plan([], {"name": chosen or None})


def _plan_splits(folder: Path, chosen: str, of_split: Mapping[str, Sequence[str]], wanted: Collection[str]) -> Plan:
    """Plan the files of the wanted splits.

    `load_dataset` gets the names of the files; otherwise it would also look for the files of the first configuration.
    Given names, it ignores the rest of the card, so this function reads the column types and sizes from the card.
    """
    splits = tuple(of_split)
    spelled = {as_spelled(split, splits) for split in wanted}
    needed = {split: list(patterns) for split, patterns in of_split.items() if split in spelled}
    patterns = []
    for pattern in (pattern for patterns_of_split in needed.values() for pattern in patterns_of_split):
        top, stars, rest = pattern.rpartition("**")
        patterns += [f"{top}{file}" for file in _readable_files()] if stars and not rest else [pattern]
    patterns += [pattern.replace("**/", "") for pattern in patterns]  # in a glob, **/ also matches no folder
    infos = _infos(folder)
    info = infos.get(chosen or "default")
    if info is None and not chosen and len(infos) == 1:
        info = next(iter(infos.values()))
    features = {"features": info.features} if info and info.features else {}
    sizes = {name: split.num_examples for name, split in (info.splits or {}).items()} if info else {}
    return Plan(patterns, {"name": chosen or None, "data_files": needed, **features}, sizes, splits)


def _suffixes() -> tuple[str, ...]:
    """Return the suffixes of files that can be read without running code, the most frequent first."""
    return (*TABLES, *image_suffixes())  # no archives: wrong labels (datasets#8419)


def _readable_files() -> list[str]:
    """Return patterns for all files that can be read without running code, and for files that describe images."""
    suffixes = _suffixes()
    return [f"*{suffix}" for suffix in (*suffixes, *map(str.upper, suffixes), *DESCRIPTIONS)]


def _find_splits_below(where: str, top: str, files: Sequence[str]) -> dict[str, list[str]]:
    """Return split -> patterns of its Parquet files below `top`, such as the folder of one configuration."""
    below = [file.removeprefix(top) for file in files if file.startswith(top) and file.endswith(".parquet")]
    of_split = find_splits(where, below)
    return {split: [f"{glob.escape(top)}{pattern}" for pattern in of_split[split]] for split in of_split}


def find_splits(where: str, files: Sequence[str]) -> dict[str, list[str]]:
    """Return split -> patterns of its files, by the names of folders and files; empty if there are no readable files.

    `datasets` finds splits by such names too, but knows fewer spellings. It merges splits that it does not know into
    another split, or leaves them out, and takes a class called test-tube for a split.

    Raises:
        DatasetError: a file belongs to no split, or two folders would become one class.
    """
    seen = [file for file in files if not any(subset.startswith((".", "__")) for subset in file.split("/"))]
    tables = [file for file in seen if Path(file).suffix in TABLES and Path(file).stem != "metadata"]
    suffixes = image_suffixes()
    images = [file for file in seen if Path(file).suffix.lower() in suffixes]
    of_split = _group_by_split(tables, SHARDED)  # if there are such files, `datasets` ignores all others, too
    if of_split:
        return of_split
    of_split = _group_by_split(tables, CONVERTED_SPLIT)
    if of_split and sum(map(len, of_split.values())) == len(tables):
        return of_split
    of_series: dict[tuple[str, str], list[str]] = {}
    for file in tables:
        of_series.setdefault(_split_of_table(file), []).append(glob.escape(file))
    words = [word for word, _ in of_series]  # test_easy and test_hard are two splits, and neither is called test
    of_split = {word if word and words.count(word) == 1 else name: found for (word, name), found in of_series.items()}
    if images and len(images) > len(tables) and not any(map(subset_of, of_split)):
        return _splits_of_images(where, images, [file for file in seen if Path(file).stem == "metadata"])
    return {"train": next(iter(of_split.values()))} if len(of_split) == 1 else of_split


def _group_by_split(files: Sequence[str], pattern: re.Pattern[str]) -> dict[str, list[str]]:
    """Return split -> its files, escaped for a glob. The pattern's first group is the split; others are skipped."""
    of_split: dict[str, list[str]] = {}
    for file in sorted(files):
        if match := pattern.fullmatch(file):
            of_split.setdefault(match[1], []).append(glob.escape(file))
    return of_split


def _split_of_table(file: str) -> tuple[str, str]:
    """Return the word for a split in the path of a table, or "", and the path's name without the file number."""
    texts = [*file.split("/")[:-1], Path(file).stem]
    for i, text in enumerate(texts):
        words = [word for word in re.split(r"[-._ 0-9]+", text) if subset_of(word)]
        if len(words) == 1:
            return words[0], _without_numbers(texts[: i + 1])
    return "", _without_numbers(texts)


def _without_numbers(texts: Sequence[str]) -> str:
    """Join folders and a name into the name of a split. `datasets` allows only letters, digits and `_` in it."""
    return re.sub(r"\W+", "_", re.sub(r"[0-9a-f]{8,}|[0-9]+", "", "_".join(texts))).strip("_") or "unnamed"


def _splits_of_images(where: str, images: Sequence[str], metadata: Sequence[str]) -> dict[str, list[str]]:
    """Return split -> pattern for SPLIT/CLASS/FILE and SPLIT/metadata.csv; CLASS/FILE is a single split."""
    top = os.path.commonpath([file.rpartition("/")[0] for file in (*images, *metadata)])
    start = f"{top}/" if top else ""
    folders: dict[str, set[str]] = {}  # first folder -> folders of images below it; "" is the first folder itself
    for file in images:
        first, *rest = file.removeprefix(start).split("/")
        if rest:
            folders.setdefault(first, set()).add("/".join(rest[:-1]))
    named = [first for first in folders if subset_of(first)]
    flat = [first for first, below in folders.items() if "" in below]
    loose_metadata = [file for file in metadata if "/" not in file.removeprefix(start)]
    is_tree = len(flat) == len(folders) > len(named) and len(loose_metadata) == len(metadata)  # a class can be "train"
    if is_tree or (loose_metadata and not named):
        return {"train": [f"{glob.escape(start)}**"]}
    if loose_metadata and named:
        raise DatasetError(f"{where} has one metadata file next to {named[0]}/; put one into the folder of each split")
    if not metadata and set(named) & set(flat):
        raise DatasetError(
            f"{where} has no class folders in {listed(f'{name}/' for name in named if name in flat)}; put the images "
            "of each folder into one subfolder per class, or add metadata.csv"
        )
    of_split: dict[str, list[str]] = {}
    for first in sorted(folders):
        if metadata or first not in flat:  # otherwise a folder without classes, such as pictures for the card
            of_split.setdefault(re.sub(r"\W+", "_", first), []).append(f"{glob.escape(start + first)}/**")
            _check_class_folders(where, first, folders[first] if not metadata else ())
    twins = [name for name, patterns in of_split.items() if len(patterns) > 1]
    if twins:
        raise DatasetError(f"{where} has several folders named {twins[0]} except for punctuation; rename them")
    return of_split


def _check_class_folders(where: str, split: str, folders: Iterable[str]) -> None:
    """Check that the last names of a split's folders differ, because `datasets` names classes by them."""
    seen: dict[str, str] = {}
    for folder in sorted(folders):
        twin = seen.setdefault(folder.rpartition("/")[2], folder)
        if twin != folder:
            raise DatasetError(
                f"{where}: {split}/{twin} and {split}/{folder} would become one class; rename one, or put the folders "
                "of splits into one folder and call them train, val and test"
            )


def _no_data(snapshot: hub.Snapshot) -> DatasetMissingError:
    suffixes = {Path(file).suffix for file in snapshot.files}
    if ".tar" in suffixes:
        return DatasetMissingError(f"{snapshot.repo} contains WebDataset shards; open it as wds:{snapshot.repo}")
    if ".py" in suffixes:
        return DatasetMissingError(
            f"{snapshot.repo} has no data files, only code, which probe does not run; try the hub's conversion with "
            f"?revision={CONVERTED}"
        )
    return DatasetMissingError(f"{snapshot.repo} has no Parquet, Arrow or image files; give a different repository")


def _configs(folder: Path) -> dict[str, Any]:
    """Return the configurations of the card."""
    from huggingface_hub import metadata_load

    card = folder / hub.CARD
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    return {str(entry["config_name"]): entry for entry in metadata.get("configs") or []}


def _infos(folder: Path) -> Any:
    """Return configuration -> description of its columns and splits on the card."""
    return datasets.info.DatasetInfosDict.from_directory(str(folder))


def choose_config(where: str, folder: Path, config: str) -> str:
    """Return the configuration to read; empty if the card has none."""
    configs = _configs(folder)
    for entry in configs.values():
        _data_files(where, entry)  # `load_dataset` also looks at other configurations
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
        return DatasetError(f"{where} has no configurations; leave out ?config={config}")
    what = f"has no configuration {config!r}, but" if config else "has the configurations"
    return DatasetError(f"{where} {what} {listed(names)}; choose one with ?config=NAME")


def _data_files(where: str, entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return split -> patterns of its files, from the root of the repository; empty if the card lists no files."""
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
            raise DatasetError(f"the card of {where} names files outside of the repository, {path!r}; do not use it")
    return result
