"""Read the file of a head, and check that its weights and its description fit together. No code of the file runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from probe.decoder import decode
from probe.errors import HeadError, HeadMissingError, listed, summarize
from probe.probes.fits import Weights
from probe.probes.heads import HEAD_VERSION, METADATA, SUFFIX, Head, HeadInfo
from probe.probes.protocol_checks import check_protocol


def load_head(path: str | Path) -> Head:
    """Read a head that `run --save-heads` or `fit --save-head` wrote.

    Raises:
        HeadMissingError: the file does not exist.
        HeadError: the file cannot be read, or is damaged, not a head, or of a later version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        kind = HeadMissingError if isinstance(err, FileNotFoundError) else HeadError
        raise kind(f"cannot read {path} ({err.strerror or err}); give the {SUFFIX} file of a head") from err
    try:
        tensors, text = load_tensors(data), _metadata(data).get(METADATA)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise HeadError(f"{path} is damaged or not a safetensors file ({summarize(err)}); save the head again") from err
    if text is None:
        raise HeadError(f"{path} is a safetensors file without a head; give a file that --save-heads wrote")
    try:
        plain = json.loads(text)
        if isinstance(plain, dict) and isinstance(plain.get("version"), int) and plain["version"] > HEAD_VERSION:
            raise HeadError(f"{path} has version {plain['version']}, newer than {HEAD_VERSION}; update probe")
        info = decode(plain, HeadInfo)
        weight, bias = tensors["weight"], tensors["bias"]
        if {weight.dtype, bias.dtype} not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
            raise ValueError(f"weight {weight.dtype} and bias {bias.dtype} are not both float32 or both float64")
        weights = Weights(weight.astype(np.float64), bias.astype(np.float64))
        _check_content(weights, info)
    except (ValueError, KeyError, RecursionError, msgspec.ValidationError) as err:
        raise (
            err
            if isinstance(err, HeadError)
            else HeadError(f"{path} is damaged: {summarize(err)}; save the head again")
        ) from err
    return Head(weights, info)


def _metadata(data: bytes) -> dict[str, str]:
    """Return the texts in the header of a safetensors file, whose first 8 bytes are the length of the JSON header."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return found


def _check_content(weights: Weights, info: HeadInfo) -> None:
    """Raise ValueError if the weights and the description of a head do not fit together."""
    num = len(info.labels)
    if weights.weight.ndim != 2 or {len(weights.weight), *weights.bias.shape} != {num}:
        raise ValueError(f"weight {weights.weight.shape} and bias {weights.bias.shape} do not fit {num} classes")
    if info.class_names and len(info.class_names) != num:
        raise ValueError(f"{len(info.class_names)} class names do not fit {num} classes")
    if num < 2 or any(after <= before for before, after in pairwise((-1, *info.labels))):
        raise ValueError(f"the labels {listed(info.labels)} are not two or more ascending integers >= 0")
    if not np.isfinite(weights.weight).all() or not (weights.bias < np.inf).all() or weights.bias.max() == -np.inf:
        raise ValueError("a weight is not finite")
    if info.mode not in ("", "eager", "jit", "compiled"):
        raise ValueError(f"mode {info.mode!r} is not one of eager, jit and compiled")
    check_protocol(info.protocol, where="its protocol")
