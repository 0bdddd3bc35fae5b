"""What `hf:` and `wds:` share: options behind a `?`, and a dataset of the Hugging Face hub -> a local folder.

Downloads are `huggingface_hub`'s, and files are kept where Hugging Face's own libraries keep them (`HF_HOME`, by
default `~/.cache/huggingface`), so that what they have fetched is used. No code of a repository is ever run.

What cannot be had, for whatever reason, is a `DatasetMissingError`, so that the next source of a row is tried.
"""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from tqdm import tqdm

from probe.errors import DatasetError, DatasetMissingError
from probe.hub import LOG_IN, check_home, is_as_published, is_refused, one_line, refused

CARD = "README.md"
SERIES = re.compile(r"(.*-)\d{5}(-of-(\d{5}).*)")  # how `datasets` names the files of a split

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Args:
        repo: `ORG/NAME`.
        folder: where its files are, or will be; the last part of its name is the commit.
        files: the names of all its files, with their folders.
        is_known: `files` are all there are; if not, they are those that are here.
    """

    repo: str
    folder: Path
    files: Sequence[str]
    is_known: bool


def read_options(form: str, rest: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Divide `NAME?option=value&option=value`, written as in a URL, into the name and its options.

    Raises:
        DatasetError: no name, or an option that is unknown, empty, or given twice.
    """
    name, _, query = rest.partition("?")
    if not name:
        raise DatasetError(f"{form}:{rest} names no dataset; write it before the ?")
    options: dict[str, str] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in known:
            raise DatasetError(f"{form}:{rest} has the option {option!r}; the options are {', '.join(known)}")
        if not value or option in options:
            what = "twice" if option in options else "no value"
            raise DatasetError(f"{form}:{rest} gives {option} {what}; write {option}=VALUE once")
        options[option] = value
    return name, options


def here_or_fetched(open_it: Callable[[bool], _T], *, offline: bool) -> _T:
    """What `open_it` gives with what is here, or else, unless `offline`, with what it then fetches.

    So all parts of a dataset are of one commit, and what is here needs no network. `open_it` is told whether to stay
    offline.
    """
    try:
        return open_it(True)
    except DatasetMissingError:
        if offline:
            raise
    return open_it(False)


def look(repo: str, *, revision: str = "", offline: bool) -> Snapshot:
    """Find out what a repository holds; fetches its card.

    Raises:
        DatasetMissingError: it is not here, and cannot be reached or may not be.
    """
    # The client warns where nothing matches; not every repository has a card, but all have the other file.
    folder = _download(repo, [CARD] if offline else [CARD, ".gitattributes"], revision=revision, offline=offline)
    files = _known_files(repo, folder.name)
    if files is None and not offline:
        files = _ask(repo, "", lambda: _list_files(repo, folder.name), offline=offline)
    if files is not None:
        return Snapshot(repo, folder, files, is_known=True)
    here = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Snapshot(repo, folder, here, is_known=False)


def matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; `*` stands for anything, also slashes, as in `fetch`."""
    return [file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)]


def fetch(snapshot: Snapshot, patterns: Sequence[str], *, offline: bool) -> Path:
    """The folder of a repository with all of its files that match a pattern; those that are there are not fetched.

    Raises:
        DatasetMissingError: they are not here, or not all, and cannot be fetched or may not be.
        DatasetError: a file differs from what the hub published.
    """
    wanted = matching(snapshot.files, patterns)
    if not snapshot.is_known and not _looks_whole(wanted):
        raise _not_here(snapshot.repo, "is there in part only", offline=offline)
    folder = _download(snapshot.repo, [CARD, *patterns], revision=snapshot.folder.name, offline=offline)
    absent = [file for file in wanted if not (folder / file).is_file()]
    if absent:
        raise _not_here(snapshot.repo, f"is there without {absent[0]}", offline=offline)
    if not offline:
        for file in wanted:
            _verify(folder / file)
    return folder


def _looks_whole(files: Sequence[str]) -> bool:
    """Whether no file is missing, as far as names tell where no list of the files is known."""
    series: dict[tuple[str, str], int] = {}
    for match in filter(None, map(SERIES.fullmatch, files)):
        series[match[1], match[2]] = series.get((match[1], match[2]), 0) + 1
    return bool(files) and all(count == int(end[4:9]) for (_, end), count in series.items())


def _known_files(repo: str, commit: str) -> list[str] | None:
    """The files of a commit, if the client has kept their list; clients before 1.24 keep none that can be had."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return None
    try:
        return [file.path for file in get_cached_repo_tree(repo, repo_type="dataset", revision=commit)]
    except CachedRepoTreeNotFoundError:
        return None


def _list_files(repo: str, commit: str) -> list[str]:
    from huggingface_hub import HfApi

    return list(HfApi().list_repo_files(repo, repo_type="dataset", revision=commit))


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A progress bar on a terminal, and none elsewhere."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"disable": None, **settings})


def _download(repo: str, patterns: Sequence[str], *, revision: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=list(patterns),
            local_files_only=offline,
            tqdm_class=_Bar,
        )

    return Path(_ask(repo, revision, download, offline=offline))


def _ask(repo: str, revision: str, call: Callable[[], _T], *, offline: bool) -> _T:
    """What the client of the hub answers; its errors in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    check_home(constants.HF_HUB_CACHE)
    address = f"{constants.ENDPOINT}/datasets/{repo}"
    try:
        return call()
    except GatedRepoError as err:
        raise DatasetMissingError(f"{repo} is gated; accept its terms at {address} and {LOG_IN}") from err
    except RepositoryNotFoundError as err:
        raise DatasetMissingError(
            f"no dataset {repo!r} at {constants.ENDPOINT}; check the name; if the dataset is private, {LOG_IN}"
        ) from err
    except RevisionNotFoundError as err:
        raise DatasetMissingError(
            f"{address} has no revision {revision!r}; give a branch, a tag or a commit, or leave the revision out"
        ) from err
    except LocalEntryNotFoundError as err:
        if is_refused(err.__cause__):
            raise DatasetMissingError(refused(address)) from err
        why = "" if offline else f", and could not be fetched ({one_line(err.__cause__ or err)})"
        raise _not_here(repo, f"is not there{why}", offline=offline) from err
    except Exception as err:  # which library speaks HTTP, and so what it raises, differs between versions of the client
        if is_refused(err):
            raise DatasetMissingError(refused(address)) from err
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise DatasetMissingError(f"no space left for {address}; make room and run again, which resumes") from err
        raise DatasetMissingError(f"could not fetch {address} ({one_line(err)}); run again to resume") from err


def _not_here(repo: str, why: str, *, offline: bool) -> DatasetMissingError:
    from huggingface_hub import constants

    forbidden = ", and --offline forbids to fetch it" if offline else ""
    return DatasetMissingError(
        f"{constants.ENDPOINT}/datasets/{repo}, looked for in {constants.HF_HUB_CACHE}, {why}{forbidden}; "
        f"put it there with `hf download --repo-type dataset {repo}`"
    )


def _verify(path: Path) -> None:
    if not is_as_published(path):
        blob = path.resolve()
        path.unlink()  # the next run would find it, and not fetch it again
        blob.unlink()
        raise DatasetError(f"{path} differed from what was published, and was removed; run again to fetch it")
