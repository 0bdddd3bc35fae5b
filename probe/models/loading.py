"""A name -> a loaded model: `load_encoder` for features, `load_clip` for the reference's `clip.load`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from probe import hub, paths
from probe.errors import CheckpointError, ChecksumError, ProbeError
from probe.fetch import fetch, weights_sha256
from probe.models import get_model, open_clip, open_clip_towers, split_key
from probe.models.archive import is_archive
from probe.models.checkpoints import Checkpoint, list_checkpoint_files, read_checkpoint
from probe.models.devices import Execution, resolve_execution
from probe.models.encoder import ImageEncoder, dtypes_of
from probe.models.huggingface import FILES
from probe.models.layout import compile_tower, lay_out
from probe.models.openai import as_archive, build_model, expose_pre_projection, load_archive
from probe.models.preprocess import Preprocess
from probe.models.towers import CLIP, convert_weights
from probe.specs import ModelSpec, digest

HUB_WEIGHTS = (("model*.safetensors*",), ("pytorch_model*.bin*",))  # with shards and their index; the first, no code


def load_encoder(
    model: str | Path | ModelSpec,
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
        model: a name as `get_model` takes it, or a row.
        jit: run the TorchScript archive as it is instead of rebuilding the model. Random weights are traced into an
            archive first; what is no archive is rebuilt all the same, with a warning and `execution.jit` False.
        device: `auto` is CUDA where there is one, else the CPU.
        precision: `auto` is fp16 on CUDA and fp32 elsewhere, as in the reference; or `fp32`, `fp16`, `bf16`.
        weights_dir: where OpenAI's checkpoints go; by default `~/.cache/clip`, which the reference uses too. Those of
            `hf:` and `open_clip:` go where Hugging Face's libraries keep theirs (`HF_HOME`).
        offline: never touch the network.
        compiled: have torch compile the rebuilt tower, which takes a minute or so and needs a C++ compiler on the CPU.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: each says what to do.
    """
    spec = model if isinstance(model, ModelSpec) else get_model(model)
    execution = resolve_execution(device, precision=precision, jit=jit, compiled=compiled)
    if spec.form == "open_clip":
        execution = _rebuilt(execution, spec.name)
        loaded = open_clip.load_model(spec.source, execution, offline=offline)
        encoder = open_clip_towers.zoo_encoder(spec.name, loaded, execution)
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
        name: as in `load_encoder`.
        device: where it runs: fp16 weights on CUDA, fp32 elsewhere.
        jit: the TorchScript archive as it is, its graphs patched for the device, instead of a rebuilt model. What is no
            archive is rebuilt all the same, with a warning.
        download_root: as `weights_dir` there.

    Returns:
        The model in eval mode, with `encode_image`, `encode_text`, `forward` (logits per image and per text),
        `visual.input_resolution` and `dtype`; and the transform of a PIL image to the fp32 (3, r, r) tensor it takes.
        Rebuilt models have the modules, parameters and attributes of OpenAI's models, under the same names, and their
        transformers take (tokens, n, width). So code that calls, hooks or replaces parts of OpenAI's models runs
        unchanged. A model of open_clip is open_clip's own object, with its own attributes.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: each says what to do.
    """
    spec, execution = get_model(name), resolve_execution(device, jit=jit)
    if spec.form == "open_clip":
        loaded = open_clip.load_model(spec.source, _rebuilt(execution, spec.name))
        return loaded.model, loaded.preprocess.transform
    checkpoint = read_weights(spec, weights_dir=download_root)
    return open_model(checkpoint, execution), checkpoint.preprocess.transform


def read_weights(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Checkpoint:
    """Read the weights of a model, fetched first where they are published; random ones are drawn.

    Raises:
        CheckpointError, DownloadError, ChecksumError: each says what to do.
    """
    if spec.form == "random":
        return _draw_weights(spec)
    path = checkpoint_path(spec, weights_dir=weights_dir, offline=offline)
    key = split_key(spec.source)[1] if spec.form == "file" else ""
    sha256 = spec.sha256 if spec.form == "url" else ""  # `fetch` has hashed that one
    checkpoint = read_checkpoint(path, sha256=sha256, key=key)
    if spec.sha256 not in ("", checkpoint.sha256):
        raise ChecksumError(
            f"{checkpoint.path} has the SHA-256 {checkpoint.sha256} where {spec.sha256} was expected; "
            "get the file again"
        )
    return checkpoint


def checkpoint_path(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> Path:
    """Where the checkpoint of a model is, fetched first where it is published.

    Raises:
        DownloadError, ChecksumError, CheckpointError: each says what to do.
    """
    if spec.form == "embedded":
        return Path(str(resources.files("probe"))) / spec.source
    if spec.form == "file":
        return split_key(spec.source)[0]
    if spec.form == "hf":
        try:
            return hub.fetch_repository(spec.source, HUB_WEIGHTS, [*FILES, hub.CARD], offline=offline)
        except CheckpointError as err:
            raise CheckpointError(f"{err}, or open_clip:hf-hub:{spec.source} for an open_clip model") from err
    target = paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]
    return fetch(spec.source, target, sha256=spec.sha256, offline=offline)


def identify(spec: ModelSpec, *, weights_dir: str | Path | None = None, offline: bool = False) -> str:
    """What tells the weights of a model from all others, without loading them; files are fetched if they are not here.

    For one file, this is its SHA-256. For several files, such as a folder with settings, or for a key that chooses
    among several models, it is a digest of them all. For random weights, it is a digest of the values that define them.

    Raises:
        CheckpointError, DownloadError, ChecksumError: each says what to do.
    """
    if spec.form == "random":
        return digest({"architecture": spec.architecture, "seed": spec.seed, "torch": torch.__version__})
    if spec.form == "open_clip":
        return open_clip.identify_zoo_weights(spec.source, offline=offline)
    path = checkpoint_path(spec, weights_dir=weights_dir, offline=offline)
    if spec.form == "url":
        return spec.sha256  # which `fetch` has just found right
    try:
        files = list_checkpoint_files(path)
        hashes = {file.name: weights_sha256(file) for file in files}
    except OSError as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointError(f"cannot read {path} ({err.strerror or err}); give a file that can be read") from err
    key = split_key(spec.source)[1] if spec.form == "file" else ""
    if key:
        return digest({"key": key, **hashes})
    return hashes[path.name] if len(hashes) == 1 and path.name in hashes else digest(hashes)


def has_jit_mode(checkpoint: Checkpoint) -> bool:
    """Whether the weights are an archive, or random, and so can be made one."""
    return checkpoint.path is None or (checkpoint.path.is_file() and is_archive(checkpoint.path))


def open_model(checkpoint: Checkpoint, execution: Execution) -> CLIP | torch.jit.ScriptModule:
    """A whole model, an archive as it is or rebuilt; what is no archive is rebuilt in both modes, with a warning."""
    if execution.jit and has_jit_mode(checkpoint):
        archive = load_archive(checkpoint.path or as_archive(checkpoint.state_dict, checkpoint.architecture), execution)
        # Tracing keeps no plain attributes; these two are what callers of the reference read off a rebuilt model.
        archive.dtype = execution.dtype
        archive.visual.input_resolution = checkpoint.architecture.image_resolution
        return archive
    if execution.jit:
        warnings.warn(f"{checkpoint.path} is no TorchScript archive; it is rebuilt instead", stacklevel=3)
    return build_model(checkpoint.state_dict, execution, checkpoint.architecture)


def as_encoder(
    spec: ModelSpec, checkpoint: Checkpoint, model: CLIP | torch.jit.ScriptModule, execution: Execution
) -> ImageEncoder:
    """The image tower of what `open_model` opened, which serves as nothing else from then on."""
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


def _rebuilt(execution: Execution, name: str) -> Execution:
    """The same without JIT mode, with a warning if it was asked for."""
    if execution.jit:
        warnings.warn(f"{name} is no TorchScript archive; it is rebuilt instead", stacklevel=3)
    return replace(execution, jit=False)


def _draw_weights(spec: ModelSpec) -> Checkpoint:
    """Seeded random weights in the dtypes of a published checkpoint, so the same in eager and JIT mode."""
    assert spec.seed is not None
    assert spec.architecture is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = CLIP(spec.architecture)
    convert_weights(model, torch.float16)
    state_dict = model.state_dict()
    preprocess = Preprocess(spec.architecture.image_resolution)
    return Checkpoint(state_dict, spec.architecture, preprocess, _tensors_sha256(state_dict), path=None)


def _tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()
