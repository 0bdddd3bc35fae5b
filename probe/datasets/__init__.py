"""Datasets: a name -> splits of labelled images. Imports torchvision and scikit-learn only when one is opened."""

from __future__ import annotations

from pathlib import Path

from probe.datasets.catalog import CATALOG
from probe.errors import DatasetError
from probe.names import unknown_name
from probe.specs import DatasetSpec

FOLDER = "folder:"


def dataset_names() -> tuple[str, ...]:
    """The datasets that have a name of their own, in the order of the catalogue."""
    return tuple(spec.name for spec in CATALOG)


def get_dataset(name: str) -> DatasetSpec:
    """Find a dataset: a name of the catalogue, or `folder:PATH`.

    Raises:
        UnknownNameError: no such dataset; the message offers what is near.
        DatasetError: a folder that is missing, empty or not laid out as `datasets.folder` says.
    """
    if name.startswith(FOLDER):
        from probe.datasets.folder import folder_spec

        try:
            return folder_spec(Path(name.removeprefix(FOLDER)).expanduser())
        except (OSError, RuntimeError) as err:
            if isinstance(err, DatasetError):
                raise
            raise DatasetError(f"cannot look at {name!r} ({err}); give the path of a folder that can be read") from err
    for spec in CATALOG:
        if spec.name == name:
            return spec
    raise unknown_name("dataset", name, dataset_names(), forms=f"{FOLDER}PATH")
