"""Encoders of the user: a module and the preprocessing of its images. `own_files.py` reads them from a file.

A `ModelSpec` is plain data, so it does not contain the module. Modules are found by name, among those that are
registered in this process.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import sys
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
from probe.models.own_code import digest_attributes, digest_code
from probe.models.preprocess import AnyPreprocess, CustomPreprocess, Preprocess, to_array
from probe.specs import SUPPLIED, ModelSpec, digest

FORM = "module"  # `ModelSpec.form`
PREFIXES = (RANDOM, HF, f"{SUPPLIED}:", *(f"{form}:" for form in FAMILIES))  # prefixes of names with another meaning
INNER = ("lambd", "func", "function")  # functions that objects of torchvision, functools and this package call
TRIAL_SIZE = (400, 320)  # width and height of the image that tells the shape of preprocessed images
ADVICE = "give module:FILE.py:FUNCTION as the model, with a function of yours that returns the encoder"
# Addresses in memory, and the digest of a path in the name that `own_files` gives to the module of a file.
_OF_PROCESS = re.compile(r" at 0x[0-9a-fA-F]+|(?<=probe_own_)[0-9a-f]{8}_")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encoder of your own: a module, the preprocessing of its images, and a name for tables and records.

    The module is copied before it runs. The copy has the device and the precision of the run, and is in eval mode. Your
    module does not change. The process keeps your module in memory, until another encoder of this name is used.

    Features are cached under a digest of

    - the weights, the buffers, the text of the module (`repr`), and the attributes of the module and its submodules;
    - the code of their classes, as this process runs it;
    - the text and the code of the preprocessing, and its result for one image;
    - the version of Python, such as 3.12.

    A changed file is only noticed after Python loads it again. Other changes are not noticed, such as a change of a
    global function that `forward` calls, or inside an attribute that is an object of your own class. After such a
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
    module, (preprocess, trial) = encoder.module, _measure_preprocess(encoder.name, encoder.preprocess)
    weights = digest_state(encoder.name, module)
    known = {
        "weights": weights,
        "buffers": _digest_tensors(encoder.name, dict(module.named_buffers())),  # also if not in the state dict
        "module": _text_of(module),
        "code": digest_code(module.modules()),
        "attributes": digest_attributes(module.modules()),
        "python": sys.version_info[:2],  # determines how code is compiled
        "preprocess": preprocess.describe(),
        "preprocess_code": digest_code(_steps_of(encoder.preprocess)),
        "preprocess_trial": trial,
    }
    # The last bits of `trial` and the compiled code can differ between machines. So the digest is only used in the keys
    # of cached features and in `extraction.weights`, which `reproduce` does not compare. `weights` stays the same.
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


def _measure_preprocess(
    name: str, preprocess: AnyPreprocess | Callable[[Image.Image], Any]
) -> tuple[AnyPreprocess, str]:
    """Return the preprocessing with the shape of its results, from calling it twice, and the SHA-256 of a result.

    The settings of a `Preprocess` say everything, so the SHA-256 is then empty.
    """
    if isinstance(preprocess, Preprocess):
        return preprocess, ""
    function = preprocess.to_pixels if isinstance(preprocess, CustomPreprocess) else preprocess
    width, height = TRIAL_SIZE
    try:
        first, second = (function(_make_trial()) for _ in range(2))
    except Exception as err:  # whatever the user's code raises
        raise CheckpointError(
            f"{name}: the preprocessing raised {type(err).__name__} for an image of {width} x {height} pixels "
            f"({summarize(err)})"
        ) from err
    expected, again = (_checked_array(name, result) for result in (first, second))
    if not np.array_equal(expected, again, equal_nan=True):
        raise CheckpointError(
            f"{name}: the preprocessing returned different values for the same image; remove its random steps"
        )
    trial = hashlib.sha256(expected.tobytes()).hexdigest()
    if isinstance(preprocess, CustomPreprocess):
        return preprocess, trial
    return CustomPreprocess(preprocess, (expected.shape[1], expected.shape[2]), _text_of(preprocess)), trial


def _make_trial() -> Image.Image:
    """Return an image with different ramps in red, green and blue, and with noise."""
    width, height = TRIAL_SIZE
    down, right = np.mgrid[0:height, 0:width]
    ramps = np.stack([down * 191 // height, right * 191 // width, (height - 1 - down) * 191 // height], axis=2)
    # The bytes of a bit generator are the same in every version of NumPy.
    noise = np.frombuffer(np.random.default_rng(0).bytes(ramps.size), dtype=np.uint8).reshape(ramps.shape)
    return Image.fromarray((ramps + noise % 64).astype(np.uint8))


def _checked_array(name: str, result: object) -> np.ndarray:
    """Return a preprocessed image as an array, after checking its type and shape."""
    if isinstance(result, Tensor):
        found, is_float = f"a tensor {tuple(result.shape)} of {result.dtype}", result.is_floating_point()
    elif isinstance(result, np.ndarray):
        found, is_float = f"an array {result.shape} of {result.dtype}", result.dtype.kind == "f"
    else:
        found, is_float = f"a {type(result).__name__}", False
    if not is_float or result.ndim != 3 or result.shape[0] != 3 or 0 in result.shape:  # type: ignore[attr-defined] # only arrays are float
        raise CheckpointError(f"{name}: the preprocessing returned {found}; return a float tensor (3, height, width)")
    return to_array(result)


def _text_of(thing: object) -> str:
    """Return the text of an object in one line, without parts that differ between processes or folders."""
    return _OF_PROCESS.sub("", " ".join(repr(thing).split()))


def _steps_of(preprocess: object) -> Iterator[object]:
    """Yield a preprocessing, and the steps and functions that it calls as far as attributes name them."""
    yield preprocess
    steps = getattr(preprocess, "transforms", None)  # of torchvision's `Compose`
    for step in [
        *(steps if isinstance(steps, list | tuple) else []),
        *(preprocess.children() if isinstance(preprocess, nn.Module) else []),
        getattr(preprocess, "__self__", None) if inspect.ismethod(preprocess) else None,
        *(getattr(preprocess, name, None) for name in INNER),
    ]:
        if step is not None:
            yield from _steps_of(step)


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
