"""Encoders that a function in a Python file of the user returns: `module:FILE.py:FUNCTION`.

The code runs because the user named it: `reproduction` and `probes.prediction` refuse code that only a record or a head
names. Its prints go to stderr, because stdout is for results.
"""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from probe import paths
from probe.errors import CheckpointError, CheckpointMissingError, ProbeError, listed, summarize
from probe.models.own import FORM, Encoder, OwnEncoder, examine
from probe.specs import ModelSpec, digest

logger = logging.getLogger(__name__)

LOADED: dict[str, OwnEncoder] = {}  # by `ModelSpec.source`
NEIGHBOURS: set[str] = set()  # modules and packages next to files of the user, which the files imported
USAGE = f"give {FORM}:FILE.py:FUNCTION"


def read_spec(source: str) -> ModelSpec:
    """Run a function of the user, and return the specification of its encoder.

    The path in the specification is relative if the file is below the current folder, so that the record is valid on
    other machines.

    Args:
        source: `FILE.py:FUNCTION`. The path may have a drive letter.

    Raises:
        CheckpointMissingError: the file does not exist.
        CheckpointError: the function does not exist, raises an exception or returns something else; the message names
            the file and the line.
    """
    path, function = _split(source)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    source = f"{path.as_posix()}:{function}"
    own = LOADED[source] = examine(_make_encoder(path, function))
    encoder = own.encoder
    return ModelSpec(encoder.name, FORM, source=source, sha256=own.weights, license=encoder.license)


def is_file(spec: ModelSpec) -> bool:
    """Return True for `module:FILE.py:FUNCTION`, False for an `Encoder` that was made in this process."""
    return ":" in spec.source


def find_loaded(spec: ModelSpec) -> OwnEncoder:
    """Return the encoder of a specification of `read_spec`; its function runs if it has not run in this process.

    Raises:
        CheckpointMissingError, CheckpointError: see `read_spec`; or the weights differ from the specification.
    """
    if spec.source not in LOADED:
        logger.info("running the user's code in %s", spec.source)
        read_spec(spec.source)
    own = LOADED[spec.source]
    if spec.sha256 not in ("", own.weights):
        raise CheckpointError(
            f"{spec.source} returned weights with the SHA-256 {own.weights}, but the run had {spec.sha256}; "
            "restore the weights, or run again"
        )
    return own


def _split(source: str) -> tuple[Path, str]:
    """Return the path and the function of `FILE.py:FUNCTION`."""
    written, _, function = source.rpartition(":")
    if not written or not function.isidentifier():
        raise CheckpointError(f"{source!r} does not name a file and a function; {USAGE}")
    return paths.expand_home(written), function


def _make_encoder(path: Path, function: str) -> Encoder:
    """Call a function of the user, and return its encoder. A pair has the name of the file and the function."""
    made = _call(path, _load_function(path, function))
    if isinstance(made, Encoder):
        return made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return Encoder(*made, name=f"{path.name}:{function}")
    raise CheckpointError(
        f"{function} in {path} returned a {type(made).__name__}; return a probe.Encoder, or a module and its "
        "preprocessing"
    )


def _load_function(path: Path, function: str) -> Callable[[], Any]:
    if not path.is_file():
        raise CheckpointMissingError(f"no file at {path.absolute()}; {USAGE}")
    # Two files can have the same stem. The digest is not part of records and of the keys of cached features.
    name = f"probe_own_{digest(str(path.absolute()))[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CheckpointError(f"{path} is not a Python file; {USAGE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    loader = spec.loader
    linecache.checkcache(str(path))  # the file may have changed since it was last read
    _forget_neighbours()
    try:
        _call(path, lambda: loader.exec_module(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    found: Any = getattr(module, function, None)
    if not callable(found):
        own = [name for name, value in vars(module).items() if _is_own_function(value, module)]
        raise CheckpointError(f"{path} has no function {function!r}; its functions are {listed(own) or 'none'}")
    return found


def _is_own_function(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def _call(path: Path, function: Callable[[], Any]) -> Any:
    """Call a function of the user; its exceptions become one sentence with the file and the line."""
    try:
        with _in_folder_of(path), redirect_stdout(sys.stderr):
            return function()
    except ProbeError:
        raise
    except (Exception, SystemExit) as err:
        raise CheckpointError(f"{_locate(err, path)}: {type(err).__name__}: {summarize(err)}") from err


@contextmanager
def _in_folder_of(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as `python FILE` does."""
    folder = path.absolute().parent
    before = {_top(name) for name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = {_top(name) for name in sys.modules} - before
        NEIGHBOURS.update(name for name in new if _is_in(folder, name))


def _forget_neighbours() -> None:
    """Forget the neighbours of files, so that the next file imports its own neighbours, as they are now."""
    for name in [name for name in sys.modules if _top(name) in NEIGHBOURS]:
        del sys.modules[name]
    NEIGHBOURS.clear()
    importlib.invalidate_caches()


def _is_in(folder: Path, name: str) -> bool:
    """Return True if a module or package lies directly in a folder."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", []))  # a package without `__init__.py`
    return any(Path(place) in (folder / f"{name}.py", folder / name, folder / name / "__init__.py") for place in places)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _locate(err: BaseException, path: Path) -> str:
    """Return the file and the line of an exception: the last line in the user's file that it passed."""
    if isinstance(err, SyntaxError):
        return f"{err.filename}, line {err.lineno}"
    own = [frame.lineno for frame in traceback.extract_tb(err.__traceback__) if Path(frame.filename) == path.absolute()]
    lines = own or [frame.lineno for frame in traceback.extract_tb(err.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)
