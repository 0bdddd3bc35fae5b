"""The client of the Hugging Face hub, for models and datasets: look up a repository, download its files, verify them.

Downloads are `huggingface_hub`'s, and files are cached where Hugging Face's own libraries cache them (`HF_HOME`, by
default `~/.cache/huggingface`), so that what transformers, datasets or open_clip have downloaded is used. No code of a
repository is ever run. What the files mean is not known here.
"""

from __future__ import annotations

import errno
import fnmatch
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from probe.errors import (
    CheckpointError,
    ChecksumError,
    DatasetError,
    DatasetMissingError,
    DownloadError,
    FolderError,
    ProbeError,
    UnknownNameError,
    summarize,
)
from probe.fetch import file_sha256

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]  # of a repository, as the hub has them

CARD = "README.md"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face's libraries; the first carries no code
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
SERIES = re.compile(r"(.*-)\d{5}(-of-(\d{5}).*)")  # how `datasets` names the files of a split
BLOB_SHA256 = re.compile(r"[0-9a-f]{64}")

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


def is_repository(name: str) -> bool:
    """Return True if a text can be the name of a repository, `ORG/NAME`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # imported there for all to use

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_repository(name: str) -> None:
    """Check that a text can be the name of a repository.

    Raises:
        UnknownNameError: it cannot.
    """
    if not is_repository(name):
        raise UnknownNameError(f"{name!r} is no repository of the Hugging Face hub; write it as ORG/NAME")


def check_home(folder: str) -> None:
    """Check that the home folder of Hugging Face's cache exists. Otherwise the libraries make a folder called `~`.

    Raises:
        FolderError: this process has no home folder.
    """
    if folder.startswith("~"):
        raise FolderError(f"there is no home folder for {folder}; name another folder with HF_HOME, or set HOME")


def has_cached_file(repo: str, files: Sequence[str]) -> bool:
    """Return True if one of these files of a model's repository has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def has_cached_data(repo: str, revision: str) -> bool:
    """Return True if data of a dataset's repository has been downloaded before, perhaps in part."""
    from huggingface_hub import constants

    commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else "*"
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
    return any(path.name not in (CARD, ".gitattributes") for path in folder.glob(f"{commit}/*"))


def fetch_repository(
    repo: str, choices: Sequence[Sequence[str]], also: Sequence[str] = (), *, offline: bool = False
) -> Path:
    """Return the folder with some files of a model's repository; cached files are not downloaded.

    Args:
        repo: `ORG/NAME`.
        choices: groups of patterns; the first group that the repository has files of is taken.
        also: patterns of files that come along if they are there.
        offline: never touch the network.

    Raises:
        UnknownNameError: no such repository, or not for the public.
        CheckpointError: it has files of no group.
        DownloadError: the network failed, the disk is full, or `offline` forbids the download.
        ChecksumError: a file differs from what the hub published.
    """
    for patterns in choices:
        folder = _download(repo, [*patterns, *also], kind="model", offline=offline)
        found = sorted({path for pattern in [*patterns, *also] for path in folder.glob(pattern)})
        if any(path.match(pattern) for path in found for pattern in patterns):
            for path in found:
                _verify(path, ChecksumError, offline=offline)
            return folder
    files = " or ".join(pattern for patterns in choices for pattern in patterns)
    if offline:
        raise _not_here(repo, f"has no {files} there", kind="model", offline=True)
    raise CheckpointError(f"the repository {repo} holds no {files}; give another one")


def read_license(folder: Path) -> str:
    """Return the licence that a model card names in its front matter; empty if it names none.

    A card may call it `other` and give the name beside.
    """
    import yaml
    from huggingface_hub import metadata_load

    card = folder / CARD
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError) as err:  # a card is no reason to refuse weights
        logger.warning("%s names no licence that can be read (%s)", card, summarize(err))
        return ""
    named = metadata.get("license") or ""
    if named == "other":
        named = metadata.get("license_name") or named
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def try_offline_first(open_it: Callable[[bool], _T], *, offline: bool) -> _T:
    """Call `open_it(True)`, which uses cached files only; if files are missing, call `open_it(False)`.

    So all subsets of a dataset are of one commit, and a cached dataset needs no network. With `offline` there is no
    second call.
    """
    try:
        return open_it(True)
    except DatasetMissingError:
        if offline:
            raise
    return open_it(False)


def look_up(repo: str, *, revision: str = "", offline: bool) -> Snapshot:
    """Return the files that a dataset's repository holds, after downloading its card.

    Raises:
        DatasetMissingError: it is not here, and cannot be reached or may not be.
    """
    # The client warns where nothing matches; not every repository has a card, but all have the other file.
    patterns = [CARD] if offline else [CARD, ".gitattributes"]
    folder = _download(repo, patterns, kind="dataset", revision=revision, offline=offline)
    files = _known_files(repo, folder.name)
    if files is None and not offline:
        files = _ask(repo, lambda: _list_files(repo, folder.name), kind="dataset", offline=offline)
    if files is not None:
        return Snapshot(repo, folder, files, is_known=True)
    here = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Snapshot(repo, folder, here, is_known=False)


def match_files(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match a pattern; `*` stands for anything, also slashes, as in `fetch_files`."""
    return [file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)]


def fetch_files(snapshot: Snapshot, patterns: Sequence[str], *, offline: bool) -> Path:
    """Return the folder of a dataset's repository with all files that match a pattern; cached files are not downloaded.

    Raises:
        DatasetMissingError: files are missing, and cannot be downloaded or may not be.
        DatasetError: a file differs from what the hub published.
    """
    wanted = match_files(snapshot.files, patterns)
    if not snapshot.is_known and not _looks_whole(wanted):
        raise _not_here(snapshot.repo, "is there in part only", kind="dataset", offline=offline)
    commit = snapshot.folder.name
    folder = _download(snapshot.repo, [CARD, *patterns], kind="dataset", revision=commit, offline=offline)
    absent = [file for file in wanted if not (folder / file).is_file()]
    if absent:
        raise _not_here(snapshot.repo, f"is there without {absent[0]}", kind="dataset", offline=offline)
    if not offline:
        for file in wanted:
            _verify(folder / file, DatasetError, offline=False)
    return folder


def _looks_whole(files: Sequence[str]) -> bool:
    """Return True if no file is missing, as far as names tell where no list of the files is known."""
    series: dict[tuple[str, str], int] = {}
    for match in filter(None, map(SERIES.fullmatch, files)):
        series[match[1], match[2]] = series.get((match[1], match[2]), 0) + 1
    return bool(files) and all(count == int(end[4:9]) for (_, end), count in series.items())


def _known_files(repo: str, commit: str) -> list[str] | None:
    """Return the files of a commit from the client's cache, or None; clients before 1.24 cache no list."""
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


def _download(repo: str, patterns: Sequence[str], *, kind: Kind, revision: str = "", offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(
            repo,
            repo_type=kind,
            revision=revision or None,
            allow_patterns=list(patterns),
            local_files_only=offline,
            tqdm_class=_Bar,
        )

    return Path(_ask(repo, download, kind=kind, revision=revision, offline=offline))


def _ask(repo: str, call: Callable[[], _T], *, kind: Kind, revision: str = "", offline: bool) -> _T:
    """Return what the client of the hub answers; its errors become ours, in one line.

    Raises:
        UnknownNameError: the hub has no such model for this user.
        DownloadError: a model could not be downloaded.
        DatasetMissingError: both of these, for a dataset, so that its next source is tried.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    check_home(constants.HF_HUB_CACHE)
    address = _address(repo, kind)
    unknown, failed = (UnknownNameError, DownloadError) if kind == "model" else (DatasetMissingError,) * 2
    try:
        return call()
    except GatedRepoError as err:
        raise unknown(f"{repo} is gated; accept its terms at {address} and {LOG_IN}") from err
    except RepositoryNotFoundError as err:
        noun = "dataset" if kind == "dataset" else "repository"
        raise unknown(
            f"no {noun} {repo!r} at {constants.ENDPOINT}; check the name; if the {noun} is private, {LOG_IN}"
        ) from err
    except RevisionNotFoundError as err:
        raise failed(
            f"{address} has no revision {revision!r}; give a branch, a tag or a commit, or leave the revision out"
        ) from err
    except LocalEntryNotFoundError as err:
        if is_refused(err.__cause__):
            raise failed(explain_refusal(address)) from err
        reason = "" if offline else f", and could not be fetched ({summarize(err.__cause__ or err)})"
        raise _not_here(repo, f"is not there{reason}", kind=kind, offline=offline) from err
    except Exception as err:  # which library speaks HTTP, and so what it raises, differs between versions of the client
        if is_refused(err):
            raise failed(explain_refusal(address)) from err
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise failed(f"no space left for {address}; make room and run again, which resumes") from err
        raise failed(f"could not fetch {address} ({summarize(err)}); run again to resume") from err


def is_refused(err: BaseException | None) -> bool:
    """Return True if the hub answered HTTP 401 or 403: no user is logged in, or the user may not read the data."""
    return getattr(getattr(err, "response", None), "status_code", None) in (401, 403)


def explain_refusal(address: str) -> str:
    """Return the message for a repository that the hub does not give to this user."""
    return f"the hub refuses access to {address}; {LOG_IN}, as a user who may read it and has accepted its terms"


def _address(repo: str, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def _not_here(repo: str, reason: str, *, kind: Kind, offline: bool) -> ProbeError:
    from huggingface_hub import constants

    forbidden = ", and --offline forbids to fetch it" if offline else ""
    option = "--repo-type dataset " if kind == "dataset" else ""
    error = DownloadError if kind == "model" else DatasetMissingError
    return error(
        f"{_address(repo, kind)}, looked for in {constants.HF_HUB_CACHE}, {reason}{forbidden}; "
        f"put it there with `hf download {option}{repo}`"
    )


def _verify(path: Path, error: type[ProbeError], *, offline: bool) -> None:
    """Compare a file with the SHA-256 that the hub published. A damaged file that can be downloaded again is removed.

    Large files of the cache are links to blobs whose names are their SHA-256; those of small files are Git's.
    """
    blob = path.resolve()
    if not path.is_symlink() or not BLOB_SHA256.fullmatch(blob.name) or file_sha256(blob) == blob.name:
        return
    if offline:
        raise error(f"{path} differs from what was published; delete {blob} and run again")
    path.unlink()  # the next run would find it, and not fetch it again
    blob.unlink()
    raise error(f"{path} differed from what was published, and was removed; run again to fetch it")
