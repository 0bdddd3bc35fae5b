"""Description of a dataset for people: its source, sizes, metric and splits, and whether its files are present."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probe import paths
from probe.datasets import get_dataset
from probe.datasets.prompts import known_prompts
from probe.datasets.test_sets import TEST_SETS
from probe.errors import listed
from probe.hub import LOG_IN, has_cached_data
from probe.specs import DatasetSpec, Source, slug

READY, UNPACK, DOWNLOAD, BY_HAND, GONE = (
    "ready",
    "to be unpacked",
    "can be downloaded",
    "by hand",
    "no longer available",
)
GATED = ("ILSVRC/imagenet-1k", "timm/imagenet-1k-wds")  # repositories of the hub whose terms each user must accept


@dataclass(frozen=True)
class State:
    """State of the files of a dataset on this machine: one of the five constants above, and the next step."""

    word: str
    step: str = ""


def state(spec: DatasetSpec, data_dir: str | Path | None = None) -> State:
    """Return whether the files of a dataset are present, without opening them and without a network.

    Only names are compared. The content is checked when the dataset is opened.
    """
    root = paths.data_dir(data_dir)
    if any(is_source_here(source, root) for source in spec.sources):
        return State(READY)
    if any(_has_archives(source, root) for source in spec.sources):
        return State(UNPACK, "unpacks on first use")
    downloads = [source for source in spec.sources if source.can_download]
    if downloads and all(source.location in GATED for source in downloads):
        terms = f"https://huggingface.co/datasets/{downloads[0].location}"
        return State(DOWNLOAD, f"accept the terms at {terms}; {LOG_IN}; then it downloads on first use")
    if downloads:
        return State(DOWNLOAD, "downloads on first use")
    steps = (spec.gone, _by_hand(spec))
    return State(GONE if spec.gone else BY_HAND, "; ".join(step for step in steps if step))


def _by_hand(spec: DatasetSpec) -> str:
    """Return the files to put into the data folder by hand; empty if no source can be read from such files."""
    names = [
        ", ".join(name for name, _ in source.archives) or source.files
        for source in spec.sources
        if source.archives or source.files
    ]
    return "; or ".join(f"put {name} into DATA_DIR" for name in names)


def _has_archives(source: Source, root: Path) -> bool:
    try:
        return bool(source.archives) and all((root / name).is_file() for name, _ in source.archives)
    except OSError:  # as below
        return False


def is_source_here(source: Source, root: Path) -> bool:
    """Return True if all files of a source exist."""
    try:
        if source.form in ("huggingface", "webdataset"):
            if "://" in source.location:
                return (root / "wds" / slug(source.location, is_path=True)).exists()
            if not Path(source.location).is_absolute():
                return has_cached_data(source.location, str(dict(source.options).get("revision", "")))
        needed = source.paths or ((source.location,) if Path(source.location).is_absolute() else ())
        return source.form == "embedded" or (bool(needed) and all((root / path).exists() for path in needed))
    except OSError:  # a folder that this process may not read
        return False


def dataset_facts(name: str, *, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the facts about a dataset as JSON values; None for numbers that are not known. Downloads nothing.

    Raises:
        UnknownNameError, DatasetError: see `get_dataset`.
    """
    spec = get_dataset(name)
    found = state(spec, data_dir)
    return {
        "name": spec.name,
        "title": spec.title,
        "in_paper": spec.in_paper,
        "num_classes": spec.num_classes,
        "metric": spec.metric,
        "subsets": {subset.name: subset.size for subset in spec.subsets},
        "splits": describe_splits(spec),
        "notes": spec.notes,
        "state": found.word,
        "step": found.step,
        "sources": [describe_source(source) for source in spec.sources],
        "tests": list(spec.tests),
        "homepage": spec.homepage,
        "license": spec.license,
        "numbers_from": spec.numbers_from,
        **asdict(known_prompts(spec)),  # empty if only the files or open_clip have them
    }


def _describe_prompts(spec: DatasetSpec) -> dict[str, str]:
    """Return the first class names and templates of zero-shot prompts, with their origins."""
    prompts = known_prompts(spec)
    quoted = [repr(template) for template in prompts.templates]  # in full, and templates can have commas
    more = [f"and {len(quoted) - 3} more"] if len(quoted) > 3 else []
    return {
        title: f"{texts} (from {origin})" if texts else f"from {origin}"
        for title, texts, origin in (
            ("class names", listed(prompts.class_names, most=5), prompts.class_names_from),
            ("templates", ", ".join([*quoted[:3], *more]), prompts.templates_from),
        )
    }


def describe_dataset(name: str, *, data_dir: str | Path | None = None) -> dict[str, str]:
    """Return the description of a dataset, title -> text. Downloads nothing.

    Raises:
        UnknownNameError, DatasetError: see `get_dataset`.
    """
    spec = get_dataset(name)
    found = state(spec, data_dir)
    said = {
        "name": spec.name,
        "title": spec.title,
        "in the paper": "yes" if spec.in_paper else "no",
        "classes": f"{spec.num_classes:,}" if spec.num_classes else "as its files say",
        "metric": spec.metric,
        "subsets": sizes(spec),
        "splits": describe_splits(spec),
        "further test sets": ", ".join(spec.tests),
        "notes": spec.notes,
        **({} if spec.is_test_set else _describe_prompts(spec)),
        "state": found.word,
        "to do": found.step,
        "by hand": _by_hand(spec) if found.word == DOWNLOAD else "",
        **{f"source {k}": describe_source(source) for k, source in enumerate(spec.sources, start=1)},
        "home page": spec.homepage,
        "licence": spec.license,
        "numbers from": spec.numbers_from,
    }
    return {key: value for key, value in said.items() if value}


def sizes(spec: DatasetSpec) -> str:
    """Return the official subsets and their numbers of images."""
    return ", ".join(
        f"{subset.name} {subset.size:,}" if subset.size is not None else subset.name for subset in spec.subsets
    )


def describe_splits(spec: DatasetSpec) -> str:
    """Return how train, validation and test are cut from the subsets."""
    if spec.recipe:
        made = ", ".join(f"{name} {size:,}" for name, size in spec.split_sizes)
        return f"{made}, by the recipe {spec.recipe!r}, deterministic for given files"
    if spec.is_test_set:
        return "test images only, for probes that are fitted on another dataset"
    names = [subset.name for subset in spec.subsets]
    held = []
    if "all" in names:
        held.append(f"a share of {spec.test_fraction:g} for testing")
    if "val" not in names:
        held.append(f"a share of {spec.val_fraction:g} for validation")
    folds = f"{spec.num_folds} folds; " if spec.num_folds > 1 else ""
    if not held:
        return folds + "as published"
    if spec.num_folds > 1 and "all" in names:  # the folds say which images are for testing
        held = held[1:]
    grouped = any("groups" in dict(source.options) or source.form == "ucf101" for source in spec.sources)
    by = "by class and whole groups" if grouped else "by class"
    return folds + f"{' and '.join(held)} held out {by}, deterministic for a given source"


def describe_source(source: Source) -> str:
    """Return a description of a source: a class, a repository, a folder or shards."""
    folders = dict.fromkeys(f"{url.rpartition('/')[0]}/" for url, _ in source.downloads)
    fetched = f", fetched from {' and '.join(folders)}" if folders else ""
    if source.form in ("torchvision", "stl10", "pcam"):
        return f"torchvision's {source.location}{fetched}"
    if source.form == "huggingface":
        columns = ", ".join(str(value) for key, value in source.options if value and key in ("image", "label"))
        is_path = Path(source.location).is_absolute()
        where = f"files in {source.location}" if is_path else f"{source.location} of the Hugging Face hub"
        revision = dict(source.options).get("revision")
        return where + (f" at {revision}" if revision else "") + (f" (columns {columns})" if columns else "")
    if source.form == "webdataset":
        return f"shards {source.location}"
    if source.form == "embedded":
        return source.location
    return f"files in {source.location if source.location != '.' else ' and '.join(source.paths)}{fetched}"


def page(specs: Sequence[DatasetSpec]) -> str:
    """Return the whole catalogue as a page of Markdown."""
    lines = [
        "# Datasets",
        "",
        "Made by `python -m probe datasets --page` from `probe/datasets/catalog.py`; do not edit. Each can be shown",
        "with `python -m probe datasets NAME`, which also says whether it is here and what to do if not.",
        "",
    ]
    for title, group in (
        ("Of the CLIP paper", [spec for spec in specs if spec.in_paper]),
        ("Others", [spec for spec in specs if not spec.in_paper]),
        ("Further test sets", TEST_SETS),
    ):
        lines += [f"## {title}", ""]
        for spec in group:
            lines += [f"### `{spec.name}`: {spec.title}", ""]
            facts = {
                "classes": f"{spec.num_classes:,}" if spec.num_classes else "",
                "metric": f"`{spec.metric}`",
                "subsets": sizes(spec),
                "splits": describe_splits(spec),
                "further test sets": ", ".join(f"`{name}`" for name in spec.tests),
                **({} if spec.is_test_set else _describe_prompts(spec)),
                "sources": "; ".join(describe_source(source) for source in spec.sources),
                "by hand": "; or ".join(source.files for source in spec.sources if source.files),
                GONE: spec.gone,
                "licence": spec.license,
                "home page": f"<{spec.homepage}>",
                "numbers from": spec.numbers_from,
                "notes": spec.notes,
            }
            lines += [f"- {key}: {value}" for key, value in facts.items() if value]
            lines.append("")
    return "\n".join(lines)
