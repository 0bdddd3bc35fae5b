"""Read the tensors of a TorchScript archive without running its code.

torch runs code of an archive when it loads the archive: every method called `__setstate__`. This module does not call
TorchScript. An archive is a zip with source code, a pickle `data.pkl` that describes the module, and the bytes of the
tensors. The pickle may only name classes and functions of a fixed list, as with torch's `weights_only` for state dicts.
Every other name is an error.

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

CLASSES = "__torch__."  # module of the classes that an archive defines
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
# Words of TorchScript code that runs while an archive is loaded, or that reads or writes files.
FORBIDDEN = re.compile(r"\b(?:__setstate__|save|load|from_file)\b")


def is_archive(path: Path) -> bool:
    """Return True if a file is a TorchScript archive: a zip that contains code and tensors."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.split("/")[-1] == "constants.pkl" for name in file.namelist())
    except zipfile.BadZipFile:
        return False


def check_zip(path: Path) -> None:
    """Check the checksums of a zip. torch does not check them, and would return wrong weights from a damaged file.

    Raises:
        CheckpointError: a checksum is wrong, or torch did not write the zip; the message names the file and the member.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                # torch compresses only the code of archives. Other compressed members could expand from 1 MB to 1 GB.
                if member.compress_type != zipfile.ZIP_STORED and "/code/" not in member.filename:
                    raise CheckpointError(
                        f"{path} is damaged, or torch did not write this zip ({member.filename} is compressed); "
                        "download or save it again"
                    )
            damaged = file.testzip()
    except zipfile.BadZipFile:
        return  # not a zip, or cut off; the reader of the file reports it
    except (zlib.error, EOFError, RuntimeError, NotImplementedError) as err:  # damaged or encrypted
        raise CheckpointError(
            f"{path} is damaged, or torch did not write this zip ({err}); download or save it again"
        ) from err
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged in {damaged}; download or save it again")


def check_program(path: Path) -> None:
    """Check the code of an archive before torch loads the archive.

    Raises:
        CheckpointError: the code would run while it is loaded, or reads or writes files. No traced model does so.
    """
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(".py") and (forbidden := FORBIDDEN.search(file.read(name).decode(errors="replace"))):
                raise CheckpointError(
                    f"{path} contains code that uses {forbidden[0]!r}, so it is not run; no traced model uses this; "
                    "use --jit off, which reads only the weights"
                )


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the weights of a TorchScript archive on the CPU, in the dtypes of the file, without running its code.

    Raises:
        CheckpointError: the file is damaged, or does not describe a module with tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (description,) = [name for name in file.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            module = ArchiveReader(file, description).load()
            if not isinstance(module, _Module):
                raise pickle.UnpicklingError("it does not describe a module")
            return {name: tensor.build() for name, tensor in _tensors(module, prefix="")}
    except (pickle.UnpicklingError, zipfile.BadZipFile) as err:
        raise CheckpointError(f"{path} is not an archive of a model ({err}); download or save it again") from err
    except OSError:
        raise
    except Exception as err:  # a damaged pickle can raise any exception
        raise CheckpointError(f"{path} is not a TorchScript archive or is damaged; download or save it again") from err


def check_pickle(stream: IO[bytes]) -> None:
    """Check the next pickle of a stream before it is loaded. Afterwards the stream is at the start of the pickle.

    An unpickler allocates a table as long as the largest object number in the pickle. A pickle of a few bytes could
    therefore use all memory.

    Raises:
        pickle.UnpicklingError: an object number is larger than the size of the pickle in bytes.
        ValueError: the pickle is cut off or damaged.
    """
    start = stream.tell()
    puts = (argument for opcode, argument, _ in pickletools.genops(stream) if opcode.name.endswith("PUT"))
    largest = max((argument for argument in puts if isinstance(argument, int)), default=0)
    if largest > stream.tell() - start:
        raise pickle.UnpicklingError(f"its object number {largest} does not fit into {stream.tell() - start} bytes")
    stream.seek(start)


def read_member(file: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of an uncompressed member of a zip, which is at most as large as the zip.

    Raises:
        pickle.UnpicklingError: the member is compressed.
    """
    member = file.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed")
    return file.read(member)


class Fixed:
    """Base class of the objects that a pickle may use but not change. Subclasses need `__slots__`, too."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it changes an object that must not be changed")


class Function(Fixed):
    """A function that a pickle may call. A plain function is not safe, because a pickle could change its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._function(*args)


class PendingTensor(Fixed):
    """A tensor that is built after the pickle is loaded, since a pickle could resize a tensor or change its class."""

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., Tensor], *args: Any) -> None:
        self._function, self._args = function, args

    def build(self) -> Tensor:
        """Build the tensor."""
        return self._function(*self._args)


class _Storage(Fixed):
    """A storage: the numbers of one or several tensors, as a tensor (number,)."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


class _Dict(dict[Any, Any]):
    """An ordered dict without attributes. The attribute `_metadata` of torch's state dicts is ignored."""

    __slots__ = ()

    def __init__(self) -> None:
        """Create an empty dict. The pickle adds the items."""

    def __setstate__(self, _: object) -> None:
        pass


class _Module:
    """Placeholder for an object of a class that the archive defines. It has the saved attributes and no methods."""

    __slots__ = ("attributes",)
    attributes: dict[str, Any]

    def __new__(cls) -> _Module:
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("the attributes of a module must be a dict with names as keys")
        self.attributes.update(state)


def _tensors(module: _Module, *, prefix: str) -> Iterator[tuple[str, PendingTensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, PendingTensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, prefix=f"{prefix}{name}.")


class ArchiveReader(pickle.Unpickler):
    """Unpickler for an archive, which allows only the archive's own classes, tensors and lists.

    The pickle cannot change any object that it names. Tensors are returned as `PendingTensor`.
    """

    def __init__(self, file: zipfile.ZipFile, description: str) -> None:
        stream = io.BytesIO(read_member(file, description))
        check_pickle(stream)
        super().__init__(stream)
        self._file, self._folder = file, description.removesuffix(".pkl")
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function that the pickle names, if it is on the list of allowed names."""
        if f"{module}.".startswith(CLASSES):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Function(_rebuild_tensor)
        if module == "torch.jit._pickle":
            if name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"):
                return Function(lambda items: items)
            if name == "restore_type_tag":  # (value, name of its type) -> value
                return Function(lambda value, _: value)
        if (module, name) == ("collections", "OrderedDict"):
            return Function(_Dict)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed in a model")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage for the tuple ("storage", dtype, name, device, number of elements)."""
        _, dtype, key, _, size = pid
        if key not in self._storages:
            name = f"{self._folder}/{key}"
            num_bytes = self._file.getinfo(name).file_size
            if num_bytes != size * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"storage {key} has {num_bytes} bytes, which do not fit {size} numbers of {dtype}"
                )
            content = bytearray(read_member(self._file, name))
            numbers = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(numbers)
        return self._storages[key]


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it has a tensor without a storage")
    return PendingTensor(_view_storage, storage.numbers, offset, size, stride)


def _view_storage(numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # With strides of 0, a few bytes could describe a tensor that takes all memory when it is copied.
    if not all(isinstance(n, int) for n in size) or math.prod(size) > len(numbers):
        raise pickle.UnpicklingError(f"a tensor needs more numbers than the {len(numbers)} in its storage")
    return torch.as_strided(numbers, size, stride, offset)  # raises an error if the view ends after the storage
