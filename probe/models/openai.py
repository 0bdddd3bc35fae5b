"""OpenAI's checkpoints: TorchScript archives, run as they are or rebuilt as modules.

The only module that touches `torch.jit`, which is deprecated but is what the published files are made of.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from probe.errors import CheckpointError
from probe.models.archive import check_program
from probe.models.devices import Execution
from probe.models.towers import CLIP, architecture_of, convert_weights
from probe.paths import is_utf8
from probe.specs import Architecture

METHODS = ("forward", "encode_image", "encode_text")
BUFFERS = ("input_resolution", "context_length", "vocab_size")  # sizes that archives carry beside the weights
SCALAR_TYPE = {
    torch.float16: 5,
    torch.float32: 6,
    torch.bfloat16: 15,
}  # how graphs write a dtype, c10/core/ScalarType.h


def build_model(
    state_dict: Mapping[str, Tensor], execution: Execution, architecture: Architecture | None = None
) -> CLIP:
    """Rebuild a model from its weights: eval mode, on the device, in the precision of `execution`.

    Without an `architecture` it is read off the weights, and activation and heads are OpenAI's.

    Raises:
        CheckpointError: a key is missing, unknown or of another shape; the message names it.
    """
    architecture = architecture or architecture_of(state_dict)
    check_weights(state_dict, architecture)
    model = CLIP(architecture)
    model.load_state_dict(dict(state_dict))
    convert_weights(model, execution.dtype)
    return model.to(execution.device).eval()


def check_weights(found: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Check that weights have exactly the names and shapes of an architecture.

    Raises:
        CheckpointError: a key is missing, unknown or has a different shape; the message names the key.
    """
    with torch.device("meta"):
        expected = CLIP(architecture).state_dict()
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"the state dict has no {name!r}; give the weights of a whole CLIP model")
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)} where {tuple(tensor.shape)} was expected"
            raise CheckpointError(f"{name!r} has the shape {shapes}; give the weights of a CLIP model as published")
        if found[name].is_floating_point() != tensor.is_floating_point():
            kinds = f"{found[name].dtype} where {tensor.dtype} was expected"
            raise CheckpointError(f"{name!r} holds {kinds}; give weights that are no codes of a quantized model")
    for name in found:
        if name not in expected:
            raise CheckpointError(f"the state dict has an unknown key {name!r}; give the weights of a CLIP model alone")


def load_archive(source: Path | BinaryIO, execution: Execution) -> torch.jit.ScriptModule:
    """Load an archive to run as it is, its graphs patched for the device and precision of `execution`.

    The published graphs name `cuda:0` and fp16 as constants. Every graph is patched: of each submodule and each of its
    methods, `forward1` and the like included.

    Raises:
        CheckpointError: the file is damaged or no archive, lacks a method, was traced in fp32 and cannot be run in
            another precision, or has a program that does more than compute.
    """
    if isinstance(source, Path):
        check_program(source)
    model = _load_archive(source, execution.device)
    for method in METHODS:
        if not hasattr(model, method):
            raise CheckpointError(f"{source} was traced without {method!r} and has no JIT mode; use --jit off")
    if execution.dtype != torch.float32 and all(p.dtype == torch.float32 for p in model.parameters()):
        raise CheckpointError(f"{source} was traced in fp32 and runs in no other precision; use --precision fp32")
    for graph in _graphs(model):
        _replace_devices(graph, "cuda", str(execution.device))
        _replace_dtypes(graph, SCALAR_TYPE[torch.float16], SCALAR_TYPE[execution.dtype])
    for parameter in model.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(execution.dtype)
    return model


def _load_archive(source: Path | BinaryIO, device: torch.device) -> torch.jit.ScriptModule:
    _require_torchscript()
    with _without_deprecation():
        try:
            opened: Any = source
            if isinstance(source, Path):
                opened = str(source) if is_utf8(source) else io.BytesIO(source.read_bytes())
            model: torch.jit.ScriptModule = torch.jit.load(opened, map_location=device)
        except (RuntimeError, ValueError) as err:
            raise CheckpointError(f"{source} is no TorchScript archive or is damaged; fetch it again") from err
    return model.eval()


def expose_pre_projection(model: Any) -> Callable[[Tensor], Tensor]:
    """Make a model with OpenAI's towers return the features before the projection; the projection is returned.

    The projection in the model, or in the graphs of an archive, becomes the identity, a product with which changes no
    bit.
    """
    if hasattr(model.visual, "proj"):
        projection = model.visual.proj.detach().clone()  # (width, embed_dim)
        model.visual.proj = nn.Parameter(torch.eye(len(projection)).to(projection), requires_grad=False)
        return lambda pre_projection: pre_projection @ projection
    layer = model.visual.attnpool.c_proj
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # (embed_dim, width), (embed_dim,)
    width = weight.shape[1]
    layer.weight = nn.Parameter(torch.eye(width).to(weight), requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros(width).to(bias), requires_grad=False)
    return lambda pre_projection: nn.functional.linear(pre_projection, weight, bias)


def save_archive(model: CLIP, target: Path | BinaryIO) -> None:
    """Write a model as OpenAI published theirs.

    A TorchScript archive traced in fp16 with the methods `forward`, `encode_image` and `encode_text`, the sizes as
    buffers, and `cuda:0` as the device in its graphs.
    """
    _require_torchscript()
    traced_on = next(model.parameters()).device
    half = copy.deepcopy(model).eval().requires_grad_(False)
    convert_weights(half, torch.float16)
    resolution = half.visual.input_resolution
    image = torch.zeros(2, 3, resolution, resolution, device=traced_on)
    text = torch.zeros(2, half.context_length, dtype=torch.long, device=traced_on)
    sizes = dict(zip(BUFFERS, (resolution, half.context_length, half.vocab_size), strict=True))
    for name, size in sizes.items():
        if hasattr(half, name):
            delattr(half, name)
        half.register_buffer(name, torch.tensor(size, device=traced_on))
    example = {"forward": (image, text), "encode_image": image, "encode_text": text}
    with _without_deprecation():
        # Attention and `encode_text` check shapes. The shapes are right here, and the checks do not enter the graph.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python boolean")
        # torch's own check traces each method once more, which takes minutes in fp16 on a CPU; the tests compare.
        archive = torch.jit.trace_module(half, example, check_trace=False)
        for graph in _graphs(archive):
            _replace_devices(graph, str(traced_on), "cuda:0")
        torch.jit.save(archive, str(target) if isinstance(target, Path) else target)


def as_archive(state_dict: Mapping[str, Tensor], architecture: Architecture) -> BinaryIO:
    """Weights as an archive in memory, ready for `load_archive`: what JIT mode means where there is no file."""
    model = CLIP(architecture)
    model.load_state_dict(dict(state_dict))
    file = io.BytesIO()
    save_archive(model, file)
    file.seek(0)
    return file


def _graphs(model: torch.jit.ScriptModule) -> Iterator[Any]:
    for module in model.modules():
        script: Any = module._c
        for method in script._method_names():
            yield script._get_method(method).graph


def _replace_devices(graph: Any, old: str, new: str) -> None:
    for node in graph.findAllNodes("prim::Constant"):
        if node.output().type().kind() == "DeviceObjType" and node.s("value").startswith(old):
            node.s_("value", new)


def _replace_dtypes(graph: Any, old: int, new: int) -> None:
    """Replace the dtype of casts and of new tensors: an int constant among the arguments of these two operators.

    The constant itself stays, because a loaded graph keeps one for all uses of a number: 5 is fp16 and five heads too.
    """
    for operator, positions in (("aten::to", (1, 2)), ("aten::zeros", (1,))):
        for node in graph.findAllNodes(operator):
            for position in positions:
                constant = list(node.inputs())[position].node()
                is_number = constant.kind() == "prim::Constant" and constant.output().type().kind() == "IntType"
                if is_number and constant.i("value") == old:
                    with graph.insert_point_guard(node):
                        node.replaceInput(position, graph.insertConstant(new))


def _require_torchscript() -> None:
    if not hasattr(torch.jit, "load"):
        raise CheckpointError(
            f"torch {torch.__version__} has no TorchScript, which OpenAI's archives are made of; install torch 2.15"
        )


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Keep torch's notices about `torch.jit` from the user, who can do nothing about the form of published files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        yield
