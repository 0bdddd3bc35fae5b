"""Groups of images, such as the frames of one video, as the names of files tell them. A split takes whole groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import DatasetError
from probe.specs import Subset

POOLS = ("train", "all")  # the subsets that others are held out of, for which groups matter


def groups_of(name: str, subset: Subset, ids: Sequence[str], options: Mapping[str, Any]) -> Sequence[str]:
    """The groups of a subset, by the pattern `groups` among the options of its source; empty where there is none."""
    return find_groups(name, ids, options["groups"]) if "groups" in options and subset.name in POOLS else ()


def find_groups(name: str, ids: Sequence[str], pattern: str) -> list[str]:
    """The group of each image, as the first group of a pattern finds it in its id.

    Raises:
        DatasetError: an id does not match.
    """
    groups = []
    for key in ids:
        match = re.search(pattern, key)
        if match is None:
            raise DatasetError(f"{name}: {key} is not named as its dataset names files; rename or remove it")
        groups.append(match[1])
    return groups
