"""A repository of the Hugging Face hub -> a local folder with its files, verified; downloads are `huggingface_hub`'s.

Files are kept where Hugging Face's own libraries keep them (`HF_HOME`, by default `~/.cache/huggingface`), so that
what transformers or open_clip have fetched is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from probe.errors import ChecksumError, DownloadError, UnknownNameError
from probe.fetch import file_sha256

CARD = "README.md"
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_name(repo: str) -> None:
    """See that a text can be the name of a repository.

    Raises:
        UnknownNameError: it cannot.
    """
    if not NAME.fullmatch(repo):
        raise UnknownNameError(f"{repo!r} is no repository of the Hugging Face hub; write it as ORG/NAME")


def fetch_repository(repo: str, patterns: Sequence[str], *, offline: bool = False) -> Path:
    """Return the folder with those files of a repository that fit `patterns`; those that are there are not fetched.

    Raises:
        UnknownNameError: no such repository, or not for the public.
        DownloadError: the network failed, the disk is full, or `offline` forbids the download.
        ChecksumError: a file differs from what the hub published.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(patterns), local_files_only=offline))
    except GatedRepoError as err:
        raise UnknownNameError(
            f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo} and log in with `hf auth login`"
        ) from err
    except RepositoryNotFoundError as err:
        raise UnknownNameError(f"no repository {repo!r} at {constants.ENDPOINT}; check the name") from err
    except LocalEntryNotFoundError as err:
        why = "--offline forbids to fetch it" if offline else f"it could not be fetched ({err.__cause__ or err})"
        raise DownloadError(
            f"{constants.ENDPOINT}/{repo} is not in {constants.HF_HUB_CACHE}, and {why}; "
            f"put it there with `hf download {repo}`"
        ) from err
    except (HfHubHTTPError, OSError) as err:
        raise DownloadError(f"could not fetch {constants.ENDPOINT}/{repo} ({err}); run again to resume") from err
    for path in sorted(folder.rglob("*")):
        _verify(path)
    return folder


def holds(repo: str, files: Sequence[str]) -> bool:
    """Whether one of these files of a repository has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def read_license(folder: Path) -> str:
    """The licence that a model card names in its front matter; empty where it names none.

    A card may call it `other` and give the name beside.
    """
    from huggingface_hub import metadata_load

    card = folder / CARD
    metadata = (metadata_load(card) if card.is_file() else None) or {}
    named = metadata.get("license")
    return str(metadata.get("license_name", named) if named == "other" else named or "")


def _verify(path: Path) -> None:
    """Large files are links to blobs whose names are their SHA-256; those of small files are Git's, not a SHA-256."""
    blob = path.resolve()
    if path.is_symlink() and SHA256.fullmatch(blob.name) and file_sha256(blob) != blob.name:
        raise ChecksumError(f"{path} differs from what was published; delete {blob} and run again")
