"""OpenAI's checkpoints: TorchScript archives, run unchanged in JIT mode or rebuilt as modules in eager mode.

This is the only module that uses `torch.jit`. It is deprecated, but the published files are TorchScript archives.
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
from probe.models.architectures import architecture_of
from probe.models.archive import check_program
from probe.models.devices import Execution
from probe.models.towers import CLIP, WithoutInitialization, convert_weights
from probe.paths import is_utf8
from probe.specs import Architecture

METHODS = ("forward", "encode_image", "encode_text")
BUFFERS = ("input_resolution", "context_length", "vocab_size")  # sizes that archives store as buffers
# Integers that stand for dtypes in graphs; see c10/core/ScalarType.h.
SCALAR_TYPE = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}


def build_model(
    state_dict: Mapping[str, Tensor], execution: Execution, architecture: Architecture | None = None
) -> CLIP:
    """Return the model with the given weights in eval mode, on the device and in the precision of `execution`.

    Without an `architecture`, `architecture_of` derives it from the weights.

    Raises:
        CheckpointError: a tensor is missing, unknown or has a different shape; the message names the tensor.
    """
    architecture = architecture or architecture_of(state_dict)
    check_weights(state_dict, architecture)
    with WithoutInitialization():
        model = CLIP(architecture)
    model.load_state_dict(dict(state_dict))
    convert_weights(model, execution.dtype)
    return model.to(execution.device).eval()


def check_weights(state_dict: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Check that a state dict has exactly the names and shapes of an architecture.

    Raises:
        CheckpointError: a tensor is missing, unknown or has a different shape; the message names the tensor.
    """
    with torch.device("meta"), WithoutInitialization():
        expected = CLIP(architecture).state_dict()
    for name, tensor in expected.items():
        if name not in state_dict:
            raise CheckpointError(f"the state dict has no {name!r}; give the weights of a whole CLIP model")
        given = state_dict[name]
        if given.shape != tensor.shape:
            shapes = f"expected {tuple(tensor.shape)}, got {tuple(given.shape)}"
            raise CheckpointError(f"{name!r} has a wrong shape: {shapes}; give the unchanged weights of a CLIP model")
        if given.is_floating_point() != tensor.is_floating_point():
            dtypes = f"expected {tensor.dtype}, got {given.dtype}"
            raise CheckpointError(f"{name!r} has a wrong dtype: {dtypes}; give weights that are not quantized")
    for name in state_dict:
        if name not in expected:
            raise CheckpointError(f"the state dict has an unknown key {name!r}; give only the weights of a CLIP model")


def load_archive(source: Path | BinaryIO, execution: Execution) -> torch.jit.ScriptModule:
    """Load an archive for JIT mode, with its graphs patched for the device and precision of `execution`.

    The published graphs contain `cuda:0` and fp16 as constants. The graphs of all methods of all submodules are
    patched, also methods such as `forward1`.

    Raises:
        CheckpointError: the file is damaged or not an archive; lacks a method; was traced in fp32 and would have to run
            in another precision; or contains code that a traced model does not have.
    """
    if isinstance(source, Path):
        check_program(source)
    model = _load_archive(source, execution.device)
    for method in METHODS:
        if not hasattr(model, method):
            raise CheckpointError(f"{source} was traced without {method!r} and cannot run in JIT mode; use --jit off")
    if execution.dtype != torch.float32 and all(p.dtype == torch.float32 for p in model.parameters()):
        raise CheckpointError(f"{source} was traced in fp32 and cannot run in another precision; use --precision fp32")
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
            raise CheckpointError(f"{source} is not a TorchScript archive or is damaged; download it again") from err
    return model.eval()


def expose_pre_projection(model: Any) -> Callable[[Tensor], Tensor]:
    """Make a model with OpenAI's towers return the features before the projection, and return the projection.

    The projection of the model or archive is replaced by the identity. A product with the identity changes no bit.
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
    """Write a model in the form of OpenAI's published files.

    This is a TorchScript archive, traced in fp16, with the methods `forward`, `encode_image` and `encode_text`, with
    the sizes as buffers, and with `cuda:0` as the device in its graphs.
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
        # Attention and `encode_text` check shapes. The shapes are right here, and a trace does not record the checks.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python boolean")
        # torch would check the trace by tracing each method again, which takes minutes in fp16 on a CPU. Our tests
        # compare the results instead.
        archive = torch.jit.trace_module(half, example, check_trace=False)
        for graph in _graphs(archive):
            _replace_devices(graph, str(traced_on), "cuda:0")
        torch.jit.save(archive, str(target) if isinstance(target, Path) else target)


def trace_archive(state_dict: Mapping[str, Tensor], architecture: Architecture) -> BinaryIO:
    """Return weights as an archive in memory for `load_archive`, so that models without a file can run in JIT mode."""
    with WithoutInitialization():
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
    """Replace the dtype of casts and of new tensors, which is an integer argument of these two operators.

    The constant itself must not change, because a loaded graph shares one constant among all uses of a number: 5 can
    mean fp16 in one place and five heads in another.
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
            f"torch {torch.__version__} has no TorchScript, which OpenAI's archives need; install torch 2.15"
        )


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Hide torch's deprecation warnings about `torch.jit`, because a user cannot change the published files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        yield
