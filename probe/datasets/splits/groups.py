"""Groups of images, such as the frames of one video, from the names of files. A split takes whole groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import DatasetError
from probe.specs import Subset

POOLS = ("train", "all")  # subsets that splits are held out of; only these need groups


def groups_of(name: str, subset: Subset, ids: Sequence[str], options: Mapping[str, Any]) -> Sequence[str]:
    """Return the groups of a subset, by the option `groups` of its source; empty without this option."""
    return find_groups(name, ids, options["groups"]) if "groups" in options and subset.name in POOLS else ()


def find_groups(name: str, ids: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each image: what the first group of a pattern matches in its id.

    Raises:
        DatasetError: an id does not match.
    """
    groups = []
    for key in ids:
        match = re.search(pattern, key)
        if match is None:
            raise DatasetError(f"{name}: the name of {key} does not match {pattern!r}; rename or remove it")
        groups.append(match[1])
    return groups
