"""Labels in users' files -> class indices and names of classes, for files that do not describe their classes.

Names are compared in Unicode's composed form (NFC): `é` is the same name written as one character or as two. Names that
differ only in case, or in spaces or dots at their ends, are different classes, and a warning reports them.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from probe.errors import DatasetError, listed

logger = logging.getLogger(__name__)

_L = TypeVar("_L", str, int)


def composed(name: str) -> str:
    """Return a name in NFC, the form in which names are compared."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return a name without case, and without spaces and dots at its ends, which some file systems ignore.

    >>> folded("Cat ") == folded("cat.") == "cat"
    True
    """
    return composed(composed(name).casefold()).strip().rstrip(". ")


def report_twins(where: str, names: Iterable[str]) -> None:
    """Warn about a class that is written in several Unicode forms, and about classes whose names nearly agree."""
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(composed(name), set()).add(name)
    for name, written in forms.items():
        if len(written) > 1:
            shown = listed(map(ascii, sorted(written)))
            logger.warning("%s: the class %r is written in %d Unicode forms, %s", where, name, len(written), shown)
    alike: dict[str, list[str]] = {}
    for name in forms:
        alike.setdefault(folded(name), []).append(name)
    pairs = [" and ".join(map(repr, twins)) for twins in alike.values() if len(twins) > 1]
    if pairs:
        logger.warning(
            "%s: the classes %s differ only in case, or in spaces or dots at their ends", where, listed(pairs)
        )


def class_positions(where: str, found: Iterable[_L], classes: Sequence[_L]) -> dict[_L, int]:
    """Return label -> its index among the classes of the training images, for all labels that occur.

    Raises:
        DatasetError: a label is not among the classes; the message names the class that was probably meant.
    """
    position = {label: i for i, label in enumerate(classes)}
    strange = [label for label in dict.fromkeys(found) if label not in position]
    if strange:
        refuse_twins(where, strange, classes)
        raise DatasetError(
            f"{where}: class {listed(map(repr, strange), most=3)} is not among the classes of the training images; "
            "drop these images, or add the class there"
        )
    return position


def refuse_twins(where: str, strange: Iterable[object], trained: Iterable[object]) -> None:
    """Raise if a class without training images is written nearly as a class with training images.

    Raises:
        DatasetError: the message has both names.
    """
    known = {folded(str(name)): name for name in trained}
    for name in strange:
        near = known.get(folded(str(name)), name)
        if near != name:
            raise DatasetError(f"{where}: class {name!r} is written {near!r} in the training images; use one spelling")


def whole_as_integer(label: object) -> object:
    """Return a float with a whole value, such as 1.0, as an integer; return anything else unchanged."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def indicators(lists: Sequence[Sequence[object]]) -> np.ndarray | None:
    """Return lists of 0 and 1, all of the same length k >= 2, as int64 (n, k); None for any other lists.

    Entry c of such a list says whether the image shows class c. Lists of class indices never look like this: a list
    names no class twice, and if all lists were [0, 1] or [1, 0], every image would show both classes.
    """
    lengths = {len(entries) for entries in lists}
    if len(lengths) != 1 or max(lengths) < 2 or not all(entry in (0, 1) for entries in lists for entry in entries):
        return None
    return np.array(lists, dtype=np.int64)


def shown(lists: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Return lists of class indices as int64 (n, k): 1 where the image shows the class."""
    table = np.zeros((len(lists), num_classes), dtype=np.int64)
    for i, entries in enumerate(lists):
        table[i, list(entries)] = 1
    return table


def single(table: np.ndarray) -> np.ndarray:
    """Return class indices, int64 (n,), if each row of the int64 (n, k) table has exactly one 1; else the table."""
    return table.argmax(axis=1) if (table.sum(axis=1) == 1).all() else table
