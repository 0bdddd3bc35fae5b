"""Lists of images as makers of datasets write them: text files, a line an image."""

from __future__ import annotations

from pathlib import Path

from probe.errors import DatasetError
from probe.specs import Source


def read_lines(path: Path, source: Source) -> list[str]:
    """The lines of a text file without their ends; empty ones are passed over.

    Raises:
        DatasetError: it is not there, or is no text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(f"{path} cannot be read ({err}); get {source.files} again") from err
