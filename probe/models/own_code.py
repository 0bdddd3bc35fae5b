"""Digests of the code of the user that runs in this process.

The digests are of compiled functions and of values, not of files: a file can change after the process has loaded it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable
from types import CodeType
from typing import Any

import numpy as np
from torch import Tensor, nn

from probe.models.encoder import tensors_sha256
from probe.specs import digest

LIBRARIES = ("torch", "torchvision", "probe", "builtins")  # the keys of cached features have their versions
ATTRIBUTES = frozenset(vars(nn.Module()))  # of every module: its mode, parameters, buffers, submodules and hooks
SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(...), range)  # values with a complete `repr`


def digest_code(things: Iterable[object]) -> list[tuple[str, str]]:
    """Return names and digests of functions, and of the classes and base classes of other objects, sorted.

    A digest covers the compiled code of a function, its defaults and the simple values and functions in its closure. Of
    a class, it covers the functions, properties, simple values and classes in its body. It is the same in every process
    of one version of Python. `LIBRARIES` are left out.
    """
    codes: dict[int, Any] = {}
    for thing in things:
        for code in (thing,) if inspect.isroutine(thing) else type(thing).__mro__:
            if not _is_of_library(code):
                codes[id(code)] = code
    return sorted({(_name(code), digest(_facts_of(code, ()))) for code in codes.values()})


def digest_attributes(modules: Iterable[nn.Module]) -> str:
    """Return a digest of the attributes of modules, other than their parameters, buffers and submodules.

    It covers simple values, arrays, functions, and containers of these; of other objects, only their types.
    """
    return digest(
        [
            [[name, _facts_of(value, ())] for name, value in sorted(vars(module).items()) if name not in ATTRIBUTES]
            for module in modules
        ]
    )


def _facts_of(value: Any, above: tuple[int, ...]) -> Any:
    """Return what is known about a value, as JSON. `above` has the ids of the values that contain the value."""
    name, inner = _name(value) or _name(type(value)), (*above, id(value))
    if isinstance(value, SIMPLE):
        return f"{name} {value!r}"
    if id(value) in above:  # a class is in the closure of its functions that call `super`
        return name
    if isinstance(value, CodeType):
        return _facts_of_code(value, inner)
    if isinstance(value, Tensor | np.ndarray):
        return _facts_of_array(value)
    if isinstance(value, dict):
        return [name, *([_facts_of(key, inner), _facts_of(one, inner)] for key, one in value.items())]
    if isinstance(value, set | frozenset):  # their order differs between processes
        return [name, *sorted(digest(_facts_of(one, inner)) for one in value)]
    if isinstance(value, list | tuple):
        return [name, *(_facts_of(one, inner) for one in value)]
    return [name, *(_facts_of(part, inner) for part in _parts_of(value))]


def _parts_of(value: Any) -> list[Any]:
    """Return what a function, a wrapper of functions or a class consists of; nothing for other objects."""
    if isinstance(value, type):
        is_own = not _is_of_library(value)
        return [[name, one] for name, one in sorted(vars(value).items()) if _is_code(name, one)] if is_own else []
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [value.func, value.args, value.keywords]
    if isinstance(value, functools.cached_property):
        return [value.func]
    function = getattr(value, "__func__", value)  # of a method, a static method or a class method
    if not inspect.isfunction(function):
        return [function.__wrapped__] if isinstance(function, functools._lru_cache_wrapper) else []
    cells = [_content_of(cell) for cell in function.__closure__ or ()]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, cells]


def _facts_of_code(code: CodeType, above: tuple[int, ...]) -> list[Any]:
    """Return the parts of compiled code that change what it does: not its file and its lines."""
    compiled = (code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount, code.co_kwonlyargcount)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return [_facts_of(part, above) for part in (*compiled, *names, code.co_consts)]


def _facts_of_array(array: Tensor | np.ndarray) -> str:
    if isinstance(array, np.ndarray):
        content = b"" if array.dtype.hasobject else array.tobytes()
        return f"{array.dtype} {array.shape} {hashlib.sha256(content).hexdigest()}"
    try:
        return tensors_sha256({"": array})
    except (RuntimeError, TypeError, ValueError):  # a tensor without values
        return str(array.dtype)


def _is_code(name: str, value: object) -> bool:
    """Return False for what Python adds to classes, such as `__doc__` or, in Python 3.13, `__firstlineno__`."""
    return not (name.startswith("__") and name.endswith("__")) or callable(value) or isinstance(value, property)


def _is_of_library(code: object) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in LIBRARIES


def _content_of(cell: Any) -> Any:
    """Return the value of a variable in a closure; the type of a container, which code can fill while it runs."""
    try:
        content = cell.cell_contents
    except ValueError:  # empty
        return None
    return type(content) if isinstance(content, list | dict | set) else content


def _name(value: object) -> str:
    return str(getattr(value, "__qualname__", ""))
