"""Lists of images in text files, one image per line."""

from __future__ import annotations

from pathlib import Path

from probe.errors import DatasetError
from probe.specs import Source


def read_lines(path: Path, source: Source) -> list[str]:
    """Return the lines of a text file without line ends; empty lines are skipped.

    Raises:
        DatasetError: the file is missing, or is not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(f"{path} cannot be read ({err}); get {source.files} again") from err
