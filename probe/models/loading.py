"""Load a model by name: `load_encoder` for features, `load_clip` as a replacement for the reference's `clip.load`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from probe import hub, paths
from probe.errors import CheckpointError, ChecksumError
from probe.fetch import fetch, weights_sha256
from probe.models import get_model, open_clip, resolve_model, split_key
from probe.models.archive import is_archive
from probe.models.checkpoint_files import list_checkpoint_files, naming_unreadable
from probe.models.checkpoints import Checkpoint, read_checkpoint
from probe.models.devices import Execution, resolve_execution
from probe.models.encoder import ImageEncoder, dtypes_of, tensors_sha256
from probe.models.families import find_family
from probe.models.huggingface import FILES
from probe.models.layout import compile_tower, lay_out
from probe.models.openai import build_model, expose_pre_projection, load_archive, trace_archive
from probe.models.preprocess import Preprocess
from probe.models.towers import CLIP, convert_weights
from probe.specs import ModelSpec, digest

if TYPE_CHECKING:
    from probe.models.own import Encoder

# With shards and their index. Safetensors files come first, because they cannot contain code.
HUB_WEIGHTS = (("model*.safetensors*",), ("pytorch_model*.bin*",))


def load_encoder(
    model: str | Path | ModelSpec | Encoder,
    *,
    jit: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    weights_dir: str | Path | None = None,
    offline: bool = False,
    compiled: bool = False,
) -> ImageEncoder:
    """Load the image tower of a model.

    Args:
        model: a name that `get_model` accepts, a specification, or an `Encoder` of your own.
        jit: run the TorchScript archive unchanged instead of rebuilding the model. Random weights are first traced into
            an archive. A model that is not an archive is rebuilt, with a warning and with `execution.jit` False.
        device: `auto` for CUDA if it is available, else the CPU; or a device that `torch.device` accepts.
        precision: `auto` for the default of `devices.default_precision`; or `fp32`, `fp16`, `bf16`.
        weights_dir: folder of OpenAI's checkpoints; by default `~/.cache/clip`, which the reference uses, too. Models
            of `hf:` and `open_clip:` are stored in the cache of Hugging Face's libraries (`HF_HOME`).
        offline: never use the network.
        compiled: compile the rebuilt tower with torch. Takes 15 seconds or more; on a CPU, needs a C++ compiler.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: the message says what to do.
    """
    spec = resolve_model(model)
    execution = resolve_execution(device, precision=precision, jit=jit, compiled=compiled, form=spec.form)
    family = find_family(spec.form)
    if family is not None:
        encoder = family.load_tower(spec, without_jit(execution, spec.name), offline=offline)
    else:
        checkpoint = read_weights(spec, weights_dir=weights_dir, offline=offline)
        encoder = as_encoder(spec, checkpoint, open_model(checkpoint, execution), execution)
    return replace(encoder, pre_projection=compile_tower(encoder.pre_projection)) if compiled else encoder


def load_clip(
    name: str | Path,
    device: str | torch.device = "auto",
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Load a whole CLIP model, with the semantics of the reference's `clip.load`.

    Args:
        name: a name that `get_model` accepts.
        device: device of the model, as in `load_encoder`. The weights are fp16 on CUDA, and fp32 on other devices.
        jit: run the TorchScript archive, with its graphs patched for the device, instead of rebuilding the model. A
            model that is not an archive is rebuilt, with a warning.
        download_root: folder of OpenAI's checkpoints, as `weights_dir` in `load_encoder`.

    Returns:
        The model in eval mode, and the transform from a PIL image to the model's input, fp32 (3, r, r).

        The model has `encode_image`, `encode_text`, `forward` (logits per image and per text), `dtype` and
        `visual.input_resolution`. Rebuilt models have the modules, parameters and attributes of OpenAI's models, and
        their transformers take (tokens, n, width). Code that calls, hooks or replaces parts of OpenAI's models
        therefore runs unchanged. A model of open_clip is open_clip's own object, with open_clip's attributes.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: the message says what to do.
    """
    spec, execution = get_model(name), resolve_execution(device, jit=jit)
    if spec.form == "open_clip":
        loaded = open_clip.load_model(spec.source, without_jit(execution, spec.name))
        return loaded.model, loaded.preprocess.transform
    if find_family(spec.form) is not None:
        raise CheckpointError(f"{spec.name} is not a CLIP model; load it with load_encoder")
    checkpoint = read_weights(spec, weights_dir=download_root)
    return open_model(checkpoint, execution), checkpoint.preprocess.transform


def read_weights(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Checkpoint:
    """Return the weights of a model. Published weights are downloaded first if necessary; random weights are drawn.

    Raises:
        CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    if spec.form == "random":
        return _draw_weights(spec)
    path = checkpoint_path(spec, weights_dir=weights_dir, offline=offline)
    key = split_key(spec.source)[1] if spec.form == "file" else ""
    sha256 = spec.sha256 if spec.form == "url" else ""  # `fetch` has verified it
    checkpoint = read_checkpoint(path, sha256=sha256, key=key)
    if spec.sha256 not in ("", checkpoint.sha256):
        raise ChecksumError(
            f"{checkpoint.path}: SHA-256 mismatch (expected {spec.sha256}, got {checkpoint.sha256}); "
            "download the file again"
        )
    return checkpoint


def checkpoint_path(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Path:
    """Return the path of a model's checkpoint. A published checkpoint is downloaded first if necessary.

    Raises:
        DownloadError, ChecksumError, CheckpointError: the message says what to do.
    """
    if spec.form == "embedded":
        return Path(str(resources.files("probe"))) / spec.source
    if spec.form == "file":
        return split_key(spec.source)[0]
    if spec.form == "hf":
        try:
            return hub.fetch_repository(spec.source, HUB_WEIGHTS, [*FILES, hub.CARD], offline=offline)
        except CheckpointError as err:
            raise CheckpointError(f"{err}, or open_clip:hf-hub:{spec.source} if it is an open_clip model") from err
    target = paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]
    return fetch(spec.source, target, sha256=spec.sha256, offline=offline)


def identify(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> str:
    """Return a digest that identifies the weights of a model, without loading them. Missing files are downloaded first.

    - One file: the SHA-256 of the file.
    - Several files, such as a folder with settings, or a key that selects one of several models: a digest of all files
      and the key.
    - Random weights: a digest of the architecture, the seed and the version of torch.

    Raises:
        CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    if spec.form == "random":
        return digest({"architecture": spec.architecture, "seed": spec.seed, "torch": torch.__version__})
    family = find_family(spec.form)
    if family is not None:
        return family.identify_weights(spec, offline=offline)
    path = checkpoint_path(spec, weights_dir=weights_dir, offline=offline)
    if spec.form == "url":
        return spec.sha256  # `fetch` has verified it
    with naming_unreadable(path):
        hashes = {file.name: weights_sha256(file) for file in list_checkpoint_files(path)}
    key = split_key(spec.source)[1] if spec.form == "file" else ""
    if key:
        return digest({"key": key, **hashes})
    return hashes[path.name] if len(hashes) == 1 and path.name in hashes else digest(hashes)


def has_jit_mode(checkpoint: Checkpoint) -> bool:
    """Return True if the weights are an archive, or random weights, which can be traced into an archive."""
    return checkpoint.path is None or (checkpoint.path.is_file() and is_archive(checkpoint.path))


def open_model(checkpoint: Checkpoint, execution: Execution) -> CLIP | torch.jit.ScriptModule:
    """Return a whole model: an archive in JIT mode, otherwise a rebuilt model.

    Warn if JIT mode is requested for a model that has no archive. The model is rebuilt then.
    """
    if execution.jit and has_jit_mode(checkpoint):
        archive = load_archive(
            checkpoint.path or trace_archive(checkpoint.state_dict, checkpoint.architecture), execution
        )
        # Archives have no plain attributes. Code for the reference reads these two attributes.
        archive.dtype = execution.dtype
        archive.visual.input_resolution = checkpoint.architecture.image_resolution
        return archive
    if execution.jit:
        warnings.warn(
            f"{checkpoint.path} is not a TorchScript archive; using eager mode instead of JIT mode", stacklevel=3
        )
    return build_model(checkpoint.state_dict, execution, checkpoint.architecture)


def without_jit(execution: Execution, name: str) -> Execution:
    """Return the execution without JIT mode; warn if JIT mode was requested."""
    if execution.jit:
        warnings.warn(f"{name} is not a TorchScript archive; using eager mode instead of JIT mode", stacklevel=3)
    return replace(execution, jit=False)


def as_encoder(
    spec: ModelSpec, checkpoint: Checkpoint, model: CLIP | torch.jit.ScriptModule, execution: Execution
) -> ImageEncoder:
    """Return the image tower of a model from `open_model` as an encoder. The model itself must not be used any more."""
    before: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    weights_dtypes = dtypes_of(model.visual.parameters())
    if isinstance(model, CLIP):
        lay_out(model.visual, execution)
        before, project = model.visual.pre_projection, model.visual.project
    else:
        project = expose_pre_projection(model)
        before = model.encode_image
    return ImageEncoder(
        spec.name,
        replace(execution, jit=not isinstance(model, CLIP)),
        checkpoint.preprocess,
        embed_dim=checkpoint.architecture.embed_dim,
        pre_projection_dim=checkpoint.architecture.pre_projection_dim,
        weights_sha256=checkpoint.sha256,
        weights_key=checkpoint.key,
        checkpoint_dtypes=dtypes_of(checkpoint.state_dict.values()),
        weights_dtypes=weights_dtypes,
        license=spec.license or checkpoint.license,
        pre_projection=before,
        project=project,
        preprocess_from=checkpoint.preprocess_from,
    )


def _draw_weights(spec: ModelSpec) -> Checkpoint:
    """Return seeded random weights. They have the dtypes of a published checkpoint, so both modes use equal weights."""
    assert spec.seed is not None
    assert spec.architecture is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = CLIP(spec.architecture)
    convert_weights(model, torch.float16)
    state_dict = model.state_dict()
    preprocess = Preprocess(spec.architecture.image_resolution)
    return Checkpoint(state_dict, spec.architecture, preprocess, tensors_sha256(state_dict), path=None)
