"""A repository of the Hugging Face hub -> a local folder with its files, verified; downloads are `huggingface_hub`'s.

Files are kept where Hugging Face's own libraries keep them (`HF_HOME`, by default `~/.cache/huggingface`), so that
what transformers or open_clip have fetched is used.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

from probe.errors import CheckpointError, ChecksumError, DownloadError, ProbeError, UnknownNameError
from probe.hub import LOG_IN, check_home, is_as_published, is_refused, is_repository, one_line, refused

logger = logging.getLogger(__name__)

CARD = "README.md"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face's libraries; the first carries no code


def check_name(repo: str) -> None:
    """See that a text can be the name of a repository.

    Raises:
        UnknownNameError: it cannot.
    """
    if not is_repository(repo):
        raise UnknownNameError(f"{repo!r} is no repository of the Hugging Face hub; write it as ORG/NAME")


def fetch_repository(
    repo: str, choices: Sequence[Sequence[str]], also: Sequence[str] = (), *, offline: bool = False
) -> Path:
    """Return the folder with some files of a repository; those that are there are not fetched.

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
        folder = _fetch(repo, [*patterns, *also], offline=offline)
        found = sorted({path for pattern in [*patterns, *also] for path in folder.glob(pattern)})
        if any(path.match(pattern) for path in found for pattern in patterns):
            for path in found:
                _verify(path)
            return folder
    files = " or ".join(pattern for patterns in choices for pattern in patterns)
    if offline:
        raise _not_here(repo, f"has no {files} there, and --offline forbids to fetch it")
    raise CheckpointError(f"the repository {repo} holds no {files}; give another one")


def holds(repo: str, files: Sequence[str]) -> bool:
    """Whether one of these files of a repository has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def read_license(folder: Path) -> str:
    """The licence that a model card names in its front matter; empty where it names none.

    A card may call it `other` and give the name beside.
    """
    import yaml
    from huggingface_hub import metadata_load

    card = folder / CARD
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError) as err:  # a card is no reason to refuse weights
        logger.warning("%s names no licence that can be read (%s)", card, one_line(err))
        return ""
    named = metadata.get("license") or ""
    if named == "other":
        named = metadata.get("license_name") or named
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def _fetch(repo: str, patterns: Sequence[str], *, offline: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    check_home(constants.HF_HUB_CACHE)
    address = f"{constants.ENDPOINT}/{repo}"
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), local_files_only=offline))
    except GatedRepoError as err:
        raise UnknownNameError(f"{repo} is gated; accept its terms at {address} and {LOG_IN}") from err
    except RepositoryNotFoundError as err:
        raise UnknownNameError(
            f"no repository {repo!r} at {constants.ENDPOINT}; check the name; if the repository is private, {LOG_IN}"
        ) from err
    except LocalEntryNotFoundError as err:
        if is_refused(err.__cause__):
            raise DownloadError(refused(address)) from err
        why = (
            "--offline forbids to fetch it"
            if offline
            else f"it could not be fetched ({one_line(err.__cause__ or err)})"
        )
        raise _not_here(repo, f"is not there, and {why}") from err
    except Exception as err:  # which library speaks HTTP, and so what it raises, differs between versions of the client
        if is_refused(err):
            raise DownloadError(refused(address)) from err
        if getattr(err, "errno", None) == errno.ENOSPC:
            raise DownloadError(f"no space left for {address}; make room and run again, which resumes") from err
        raise DownloadError(f"could not fetch {address} ({one_line(err)}); run again to resume") from err


def _not_here(repo: str, why: str) -> ProbeError:
    from huggingface_hub import constants

    return DownloadError(
        f"{constants.ENDPOINT}/{repo}, looked for in {constants.HF_HUB_CACHE}, {why}; "
        f"put it there with `hf download {repo}`"
    )


def _verify(path: Path) -> None:
    if not is_as_published(path):
        raise ChecksumError(f"{path} differs from what was published; delete {path.resolve()} and run again")
