"""The tensors of a TorchScript archive, without running it: loading one runs what its code calls `__setstate__`.

An archive is a zip of source code, of a pickle `data.pkl` that describes the module, and of the bytes of its tensors.
Here the pickle is read with a fixed list of what it may name, as torch's `weights_only` does for saved state dicts,
and everything else in it is an error. Nothing of torch's TorchScript is called.

Source of the layout: torch `torch/csrc/jit/docs/serialization.md`.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import CheckpointError

CLASSES = "__torch__."  # where the archive's own classes are
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Words of TorchScript with which a program runs while it is loaded, or reads and writes files.
FORBIDDEN = re.compile(r"\b(?:__setstate__|save|load|from_file)\b")


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code beside its tensors."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.split("/")[-1] == "constants.pkl" for name in file.namelist())
    except zipfile.BadZipFile:
        return False


def check_zip(path: Path) -> None:
    """Check the checksums of a zip: torch reads past damage inside, and the weights would be silently wrong.

    Raises:
        CheckpointError: one does not fit, or the zip is not of torch's kind; the message names file and member.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile:
        return  # no zip, or one without its end: what reads it next says so
    except (zlib.error, EOFError, RuntimeError, NotImplementedError) as err:  # damaged deflation, encryption, a method
        raise CheckpointError(f"{path} is damaged, or a zip that torch did not write ({err}); get it again") from err
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged in {damaged}; get the file again")


def check_program(path: Path) -> None:
    """See that the code of an archive does what traced code does, before it is run.

    Raises:
        CheckpointError: it would run while it is loaded, or has to do with files.
    """
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(".py") and (found := FORBIDDEN.search(file.read(name).decode(errors="replace"))):
                raise CheckpointError(
                    f"{path} has a program that uses {found[0]!r}, which no traced model does, and is not run; "
                    "its weights can be read with --jit off"
                )


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read the weights of a TorchScript archive, on the CPU, in the dtypes of the file; its program is not run.

    Raises:
        CheckpointError: the file is damaged, or describes something else than a module with tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (description,) = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            module = Reader(file, description).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile) as err:
        raise CheckpointError(f"{path} is no archive of a model ({err}); get the file again") from err
    except OSError:
        raise
    except Exception as err:  # a pickle that is cut or twisted raises whatever its bytes lead to
        raise CheckpointError(f"{path} is no TorchScript archive or is damaged; get the file again") from err
    if not isinstance(module, _Module):
        raise CheckpointError(f"{path} is no archive of a model; get the file again")
    return dict(_tensors(module, prefix=""))


class _Module:
    """What stands for every class of the archive: the attributes it was saved with, and no behaviour."""


def _tensors(module: _Module, *, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, prefix=f"{prefix}{name}.")


class Reader(pickle.Unpickler):
    """The pickle of an archive, allowed to name the archive's classes and torch's tensors and lists, nothing else."""

    def __init__(self, file: zipfile.ZipFile, description: str) -> None:
        super().__init__(io.BytesIO(file.read(description)))
        self._file, self._folder = file, description.removesuffix(".pkl")
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few things that the description of a module may name."""
        if f"{module}.".startswith(CLASSES):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch.jit._pickle":
            if name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"):
                return list
            if name == "restore_type_tag":  # (value, its type in words) -> value
                return lambda value, _: value
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a model")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the bytes of one storage: ("storage", dtype, name, device, number of elements) -> (number,)."""
        _, dtype, key, _, size = pid
        if key not in self._storages:
            content = bytearray(self._file.read(f"{self._folder}/{key}"))
            if len(content) != size * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(content)} bytes for {size} numbers")
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # which refuses to look past the end
