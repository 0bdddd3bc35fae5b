"""A name -> a loaded model: `load_encoder` for features, `load_clip` for the reference's `clip.load`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from probe import paths
from probe.errors import ChecksumError
from probe.fetch import fetch, file_sha256
from probe.models import get_model
from probe.models.clip import CLIP, architecture_of, convert_weights
from probe.models.devices import Execution, resolve_execution
from probe.models.encoder import ImageEncoder
from probe.models.openai import (
    as_archive,
    build_model,
    expose_pre_projection,
    is_archive,
    load_archive,
    read_state_dict,
)
from probe.preprocess import transform
from probe.specs import ModelSpec


@dataclass(frozen=True)
class Weights:
    """The weights of a model on the CPU; `path` is None where they are random, and then they have no file."""

    state_dict: Mapping[str, Tensor]
    sha256: str
    path: Path | None


def load_encoder(
    model: str | ModelSpec,
    *,
    jit: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    weights_dir: str | Path | None = None,
    offline: bool = False,
) -> ImageEncoder:
    """Load the image tower of a model.

    Args:
        model: a name of the catalogue, `random:NAME`, the path of a checkpoint, or a row.
        jit: run the TorchScript archive as it is instead of rebuilding the model. Random weights are traced into an
            archive first; a file that is no archive is rebuilt all the same, with a warning and `execution.jit` False.
        device: `auto` is CUDA where there is one, else the CPU.
        precision: `auto` is fp16 on CUDA and fp32 elsewhere, as in the reference; or `fp32`, `fp16`, `bf16`.
        weights_dir: where downloads go; by default `~/.cache/clip`, which the reference uses too.
        offline: never touch the network.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, DeviceError: each says what to do.
    """
    spec = get_model(model) if isinstance(model, str) else model
    execution = resolve_execution(device, precision=precision, jit=jit)
    weights = read_weights(spec, weights_dir=weights_dir, offline=offline)
    architecture = architecture_of(weights.state_dict)
    archive = _open_archive(weights, execution) if jit else None
    if archive is not None:
        project = expose_pre_projection(archive)
        return ImageEncoder(spec.name, execution, architecture, weights.sha256, archive.encode_image, project)
    execution = Execution(execution.device, execution.precision, jit=False)
    visual = build_model(weights.state_dict, execution).visual
    return ImageEncoder(spec.name, execution, architecture, weights.sha256, visual.pre_projection, visual.project)


def load_clip(
    name: str,
    device: str | torch.device = "auto",
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Load a whole CLIP model, with the semantics of the reference's `clip.load`.

    Args:
        name: a name of the catalogue, `random:NAME`, or the path of a checkpoint.
        device: where it runs: fp16 weights on CUDA, fp32 elsewhere.
        jit: the TorchScript archive as it is, its graphs patched for the device, instead of a rebuilt model. A file
            that is no archive is rebuilt all the same, with a warning.
        download_root: where downloads go; by default `~/.cache/clip`.

    Returns:
        The model in eval mode, with `encode_image`, `encode_text` and `forward`; and the transform of a PIL image to
        the fp32 (3, r, r) tensor it takes.
    """
    execution = resolve_execution(device, jit=jit)
    weights = read_weights(get_model(name), weights_dir=download_root)
    archive = _open_archive(weights, execution) if jit else None
    model = archive if archive is not None else build_model(weights.state_dict, execution)
    return model, transform(architecture_of(weights.state_dict).image_resolution)


def read_weights(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Weights:
    """Read the weights of a model, fetched first where they are published by URL; random ones are drawn."""
    if spec.form == "random":
        state_dict = _draw_weights(spec)
        return Weights(state_dict, sha256=_tensors_sha256(state_dict), path=None)
    path = checkpoint_path(spec, weights_dir=weights_dir, offline=offline)
    sha256 = spec.sha256 if spec.form == "url" else file_sha256(path)  # a fetched file has been hashed already
    if spec.sha256 not in ("", sha256):
        raise ChecksumError(f"{path} has the SHA-256 {sha256} where {spec.sha256} was expected; get the file again")
    return Weights(read_state_dict(path), sha256=sha256, path=path)


def checkpoint_path(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Path:
    """Where the checkpoint of a model is, fetched first where it is published by URL."""
    if spec.form == "embedded":
        return Path(str(resources.files("probe"))) / spec.source
    if spec.form == "file":
        return Path(spec.source)
    target = paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]
    return fetch(spec.source, target, sha256=spec.sha256, offline=offline)


def _open_archive(weights: Weights, execution: Execution) -> torch.jit.ScriptModule | None:
    if weights.path is None:
        return load_archive(as_archive(weights.state_dict), execution)
    if is_archive(weights.path):
        return load_archive(weights.path, execution)
    warnings.warn(f"{weights.path} is no TorchScript archive; it is loaded as a state dict instead", stacklevel=3)
    return None


def _draw_weights(spec: ModelSpec) -> Mapping[str, Tensor]:
    """Seeded random weights in the dtypes of a published checkpoint, so the same in eager and JIT mode."""
    assert spec.seed is not None
    assert spec.architecture is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = CLIP(spec.architecture)
    convert_weights(model, torch.float16)
    return model.state_dict()


def _tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()
