"""Sources of datasets."""

from dataclasses import replace

from probe.datasets.source_specs import folders


def place(name, **fields):
    return replace(folders(name, {"train": "train", "test": "test"}, files=f"a folder {name}"), **fields)
