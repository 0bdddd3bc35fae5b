"""Datasets that Hugging Face's library `datasets` reads: `hf:ORG/NAME`, `hf:PATH`, and sources of the catalogue.

    hf:ORG/NAME     a repository of the hub; its splits `train` and `test` are the subsets
    hf:PATH         a folder that `save_to_disk` wrote; a folder of Parquet, Arrow or image files, with or without a
                    card (README.md) that describes them; or a Parquet or Arrow file. The subsets are the splits by
                    their names, in any spelling of `datasets.subsets`; a single split is divided 60 / 20 / 20;
                    if there are only `train` and `val`, `val` is the test subset

Options follow as in a URL, such as `hf:ORG/NAME?test=validation&label=fine_label`:

- `train`, `val` and `test` name the splits to take for these subsets; `all` names a split to be divided.
- `image` and `label` name columns.
- `config` is a configuration of the card, or a folder of the repository.
- `revision` is a branch, tag or commit.
- `metric` is a name of `probe.stats.metrics`. Lists of labels, several for an image, need `voc2007_11pt_map`.

The validation split of a repository is only used if `val` names it; otherwise images of `train` are held out.

Only the files of these splits are downloaded, if the card or the names of folders and files tell which files belong to
them. No code of a dataset is run. Pillow opens images from the stored bytes, as everywhere in `probe`, because the
library's own decoding would rotate images by their EXIF orientation. The library stores a copy of Parquet data in its
cache (`HF_DATASETS_CACHE`), as Arrow files that are mapped into memory. It compares only the dates of files, so it
would use the Arrow files of replaced data with equal dates. Therefore each content of a path has its own folder of
Arrow files.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from probe import hub, paths
from probe.datasets import source_specs
from probe.datasets.fingerprints import of_files
from probe.datasets.images import ImageDataset
from probe.datasets.sources.cards import make_local_plan, make_plan
from probe.datasets.sources.columns import check_classes, image_column, read_labels
from probe.datasets.sources.options import read_options
from probe.datasets.subsets import SUBSETS, as_spelled, choose_subsets, find_subsets, report_unused
from probe.errors import DatasetError, DatasetMissingError, ProbeError, listed, summarize
from probe.hub import check_home, is_repository
from probe.specs import DatasetSpec, Source, Subset
from probe.stats.metrics import takes_several_labels

logger = logging.getLogger(__name__)

OPTIONS = ("image", "label", "config", "revision", "metric", *SUBSETS)


def make_spec(rest: str) -> DatasetSpec:
    """Make the specification of a repository, without reading it, or of a path, from its splits.

    Raises:
        DatasetMissingError: the name is neither a path nor a repository.
        DatasetError: an option is unknown, or the names of splits do not tell their subsets.
    """
    written = rest.partition("?")[0]
    path = paths.expand_home(written)
    is_local = bool(written) and path.exists()
    known = [option for option in OPTIONS if not (is_local and option == "revision")]
    location, options = read_options("hf", rest, known)
    name = f"hf:{rest}"
    if is_local:
        location = str(path.resolve())
        name = f"hf:{location}{rest.removeprefix(written)}"
        splits = _split_names(path.resolve(), options.get("config", ""))
        given = [subset for subset in SUBSETS if subset in options]
        subsets = choose_subsets(name, options, find_subsets(name, splits, given), names=splits, must_use_all=False)
    elif is_repository(location):
        subsets = choose_subsets(name, options, {"train": "train", "test": "test"})
    else:
        raise DatasetMissingError(f"{location} is neither a file or folder nor a repository ORG/NAME; check the name")
    return source_specs.own_dataset(name, "huggingface", location, subsets, options, can_download=not is_local)


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset: the split that its argument `split` names, of a repository or of an absolute path.

    Options of the source are `image`, `label`, `config` and `revision`; empty options are ignored. A column of type
    `ClassLabel` gives the class indices; otherwise they are positions in the sorted labels of the training subset.

    Raises:
        DatasetMissingError: the data are missing, and cannot or may not be downloaded.
        DatasetError: the configuration, the split or the column does not exist, or an image has no label.
    """
    name = f"{spec.name}/{subset.name}"
    options = {option: value for option, value in source.options if value}
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        known = ", ".join(OPTIONS[:4])
        raise DatasetError(f"{spec.name}: its source has the option {unknown[0]!r}; the options are {known}")
    pool = subset.name if subset.name == "all" or spec.is_test_set else "train"
    # The splits of all subsets, not only of the subset that is opened, so that the library converts each file once.
    splits = {key: source.arguments(key).get("split", key) for key in (*dict(source.subsets), subset.name, pool)}
    content: Callable[[], str] | None = None
    if Path(source.location).is_absolute():
        content = _content_of_path(Path(source.location))
        revision, loaded = "", _load_path(Path(source.location), options.get("config", ""), content())
        names = list(loaded)
        _check_splits(source.location, names, splits)
    else:
        revision, loaded, names = hub.try_offline_first(
            partial(_load_repository, source.location, options, splits), offline=offline
        )
    spelled = {key: as_spelled(split, names) for key, split in splits.items()}
    twin = next((key for key in spelled if key != subset.name and spelled[key] == spelled[subset.name]), None)
    if twin:
        raise DatasetError(
            f"{spec.name} takes the split {spelled[twin]!r} for {subset.name} and for {twin}; give each its own"
        )
    if subset.name == pool:
        report_unused(spec.name, names, spelled.values())
    images, training = loaded[spelled[subset.name]], loaded[spelled[pool]]
    if content is None:
        content = _content_of_rows(images)
    column = image_column(name, images.features, options.get("image", ""))
    labels, class_names = read_labels(
        name, images, training, options.get("label", ""), takes_lists=takes_several_labels(spec.metric)
    )
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=class_names,
        read=partial(_read, _undecoded(images, column), column),
        content=content,
        ids=[f"{subset.name}/{i}" for i in range(len(images))],
        revision=revision,
    )


def _content_of_path(path: Path) -> Callable[[], str]:
    """Return a function that computes the fingerprint of a file, or of all files of a folder that are not hidden."""
    names = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        names += [os.path.relpath(f"{folder}/{name}", path) for name in files if not name.startswith(".")]
    return partial(of_files, path, sorted(names)) if names else partial(of_files, path.parent, [path.name])


def _content_of_rows(rows: Any) -> Callable[[], str] | None:
    """Return a function that computes the fingerprint of rows from their Arrow files; None if all are in memory."""
    files = [Path(file["filename"]) for file in rows.cache_files]
    if not files:
        return None
    top = Path(os.path.commonpath([file.parent for file in files]))
    return partial(of_files, top, [file.relative_to(top) for file in files])


def _undecoded(images: Any, column: str) -> Any:
    """Return the column alone, with its images as they are stored."""
    alone = images.select_columns([column]).with_format(None)
    if isinstance(alone.features[column], datasets.Image):
        alone = alone.cast_column(column, datasets.Image(decode=False))
    return alone


def _read(images: Any, column: str, i: int) -> Image.Image:
    """Return the image of a row, from its bytes or, without bytes, from the path of its file."""
    cell = images[i][column]
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None and (not path or not Path(path).is_absolute()):  # do not download anything
        raise ValueError(f"it has no bytes, only the path {path!r}" if path else "it is empty")
    file: Any = path if content is None else io.BytesIO(content)
    with Image.open(file) as image:
        image.load()
        return image


def _split_names(path: Path, config: str) -> list[str]:
    """Return the splits of a path, in their order, without reading their content."""
    if path.is_file() or (path / "state.json").is_file():
        return ["train"]
    _check_path(path)
    with _reading(str(path)):
        if (path / "dataset_dict.json").is_file():
            return list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        plan = make_local_plan(path, config)
        return list(plan.splits or datasets.get_dataset_split_names(str(path), plan.arguments["name"]))


def _load_path(path: Path, config: str, content: str) -> dict[str, Any]:
    """Return the rows of each split of a folder or file, whose contents have the fingerprint `content`."""
    if not path.exists():
        raise DatasetMissingError(f"no file or folder at {path}; check the path")
    _check_path(path)
    arrow = str(Path(datasets.config.HF_DATASETS_CACHE) / "probe" / content.rpartition(":")[2][:16])
    with _reading(str(path)):
        if (path / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(path)))
        if (path / "state.json").is_file():
            return {"train": datasets.load_from_disk(str(path))}
        if path.is_dir():
            plan = make_local_plan(path, config)
            if not plan.arguments["name"]:  # files of different configurations may have different classes
                check_classes(str(path), sorted(path.rglob("*.parquet")))
            loaded = dict(datasets.load_dataset(str(path), **plan.arguments, cache_dir=arrow))
            _check_sizes(str(path), loaded, plan.sizes, "get its files again, or correct the card")
            return loaded
        if path.suffix == ".arrow":
            return {"train": datasets.Dataset.from_file(str(path))}
        if path.suffix == ".parquet":
            return {"train": datasets.Dataset.from_parquet(str(path), cache_dir=arrow)}
    raise DatasetError(f"{path} is not a Parquet or Arrow file; give such a file, or a folder")


def _check_path(path: Path) -> None:
    """Refuse a path that the library cannot read, or would read as a pattern that other folders could match."""
    wrong = re.search(r"[*?\[\]\r\n\ud800-\udfff]", str(path))
    if wrong:
        raise DatasetError(
            f"{path} has {wrong[0]!r} in its name, so the library datasets would read other files or none; rename it"
        )


def _load_repository(
    repo: str, options: Mapping[str, str], splits: Mapping[str, str], offline: bool
) -> tuple[str, dict[str, Any], list[str]]:
    """Load splits of a repository of the hub.

    Returns:
        The commit, split -> rows, and the names of all splits of the repository.
    """
    snapshot = hub.look_up(repo, revision=options.get("revision", ""), offline=offline)
    try:
        with _reading(repo):
            plan = make_plan(snapshot, options, splits.values())
        if plan.splits:
            _check_splits(repo, plan.splits, splits)
        folder = hub.fetch_files(snapshot, plan.patterns, offline=offline)
        with _reading(repo):
            fetched = [folder / file for file in hub.match_files(snapshot.files, plan.patterns)]
            check_classes(repo, [file for file in fetched if file.suffix == ".parquet"])
            loaded = dict(datasets.load_dataset(str(folder), **plan.arguments))
        _check_splits(repo, list(loaded), splits)
    except DatasetError as err:
        if snapshot.is_known or isinstance(err, DatasetMissingError):
            raise
        raise DatasetMissingError(f"{repo} seems to be incomplete on this machine ({err})") from err
    _check_sizes(repo, loaded, plan.sizes, "tell its makers, or choose a complete revision with ?revision=")
    return snapshot.folder.name, loaded, list(plan.splits or loaded)


def _check_sizes(where: str, loaded: Mapping[str, Any], sizes: Mapping[str, int], remedy: str) -> None:
    for split, size in sizes.items():
        if split in loaded and len(loaded[split]) != size:
            raise DatasetError(
                f"{where}: the card says {size} rows for {split}, and there are {len(loaded[split])}; {remedy}"
            )


def _check_splits(where: str, names: Sequence[str], splits: Mapping[str, str]) -> None:
    for subset, split in splits.items():
        if as_spelled(split, names) not in names:
            free = [name for name in names if name not in splits.values()]
            alone = f", or ?all={names[0]} to divide it" if len(names) == 1 and subset != "all" else ""
            raise DatasetError(
                f"{where} has no split {split!r}; its splits are {listed(names)}: write "
                f"?{subset}={free[0] if free else 'SPLIT'}{alone}"
            )


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn errors of `datasets` into one line, and draw its progress bars on a terminal only."""
    # None if the user has not set HF_DATASETS_DISABLE_PROGRESS_BARS, which decides otherwise.
    must_hush = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty()
    must_hush = must_hush and not datasets.utils.are_progress_bars_disabled()
    check_home(str(datasets.config.HF_DATASETS_CACHE))
    if must_hush:
        datasets.utils.disable_progress_bars()
    try:
        yield
    except ProbeError:
        raise
    except Exception as err:  # its readers raise the errors of many libraries, some of them wrapped
        cause = err.__cause__ if err.__cause__ is not None else err
        why = summarize(cause)
        if getattr(cause, "errno", None) == errno.ENOSPC or "Not enough disk space" in why:
            raise DatasetError(
                f"no space left to read {where}; make room in {datasets.config.HF_DATASETS_CACHE}, or name another "
                "folder in HF_DATASETS_CACHE"
            ) from err
        raise DatasetError(f"{where} cannot be read ({why}); repair or replace its files") from err
    finally:
        if must_hush:
            datasets.utils.enable_progress_bars()
