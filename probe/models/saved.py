"""Read weights from a file of `torch.save` that `weights_only` refuses because it also contains other objects.

Training scripts save their arguments, schedulers and NumPy scores together with the weights. `weights_only` refuses the
whole file, because loading objects runs code. This module replaces each object by a placeholder and runs no code of
the object.

This is as safe as `weights_only`: a pickle can only call functions and classes by name, and the names are looked up in
a fixed list. A name outside the list is never imported. It becomes a placeholder of this module, which accepts
everything and does nothing. Allowing single classes, such as `argparse.Namespace`, would not be enough, because
training scripts save objects of arbitrary classes.
"""

from __future__ import annotations

import mmap
import pickle
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from probe.models.archive import DTYPES, ArchiveReader, Function, PendingTensor, check_pickle, read_member

MAGIC_NUMBER = (
    0x1950A86A20F9469CFC6C  # first number in torch's older files, which are not zips; see torch/serialization.py
)
TENSOR_NAMES = (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"))
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")  # of `torch._utils`: (tensor, ...) -> parameter
# Files of plain tensors and numbers also contain these names, so messages omit them.
PLAIN_MODULES = ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "_codecs")
PLAIN_NAMES = (
    *("builtins.set", "builtins.bytearray", "builtins.complex", "builtins.object"),
    *("collections.Counter", "collections.OrderedDict", "copy_reg._reconstructor", "copyreg._reconstructor"),
)
MAX_NAMES = 1_000  # recorded names of classes; messages show three
MAX_NAME = 200  # characters of a name


@dataclass(frozen=True)
class Saved:
    """Content of a file of `torch.save`.

    Args:
        content: the saved content, with placeholders for its objects; None if it could not be read with placeholders.
        classes: the classes and functions that the placeholders replace, in the order of the file.
    """

    content: object
    classes: tuple[str, ...]


def read_saved(path: Path) -> Saved:
    """Read a file of `torch.save`, with placeholders for its objects.

    Older versions of torch wrote files that are not zips. Only the names of the classes are read from such a file.

    Raises:
        Exception: any class, because reading a damaged pickle can fail in any way.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (description,) = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            byteorder = description.replace("data.pkl", "byteorder")
            if byteorder in file.namelist() and read_member(file, byteorder).decode() != sys.byteorder:
                raise pickle.UnpicklingError("it was written on a machine with a different byte order")
            reader = _SavedReader(file, description)
            try:
                content = reader.load()
                _build_tensors(content)
            except Exception:
                if not reader.names:
                    raise
                content = None
            return Saved(content, tuple(reader.names))
    except zipfile.BadZipFile:
        pass
    # A memory map never reads past the end of the file, so a wrong length in the pickle allocates no memory.
    with path.open("rb") as whole, mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream = cast("IO[bytes]", mapped)  # a memory map has the methods that unpicklers use
        named = _NameReader(stream)
        if named.load() == MAGIC_NUMBER:
            for _ in range(3):  # the format version, facts about the machine, the content
                named = _NameReader(stream)
                named.load()
    return Saved(None, tuple(named.names))


def _build_tensors(content: object) -> None:
    """Build the tensors that are values of dicts, also in nested containers. Other tensors have no name."""
    seen: set[int] = set()  # an object can be in several places of a pickle, or inside itself
    stack = [content]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            for key, part in value.items():
                if isinstance(part, PendingTensor):
                    value[key] = part.build()
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)


class _PlaceholderType(type):
    """Metaclass of the placeholder, with the operations that pickles use on objects and classes. They do nothing."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __setstate__(cls, _: Any) -> None:
        pass

    def __setitem__(cls, _: Any, __: Any) -> None:
        pass

    def append(cls, _: Any) -> None:
        """Accept an item of a list."""

    extend = add = append


class _Placeholder(metaclass=_PlaceholderType):
    """Placeholder for classes, functions and objects that are not loaded. It is a class, because pickles expect one."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return cls


class _NameReader(pickle.Unpickler):
    """Unpickler that replaces every class and function by a placeholder and records its name."""

    def __init__(self, file: IO[bytes]) -> None:
        check_pickle(file)
        super().__init__(file)
        self.names: dict[str, None] = {}  # in the order of the file

    def find_class(self, module: str, name: str) -> Any:
        """Record the name of a class or function, and return the placeholder."""
        return _record_name(module, name, self.names)

    def persistent_load(self, _: Any) -> Any:
        """Return the placeholder instead of reading a storage."""
        return _Placeholder


class _SavedReader(ArchiveReader):
    """Unpickler for a file of `torch.save` that loads tensors and replaces everything else by placeholders."""

    def __init__(self, file: zipfile.ZipFile, description: str) -> None:
        super().__init__(file, description)
        self.names: dict[str, None] = {}  # in the order of the file

    def find_class(self, module: str, name: str) -> Any:
        """Return the functions and classes of tensors, and the placeholder for every other name."""
        if module == "torch._utils" and name in PARAMETERS:
            return Function(lambda data, *_: data)
        if (module == "torch" and name in DTYPES) or (module, name) in TENSOR_NAMES:
            return super().find_class(module, name)
        # Sparse and distributed tensors become a tensor without numbers.
        if module in ("torch._utils", "torch._tensor"):
            return Function(lambda *_: PendingTensor(lambda: torch.empty(0, device="meta")))
        return _record_name(module, name, self.names)


def _record_name(module: str, name: str, names: dict[str, None]) -> type[_Placeholder]:
    full_name = f"{module}.{name}".replace("__builtin__.", "builtins.")  # name in Python 2 and in protocol 2
    if module not in PLAIN_MODULES and full_name not in PLAIN_NAMES and len(names) < MAX_NAMES:
        names[full_name[:MAX_NAME]] = None
    return _Placeholder
