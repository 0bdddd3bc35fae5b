"""Names of WebDataset shards: patterns with braces, the folders of subsets, and a check that no shard is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from probe.datasets.sources.shards import compressed
from probe.datasets.subsets import SUBSETS, find_subsets, subset_of
from probe.errors import DatasetError, DatasetMissingError, listed

MAX_SHARDS = 1_000_000  # more names would fill the memory; such a pattern is a mistake
NUM_SHARDS = "nshards.txt"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Shards:
    """Shards of a subset: their names relative to `folder`, and the commit of their repository, if any."""

    folder: Path
    names: Sequence[str]
    revision: str = ""


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does: `{08..10}` to 08, 09 and 10, `{a,b}` to a and b.

    >>> expand_braces("{train,test}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'test-08.tar']

    Raises:
        DatasetError: a brace is not closed, is nested, or has a different form.
    """
    before, opening, rest = pattern.partition("{")
    inner, closing, after = rest.partition("}")
    if not opening and "}" not in pattern:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not closing or "{" in inner or "}" in before or not (numbers or "," in inner):
        raise DatasetError(f"{pattern!r} has braces of an unknown form; write {{000..012}} or {{a,b}}, not nested")
    choices = inner.split(",")
    if numbers:
        first, last = numbers.groups()
        is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        if int(last) - int(first) >= MAX_SHARDS:
            raise DatasetError(f"{pattern!r} stands for more than {MAX_SHARDS} shards; write fewer")
        choices = [f"{i:0{width}}" for i in range(int(first), int(last) + 1)]
        if not choices:
            raise DatasetError(f"{pattern!r} counts down from {first} to {last}; write the smaller number first")
    if len(set(choices)) < len(choices):
        raise DatasetError(f"{pattern!r} names a shard twice; write each once")
    return [before + choice + end for choice in choices for end in expand_braces(after)]


def divide_location(location: str) -> tuple[str, str]:
    """Return the folder, and the pattern of shards below it; the pattern is empty for a folder alone."""
    if not location.endswith(".tar"):
        return location, ""
    folder, slash, _ = location.partition("{")[0].rpartition("/")
    pattern = location.removeprefix(folder + slash)
    return (folder + slash if "://" in folder else folder or slash or "."), pattern


def divide_pattern(pattern: str) -> dict[str, str]:
    """Return subset -> pattern of its shards, if a brace names the subsets; otherwise all shards are one subset."""
    for brace in re.findall(r"\{([^{}]*)\}", pattern):
        names = brace.split(",")
        strange = [name for name in names if subset_of(name) is None]
        if 0 < len(strange) < len(names):
            raise DatasetError(
                f"{pattern!r}: {listed(map(repr, strange))} in the braces is not a usual name of train, val or test; "
                "say which split each is with ?train=...&test=... after the folder of the shards"
            )
        if len(names) > 1 and not strange:
            found = find_subsets(repr(pattern), names, given=())
            return {subset: pattern.replace(f"{{{brace}}}", split) for subset, split in found.items()}
    if len({name.rpartition("/")[0] for name in expand_braces(pattern)}) > 1:
        raise DatasetError(
            f"{pattern!r} names shards in several folders; name the folder of each subset with ?train=...&test=... "
            "after the folder that contains them"
        )
    return {"all": pattern}


def find_folders(name: str, folder: Path, options: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return subset -> folder of its shards, below a local folder, and the names of all folders with shards."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and _tar_files(path))
    given = [subset for subset in SUBSETS if subset in options]
    found = find_subsets(name, names, given) if names else {}
    if _tar_files(folder) and not ({"train"} < set(found) or given):
        return {"all": "."}, []
    if not found and not given:
        if names:
            raise DatasetError(
                f"{folder} has shards in {listed(names)}; say which split each is with ?train=...&test=..."
            )
        list_shards(folder, ".")  # raises an error that says what is wrong
    return found, names


def _tar_files(folder: Path) -> list[str]:
    """Return the shards in a folder, in the order of the numbers in their names."""
    names = [path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith(".")]
    return sorted(names, key=lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)])


def list_shards(folder: Path, split: str) -> Shards:
    """Return the shards that a pattern or folder names.

    Raises:
        DatasetMissingError: there are no shards, or one is missing.
        DatasetError: shards are compressed, belong to several series, have a gap in their numbers, or differ in number
            from `nshards.txt`.
    """
    if split.endswith(".tar"):
        names = expand_braces(split)
        missing = next((name for name in names if not (folder / name).is_file()), None)
        if missing:
            raise DatasetMissingError(f"no shard at {folder / missing}; put it there, or correct the pattern {split!r}")
        return Shards(folder, names)
    place = folder / split
    names = _tar_files(place) if place.is_dir() else []
    if not names:
        if place.is_dir() and any(path.name.endswith(COMPRESSED) for path in place.iterdir()):
            raise compressed(place)
        raise DatasetMissingError(f"no shards in {place}; put *.tar files there, or name a different folder")
    series = {re.sub(r"\d+", "*", name) for name in names}
    if len(series) > 1:
        raise DatasetError(
            f"{place} has shards of several series, {listed(sorted(series))}; put the shards of each subset into a "
            "folder, or name them as in wds:PATH?train=a-{00..12}.tar&test=b-{0..3}.tar"
        )
    numbers = {int(found[-1]) for name in names if (found := re.findall(r"\d+", name))}
    gap = next(number for number in count(min(numbers, default=0)) if number not in numbers)
    if min(numbers, default=2) <= 1 and gap < max(numbers):  # otherwise they are not a count, but for example dates
        raise DatasetError(
            f"{place} has shards up to number {max(numbers)}, but not {gap}; get it, or name the shards to use"
        )
    if (place / NUM_SHARDS).is_file():
        said = read_count(place / NUM_SHARDS)
        if said != len(names):
            raise DatasetError(f"{place / NUM_SHARDS} says {said} shards, and there are {len(names)}; get them again")
    return Shards(folder, [below_split(split, name) for name in names])


def below_split(split: str, name: str) -> str:
    """Return the path of a file in the folder of a split."""
    return name if split == "." else f"{split}/{name}"


def read_count(path: Path) -> int:
    """Return the number of shards that a file states."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[0-9]+", text):
        raise DatasetError(f"{path} has {text[:40]!r} instead of the number of shards; download it again")
    return int(text)
