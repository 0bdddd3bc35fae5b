"""Exceptions that this package raises, and functions that shorten their messages.

    ProbeError
    |-- UnknownNameError (KeyError, RuntimeError)  a name that is in no catalogue
    |-- DatasetError (ValueError)                  a dataset that is damaged or differs from its entry
    |   `-- DatasetMissingError (FileNotFoundError)
    |-- CheckpointError (ValueError, RuntimeError) a file that is not a checkpoint, or is damaged
    |   `-- CheckpointMissingError (FileNotFoundError)
    |-- TextError (ValueError, RuntimeError)       a text that does not fit a model's context or vocabulary
    |-- ExtraMissingError (ImportError)            an optional library that is not installed
    |-- DownloadError (OSError)                    a download that failed, or that --offline forbids
    |   `-- ChecksumError (RuntimeError)
    |-- DeviceError (RuntimeError)                 a device or precision that this machine does not have
    |-- PromptsError (ValueError)                  class names or templates that cannot be used
    |-- FeaturesError (ValueError)                 features that cannot be used
    |   `-- IncompleteError                        features with missing shards
    |-- ProtocolError (ValueError)                 a probe that cannot be fitted by its protocol
    |-- HeadError (ValueError)                     a head that cannot be read, or does not fit its encoder
    |   `-- HeadMissingError (FileNotFoundError)
    |-- CacheError (OSError)                       a cache folder that cannot be written to
    |-- ResultsError (OSError)                     a results folder or record that cannot be read or written
    |-- FolderError (OSError)                      a folder that is a file, or is below a home folder that is missing
    |-- TrackerError (RuntimeError)                an experiment tracker that is not set up
    `-- ExecutorError (RuntimeError)               workers that are not available, or fail repeatedly

Each message says what is wrong and what to do. The command line prints it, and exits with 2 for
unknown names, missing files and prompts that cannot be used, else with 1.
"""

from __future__ import annotations

import re
from collections import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_MESSAGE = 500  # characters; longer messages bury what is wrong and what to do
MAX_WORD = 120  # characters of a word, such as a path, in a message that is too long
MAX_REASON = 200  # characters of the message of another library
MAX_ITEM = 40  # characters of a list item
# Control characters, line separators, marks of direction, surrogates, and characters that XML does not allow.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class ProbeError(Exception):
    """Base of all exceptions of this package."""

    def __str__(self) -> str:
        """Return the message as `brief` shortens it, without the quotes that `KeyError` would add."""
        return brief(" ".join(str(arg) for arg in self.args))


class UnknownNameError(ProbeError, KeyError, RuntimeError):
    """A dataset, model, protocol or metric that is in no catalogue. OpenAI's `clip.load` raises `RuntimeError` here."""


class DatasetError(ProbeError, ValueError):
    """A dataset that is damaged or differs from its entry in the catalogue."""


class DatasetMissingError(DatasetError, FileNotFoundError):
    """A dataset whose files are missing and could not be downloaded."""


class CheckpointError(ProbeError, ValueError, RuntimeError):
    """A file that is not a checkpoint of the model, or is damaged. OpenAI's `clip.load` raises `RuntimeError` here."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist at the given path."""


class TextError(ProbeError, ValueError, RuntimeError):
    """A text that does not fit a model's context or vocabulary. OpenAI's package raises `RuntimeError` here."""


class ExtraMissingError(ProbeError, ImportError):
    """An optional library that is not installed; the message names the extra."""


class DownloadError(ProbeError, OSError):
    """A download that failed, or that `offline` forbids."""


class ChecksumError(DownloadError, RuntimeError):
    """A file whose SHA-256 is not the published one. OpenAI's `clip.load` raises `RuntimeError` here."""


class DeviceError(ProbeError, RuntimeError):
    """A device or precision that this machine does not have."""


class FeaturesError(ProbeError, ValueError):
    """Features that cannot be used, because they are not finite or lack the feature point."""


class IncompleteError(FeaturesError):
    """Features with missing shards. The message says how many chunks are cached."""


class ProtocolError(ProbeError, ValueError):
    """A probe that cannot be fitted by its protocol."""


class PromptsError(ProbeError, ValueError):
    """Class names or templates from which no zero-shot prompts can be made."""


class HeadError(ProbeError, ValueError):
    """A head that cannot be read, or that does not fit an encoder or its features."""


class HeadMissingError(HeadError, FileNotFoundError):
    """A file of a head that does not exist."""


class CacheError(ProbeError, OSError):
    """A cache folder that cannot be written to. Its earlier entries stay valid."""


class ResultsError(ProbeError, OSError):
    """A results folder or record that cannot be read or written."""


class FolderError(ProbeError, OSError):
    """A folder that is a file, or a path below the home folder of a user without a home folder."""


class TrackerError(ProbeError, RuntimeError):
    """An experiment tracker that is not set up, or that needs the network although `offline` forbids it."""


class ExecutorError(ProbeError, RuntimeError):
    """Workers that are not available, or fail repeatedly."""


def printable(text: str) -> str:
    r"""Return the text with escapes for characters that control a terminal or that tables, SVG or UTF-8 cannot hold.

    These are control characters (including line breaks and the start of terminal escape sequences), characters that
    change the direction of text, and surrogates, which Python uses for file names that are not UTF-8.

    >>> print(printable("a\nb \x1b[31m caf\udce9"))
    a\nb \x1b[31m caf\udce9
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def brief(text: str) -> str:
    """Return the text as a message: printable, in one line, at most `MAX_MESSAGE` characters.

    In a longer text, long words are cut first, so that a file name does not displace the advice on what to do.
    """
    text = printable(text)
    if len(text) > MAX_MESSAGE:
        text = re.sub(rf"\S{{{MAX_WORD},}}", lambda word: shorten(word[0], MAX_WORD), text)
    return shorten(text, MAX_MESSAGE)


def summarize(error: BaseException) -> str:
    r"""Return the message of another library's exception in one line, or the exception's type if it has no message.

    >>> summarize(ValueError("two\nlines"))
    'two lines'
    """
    return shorten(printable(" ".join(str(error).split())), MAX_REASON) or type(error).__name__


def shorten(text: str, length: int) -> str:
    """Return the text; if it is longer than `length` characters, cut its middle.

    The start of a message says what is wrong and the end says what to do. The end of a path is its file name.

    >>> shorten("a long sentence about a long file name", 24)
    'a long se ... file name'
    """
    if len(text) <= length:
        return text
    gap = " ... "
    start = (length - len(gap)) // 2
    return text[:start].rstrip() + gap + text[len(text) - (length - len(gap) - start) :].lstrip()


def listed(items: Iterable[object], *, most: int = 8) -> str:
    """Return at most `most` items as text, and the number of the omitted items.

    >>> listed(["train", "test"])
    'train, test'
    >>> listed(range(5000), most=3)
    '0, 1, 2 and 4,997 more'
    """
    known = items if isinstance(items, abc.Collection) else list(items)
    texts = ", ".join(shorten(printable(str(item)), MAX_ITEM) for _, item in zip(range(most), known, strict=False))
    return texts if len(known) <= most else f"{texts} and {len(known) - most:,} more"


def joined(texts: Sequence[str], word: str) -> str:
    """Return texts as a list in a sentence, with a word before the last text.

    >>> joined(["a", "b", "c"], "or")
    'a, b or c'
    """
    *first, last = texts
    return f"{', '.join(first)} {word} {last}" if first else last


def sentence(kind: str, message: str) -> str:
    """Return the message of a failure in a record, with the type if the exception is from another library.

    Without its type, the message of a `KeyError` would be only a key.

    Args:
        kind: type of the exception.
        message: message of the exception.
    """
    is_ours = isinstance(globals().get(kind), type)
    return brief(message if is_ours else f"{kind}: {message}")
