"""A rebuilt image tower -> the same tower, laid out in memory as its device computes fastest. No weight is lost.

On every device, images and convolutions have their channels last, and the blocks of a vision transformer take
(n, tokens, width) instead of the reference's (tokens, n, width). On an x86 CPU the products are oneDNN's, with weights
packed once, where torch would call another library that packs them at every call; and batch normalisation, which
scales what a convolution gives, is folded into the weights of the convolution. The features are those of the tower as
it was, up to the rounding of its precision. What it brings is in `results/speed/extraction.md`.
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
from probe.models.towers import Block, QuickGELU, Transformer, VisionTransformer

ROWS = 2048  # of the products that weights are packed for; other numbers are right as well
SHORTCUT = ("0", "1")  # what a shortcut of the published ResNets calls its convolution and its normalisation


def lay_out(visual: nn.Module, execution: Execution) -> None:
    """Lay out an image tower of `towers.py`, in place; it can be used for inference alone from then on."""
    visual.to(memory_format=torch.channels_last)
    if isinstance(visual, VisionTransformer):
        visual.add_module("transformer", BatchFirst(visual.transformer))
    if execution.device.type != "cpu":
        return
    for module in list(visual.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                _fold(module, name, child)
    if _packs(execution.dtype):
        for module in list(visual.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child.weight, child.bias))
                elif isinstance(child, QuickGELU):
                    setattr(module, name, QuickGELUForInference())


class BatchFirst(nn.Module):
    """A transformer that takes and returns (tokens, n, width), and whose blocks take (n, tokens, width).

    The tower also transposes before and after it, so nothing is copied and the tokens of an image are contiguous.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(BatchFirstBlock(block) for block in transformer.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, n, width) -> (tokens, n, width)."""
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class BatchFirstBlock(nn.Module):
    """A `Block` over (n, tokens, width) with the same weights and no mask."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, Block)
        assert block.attn_mask is None
        self.attn = BatchFirstAttention(block.attn)
        self.ln_1, self.mlp, self.ln_2 = block.ln_1, block.mlp, block.ln_2

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, tokens, width)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class BatchFirstAttention(nn.Module):
    """Self-attention over (n, tokens, width) with the weights of an `nn.MultiheadAttention`."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")  # takes no memory
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, tokens, width)."""
        n, tokens, width = x.shape
        qkv = self.in_proj(x).view(n, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (n, num_heads, tokens, head_dim)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class PackedLinear(nn.Module):
    """A linear layer whose weights lie as oneDNN multiplies them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        # Operators of torch's own compiler, there since 2.0 and the only way to products of oneDNN in fp32.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out_width)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class QuickGELUForInference(nn.Module):
    """QuickGELU in the memory of one result, with the same bits; there is no way back through it."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise; shape and dtype are those of `x`."""
        return x.mul(1.702).sigmoid_().mul_(x)


def compile_tower(tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Have torch compile a tower that is laid out, with its weights as constants: it fuses what is between products.

    The first batch takes a quarter of a minute or more. All batches of a model have one size, so it is compiled once.
    """
    from torch._inductor import config as inductor  # takes a second, which nobody else should wait for

    compiled: Callable[[Tensor], Tensor] = torch.compile(tower, dynamic=False, fullgraph=True)

    def run(images: Tensor) -> Tensor:
        try:
            # The setting itself, as the option `freezing` of `torch.compile` is passed over.
            with inductor.patch(freezing=True):
                return compiled(images)
        except Exception as err:  # each stage of torch's compiler has errors of its own
            why = summarize(err)
            raise DeviceError(f"torch cannot compile this tower here ({why}); run it without --compile") from err

    return run


def _fold(module: nn.Module, name: str, normalisation: nn.BatchNorm2d) -> None:
    """Fold `bn1` into the convolution `conv1` beside it, and so on; and that of a shortcut."""
    convolution_name = SHORTCUT[0] if name == SHORTCUT[1] else name.replace("bn", "conv")
    convolution = module.get_submodule(convolution_name)
    assert isinstance(convolution, nn.Conv2d)
    fused = fuse_conv_bn_eval(convolution, normalisation)
    module.add_module(convolution_name, fused.to(memory_format=torch.channels_last))
    module.add_module(name, nn.Identity())


@lru_cache(maxsize=8)
def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has packed products in a precision here."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedLinear(torch.zeros(16, 16, dtype=dtype), torch.zeros(16, dtype=dtype))(torch.zeros(2, 16, dtype=dtype))
    except (AttributeError, RuntimeError):  # another torch, or a processor without the instructions
        return False
    return True
