"""What models and datasets both need of the Hugging Face hub: names of repositories, files as published, errors."""

from __future__ import annotations

import re
from pathlib import Path

from probe.errors import FolderError, summarize
from probe.fetch import file_sha256

SHA256 = re.compile(r"[0-9a-f]{64}")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_repository(name: str) -> bool:
    """Whether a text can be the name of a repository, `ORG/NAME`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # imported there for all to use

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_home(folder: str) -> None:
    """Check that the home folder of Hugging Face's cache exists. Otherwise the libraries make a folder called `~`.

    Raises:
        FolderError: this process has no home folder.
    """
    if folder.startswith("~"):
        raise FolderError(f"there is no home folder for {folder}; name another folder with HF_HOME, or set HOME")


def is_as_published(path: Path) -> bool:
    """Whether a file of the hub's cache has its SHA-256, as far as the cache tells.

    Large files are links to blobs whose names are their SHA-256; those of small files are Git's, not a SHA-256.
    """
    blob = path.resolve()
    return not path.is_symlink() or not SHA256.fullmatch(blob.name) or file_sha256(blob) == blob.name


def one_line(err: BaseException) -> str:
    """What an error says, without line breaks; its type where it says nothing."""
    return summarize(err)


def is_refused(err: BaseException | None) -> bool:
    """Return True if the hub answered HTTP 401 or 403: no user is logged in, or the user may not read the data."""
    return getattr(getattr(err, "response", None), "status_code", None) in (401, 403)


def refused(address: str) -> str:
    """Return the message for a repository that the hub does not give to this user."""
    return f"the hub refuses access to {address}; {LOG_IN}, as a user who may read it and has accepted its terms"
