"""Datasets: a name -> splits of labelled images. Imports torchvision and scikit-learn only when one is opened."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from probe.datasets.catalog import DATASETS
from probe.datasets.test_sets import TEST_SETS
from probe.errors import DatasetError, DatasetMissingError, ProbeError
from probe.names import unknown_name
from probe.specs import DatasetSpec, identity

# Kind of a dataset outside the catalogue -> the module whose `make_spec` makes its specification from the rest.
KINDS = {
    "csv": "table",
    "folder": "folder",
    "hf": "huggingface",
    "torchvision": "torchvision",
    "wds": "webdataset",
}
ALL_TESTS = "all"  # stands for all further test sets of a dataset
DATASET_FORMS = "folder:PATH, csv:PATH, hf:ORG/NAME or hf:PATH, torchvision:CLASS, wds:SHARDS, or a file NAME.toml"


def dataset_names() -> tuple[str, ...]:
    """Return the names of the catalogue, in its order."""
    return tuple(spec.name for spec in DATASETS)


def paper_names() -> tuple[str, ...]:
    """Return the names of the datasets in table 9 of the CLIP paper."""
    return tuple(spec.name for spec in DATASETS if spec.in_paper)


def get_dataset(name: str) -> DatasetSpec:
    """Return the specification of a dataset, or of a further test set, by a name or a form in `DATASET_FORMS`.

    Raises:
        UnknownNameError: there is no such dataset; the message suggests similar names.
        DatasetError: the folder is missing, empty, or not laid out as `sources.folder` says; or the TOML file is wrong.
    """
    for spec in (*DATASETS, *TEST_SETS):
        if spec.name == name:
            return spec
    kind, colon, rest = name.partition(":")
    is_file = name.endswith(".toml")
    if not is_file and not (colon and kind in KINDS):
        raise unknown_name("dataset", name, dataset_names(), forms=DATASET_FORMS)
    if not is_file and not rest.partition("?")[0]:
        raise DatasetMissingError(f"nothing follows the colon of {name!r}; write one of {DATASET_FORMS}")
    form = "user_datasets" if is_file else f"sources.{KINDS[kind]}"
    module = importlib.import_module(f"probe.datasets.{form}")
    try:
        spec = module.make_spec(name if is_file else rest)
    except (OSError, RuntimeError, ValueError) as err:  # a name that is too long, `~` of an unknown user, a NUL
        if isinstance(err, ProbeError):
            raise
        raise DatasetError(f"cannot look at {name!r} ({err}); give a path that can be read") from err
    assert isinstance(spec, DatasetSpec)
    return spec


def find_tests(spec: DatasetSpec, names: Iterable[str]) -> tuple[DatasetSpec, ...]:
    """Return the further test sets of a dataset that are asked for, in the order of the dataset, then of the names.

    Args:
        spec: the dataset.
        names: names of further test sets of the dataset, paths of TOML files, or `all` for all of `spec.tests`. Other
            names are ignored, because they can be test sets of another dataset of the grid.

    Raises:
        DatasetError: a TOML file is missing or wrong, or describes a dataset that can be fitted on; or two test sets
            have one name.
    """
    names = list(dict.fromkeys(names))
    own = [get_dataset(name) for name in spec.tests] if names else []
    chosen = [test for test in own if ALL_TESTS in names or test.name in names]
    chosen += [get_dataset(name) for name in names if name.endswith(".toml")]
    for test in chosen:
        if not test.is_test_set:
            raise DatasetError(
                f"{test.name} is not a further test set, because it has more subsets than test; run it as a dataset "
                "of its own"
            )
    found = {test.name: test for test in chosen}
    for test in chosen:
        if identity(test) != identity(found[test.name]):
            raise DatasetError(f"two further test sets have the name {test.name!r}; rename one of them")
    return tuple(found.values())
