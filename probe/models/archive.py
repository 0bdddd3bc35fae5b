"""The tensors of a TorchScript archive, without running it: loading one runs what its code calls `__setstate__`.

An archive is a zip of source code, of a pickle `data.pkl` that describes the module, and of the bytes of its tensors.
Here the pickle is read with a fixed list of what it may name, as torch's `weights_only` does for saved state dicts,
and everything else in it is an error. Nothing of torch's TorchScript is called.

Source of the layout: torch `torch/csrc/jit/docs/serialization.md`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

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
            for member in file.infolist():
                # Torch compresses the code of archives, and nothing else. It would read 1 MB of the rest as 1 GB.
                if member.compress_type != zipfile.ZIP_STORED and "/code/" not in member.filename:
                    raise CheckpointError(
                        f"{path} is damaged, or a zip that torch did not write ({member.filename} is compressed); "
                        "get it again"
                    )
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
            module = ArchiveReader(file, description).load()
            if not isinstance(module, _Module):
                raise pickle.UnpicklingError("it describes something else")
            return {name: tensor.build() for name, tensor in _tensors(module, prefix="")}
    except (pickle.UnpicklingError, zipfile.BadZipFile) as err:
        raise CheckpointError(f"{path} is no archive of a model ({err}); get the file again") from err
    except OSError:
        raise
    except Exception as err:  # a pickle that is cut or twisted raises whatever its bytes lead to
        raise CheckpointError(f"{path} is no TorchScript archive or is damaged; get the file again") from err


def check_pickle(stream: IO[bytes]) -> None:
    """Check the next pickle of a stream before it is loaded, and return to its start.

    The table of the objects that a pickle refers to again has the length of the largest index in the pickle, so a few
    bytes could take all memory.

    Raises:
        pickle.UnpicklingError: an index is larger than the pickle.
        ValueError: the pickle is cut or damaged.
    """
    start = stream.tell()
    puts = (argument for opcode, argument, _ in pickletools.genops(stream) if opcode.name.endswith("PUT"))
    largest = max((argument for argument in puts if isinstance(argument, int)), default=0)
    if largest > stream.tell() - start:
        raise pickle.UnpicklingError(f"its object number {largest} does not fit into {stream.tell() - start} bytes")
    stream.seek(start)


def read_member(file: zipfile.ZipFile, name: str) -> bytes:
    """Read a member of a zip, which must not be compressed. It is then at most as large as the file.

    Raises:
        pickle.UnpicklingError: the member is compressed.
    """
    member = file.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed")
    return file.read(member)


class Fixed:
    """Base of the objects that a pickle may refer to but not change. Subclasses need `__slots__`, too."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes an object that it may only use")


class Function(Fixed):
    """A function that a pickle may call. A plain function has attributes, such as its defaults, and is not safe."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._function(*args)


class PendingTensor(Fixed):
    """A tensor that is built after the pickle is loaded, because a pickle could resize a tensor or change its class."""

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., Tensor], *args: Any) -> None:
        self._function, self._args = function, args

    def build(self) -> Tensor:
        """Build the tensor."""
        return self._function(*self._args)


class _Storage(Fixed):
    """Numbers of a storage."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


class _Dict(dict[Any, Any]):
    """An ordered dict without attributes. The attribute `_metadata` of torch's state dicts is ignored."""

    __slots__ = ()

    def __init__(self) -> None:
        """Make an empty dict. A pickle adds the items."""

    def __setstate__(self, _: object) -> None:
        pass


class _Module:
    """Placeholder for every class of the archive: the attributes it was saved with, and no behaviour."""

    __slots__ = ("attributes",)
    attributes: dict[str, Any]

    def __new__(cls) -> _Module:
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("the attributes of a module have no names")
        self.attributes.update(state)


def _tensors(module: _Module, *, prefix: str) -> Iterator[tuple[str, PendingTensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, PendingTensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, prefix=f"{prefix}{name}.")


class ArchiveReader(pickle.Unpickler):
    """The pickle of an archive, allowed to name the archive's classes and torch's tensors and lists, nothing else.

    Everything that the pickle may name is an object that it cannot change. Tensors are returned as `PendingTensor`.
    """

    def __init__(self, file: zipfile.ZipFile, description: str) -> None:
        stream = io.BytesIO(read_member(file, description))
        check_pickle(stream)
        super().__init__(stream)
        self._file, self._folder = file, description.removesuffix(".pkl")
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few things that the description of a module may name."""
        if f"{module}.".startswith(CLASSES):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Function(_rebuild_tensor)
        if module == "torch.jit._pickle":
            if name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"):
                return Function(lambda items: items)
            if name == "restore_type_tag":  # (value, its type in words) -> value
                return Function(lambda value, _: value)
        if (module, name) == ("collections", "OrderedDict"):
            return Function(_Dict)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a model")

    def persistent_load(self, pid: Any) -> _Storage:
        """Read the bytes of one storage: ("storage", dtype, name, device, number of elements) -> (number,)."""
        _, dtype, key, _, size = pid
        if key not in self._storages:
            name = f"{self._folder}/{key}"
            num_bytes = self._file.getinfo(name).file_size
            if num_bytes != size * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {num_bytes} bytes for {size} numbers")
            content = bytearray(read_member(self._file, name))
            numbers = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(numbers)
        return self._storages[key]


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it has a tensor without a storage")
    return PendingTensor(_view, storage.numbers, offset, size, stride)


def _view(numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # Strides of 0 would let a few bytes stand for a tensor that takes all memory once it is copied.
    if not all(isinstance(n, int) for n in size) or math.prod(size) > len(numbers):
        raise pickle.UnpicklingError(f"a tensor has more numbers than its storage, which has {len(numbers)}")
    return torch.as_strided(numbers, size, stride, offset)  # which refuses to look past the end
