"""Datasets that Hugging Face's library `datasets` reads: `hf:ORG/NAME`, `hf:PATH`, and the rows with such a source.

    hf:ORG/NAME     a repository of the hub; its splits `train` and `test` are the parts
    hf:PATH         a folder that `save_to_disk` wrote; a folder of Parquet, Arrow or image files, with or without a
                    card (README.md) that describes them; or one file of Parquet or Arrow. The parts are the splits by
                    their names; a single one is divided 60 / 20 / 20

Options follow as in a URL, `hf:ORG/NAME?test=validation&label=fine_label`: `train`, `val` and `test` are the splits to
take for these parts, `all` is one to be divided, `image` and `label` are columns, `config` is a configuration of the
card or a folder of the repository, `revision` a branch, tag or commit. A repository's own validation split is only
taken where `val` names it; else a part of `train` is held out.

No code of a dataset is run. Images are opened by Pillow from the stored bytes, as everywhere in `probe`: the library's
own decoding would turn them as their EXIF orientation says. What comes as Parquet is kept a second time, as Arrow files
that are mapped into memory, in the library's cache (`HF_DATASETS_CACHE`).
"""

from __future__ import annotations

import errno
import glob
import io
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from probe.datasets import hub
from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, DatasetMissingError, ExtraMissingError, ProbeError
from probe.specs import DatasetSpec, Part, Source

OPTIONS = ("image", "label", "config", "revision", *hub.PARTS)
# Columns that hold labels though their type does not say so.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "classes", "class_id", "class_label", "cls", "target")
TABLES = (".parquet", ".arrow")
DESCRIPTIONS = ("metadata.csv", "metadata.jsonl")  # of images in folders; one as Parquet is data
ALSO = (hub.CARD, "dataset_infos.json")  # what describes the files of a repository
CONVERTED = "refs/convert/parquet"  # where the hub keeps conversions that it makes itself, one folder a configuration


def make_spec(rest: str) -> DatasetSpec:
    """Make the row of a repository, without a look at it, or of a path, by looking at its splits.

    Raises:
        DatasetMissingError: neither a path nor the name of a repository.
        DatasetError: an option that there is not, or splits that do not say which is for what.
        ExtraMissingError: `datasets` is not installed.
    """
    written = rest.partition("?")[0]
    path = Path(written).expanduser()
    is_local = bool(written) and path.exists()
    known = [option for option in OPTIONS if not (is_local and option == "revision")]
    location, options = hub.read_options("hf", rest, known)
    name = f"hf:{rest}"
    if is_local:
        location = str(path.resolve())
        name = f"hf:{location}{rest.removeprefix(written)}"
        splits = _split_names(path.resolve(), options.get("config", ""))
        parts = hub.choose_parts(name, options, hub.find_parts(splits), splits=splits)
    elif hub.is_repository(location):
        parts = hub.choose_parts(name, options, {"train": "train", "test": "test"})
    else:
        raise DatasetMissingError(f"{location} is no file or folder here and no repository ORG/NAME; check the name")
    return DatasetSpec(
        name=name,
        title=f"images in {location}",
        parts=tuple(Part(part) for part in parts),
        sources=(
            Source(
                form="huggingface",
                location=location,
                parts=tuple((part, (("split", split),)) for part, split in parts.items()),
                options=tuple((option, value) for option, value in options.items() if option not in hub.PARTS),
                can_download=not is_local,
            ),
        ),
        val_fraction=0.2 if "all" in parts else 0.1,
    )


def open_part(spec: DatasetSpec, source: Source, part: Part, *, root: Path, offline: bool) -> ImageDataset:  # noqa: ARG001 - one signature for all forms
    """Open one part: the split that its argument `split` names, of a repository or of an absolute path.

    Options of the source are `image`, `label`, `config` and `revision`; empty ones are as if not given. Class indices
    are those of a column of type `ClassLabel`, else the places of the training part's labels in their order.

    Raises:
        DatasetMissingError: it is not here, and cannot be fetched or may not be.
        DatasetError: there is no such configuration, split or column, or there are images without a label.
        ExtraMissingError: `datasets` is not installed.
    """
    name = f"{spec.name}/{part.name}"
    options = {option: value for option, value in source.options if value}
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        known = ", ".join(OPTIONS[:4])
        raise DatasetError(f"{spec.name}: its source has the option {unknown[0]!r}; the options are {known}")
    pool = "all" if part.name == "all" else "train"
    splits = {key: source.arguments(key).get("split", key) for key in (part.name, pool)}
    if Path(source.location).is_absolute():
        loaded = _load_path(Path(source.location), options.get("config", ""))
        _check_splits(source.location, loaded, splits)
    else:
        loaded = hub.here_or_fetched(partial(_load_repository, source.location, options, splits), offline=offline)
    images, training = loaded[splits[part.name]], loaded[splits[pool]]
    column = _image_column(name, images.features, options.get("image", ""))
    labels, class_names = _read_labels(name, images, training, options.get("label", ""))
    return ImageDataset(
        name=name,
        labels=labels,
        class_names=class_names,
        read=partial(_read, _undecoded(images, column), column),
        ids=[f"{part.name}/{i}" for i in range(len(images))],
    )


def _undecoded(images: Any, column: str) -> Any:
    """The column alone, with its images as they are stored."""
    alone = images.select_columns([column]).with_format(None)
    image_type = _import_datasets().Image
    return alone.cast_column(column, image_type(decode=False)) if _is(alone.features[column], "Image") else alone


def _read(images: Any, column: str, i: int) -> Image.Image:
    """The image of a row, from its bytes or, where there are none, from the path of its file."""
    cell = images[i][column]
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None and (not path or not Path(path).is_absolute()):  # nothing is fetched, or looked for elsewhere
        raise ValueError(f"it has no bytes, and no file here but {path!r}" if path else "it is empty")
    file: Any = path if content is None else io.BytesIO(content)
    with Image.open(file) as image:
        image.load()
        return image


# What is loaded, from where.


def _split_names(path: Path, config: str) -> list[str]:
    """The splits of a path, in their order; what is in them is not read."""
    if path.is_file() or (path / "state.json").is_file():
        return ["train"]
    with _reading(str(path)):
        if (path / "dataset_dict.json").is_file():
            return list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        chosen = _choose_config(str(path), path, config)
        return list(_import_datasets().get_dataset_split_names(str(path), chosen or None))


def _load_path(path: Path, config: str) -> dict[str, Any]:
    """Split -> rows, of a folder or file."""
    if not path.exists():
        raise DatasetMissingError(f"no file or folder at {path}; check the path")
    datasets = _import_datasets()
    with _reading(str(path)):
        if (path / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(path)))
        if (path / "state.json").is_file():
            return {"train": datasets.load_from_disk(str(path))}
        if path.is_dir():
            return dict(datasets.load_dataset(str(path), _choose_config(str(path), path, config) or None))
        if path.suffix == ".arrow":
            return {"train": datasets.Dataset.from_file(str(path))}
        if path.suffix == ".parquet":
            return {"train": datasets.Dataset.from_parquet(str(path))}
    raise DatasetError(f"{path} is no file of Parquet or Arrow; give one, or a folder")


def _load_repository(repo: str, options: Mapping[str, str], splits: Mapping[str, str], offline: bool) -> dict[str, Any]:
    """Split -> rows, of a repository; nothing is fetched if `offline`."""
    snapshot = hub.look(repo, revision=options.get("revision", ""), offline=offline)
    try:
        plan = _make_plan(snapshot, options)
        folder = hub.fetch(snapshot, plan.patterns, offline=offline)
        with _reading(repo):
            loaded = dict(_import_datasets().load_dataset(str(folder), **plan.arguments))
        _check_splits(repo, loaded, splits)
    except DatasetError as err:
        if snapshot.is_known or isinstance(err, DatasetMissingError):
            raise
        raise DatasetMissingError(f"{repo} seems to be here in part only ({err})") from err
    for split, size in plan.sizes.items():
        if split in loaded and len(loaded[split]) != size:
            raise DatasetError(
                f"{repo}: the card says {size} rows for {split}, and there are {len(loaded[split])}; tell its makers, "
                "or give a ?revision= that is whole"
            )
    return loaded


def _check_splits(where: str, loaded: Mapping[str, Any], splits: Mapping[str, str]) -> None:
    for part, split in splits.items():
        if split not in loaded:
            free = [name for name in loaded if name not in splits.values()]
            alone = f", or ?all={next(iter(loaded))} to divide it" if len(loaded) == 1 else ""
            raise DatasetError(
                f"{where} has no split {split!r}; its splits are {', '.join(loaded)}: write "
                f"?{part}={free[0] if free else 'SPLIT'}{alone}"
            )


@dataclass(frozen=True)
class _Plan:
    """The files to fetch, as patterns; what to tell `load_dataset`; rows of each split, where the card says so."""

    patterns: Sequence[str]
    arguments: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)


def _make_plan(snapshot: hub.Snapshot, options: Mapping[str, str]) -> _Plan:
    """What of a repository is needed for a configuration; all that could be data where files cannot be told apart.

    Raises:
        DatasetMissingError: nothing can be had without running code.
        DatasetError: there is no such configuration, or several of which none is chosen.
    """
    repo, config = snapshot.repo, options.get("config", "")
    folders = {file.partition("/")[0]: None for file in hub.matching(snapshot.files, ["*/*.parquet"])}
    # What can be read without running code, the frequent first; archived images get wrong labels (datasets#8419).
    data = (*TABLES, *Image.registered_extensions())
    everything = [f"*{suffix}" for suffix in (*data, *map(str.upper, data), *DESCRIPTIONS)]
    with _reading(repo):
        is_folder = not _configs(snapshot.folder) and config in folders
        if not config and options.get("revision") == CONVERTED and len(folders) > 1:
            raise _no_config(repo, config, folders)
        chosen = "" if is_folder else _choose_config(repo, snapshot.folder, config)
        of_split = _data_files(repo, _configs(snapshot.folder).get(chosen, {}))
        if is_folder:
            plan = _Plan([f"{glob.escape(config)}/*"], {"data_dir": config})
        elif of_split:
            plan = _plan_config(snapshot, chosen, of_split)
        else:
            plan = _Plan(everything, {"name": chosen or None})
    files = hub.matching(snapshot.files, plan.patterns)
    if snapshot.is_known and not any(Path(file).suffix.lower() in data for file in files):
        raise _no_data(snapshot)
    return _Plan([*plan.patterns, *ALSO], plan.arguments, plan.sizes)


def _plan_config(snapshot: hub.Snapshot, chosen: str, of_split: Mapping[str, Sequence[str]]) -> _Plan:
    """The files that the card names for a configuration.

    They are named to `load_dataset`, since it would look for those of the first configuration too; it then does not
    look at the rest of the card, whose types of columns and sizes are therefore taken over here.
    """
    patterns = [pattern for patterns in of_split.values() for pattern in patterns]
    patterns += [pattern.replace("**/", "") for pattern in patterns]  # which in a glob may stand for no folder
    info = _infos(snapshot.folder).get(chosen)
    features = {"features": info.features} if info and info.features else {}
    sizes = {name: split.num_examples for name, split in (info.splits or {}).items()} if info else {}
    return _Plan(patterns, {"name": chosen, "data_files": dict(of_split), **features}, sizes)


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


# The card: YAML at the top of README.md, which says which files make which configuration.


def _configs(folder: Path) -> dict[str, Any]:
    """The configurations of the card."""
    from huggingface_hub import metadata_load

    card = folder / hub.CARD
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    return {str(entry["config_name"]): entry for entry in metadata.get("configs") or []}


def _infos(folder: Path) -> Any:
    """Configuration -> what the card says of its columns and splits."""
    from datasets.info import DatasetInfosDict

    return DatasetInfosDict.from_directory(str(folder))


def _choose_config(where: str, folder: Path, config: str) -> str:
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
    return DatasetError(f"{where} {what} {', '.join(names)}; choose one with ?config=NAME")


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


# Columns.


def _image_column(name: str, features: Mapping[str, Any], given: str) -> str:
    images = [column for column, feature in features.items() if _is(feature, "Image") or _is_stored_image(feature)]
    allowed = images + [column for column, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    return _choose_column(name, features, given, images, allowed, "image")


def _label_column(name: str, features: Mapping[str, Any], given: str) -> str:
    allowed = [column for column, feature in features.items() if _is_label(_element(feature))]
    typed = [column for column in allowed if _is(_element(features[column]), "ClassLabel")]
    return _choose_column(
        name, features, given, typed or [column for column in allowed if column in LABEL_NAMES], allowed, "label"
    )


def _choose_column(
    name: str, features: Mapping[str, Any], given: str, likely: Sequence[str], allowed: Sequence[str], what: str
) -> str:
    """The column that is given, or the only one that is likely."""
    if given in allowed or (not given and len(likely) == 1):
        return given or likely[0]
    listed = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
    if given and given not in features:
        wrong = f"there is no column {given!r}"
    elif given:
        wrong = f"the column {given!r} cannot hold {what}s"
    else:
        wrong = f"{'several columns' if likely else 'no column'} could hold the {what}s"
    raise DatasetError(f"{name}: {wrong}; the columns are {listed}: choose one with ?{what}=COLUMN")


def _is(feature: Any, kind: str) -> bool:
    return isinstance(feature, getattr(_import_datasets(), kind))


def _is_stored_image(feature: Any) -> bool:
    """Whether a column has the bytes of files though its type does not say that they are images."""
    return isinstance(feature, dict) and getattr(feature.get("bytes"), "dtype", "") == "binary"


def _element(feature: Any) -> Any:
    """The type of what a list holds, of anything else the type itself."""
    if isinstance(feature, list):  # how versions before 4 wrote lists
        return feature[0]
    return feature.feature if hasattr(feature, "feature") else feature


def _is_list(feature: Any) -> bool:
    return _element(feature) is not feature


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return _is(feature, "ClassLabel") or (
        _is(feature, "Value") and (dtype in ("bool", "string", "large_string") or "int" in dtype)
    )


def _kind(feature: Any) -> str:
    """A column's type in a word or two."""
    if _is_list(feature):
        return f"list of {_kind(_element(feature))}"
    if _is(feature, "ClassLabel"):
        return f"ClassLabel of {feature.num_classes}"
    return str(feature.dtype) if _is(feature, "Value") else type(feature).__name__


# Labels.


def _read_labels(name: str, images: Any, training: Any, given: str) -> tuple[np.ndarray, list[str]]:
    """The labels of a part, int64 (n,), or (n, k) where a row has a list of them, and the names of the classes.

    Images are not looked at. Classes are those of the type of the column, else all labels of the training part, sorted.
    """
    column = _label_column(name, images.features, given)
    feature = _element(images.features[column])
    values = _values(name, images, column)
    if _is(feature, "ClassLabel"):
        class_names = [str(class_name) for class_name in feature.names]
        if getattr(_element(training.features.get(column)), "names", None) != feature.names:
            raise DatasetError(f"{name}: the classes of the column {column!r} are not those of train; save both alike")
        classes: list[Any] = list(range(len(class_names)))
    else:
        classes = sorted({label for labels in _values(name, training, column) for label in labels})
        class_names = [str(label) for label in classes]
    place = {label: i for i, label in enumerate(classes)}
    strange = {label: None for labels in values for label in labels if label not in place}
    if strange:
        raise DatasetError(
            f"{name}: {', '.join(map(repr, list(strange)[:3]))} in the column {column!r} is no class of the training "
            "images; drop these images, or add the class"
        )
    if not _is_list(images.features[column]):
        return np.array([place[label] for (label,) in values], dtype=np.int64), class_names
    shown = np.zeros((len(values), len(classes)), dtype=np.int64)
    for i, labels in enumerate(values):
        shown[i, [place[label] for label in labels]] = 1
    return shown, class_names


def _values(name: str, rows: Any, column: str) -> list[list[Any]]:
    """The labels of each row; one, unless the column holds lists.

    Raises:
        DatasetError: there is no such column, or rows without a label, which are None or negative.
    """
    if column not in rows.features:
        raise DatasetError(f"{name}: train has no column {column!r}; choose another with ?label=COLUMN")
    cells = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    values = cells if _is_list(rows.features[column]) else [[cell] for cell in cells]
    unlabelled = sum(
        labels is None or any(label is None or (not isinstance(label, str) and label < 0) for label in labels)
        for labels in values
    )
    if unlabelled:
        raise DatasetError(
            f"{name}: {unlabelled} of {len(values)} images have no label in the column {column!r}; take another column "
            "or split"
        )
    if any(len(set(labels)) < len(labels) for labels in values):
        raise DatasetError(
            f"{name}: a list in the column {column!r} has a class twice; give lists of the classes that an image shows"
        )
    return values


# The library.


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as err:
        raise ExtraMissingError("this is read with the library datasets; pip install 'probe[hf]'") from err
    return datasets


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Say what `datasets` raises in one line, and draw its progress bars on a terminal only."""
    datasets = _import_datasets()
    # None if the user has not set HF_DATASETS_DISABLE_PROGRESS_BARS, which has the last word.
    must_hush = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty()
    must_hush = must_hush and not datasets.utils.are_progress_bars_disabled()
    if must_hush:
        datasets.utils.disable_progress_bars()
    try:
        yield
    except ProbeError:
        raise
    except Exception as err:  # its readers raise what their formats' libraries do, some of it wrapped
        cause = err.__cause__ if err.__cause__ is not None else err
        why = textwrap.shorten(hub.one_line(cause), 300)
        if getattr(cause, "errno", None) == errno.ENOSPC or "Not enough disk space" in why:
            raise DatasetError(
                f"no space left to read {where}; make room in {datasets.config.HF_DATASETS_CACHE}, or name another "
                "folder in HF_DATASETS_CACHE"
            ) from err
        raise DatasetError(f"{where} cannot be read ({why}); mend or replace its files") from err
    finally:
        if must_hush:
            datasets.utils.enable_progress_bars()
