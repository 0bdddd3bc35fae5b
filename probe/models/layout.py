"""Change the memory layout of a rebuilt image or text tower, so that the device computes faster.

- On every device: convolutions use the channels-last memory format, and the blocks of a transformer take
  (n, tokens, width) instead of the reference's (tokens, n, width).
- On a CPU: batch normalisation is folded into the weights of the preceding convolution.
- On an x86 CPU: oneDNN computes the linear layers, with weights packed once. By default, torch calls another library
  that packs the weights at every call.

The features stay the same up to the rounding of the precision. `results/speed/extraction.md` has the gains in speed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probe.errors import DeviceError, summarize
from probe.models.devices import Execution
from probe.models.towers import CLIP, Block, QuickGELU, Transformer, VisionTransformer

ROWS = 2048  # number of rows that packed weights are optimised for; other numbers of rows give right results, too
SHORTCUT = ("0", "1")  # names of the convolution and the normalisation in a shortcut of the published ResNets


def lay_out(visual: nn.Module, execution: Execution) -> None:
    """Change the layout of an image tower of `towers.py` in place. Afterwards the tower only works for inference."""
    visual.to(memory_format=torch.channels_last)
    if isinstance(visual, VisionTransformer):
        visual.add_module("transformer", BatchFirst(visual.transformer))
    if execution.device.type != "cpu":
        return
    for module in list(visual.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                _fold_normalisation(module, name, child)
    if _can_pack(execution.dtype):
        _pack(visual)


def lay_out_text(model: CLIP, execution: Execution) -> None:
    """Change the layout of the text tower of a model in place, as `lay_out` does.

    Afterwards the text tower takes rows of any length up to its context, and only works for inference.
    """
    transformer = BatchFirst(model.transformer)
    model.add_module("transformer", transformer)
    if execution.device.type == "cpu" and _can_pack(execution.dtype):
        _pack(transformer)


def _pack(tower: nn.Module) -> None:
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias))
            elif isinstance(child, QuickGELU):
                setattr(module, name, QuickGELUForInference())


class BatchFirst(nn.Module):
    """A transformer that takes and returns (tokens, n, width), with blocks that take (n, tokens, width).

    The tower also transposes before and after the transformer. The two transpositions cancel, so nothing is copied and
    the tokens of an image are contiguous.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(BatchFirstBlock(block) for block in transformer.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks; `x` and the result are (tokens, n, width)."""
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class BatchFirstBlock(nn.Module):
    """A transformer block over (n, tokens, width) with the weights of a `Block`.

    If the block has a mask, which is causal in `towers.py`, no token attends to later tokens.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, Block)
        self.attn = BatchFirstAttention(block.attn, is_causal=block.attn_mask is not None)
        self.ln_1, self.mlp, self.ln_2 = block.ln_1, block.mlp, block.ln_2

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; `x` and the result are (n, tokens, width)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class BatchFirstAttention(nn.Module):
    """Self-attention over (n, tokens, width) with the weights of an `nn.MultiheadAttention`."""

    def __init__(self, attention: nn.MultiheadAttention, *, is_causal: bool = False) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_heads = attention.num_heads
        self.in_proj = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")  # takes no memory
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; `x` and the result are (n, tokens, width)."""
        n, tokens, width = x.shape
        qkv = self.in_proj(x).view(n, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)  # (n, num_heads, tokens, head_dim)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class PackedLinear(nn.Module):
    """A linear layer with weights in oneDNN's packed format."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        # Operators of torch's compiler, available since torch 2.0. No public function multiplies with oneDNN in fp32.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., width) -> (..., out_width)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class QuickGELUForInference(nn.Module):
    """QuickGELU with in-place operations. It gives the same bits in less memory, but has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation elementwise; return the shape and dtype of `x`."""
        return x.mul(1.702).sigmoid_().mul_(x)


def compile_tower(tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a tower that torch compiles at the first batch, with the weights as constants.

    The compiler fuses the operations between matrix products. The first batch takes 15 seconds or more. All batches of
    a model have the same size, so torch compiles only once.

    Raises:
        DeviceError: raised by the compiled tower if torch cannot compile it on this machine.
    """
    from torch._inductor import config as inductor  # this import takes a second, which only compiled mode needs

    compiled: Callable[[Tensor], Tensor] = torch.compile(tower, dynamic=False, fullgraph=True)

    def run(images: Tensor) -> Tensor:
        try:
            # This sets the option directly, because `torch.compile` ignores its option `freezing`.
            with inductor.patch(freezing=True):
                return compiled(images)
        except Exception as err:  # each stage of torch's compiler raises its own exceptions
            why = summarize(err)
            raise DeviceError(f"torch cannot compile this image tower ({why}); run without --compile") from err

    return run


def _fold_normalisation(module: nn.Module, name: str, normalisation: nn.BatchNorm2d) -> None:
    """Fold a batch normalisation into its convolution: `bn1` into `conv1`, in a shortcut `1` into `0`."""
    convolution_name = SHORTCUT[0] if name == SHORTCUT[1] else name.replace("bn", "conv")
    convolution = module.get_submodule(convolution_name)
    assert isinstance(convolution, nn.Conv2d)
    fused = fuse_conv_bn_eval(convolution, normalisation)
    module.add_module(convolution_name, fused.to(memory_format=torch.channels_last))
    module.add_module(name, nn.Identity())


@lru_cache(maxsize=8)
def _can_pack(dtype: torch.dtype) -> bool:
    """Return True if oneDNN can multiply packed weights of a dtype on this machine."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedLinear(torch.zeros(16, 16, dtype=dtype), torch.zeros(16, dtype=dtype))(torch.zeros(2, 16, dtype=dtype))
    except (AttributeError, RuntimeError):  # a torch without these operators, or a processor without the instructions
        return False
    return True
