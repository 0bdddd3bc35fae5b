"""Names of subsets: the usual spellings of `train`, `val` and `test` for folders, splits and shards.

This module reads no files. The forms `folder:`, `hf:`, `wds:` and `csv:`, and TOML files, all use this module.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from probe.errors import DatasetError, listed

logger = logging.getLogger(__name__)

SUBSETS = ("train", "val", "test", "all")
# Spellings that the libraries `datasets` and `evaluate` know; case is ignored.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def subset_of(name: str) -> str | None:
    """Return the subset that a name stands for, or None for any other name.

    >>> subset_of("Training"), subset_of("valid"), subset_of("trout")
    ('train', 'val', None)
    """
    folded = name.strip().casefold()
    return next((subset for subset, spellings in SPELLINGS.items() if folded in spellings), None)


def find_subsets(where: str, names: Iterable[str], given: Iterable[str] | None = None) -> dict[str, str]:
    """Return subset -> name for the usual names; if there is only one name, its subset is `all`.

    Args:
        where: the dataset, for messages.
        names: the names of all splits, as the source spells them.
        given: the subsets that the user named; `names` may hold several spellings of these. None if the user cannot
            name subsets.

    Raises:
        DatasetError: two names stand for the same subset.
    """
    names = list(names)
    if len(names) == 1:
        return {"all": names[0]}
    named: dict[str, list[str]] = {}
    for name in names:
        named.setdefault(subset_of(name) or "", []).append(name)
    for subset in SPELLINGS:
        if len(twins := named.get(subset, [])) > 1 and subset not in (given or ()):
            choice = "" if given is None else f", or choose one with ?{subset}=NAME"
            raise DatasetError(
                f"{where} has {listed(map(repr, twins))}, which all mean {subset}; rename or merge them{choice}"
            )
    return {subset: named[subset][0] for subset in SPELLINGS if subset in named}


def choose_subsets(
    where: str,
    options: Mapping[str, str],
    found: Mapping[str, str],
    *,
    names: Sequence[str] = (),
    must_use_all: bool = True,
) -> dict[str, str]:
    """Return subset -> split: the split that the user named for the subset, else the split that was found for it.

    If there are exactly two splits, one for training and one for validation, the validation split becomes the test
    subset. Validation images are then held out of the training subset.

    Args:
        where: the dataset, for messages.
        options: the options that the user wrote.
        found: the subsets to use if the user wrote no options.
        names: the names of all splits, if they are known.
        must_use_all: if True, refuse splits that would be left out because their names are not usual ones, unless the
            user named subsets; then report the unused splits. If False, the caller reports them.

    Raises:
        DatasetError: `train` or `test` is missing, `all` is given with other subsets, a split is given for two subsets,
            or a split has no usual name.
    """
    given = {subset: as_spelled(options[subset], names) for subset in SUBSETS if subset in options}
    if "all" in given and len(given) > 1:
        raise DatasetError(f"{where} gives all and other subsets; give only all, to divide it, or train and test")
    usual = {} if "all" in given or (given and "all" in found) else dict(found)
    if usual.get("val") in given.values():
        del usual["val"]
    subsets = {subset: {**usual, **given}[subset] for subset in SUBSETS if subset in usual or subset in given}
    if set(subsets) == {"train", "val"} and "val" not in given and len(names or found) == 2:
        subsets = {"train": subsets["train"], "test": subsets["val"]}
    if "all" not in subsets and not {"train", "test"} <= set(subsets):
        missing = "train" if "train" not in subsets else "test"
        shown = f" of {listed(names)}" if names else ""
        raise DatasetError(
            f"{where} has no {missing} subset; say which split{shown} it is with ?{missing}=SPLIT, or divide one with "
            "?all=SPLIT"
        )
    for subset, split in subsets.items():
        twin = next((other for other in subsets if other != subset and subsets[other] == split), None)
        if twin:
            raise DatasetError(f"{where} takes the split {split!r} for {subset} and for {twin}; give each its own")
    if must_use_all:
        strange = [name for name in names if name not in subsets.values() and subset_of(name) is None]
        if strange and not given:
            example = "&".join(f"{subset}={split}" for subset, split in subsets.items())
            raise DatasetError(
                f"{where} has {listed(map(repr, strange))}, which is not a usual name of train, val or test; rename "
                f"it, move it away, or name the splits to take, as in ?{example}"
            )
        report_unused(where, names, subsets.values())
    return subsets


def report_unused(where: str, names: Iterable[str], taken: Collection[str]) -> None:
    """Warn about splits that are not used."""
    unused = [name for name in names if name not in taken]
    for name in unused:
        if subset := subset_of(name):
            logger.warning("%s: the split %r is not used; take it with ?%s=%s", where, name, subset, name)
    others = [name for name in unused if subset_of(name) is None]
    if others:
        logger.warning("%s: %s not used; take a split with ?train=, ?val= or ?test=", where, _are(others))


def _are(names: Sequence[str]) -> str:
    shown = listed(map(repr, names))
    return f"the split {shown} is" if len(names) == 1 else f"the splits {shown} are"


def as_spelled(name: str, names: Sequence[str]) -> str:
    """Return the entry of `names` that the user means, such as `validation` for `val`; else the name unchanged."""
    if name in names or subset_of(name) is None:
        return name
    alike = [other for other in names if subset_of(other) == subset_of(name)]
    return alike[0] if len(alike) == 1 else name
