"""Short constructors for the sources of the catalogue, and for specifications of users' datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.specs import DatasetSpec, Source, Subset

# Arguments of torchvision's classes that select a subset.
TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}


def torchvision(
    location: str,
    subsets: dict[str, dict[str, Any]],
    *,
    paths: tuple[str, ...],
    files: str,
    archives: tuple[tuple[str, str], ...] = (),
    downloads: tuple[tuple[str, str], ...] = (),
    can_download: bool = True,
    form: str = "torchvision",
    **options: Any,
) -> Source:
    """Return the source of a class of torchvision; `subsets` gives its arguments for each subset."""
    return Source(
        form=form,
        location=location,
        subsets=_arguments(subsets),
        options=tuple(options.items()),
        paths=paths,
        archives=archives,
        downloads=downloads,
        files=files,
        can_download=can_download,
    )


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
    pinned = (("revision", revision),) if revision else ()  # no key without a revision: cached features stay valid
    return Source(
        form="huggingface",
        location=repository,
        subsets=_arguments({subset: {"split": split} for subset, split in subsets.items()}),
        options=(("image", image), ("label", label), ("config", config), *pinned),
        can_download=True,
    )


def shards(repository: str, subsets: dict[str, str]) -> Source:
    """Return the source for a hub repository with WebDataset shards, in the layout of `clip-benchmark/wds_*`."""
    return Source(
        form="webdataset",
        location=repository,
        subsets=_arguments({subset: {"split": split} for subset, split in subsets.items()}),
        can_download=True,
    )


def folders(
    location: str,
    subsets: dict[str, str],
    *,
    files: str,
    archives: tuple[tuple[str, str], ...] = (),
    downloads: tuple[tuple[str, str], ...] = (),
    **options: Any,
) -> Source:
    """Return the source of class folders below the data folder; `subsets` gives the folder of each subset."""
    return Source(
        form="folder",
        location=location,
        subsets=_arguments({subset: {"folder": folder} for subset, folder in subsets.items()}),
        options=tuple(options.items()),
        paths=tuple(Path(location, folder).as_posix() for folder in dict.fromkeys(subsets.values())),
        archives=archives,
        downloads=downloads,
        files=files,
        can_download=bool(downloads),
    )


def own(
    form: str,
    location: str,
    *,
    paths: tuple[str, ...],
    files: str,
    archives: tuple[tuple[str, str], ...] = (),
    downloads: tuple[tuple[str, str], ...] = (),
    **options: Any,
) -> Source:
    """Return the source of files below the folder `location` that the module `form` reads."""
    return Source(
        form=form,
        location=location,
        options=tuple(options.items()),
        paths=tuple(f"{location}/{path}" for path in paths),
        archives=archives,
        downloads=downloads,
        files=files,
        can_download=bool(downloads),
    )


def own_dataset(
    name: str,
    form: str,
    location: str,
    subsets: dict[str, dict[str, Any]],
    *,
    options: tuple[tuple[str, Any], ...] = (),
    metric: str = "accuracy",
    can_download: bool,
) -> DatasetSpec:
    """Return the specification of a user's dataset, without expected sizes; `all` is divided 60 / 20 / 20."""
    source = Source(
        form=form, location=location, subsets=_arguments(subsets), options=options, can_download=can_download
    )
    return DatasetSpec(
        name=name,
        title=f"images in {location}",
        subsets=tuple(Subset(subset) for subset in subsets),
        sources=(source,),
        metric=metric,
        val_fraction=0.2 if "all" in subsets else 0.1,
    )


def _arguments(subsets: dict[str, dict[str, Any]]) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    return tuple((subset, tuple(arguments.items())) for subset, arguments in subsets.items())
