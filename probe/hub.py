"""Client of the Hugging Face hub for models and datasets: look up a repository, download its files and verify them.

`huggingface_hub` downloads the files into the cache of Hugging Face's libraries (`HF_HOME`, by default
`~/.cache/huggingface`). Files that transformers, datasets or open_clip have downloaded are therefore used, too. No code
of a repository is ever run. This module does not interpret the files.
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

Kind = Literal["model", "dataset"]  # kinds of repositories on the hub

CARD = "README.md"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # safetensors first: it cannot contain code
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
SERIES = re.compile(r"(.*-)\d{5}(-of-(\d{5}).*)")  # names that the library `datasets` gives to the files of a split
BLOB_SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Args:
        repo: `ORG/NAME`.
        folder: folder of the downloaded files; its name is the commit.
        files: paths of the files in the repository.
        is_known: True if `files` are all files of the commit; False if they are only the downloaded files.
    """

    repo: str
    folder: Path
    files: Sequence[str]
    is_known: bool


def is_repository(name: str) -> bool:
    """Return True if a text can be the name of a repository, `ORG/NAME`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # re-exported there

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_repository(name: str) -> None:
    """Check that a text can be the name of a repository.

    Raises:
        UnknownNameError: the text does not have the form `ORG/NAME`.
    """
    if not is_repository(name):
        raise UnknownNameError(
            f"{name!r} is not the name of a repository of the Hugging Face hub; write it as ORG/NAME"
        )


def check_home(folder: str) -> None:
    """Check that the `~` in the path of Hugging Face's cache was expanded.

    Otherwise Hugging Face's libraries would create a folder called `~`.

    Raises:
        FolderError: this process has no home folder.
    """
    if folder.startswith("~"):
        raise FolderError(f"cannot find the home folder in {folder}; set HF_HOME to another folder, or set HOME")


def has_cached_file(repo: str, files: Sequence[str]) -> bool:
    """Return True if one of these files of a model's repository is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def cached_models(file: str) -> dict[str, Path]:
    """Return the models' repositories in the cache that contain a file, by name, with the path of this file."""
    from huggingface_hub import constants

    found = sorted(Path(constants.HF_HUB_CACHE).glob(f"models--*--*/snapshots/*/{file}"))
    return {path.parents[2].name.removeprefix("models--").replace("--", "/"): path for path in found}


def has_cached_data(repo: str, revision: str) -> bool:
    """Return True if at least a part of the data of a dataset's repository is in the cache."""
    from huggingface_hub import constants

    commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else "*"
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
    return any(path.name not in (CARD, ".gitattributes") for path in folder.glob(f"{commit}/*"))


def fetch_repository(
    repo: str, choices: Sequence[Sequence[str]], also: Sequence[str] = (), *, offline: bool = False
) -> Path:
    """Return the folder with some files of a model's repository. Only files that are not cached are downloaded.

    Args:
        repo: `ORG/NAME`.
        choices: groups of patterns of file names. The first group that matches a file of the repository is used.
        also: patterns of optional files, which are downloaded if they exist.
        offline: never use the network.

    Raises:
        UnknownNameError: the repository does not exist, or this user may not read it.
        CheckpointError: no group of patterns matches a file of the repository.
        DownloadError: the network failed, the disk is full, or `offline` forbids the download.
        ChecksumError: a file differs from what the hub published.
    """
    for patterns in choices:
        folder = _download_snapshot(repo, [*patterns, *also], kind="model", offline=offline)
        paths = sorted({path for pattern in [*patterns, *also] for path in folder.glob(pattern)})
        if any(path.match(pattern) for path in paths for pattern in patterns):
            for path in paths:
                _verify(path, ChecksumError, offline=offline)
            return folder
    files = " or ".join(pattern for patterns in choices for pattern in patterns)
    if offline:
        raise _not_here(repo, f"without {files}", kind="model", offline=True)
    raise CheckpointError(f"the repository {repo} contains no {files}; give another repository")


def read_license(folder: Path) -> str:
    """Return the licence that the front matter of a model card names; empty if the card names none.

    If a card gives the licence `other`, the name is in `license_name`.
    """
    import yaml
    from huggingface_hub import metadata_load

    card = folder / CARD
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError) as err:  # a damaged card must not prevent loading the weights
        logger.warning("cannot read the licence in %s (%s); the licence is recorded as unknown", card, summarize(err))
        return ""
    named = metadata.get("license") or ""
    if named == "other":
        named = metadata.get("license_name") or named
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def try_offline_first(open_it: Callable[[bool], _T], *, offline: bool) -> _T:
    """Call `open_it(True)`, which uses only cached files. If files are missing, call `open_it(False)`.

    All subsets of a dataset then have the same commit, and a cached dataset needs no network. With `offline`, the
    second call is omitted.
    """
    try:
        return open_it(True)
    except DatasetMissingError:
        if offline:
            raise
    return open_it(False)


def look_up(repo: str, *, revision: str = "", offline: bool) -> Snapshot:
    """Return a dataset's repository with the list of its files, after downloading its card.

    Raises:
        DatasetMissingError: the repository is not cached, and cannot be reached or `offline` forbids it.
    """
    # The client warns if no file matches. Not every repository has a card, but every repository has .gitattributes.
    patterns = [CARD] if offline else [CARD, ".gitattributes"]
    folder = _download_snapshot(repo, patterns, kind="dataset", revision=revision, offline=offline)
    files = _known_files(repo, folder.name)
    if files is None and not offline:
        files = _call_client(repo, lambda: _list_files(repo, folder.name), kind="dataset", offline=offline)
    if files is not None:
        return Snapshot(repo, folder, files, is_known=True)
    cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Snapshot(repo, folder, cached, is_known=False)


def match_files(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the files that match a pattern. `*` also matches slashes, as in `fetch_files`."""
    return [file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)]


def fetch_files(snapshot: Snapshot, patterns: Sequence[str], *, offline: bool) -> Path:
    """Download the files of a dataset's repository that match a pattern and are not cached; return their folder.

    Raises:
        DatasetMissingError: files are missing, and cannot be downloaded or `offline` forbids it.
        DatasetError: a file differs from what the hub published.
    """
    wanted = match_files(snapshot.files, patterns)
    if not snapshot.is_known and not _looks_complete(wanted):
        raise _not_here(snapshot.repo, "only in part", kind="dataset", offline=offline)
    commit = snapshot.folder.name
    folder = _download_snapshot(snapshot.repo, [CARD, *patterns], kind="dataset", revision=commit, offline=offline)
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise _not_here(snapshot.repo, f"without {missing[0]}", kind="dataset", offline=offline)
    if not offline:
        for file in wanted:
            _verify(folder / file, DatasetError, offline=False)
    return folder


def _looks_complete(files: Sequence[str]) -> bool:
    """Return True if no number is missing in file names such as `train-00001-of-00003`."""
    series: dict[tuple[str, str], int] = {}
    for match in filter(None, map(SERIES.fullmatch, files)):
        series[match[1], match[2]] = series.get((match[1], match[2]), 0) + 1
    return bool(files) and all(count == int(end[4:9]) for (_, end), count in series.items())


def _known_files(repo: str, commit: str) -> list[str] | None:
    """Return the files of a commit from the client's cache, or None. Clients before version 1.24 cache no list."""
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
    """A progress bar that is shown only on a terminal."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"disable": None, **settings})


def _download_snapshot(repo: str, patterns: Sequence[str], *, kind: Kind, revision: str = "", offline: bool) -> Path:
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

    return Path(_call_client(repo, download, kind=kind, revision=revision, offline=offline))


def _call_client(repo: str, call: Callable[[], _T], *, kind: Kind, revision: str = "", offline: bool) -> _T:
    """Return the result of a call of the hub's client. Replace the client's errors by one-line errors of this package.

    Raises:
        UnknownNameError: a model does not exist, or this user may not read it.
        DownloadError: a model could not be downloaded.
        DatasetMissingError: a dataset does not exist, or could not be read or downloaded. The next source is tried
            then.
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
        reason = "" if offline else f"the download failed ({summarize(err.__cause__ or err)})"
        raise _not_here(repo, "", kind=kind, offline=offline, reason=reason) from err
    except Exception as err:  # the HTTP library and its exceptions differ between versions of the client
        if is_refused(err):
            raise failed(explain_refusal(address)) from err
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise failed(
                f"no space left on the disk for {address}; free some space and run again to resume the download"
            ) from err
        raise failed(f"could not download {address} ({summarize(err)}); run again to resume the download") from err


def is_refused(err: BaseException | None) -> bool:
    """Return True if the hub answered HTTP 401 or 403: no user is logged in, or the user may not read the data."""
    return getattr(getattr(err, "response", None), "status_code", None) in (401, 403)


def explain_refusal(address: str) -> str:
    """Return the message for a repository that this user may not read."""
    return f"the hub refuses access to {address}; {LOG_IN}, with an account that may read it and has accepted its terms"


def _address(repo: str, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def _not_here(repo: str, state: str, *, kind: Kind, offline: bool, reason: str = "") -> ProbeError:
    """Return the error for a repository whose files are not all cached.

    `state` says what is cached, such as `only in part`; it is empty if nothing is cached.
    """
    from huggingface_hub import constants

    reason = "--offline forbids the download" if offline else reason
    option = "--repo-type dataset " if kind == "dataset" else ""
    error = DownloadError if kind == "model" else DatasetMissingError
    return error(
        f"{_address(repo, kind)} is {f'cached {state}' if state else 'not cached'} in {constants.HF_HUB_CACHE}"
        f"{f', and {reason}' if reason else ''}; download it with `hf download {option}{repo}`"
    )


def _verify(path: Path, error: type[ProbeError], *, offline: bool) -> None:
    """Compare a file with the SHA-256 that the hub published. Remove a damaged file if it can be downloaded again.

    Large files in the cache are links to blobs. The name of such a blob is the SHA-256 of the file. Small files are not
    verified, because the names of their blobs are Git's hashes.
    """
    blob = path.resolve()
    if not path.is_symlink() or not BLOB_SHA256.fullmatch(blob.name) or file_sha256(blob) == blob.name:
        return
    if offline:
        raise error(f"{path} differs from the published file; delete {blob} and run again without --offline")
    path.unlink()  # otherwise the next run would use the file
    blob.unlink()
    raise error(f"{path} differed from the published file and was deleted; run again to download it")
