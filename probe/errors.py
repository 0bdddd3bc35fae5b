"""Every error this package raises on purpose.

    ProbeError
    |-- UnknownNameError (KeyError, RuntimeError)  a name no catalogue has
    |-- DatasetError (ValueError)                  a dataset that is there but not as it should be
    |   `-- DatasetMissingError (FileNotFoundError)
    |-- CheckpointError (ValueError, RuntimeError) a file that is no CLIP checkpoint, or a damaged one
    |   `-- CheckpointMissingError (FileNotFoundError)
    |-- TextError (ValueError, RuntimeError)       a text that does not fit a model's context or vocabulary
    |-- ExtraMissingError (ImportError)            an optional library that is not installed
    |-- DownloadError (OSError)                    a fetch that failed, or that --offline forbids
    |   `-- ChecksumError (RuntimeError)
    |-- DeviceError (RuntimeError)                 a device or precision this machine cannot run
    |-- FeaturesError (ValueError)                 features that cannot be used
    |   `-- IncompleteError                        features of which some shards are not made yet
    |-- ProtocolError (ValueError)                 a probe that cannot be fitted as its protocol says
    |-- CacheError (OSError)                       a folder of features that cannot be written to
    |-- ResultsError (OSError)                     a results folder or record that cannot be read or written
    |-- FolderError (OSError)                      a path below a home folder, where there is no home folder
    `-- ExecutorError (RuntimeError)               workers that cannot be had, or are lost again and again

Each message is one sentence of what is wrong and one of what to do. The command line prints it and exits with 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_MESSAGE = 500  # characters; longer messages bury what is wrong and what to do


class ProbeError(Exception):
    """Base of all errors of this package."""

    def __str__(self) -> str:
        """Return the message, cut to `MAX_MESSAGE` characters and without the quotes that `KeyError` would add."""
        return shorten(" ".join(str(arg) for arg in self.args), MAX_MESSAGE)


class UnknownNameError(ProbeError, KeyError, RuntimeError):
    """A dataset, model, protocol or metric that no catalogue has; `clip.load` raises `RuntimeError` for a model."""


class DatasetError(ProbeError, ValueError):
    """A dataset that is there but not as it should be."""


class DatasetMissingError(DatasetError, FileNotFoundError):
    """A dataset whose files are not here and could not be fetched."""


class CheckpointError(ProbeError, ValueError, RuntimeError):
    """A file that is no CLIP checkpoint, or a damaged one; `clip.load` raises `RuntimeError` for one."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """A checkpoint that is not where it was said to be."""


class TextError(ProbeError, ValueError, RuntimeError):
    """A text that does not fit a model's context or vocabulary; the reference raises `RuntimeError`."""


class ExtraMissingError(ProbeError, ImportError):
    """An optional library that is not installed; the message names the extra."""


class DownloadError(ProbeError, OSError):
    """A fetch that failed, or that `offline` forbids."""


class ChecksumError(DownloadError, RuntimeError):
    """A file whose SHA-256 is not the published one; `clip.load` raises `RuntimeError` for one."""


class DeviceError(ProbeError, RuntimeError):
    """A device or precision that this machine cannot run."""


class FeaturesError(ProbeError, ValueError):
    """Features that cannot be used: not finite, or without the feature point that is asked for."""


class IncompleteError(FeaturesError):
    """Features of which some shards are not made yet; the message says how many pieces there are."""


class ProtocolError(ProbeError, ValueError):
    """A probe that cannot be fitted as its protocol says."""


class CacheError(ProbeError, OSError):
    """A folder of features that cannot be written to; what was kept before stays."""


class ResultsError(ProbeError, OSError):
    """A results folder or record that cannot be read or written."""


class FolderError(ProbeError, OSError):
    """A path below a home folder, where there is no home folder."""


class ExecutorError(ProbeError, RuntimeError):
    """Workers that cannot be had, or are lost again and again."""


def shorten(text: str, length: int) -> str:
    """Return the text, with a gap in its middle if it is longer than `length` characters.

    The start says what is wrong, the end what to do; a path keeps its file name.

    >>> shorten("a long sentence about a long file name", 24)
    'a long se ... file name'
    """
    if len(text) <= length:
        return text
    gap = " ... "
    start = (length - len(gap)) // 2
    return text[:start].rstrip() + gap + text[len(text) - (length - len(gap) - start) :].lstrip()


def listed(items: Iterable[object], *, most: int = 8) -> str:
    """Return the items as text, at most `most` of them, with the number of the others.

    >>> listed(["train", "test"])
    'train, test'
    >>> listed(range(5000), most=3)
    '0, 1, 2 and 4,997 more'
    """
    texts = [shorten(str(item), 60) for item in items]
    others = len(texts) - most
    return ", ".join(texts) if others <= 0 else f"{', '.join(texts[:most])} and {others:,} more"


def sentence(error: Mapping[str, str]) -> str:
    """What a record says of a failure; of an error that is not ours the type too, since `KeyError` says but the key.

    Args:
        error: its `type` and `message`.
    """
    is_ours = isinstance(globals().get(error["type"]), type)
    return error["message"] if is_ours else f"{error['type']}: {error['message']}"
