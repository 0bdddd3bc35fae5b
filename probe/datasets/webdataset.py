"""Shards of WebDataset, which are tar files of images and labels: `wds:REST`, and the rows with such a source.

    wds:ORG/NAME                  a repository of the Hugging Face hub, laid out as the collection clip-benchmark/wds_*:
                                  train/0.tar ... train/nshards.txt, test/ likewise, classnames.txt with a name a line
    wds:PATH                      a folder laid out so, with train/, test/ and perhaps val/ or validation/; or with the
                                  shards of one part, which is divided 60 / 20 / 20
    wds:https://HOST/FOLDER/      a folder of a server, laid out as the collection; the last slash is needed
    wds:PATH/NAME-{000..012}.tar  shards by their names, which are divided, unless `{train,test}` or `{train,val,test}`
                                  among them makes parts; ORG/NAME or an address may stand for PATH

Options follow as in a URL: `train`, `val`, `test` and `all` name the folder, or the shards, of a part below PATH, as in
`wds:ORG/NAME?train=n-train-{0000..1023}.tar&test=n-val-{00..63}.tar`; `revision` is a branch, tag or commit of the hub.

Files of a sample have one name up to the first dot: an image, and its label as a number in `.cls`, or in `.json` under
`label` or `cls`. A shard is gone through once, for the places of its files; images are then read from the tar file
where they lie. Shards of a server are kept below the data folder, in `wds/`. There are no checksums of them: that they
are whole is all that is checked.
"""

from __future__ import annotations

import errno
import glob
import http.client
import io
import json
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from probe.datasets import hub
from probe.datasets.archives import check_member
from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, DatasetMissingError
from probe.fetch import BLOCK, TIMEOUT_SECONDS
from probe.specs import DatasetSpec, Part, Source, slug

OPTIONS = ("revision", *hub.PARTS)
CLASS_NAMES, NUM_SHARDS = "classnames.txt", "nshards.txt"
LABELS = ("cls", "json")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_LABEL, MAX_LABEL_BYTES = 1 << 31, 1 << 20  # what is more is no label, and would only fill the memory
_Places = dict[str, dict[str, tuple[int, int]]]


def make_spec(rest: str) -> DatasetSpec:
    """Make the row of a repository or an address, without a look at it, or of a path, by looking at its folders.

    Raises:
        DatasetMissingError: neither a path nor an address nor the name of a repository.
        DatasetError: an option or pattern that is wrong, or folders that do not say which is for what.
    """
    written, _, query = rest.partition("?")
    location, pattern = _divide(written)
    folder = Path(location).expanduser()
    is_url = "://" in location
    is_local = not is_url and bool(written) and folder.is_dir()
    _, options = hub.read_options("wds", rest, hub.PARTS if is_url or is_local else OPTIONS)
    name = f"wds:{rest}"
    if is_local:
        location = str(folder.resolve())
        name = "wds:" + "/".join(filter(None, (location, pattern))) + (f"?{query}" if query else "")
    _check_location(name, location, is_url=is_url, is_local=is_local)
    if pattern:
        found = _divide_pattern(pattern)
    else:
        found = _find_folders(Path(location), options) if is_local else {"train": "train", "test": "test"}
    parts = hub.choose_parts(name, options, found)
    return DatasetSpec(
        name=name,
        title=f"images in {location}",
        parts=tuple(Part(part) for part in parts),
        sources=(
            Source(
                form="webdataset",
                location=location,
                parts=tuple((part, (("split", split),)) for part, split in parts.items()),
                options=tuple((option, value) for option, value in options.items() if option not in hub.PARTS),
                can_download=not is_local,
            ),
        ),
        val_fraction=0.2 if "all" in parts else 0.1,
    )


def _check_location(name: str, location: str, *, is_url: bool, is_local: bool) -> None:
    if location.endswith(COMPRESSED):
        raise _compressed(location)
    if is_url and not re.match(r"https?://[^/].*/$", location):
        raise DatasetError(f"{name} is no address of shards; write https://HOST/FOLDER/, or one of files *.tar")
    if not is_url and not is_local and not hub.is_repository(location):
        raise DatasetMissingError(f"no folder at {location}, and no repository ORG/NAME; check the name")


def open_part(spec: DatasetSpec, source: Source, part: Part, *, root: Path, offline: bool) -> ImageDataset:
    """Open one part: the shards that its argument `split` names, as a folder or a pattern.

    They are below the source's location: a repository, an absolute path, or an address, whose shards are kept below
    the data folder. An option of the source is `revision`.

    Raises:
        DatasetMissingError: a shard is not here, and cannot be fetched or may not be.
        DatasetError: a shard is damaged or not to be trusted, or a sample has no image or label.
    """
    name = f"{spec.name}/{part.name}"
    shards = _locate(source, part.name, root=root, offline=offline)
    index, labels, ids = _read_index(shards)
    class_names = _read_class_names(shards.folder) or [str(i) for i in range(spec.num_classes or 0)]
    if not class_names:
        pool = labels
        if part.name not in ("train", "all"):
            _, pool, _ = _read_index(_locate(source, "train", root=root, offline=offline))
        # Every class has an image, so that there are not more classes.
        class_names = [str(i) for i in range(min(int(pool.max(initial=-1)) + 1, len(pool)))]
    if labels.max(initial=-1) >= len(class_names):
        first = int(np.argmax(labels >= len(class_names)))
        raise DatasetError(
            f"{name}: {ids[first]} has the label {labels[first]}, and there are {len(class_names)} classes; correct "
            f"it, or name all classes in {CLASS_NAMES}"
        )
    return ImageDataset(name=name, labels=labels, class_names=class_names, read=partial(_read, index), ids=ids)


@dataclass(frozen=True)
class _Shards:
    """The shards of a part: their names, from `folder` on."""

    folder: Path
    names: Sequence[str]


@dataclass(frozen=True)
class _Index:
    """Where images are: for each the number of its shard, int32 (n,), and its offset and size there, int64 (n,)."""

    paths: Sequence[Path]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray


def _read(index: _Index, i: int) -> Image.Image:
    size = int(index.size[i])
    with index.paths[index.shard[i]].open("rb") as file:
        file.seek(int(index.offset[i]))
        content = file.read(size)
    if len(content) < size:
        raise OSError("its shard has been cut short")
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image


# Names.


def expand(pattern: str) -> list[str]:
    """The names that braces stand for, as in a shell: `{08..10}` for 08, 09 and 10, `{a,b}` for a and b.

    >>> expand("{train,test}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'test-08.tar']

    Raises:
        DatasetError: a brace that is not closed, in another, or of another kind.
    """
    before, opening, rest = pattern.partition("{")
    inner, closing, after = rest.partition("}")
    if not opening and "}" not in pattern:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not closing or "{" in inner or "}" in before or not (numbers or "," in inner):
        raise DatasetError(f"{pattern!r} has braces that say nothing; write {{000..012}} or {{a,b}}, none in another")
    choices = inner.split(",")
    if numbers:
        first, last = numbers.groups()
        is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        choices = [f"{i:0{width}}" for i in range(int(first), int(last) + 1)]
        if not choices:
            raise DatasetError(f"{pattern!r} counts down from {first} to {last}; write the smaller number first")
    return [before + choice + end for choice in choices for end in expand(after)]


def _divide(location: str) -> tuple[str, str]:
    """The folder, and the pattern of shards below it; that of a folder alone is empty."""
    if not location.endswith(".tar"):
        return location, ""
    folder, slash, _ = location.partition("{")[0].rpartition("/")
    pattern = location.removeprefix(folder + slash)
    return (folder + slash if "://" in folder else folder or slash or "."), pattern


def _divide_pattern(pattern: str) -> dict[str, str]:
    """Part -> pattern of its shards, where a brace says which part; else all are one part."""
    for brace in re.findall(r"\{([^{}]*)\}", pattern):
        found = hub.find_parts(brace.split(","))
        if len(found) > 1 and len(found) == brace.count(",") + 1:
            return {part: pattern.replace(f"{{{brace}}}", split) for part, split in found.items()}
    if len({name.rpartition("/")[0] for name in expand(pattern)}) > 1:
        raise DatasetError(
            f"{pattern!r} names shards in several folders; say which are what with ?train=...&test=... behind the "
            "folder that they are in"
        )
    return {"all": pattern}


def _find_folders(folder: Path, options: Mapping[str, str]) -> dict[str, str]:
    """Part -> folder of its shards, of a folder here."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and _tar_files(path))
    found = hub.find_parts(names) if names else {}
    if _tar_files(folder) and not {"train", "test"} <= set(found):
        return {"all": "."}
    if not found and not set(options) & set(hub.PARTS):
        if names:
            raise DatasetError(
                f"{folder} has shards in {', '.join(names)}; say which are what with ?train=...&test=..."
            )
        _list_shards(folder, ".")  # says what is wrong
    return found


def _tar_files(folder: Path) -> list[str]:
    """The shards in a folder, in the order of the numbers in their names."""
    names = [path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith(".")]
    return sorted(names, key=lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)])


def _list_shards(folder: Path, split: str) -> _Shards:
    """The shards that a pattern or folder names.

    Raises:
        DatasetMissingError: there are none, or one is not there.
        DatasetError: they are compressed, of several series, or not as many as are said to be.
    """
    if split.endswith(".tar"):
        names = expand(split)
        missing = next((name for name in names if not (folder / name).is_file()), None)
        if missing:
            raise DatasetMissingError(f"no shard at {folder / missing}; put it there, or correct the pattern {split!r}")
        return _Shards(folder, names)
    place = folder / split
    names = _tar_files(place) if place.is_dir() else []
    if not names:
        if place.is_dir() and any(path.name.endswith(COMPRESSED) for path in place.iterdir()):
            raise _compressed(place)
        raise DatasetMissingError(f"no shards in {place}; put files *.tar there, or name another folder")
    series = {re.sub(r"\d+", "*", name) for name in names}
    if len(series) > 1:
        raise DatasetError(
            f"{place} has shards of several series, {', '.join(sorted(series))}; put those of each part into a folder, "
            "or name them as in wds:PATH?train=a-{00..12}.tar&test=b-{0..3}.tar"
        )
    if (place / NUM_SHARDS).is_file():
        said = _read_count(place / NUM_SHARDS)
        if said != len(names):
            raise DatasetError(f"{place / NUM_SHARDS} says {said} shards, and there are {len(names)}; get them again")
    return _Shards(folder, [_below(split, name) for name in names])


def _below(split: str, name: str) -> str:
    return name if split == "." else f"{split}/{name}"


def _read_count(path: Path) -> int:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[0-9]+", text):
        raise DatasetError(f"{path} holds {text[:40]!r} and not the number of shards; get it again")
    return int(text)


def _compressed(where: str | Path) -> DatasetError:
    return DatasetError(f"{where}: compressed shards cannot be read at a place; unpack them to .tar, as with gunzip")


def _read_class_names(folder: Path) -> list[str]:
    """The names of the classes, one a line; empty where there is no such file."""
    path = folder / CLASS_NAMES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


# Places.


def _locate(source: Source, part: str, *, root: Path, offline: bool) -> _Shards:
    """The shards of a part, fetched if need be."""
    split = str(source.arguments(part).get("split", part))
    if "://" in source.location:
        return _fetch_from_server(source.location, split, root=root, offline=offline)
    if Path(source.location).is_absolute():
        return _list_shards(Path(source.location), split)
    revision = str(dict(source.options).get("revision", ""))
    return hub.here_or_fetched(partial(_fetch_from_hub, source.location, revision, part, split), offline=offline)


def _fetch_from_hub(repo: str, revision: str, part: str, split: str, offline: bool) -> _Shards:
    snapshot = hub.look(repo, revision=revision, offline=offline)
    if split.endswith(".tar"):
        patterns = [glob.escape(name) for name in expand(split)]
    elif split == ".":
        patterns = [glob.escape(file) for file in snapshot.files if "/" not in file and file.endswith(".tar")]
    else:
        patterns = [f"{glob.escape(split)}/*.tar"]
    if snapshot.is_known and not hub.matching(snapshot.files, patterns):
        folders = dict.fromkeys(file.rpartition("/")[0] or "." for file in snapshot.files if file.endswith(".tar"))
        where = f"; there are some in {', '.join(folders)}: write ?{part}=FOLDER" if folders else "; give another one"
        raise DatasetMissingError(f"{repo} has no shards {split}{where}")
    also = [glob.escape(_below(split, NUM_SHARDS)), CLASS_NAMES]
    folder = hub.fetch(snapshot, [*patterns, *also], offline=offline)
    try:
        return _list_shards(folder, split)
    except DatasetError as err:
        if snapshot.is_known:
            raise
        raise DatasetMissingError(f"{repo} seems to be here in part only ({err})") from err


def _fetch_from_server(base: str, split: str, *, root: Path, offline: bool) -> _Shards:
    """The shards of an address, kept in a folder that is called after it."""
    folder = root / "wds" / slug(base, is_path=True)
    _download(base, CLASS_NAMES, folder, offline=offline, is_optional=True)
    if split.endswith(".tar"):
        names = expand(split)
    else:
        count = _below(split, NUM_SHARDS)
        _download(base, count, folder, offline=offline)
        names = [_below(split, f"{i}.tar") for i in range(_read_count(folder / count))]
    for name in names:
        _download(base, name, folder, offline=offline)
    return _Shards(folder, names)


def _download(base: str, name: str, folder: Path, *, offline: bool, is_optional: bool = False) -> None:
    """Fetch a file that is not there; what was begun goes on, and a shard takes its name only when it is whole."""
    url, target = base + name, folder / check_member(folder, name)
    if target.is_file() or (offline and is_optional):
        return
    if offline:
        raise DatasetMissingError(
            f"{target} is not here, and --offline forbids to fetch it; put the file of {url} there"
        )
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_file():  # another process was faster
                return
            _stream(url, part)
            if target.suffix == ".tar":
                _find_members(part)
            part.replace(target)
    except DatasetError as err:
        part.unlink()
        raise DatasetError(f"{url} is no whole shard ({err})") from err
    except (http.client.HTTPException, OSError) as err:
        if is_optional and isinstance(err, urllib.error.HTTPError):
            return
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise DatasetMissingError(f"no space left for {target}; make room and run again, which resumes") from err
        raise DatasetMissingError(
            f"could not fetch {url} ({hub.one_line(err)}); run again to resume, or put the file at {target}"
        ) from err


def _stream(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # as long as the file, or longer: begin again
        return _stream(url, part)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends the whole file
        total = have + int(response.headers.get("Content-Length") or 0)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with part.open("ab" if have else "wb") as file, bar:
            while block := response.read(BLOCK):
                have += file.write(block)
                bar.update(len(block))
    if have < total:
        raise http.client.IncompleteRead(b"", total - have)
    return None


# Samples.


def _read_index(shards: _Shards) -> tuple[_Index, np.ndarray, list[str]]:
    """Where the images of shards are; their labels, int64 (n,); and their names, from the folder of the shards on."""
    ids: list[str] = []
    blocks = [np.empty((0, 4), dtype=np.int64)]
    paths = [shards.folder / name for name in shards.names]
    suffixes = frozenset(suffix[1:] for suffix in Image.registered_extensions())
    for number, (name, path) in enumerate(zip(shards.names, paths, strict=True)):
        rows = []
        members = _find_members(path)
        with path.open("rb") as file:
            for key, fields in members.items():
                image, label = _choose_fields(path, key, fields, suffixes)
                rows.append((number, *fields[image], _read_label(file, path, key, label, fields[label])))
                ids.append(f"{name}/{key}")
        blocks.append(np.array(rows, dtype=np.int64).reshape(-1, 4))
    shard, offset, size, labels = np.concatenate(blocks).T
    return _Index(paths, shard.astype(np.int32), offset.copy(), size.copy()), labels.copy(), ids


def _find_members(path: Path) -> _Places:
    """Sample -> what its files end in -> their offset and size.

    Raises:
        DatasetMissingError: there is no such file.
        DatasetError: it is damaged or cut short, or has a file that is not to be trusted, or one twice.
    """
    samples: _Places = {}
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise _compressed(path)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    _add_member(path, member, samples)
                _check_end(file, tar.offset)
    except FileNotFoundError as err:
        raise DatasetMissingError(f"no shard at {path}; get it again") from err
    except (tarfile.TarError, EOFError, OSError, OverflowError) as err:
        raise DatasetError(f"{path} is no whole tar file ({hub.one_line(err)}); get it again") from err
    return samples


def _check_end(file: IO[bytes], offset: int) -> None:
    """See that nothing but noughts follow; tarfile takes a damaged header for the end, and does not miss one."""
    file.seek(offset)
    zeros = file.read(tarfile.BLOCKSIZE)
    if len(zeros) < tarfile.BLOCKSIZE or any(zeros):
        raise tarfile.ReadError("it breaks off, or is damaged in the middle")
    while block := file.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("something follows after its end")


def _add_member(path: Path, member: tarfile.TarInfo, samples: _Places) -> None:
    if member.isdir():
        return
    check_member(path, member.name)
    if not member.isreg() or member.issparse():
        raise DatasetError(f"{path} has {member.name!r}, which is no ordinary file; do not use it")
    folder, slash, base = member.name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not stem or not dot:  # as webdataset does, which has notes of the writer there
        return
    fields = samples.setdefault(f"{folder}{slash}{stem}", {})
    if ending.lower() in fields:
        raise DatasetError(f"{path} has {member.name!r} twice; give each sample a name of its own")
    fields[ending.lower()] = member.offset_data, member.size


def _choose_fields(path: Path, key: str, fields: Mapping[str, object], suffixes: frozenset[str]) -> tuple[str, str]:
    """Which files of a sample are its image and its label."""
    images = [ending for ending in fields if ending in suffixes]
    label = next((ending for ending in LABELS if ending in fields), None)
    if len(images) == 1 and label:
        return images[0], label
    lacks = ("several images" if images else "no image") if len(images) != 1 else "no label"
    raise DatasetError(
        f"{path}: the sample {key!r} has {lacks} among its files {', '.join(f'.{ending}' for ending in fields)}; it "
        "needs one image and its label as .cls or .json"
    )


def _read_label(file: IO[bytes], path: Path, key: str, ending: str, place: tuple[int, int]) -> int:
    offset, size = place
    file.seek(offset)
    content = file.read(min(size, MAX_LABEL_BYTES))
    label = _parse_label(ending, content)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= MAX_LABEL:
        shown = content[:40].decode("utf-8", "replace").strip()
        raise DatasetError(f"{path}: {key}.{ending} holds {shown!r} and no label, a number from 0 on; correct it")
    return label


def _parse_label(ending: str, content: bytes) -> object:
    if ending == "cls":
        return int(content) if content.strip().isdigit() and len(content) < 20 else None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found.get("label", found.get("cls")) if isinstance(found, dict) else found
