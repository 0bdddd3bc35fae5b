"""A rebuilt image tower -> the same tower, laid out in memory as its device computes fastest. No weight is lost.

On every device images and convolutions have their channels last. On an x86 CPU the products are oneDNN's, with weights
packed once, where torch would call another library that packs them at every call; and batch normalisation, which
scales what a convolution gives, is folded into the weights of the convolution. The features are those of the tower as
it was, up to the rounding of its precision. What it brings is in `results/speed/extraction.md`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probe.errors import DeviceError
from probe.models.clip import QuickGELU, SelfAttention, attend
from probe.models.devices import Execution

ROWS = 2048  # of the products that weights are packed for; other numbers are right as well
SHORTCUT = ("0", "1")  # what a shortcut of the published ResNets calls its convolution and its normalisation


def lay_out(visual: nn.Module, execution: Execution) -> None:
    """Lay out an image tower of `clip.py`, in place; it can be used for inference alone from then on."""
    visual.to(memory_format=torch.channels_last)
    if execution.device.type != "cpu":
        return
    for module in list(visual.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                _fold(module, name, child)
    if _packs(execution.dtype):
        for module in list(visual.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SelfAttention):
                    setattr(module, name, PackedAttention(child))
                elif type(child) is nn.Linear:
                    setattr(module, name, PackedLinear(child.weight, child.bias))
                elif isinstance(child, QuickGELU):
                    setattr(module, name, QuickGELUForInference())


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


class PackedAttention(nn.Module):
    """Self-attention with packed projections."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.heads, self.causal = attention.heads, attention.causal
        self.in_proj = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, tokens, width)."""
        projected: Tensor = self.out_proj(attend(self.in_proj(x), heads=self.heads, causal=self.causal))
        return projected


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
            why = " ".join(str(err).split())[:300]
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
