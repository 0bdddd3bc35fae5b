"""Short constructors for the sources of the catalogue, and for specifications of users' datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from probe.datasets.subsets import SUBSETS
from probe.specs import DatasetSpec, Source, Subset

# Arguments of torchvision's classes that select a subset.
TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}


def torchvision(
    location: str,
    subsets: dict[str, dict[str, Any]],
    *,
    form: str = "torchvision",
    can_download: bool = True,
    **given: Any,
) -> Source:
    """Return the source of a class of torchvision; `subsets` gives its arguments for each subset."""
    return _source(form, location, subsets, can_download=can_download, **given)


def hub(
    repository: str,
    subsets: dict[str, str],
    *,
    image: str = "image",
    label: str = "label",
    config: str = "",
    revision: str = "",
) -> Source:
    """Return the source of a repository of the Hugging Face hub; `subsets` gives its split for each subset."""
    pinned = {"revision": revision} if revision else {}  # no key without a revision: cached features stay valid
    named = {"image": image, "label": label, "config": config, **pinned}
    return _source("huggingface", repository, _each("split", subsets), can_download=True, **named)


def shards(repository: str, subsets: dict[str, str]) -> Source:
    """Return the source for a hub repository with WebDataset shards, in the layout of `clip-benchmark/wds_*`."""
    return _source("webdataset", repository, _each("split", subsets), can_download=True)


def folders(location: str, subsets: dict[str, str], **given: Any) -> Source:
    """Return the source of class folders below the data folder; `subsets` gives the folder of each subset."""
    places = tuple(Path(location, folder).as_posix() for folder in dict.fromkeys(subsets.values()))
    return _source("folder", location, _each("folder", subsets), paths=places, **given)


def own(form: str, location: str, *, paths: Iterable[str], **given: Any) -> Source:
    """Return the source of files below the folder `location` that the module `form` reads."""
    return _source(form, location, {}, paths=tuple(f"{location}/{path}" for path in paths), **given)


def own_dataset(
    name: str,
    form: str,
    location: str,
    subsets: Mapping[str, str | Mapping[str, Any]],
    options: Mapping[str, str],
    *,
    can_download: bool,
) -> DatasetSpec:
    """Return the specification of a user's dataset, without expected sizes; `all` is divided 60 / 20 / 20.

    Args:
        name: name of the dataset.
        form: form of its source.
        location: location of its source.
        subsets: the split of each subset, or the arguments that select the subset.
        options: options in the name of the dataset, see `sources.options.read_options`. Those that are neither the
            metric nor name a split are options of the source.
        can_download: probe can download the source.
    """
    arguments = {subset: {"split": chosen} if isinstance(chosen, str) else chosen for subset, chosen in subsets.items()}
    of_source = {option: value for option, value in options.items() if option not in ("metric", *SUBSETS)}
    return DatasetSpec(
        name=name,
        title=f"images in {location}",
        subsets=tuple(Subset(subset) for subset in subsets),
        sources=(_source(form, location, arguments, can_download=can_download, **of_source),),
        metric=options.get("metric", "accuracy"),
        val_fraction=0.2 if "all" in subsets else 0.1,
    )


def _source(form: str, location: str, subsets: Mapping[str, Mapping[str, Any]], **given: Any) -> Source:
    """Return a source. Arguments that are not fields of `Source` are its options, in their order."""
    own_fields = {one.name: given.pop(one.name) for one in fields(Source) if one.name in given}
    return Source(
        form=form,
        location=location,
        subsets=tuple((subset, tuple(arguments.items())) for subset, arguments in subsets.items()),
        options=tuple(given.items()),
        **{"can_download": bool(own_fields.get("downloads")), **own_fields},
    )


def _each(argument: str, subsets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {subset: {argument: value} for subset, value in subsets.items()}
