"""Encoders of the user: a module and the preprocessing of its images. `own_files.py` reads them from a file.

A `ModelSpec` is plain data, so it does not contain the module. Modules are found by name, among those that are
registered in this process.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from probe.errors import CheckpointError, summarize
from probe.models import HF, RANDOM, model_names
from probe.models.encoder import tensors_sha256
from probe.models.families import FAMILIES
from probe.models.preprocess import AnyPreprocess, CustomPreprocess, Preprocess
from probe.specs import ModelSpec, digest

FORM = "module"  # `ModelSpec.form`
PREFIXES = (RANDOM, HF, *(f"{form}:" for form in FAMILIES))  # prefixes of names with another meaning
LIBRARIES = ("torch", "torchvision", "probe", "builtins")  # the keys of cached features have their versions
INNER = ("lambd", "func", "function")  # functions that objects of torchvision, functools and this package call
TRIAL_SIZE = (400, 320)  # width and height of the image that tells the shape of preprocessed images
ADVICE = "give module:FILE.py:FUNCTION as the model, with a function of yours that returns the encoder"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encoder of your own: a module, the preprocessing of its images, and a name for tables and records.

    The module is copied before it runs. The copy has the device and the precision of the run, and is in eval mode. Your
    module does not change. The process keeps your module in memory, until another encoder of this name is used.

    Features are cached under a digest of the weights, the text of the module (`repr`), the source code of its classes,
    and the text and source code of the preprocessing. Other changes are not noticed: for example, a change of a
    function that `forward` calls, of a value in a closure, or of an attribute that `repr` does not show. After such a
    change, give the encoder another name.

    Args:
        module: maps normalised images (n, 3, height, width), a float tensor, contiguous, to features (n, d), float.
        preprocess: maps a PIL image in RGB to a normalised float tensor or array (3, height, width) of one shape for
            all images, without random steps, such as a `Compose` of torchvision; or a `Preprocess`. Several threads
            call it at the same time.
        name: name of the encoder; a name that `get_model` gives another meaning is refused.
        license: licence of the weights.

    Raises:
        CheckpointError: the module is not a module of torch, or the name cannot be used.
    """

    module: nn.Module = field(repr=False)
    preprocess: AnyPreprocess | Callable[[Image.Image], Any]
    _: KW_ONLY
    name: str
    license: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise CheckpointError(f"expected a torch.nn.Module as the encoder, got a {type(self.module).__name__}")
        if not callable(self.preprocess) and not isinstance(self.preprocess, Preprocess | CustomPreprocess):
            raise CheckpointError(f"expected a function as the preprocessing, got a {type(self.preprocess).__name__}")
        if not isinstance(self.name, str) or not self.name.strip():
            raise CheckpointError(f"the name of an encoder must be a text that is not empty, got {self.name!r}")
        if self.name in model_names():
            raise CheckpointError(f"{self.name!r} is a name of the catalogue; give your encoder another name")
        for prefix in PREFIXES:
            if self.name.startswith(prefix):
                raise CheckpointError(f"names that start with {prefix!r} have another meaning; rename your encoder")

    def register(self) -> ModelSpec:
        """Make the encoder known to this process, and return its specification.

        Raises:
            CheckpointError: the weights cannot be read, or the preprocessing cannot be used.
        """
        own = examine(self)
        REGISTERED[self.name] = own
        return ModelSpec(self.name, FORM, source=own.identity, sha256=own.weights, license=self.license)


@dataclass(frozen=True, eq=False)
class OwnEncoder:
    """Encoder of the user, with what is known about it.

    Args:
        encoder: the encoder.
        preprocess: its preprocessing, with the shape of its results.
        weights: SHA-256 of the tensors in the state dict.
        identity: digest of everything that is known to change its features.
    """

    encoder: Encoder
    preprocess: AnyPreprocess
    weights: str
    identity: str


REGISTERED: dict[str, OwnEncoder] = {}  # encoders that were made in this process, by name


def examine(encoder: Encoder) -> OwnEncoder:
    """Return an encoder with its digests and the shape of its images.

    Raises:
        CheckpointError: the weights cannot be read, or the preprocessing cannot be used.
    """
    module, preprocess = encoder.module, _measure_preprocess(encoder.name, encoder.preprocess)
    weights = digest_state(encoder.name, module)
    known = {
        "weights": weights,
        "buffers": _digest_tensors(encoder.name, dict(module.named_buffers())),  # also if not in the state dict
        "module": _text_of(module),
        "code": _sources_of(module.modules()),
        "preprocess": preprocess.describe(),
        "preprocess_code": _sources_of(_steps_of(encoder.preprocess)),
    }
    return OwnEncoder(encoder, preprocess, weights, digest(known))


def find_registered(spec: ModelSpec) -> OwnEncoder:
    """Return the encoder of a specification that `Encoder.register` returned.

    Raises:
        CheckpointError: the encoder was made in another process, or another encoder of its name was used since.
    """
    own = REGISTERED.get(spec.name)
    if own is None:
        raise CheckpointError(f"the encoder {spec.name!r} was made in another process of Python; {ADVICE}")
    if own.identity != spec.source:
        raise CheckpointError(
            f"the encoder {spec.name!r} of this process differs from the encoder of the run in weights, code or "
            "preprocessing; pass the encoder of the run again, or give each encoder its own name"
        )
    return own


def digest_state(name: str, module: nn.Module) -> str:
    """Return the SHA-256 of the tensors in the state dict of a module.

    Raises:
        CheckpointError: a tensor has no values.
    """
    return _digest_tensors(name, module.state_dict())


def _digest_tensors(name: str, tensors: Mapping[str, Any]) -> str:
    try:
        return tensors_sha256({key: value for key, value in tensors.items() if isinstance(value, Tensor)})
    except (RuntimeError, ValueError, TypeError) as err:  # on the device `meta`, or not initialised by a lazy module
        raise CheckpointError(
            f"{name}: the weights of the module cannot be read ({summarize(err)}); load the weights first"
        ) from err


def _measure_preprocess(name: str, preprocess: AnyPreprocess | Callable[[Image.Image], Any]) -> AnyPreprocess:
    """Return the preprocessing with the shape of its results, from calling it twice."""
    if isinstance(preprocess, Preprocess | CustomPreprocess):
        return preprocess
    width, height = TRIAL_SIZE
    pixels = (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3)
    try:
        first, second = (preprocess(Image.fromarray(pixels)) for _ in range(2))
    except Exception as err:  # whatever the user's code raises
        raise CheckpointError(
            f"{name}: the preprocessing raised {type(err).__name__} for an image of {width} x {height} pixels "
            f"({summarize(err)})"
        ) from err
    expected, again = (_as_array(name, result) for result in (first, second))
    if not np.array_equal(expected, again, equal_nan=True):
        raise CheckpointError(
            f"{name}: the preprocessing returned different values for the same image; remove its random steps"
        )
    return CustomPreprocess(preprocess, (expected.shape[1], expected.shape[2]), _text_of(preprocess))


def _as_array(name: str, result: object) -> np.ndarray:
    """Return a preprocessed image as an array, after checking its type and shape."""
    if isinstance(result, Tensor):
        found, is_float = f"a tensor {tuple(result.shape)} of {result.dtype}", result.is_floating_point()
    elif isinstance(result, np.ndarray):
        found, is_float = f"an array {result.shape} of {result.dtype}", result.dtype.kind == "f"
    else:
        found, is_float = f"a {type(result).__name__}", False
    if not is_float or result.ndim != 3 or result.shape[0] != 3 or 0 in result.shape:  # type: ignore[attr-defined] # only arrays are float
        raise CheckpointError(f"{name}: the preprocessing returned {found}; return a float tensor (3, height, width)")
    return np.asarray(result.detach().cpu().float() if isinstance(result, Tensor) else result, dtype=np.float32)


def _text_of(thing: object) -> str:
    """Return the text of an object in one line, without addresses of memory, which differ between processes."""
    return _ADDRESS.sub("", " ".join(repr(thing).split()))


def _steps_of(preprocess: object) -> Iterator[object]:
    """Yield a preprocessing, and the steps and functions that it calls as far as attributes name them."""
    yield preprocess
    steps = getattr(preprocess, "transforms", None)  # of torchvision's `Compose`
    for step in [
        *(steps if isinstance(steps, list | tuple) else []),
        *(getattr(preprocess, name, None) for name in INNER),
    ]:
        if step is not None:
            yield from _steps_of(step)


def _sources_of(things: Iterator[object]) -> list[tuple[str, str]]:
    """Return names and code of functions, and of the classes and base classes of other objects, without `LIBRARIES`."""
    found = set()
    for thing in things:
        codes: tuple[Any, ...] = (thing,) if inspect.isroutine(thing) else type(thing).__mro__
        for code in codes:
            if str(code.__module__).partition(".")[0] in LIBRARIES:
                continue
            try:
                found.add((code.__qualname__, inspect.getsource(code)))
            except (OSError, TypeError):  # code without a file
                found.add((code.__qualname__, ""))
    return sorted(found)


def copy_to(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the module in eval mode.

    Raises:
        CheckpointError: the module cannot be copied.
    """
    try:
        return copy.deepcopy(encoder.module).eval().to(device=device, dtype=dtype)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as err:  # tensors with a history, locks, open files
        raise CheckpointError(
            f"{encoder.name}: the module cannot be copied ({summarize(err)}); give a module that copy.deepcopy can copy"
        ) from err
