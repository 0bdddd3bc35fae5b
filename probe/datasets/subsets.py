"""Names of subsets: all usual spellings of `train`, `val` and `test` for folders, splits and shards.

This module reads no files. The forms `folder:`, `hf:`, `wds:` and `csv:`, and rows in TOML, all use it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from probe.errors import DatasetError, listed

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test", "all")
# Spellings that the libraries `datasets` and `evaluate` know; case is ignored.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def part_of(name: str) -> str | None:
    """Return the part that a name stands for, or None for any other name.

    >>> part_of("Training"), part_of("valid"), part_of("trout")
    ('train', 'val', None)
    """
    folded = name.strip().casefold()
    return next((part for part, spellings in SPELLINGS.items() if folded in spellings), None)


def find_parts(where: str, names: Iterable[str], given: Iterable[str] | None = None) -> dict[str, str]:
    """Return part -> name for the usual names; if there is only one name, its part is `all`.

    Args:
        where: the dataset, for messages.
        names: the names of all subsets.
        given: the parts whose subset the user named; `names` may hold several spellings of these. None if the user
            cannot name subsets.

    Raises:
        DatasetError: two names stand for the same part.
    """
    names = list(names)
    if len(names) == 1:
        return {"all": names[0]}
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(part_of(name) or "", []).append(name)
    for part in SPELLINGS:
        if len(twins := found.get(part, [])) > 1 and part not in (given or ()):
            choice = "" if given is None else f", or choose one with ?{part}=NAME"
            raise DatasetError(
                f"{where} has {listed(map(repr, twins))}, which are all names for {part}; rename or merge them{choice}"
            )
    return {part: found[part][0] for part in SPELLINGS if part in found}


def choose_parts(
    where: str,
    options: Mapping[str, str],
    found: Mapping[str, str],
    *,
    names: Sequence[str] = (),
    must_use_all: bool = True,
) -> dict[str, str]:
    """Return part -> subset: the subset that the user named for the part, else the subset that was found for it.

    If there are exactly two subsets, one for training and one for validation, the validation subset becomes the test
    part. Validation images are then held out of the training subset.

    Args:
        where: the dataset, for messages.
        options: the options that the user wrote.
        found: the parts to use if the user wrote no options.
        names: the names of all subsets, if they are known.
        must_use_all: if True, refuse subsets that would be left out because their names are not usual ones, unless the
            user named parts; then report the unused subsets. If False, the caller reports them.

    Raises:
        DatasetError: `train` or `test` is missing, `all` is given with other parts, a subset is given for two parts, or
            a subset has no usual name.
    """
    given = {part: as_spelled(options[part], names) for part in PARTS if part in options}
    if "all" in given and len(given) > 1:
        raise DatasetError(f"{where} gives all and other parts; give only all, to divide it, or train and test")
    usual = {} if "all" in given or (given and "all" in found) else dict(found)
    if usual.get("val") in given.values():
        del usual["val"]
    parts = {part: {**usual, **given}[part] for part in PARTS if part in usual or part in given}
    if set(parts) == {"train", "val"} and "val" not in given and len(names or found) == 2:
        parts = {"train": parts["train"], "test": parts["val"]}
    if "all" not in parts and not {"train", "test"} <= set(parts):
        missing = "train" if "train" not in parts else "test"
        shown = f" of {listed(names)}" if names else ""
        raise DatasetError(
            f"{where} has no {missing} part; say which split{shown} it is with ?{missing}=SPLIT, or divide one with "
            "?all=SPLIT"
        )
    for part, split in parts.items():
        twin = next((other for other in parts if other != part and parts[other] == split), None)
        if twin:
            raise DatasetError(f"{where} takes the split {split!r} for {part} and for {twin}; give each its own")
    if must_use_all:
        strange = [name for name in names if name not in parts.values() and part_of(name) is None]
        if strange and not given:
            example = "&".join(f"{part}={split}" for part, split in parts.items())
            raise DatasetError(
                f"{where} has {listed(map(repr, strange))}, which is not a usual name of train, val or test; rename "
                f"it, move it away, or name the splits to take, as in ?{example}"
            )
        report_unused(where, names, parts.values())
    return parts


def report_unused(where: str, names: Iterable[str], taken: Collection[str]) -> None:
    """Warn about subsets that are not used.

    Args:
        where: the dataset, for messages.
        names: the names of all subsets.
        taken: the names of the subsets that are used.
    """
    unused = [name for name in names if name not in taken]
    for name in unused:
        if part := part_of(name):
            logger.warning("%s: the split %r is not used; take it with ?%s=%s", where, name, part, name)
    others = [name for name in unused if part_of(name) is None]
    if others:
        logger.warning("%s: %s not used; take a split with ?train=, ?val= or ?test=", where, _are(others))


def _are(names: Sequence[str]) -> str:
    shown = listed(map(repr, names))
    return f"the split {shown} is" if len(names) == 1 else f"the splits {shown} are"


def as_spelled(name: str, names: Sequence[str]) -> str:
    """Return the entry of `names` that the user means, such as `validation` for `val`; else the name unchanged."""
    if name in names or part_of(name) is None:
        return name
    alike = [other for other in names if part_of(other) == part_of(name)]
    return alike[0] if len(alike) == 1 else name
