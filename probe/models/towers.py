"""The CLIP towers as ordinary modules: vision transformer, text transformer, and the ResNet of `resnet.py`.

The modules have the names, attributes and layout of OpenAI's modules. A published state dict therefore loads without
renaming, and code that was written for OpenAI's package runs. Transformers take (tokens, n, width); `layout.py`
converts them to the faster order (n, tokens, width) for extraction. This module reads no files and chooses no device:
`loading.py` reads the weights, and `devices.py` chooses the device and the dtype.

Source of the architectures: Radford et al. 2021 (arXiv 2103.00020), section 2.4 and tables 19-20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probe.errors import TextError
from probe.models.resnet import Bottleneck, ModifiedResNet
from probe.specs import Architecture


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that computes in fp32 and returns the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; return the shape and dtype of `x`."""
        return super().forward(x.float()).to(x.dtype)


class QuickGELU(nn.Module):
    """The activation of all of OpenAI's checkpoints, x * sigmoid(1.702 x). It differs from GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation elementwise; return the shape and dtype of `x`."""
        return x * torch.sigmoid(1.702 * x)


TOKENIZE = "tokenize with probe.tokenize(texts, model=NAME), where NAME is the model that was loaded"
ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
MLP_RATIO = 4  # hidden width of an MLP / width of the transformer, in all of OpenAI's models


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention over (tokens, n, width): `nn.MultiheadAttention` without its random initialisation."""

    def _reset_parameters(self) -> None:
        # `CLIP.initialize_parameters` draws these weights. A draw here would change every `random:` model, because
        # seeded weights depend on all earlier draws.
        nn.init.zeros_(self.in_proj_bias)


class Mlp(nn.Sequential):
    """The two-layer perceptron of a transformer block."""

    def __init__(self, width: int, activation: str, mlp_width: int | None = None) -> None:
        super().__init__()
        hidden = mlp_width or MLP_RATIO * width
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(hidden, width)


class Block(nn.Module):
    """A pre-norm transformer block.

    `attn_mask`, (tokens, tokens), is added to the attention logits; None adds nothing. The mask is not a buffer,
    because published state dicts have no key for a mask.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        activation: str,
        attn_mask: Tensor | None = None,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = Mlp(width, activation, mlp_width)
        self.ln_2 = LayerNorm(width)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Attend from every token to the tokens that the mask allows; `x` and the result are (tokens, n, width)."""
        mask = None if self.attn_mask is None else self.attn_mask.to(dtype=x.dtype, device=x.device)
        attended: Tensor = self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return attended

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention and the MLP; `x` and the result are (tokens, n, width)."""
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A sequence of transformer blocks."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        activation: str,
        attn_mask: Tensor | None = None,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        blocks = (
            Block(width, heads, activation=activation, attn_mask=attn_mask, mlp_width=mlp_width) for _ in range(layers)
        )
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks; `x` and the result are (tokens, n, width)."""
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """The ViT image tower. The pre-projection feature is the class token after `ln_post`."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, layers, patch = architecture.vision_width, architecture.vision_layers, architecture.vision_patch_size
        assert isinstance(layers, int)
        assert patch is not None
        self.input_resolution = architecture.image_resolution
        self.output_dim = architecture.embed_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((self.input_resolution // patch) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width,
            layers,
            architecture.vision_heads,
            activation=architecture.activation,
            mlp_width=architecture.vision_mlp_width,
        )
        self.ln_post = LayerNorm(width)
        self.proj: nn.Parameter | None = nn.Parameter(torch.empty(width, self.output_dim))

    def pre_projection(self, x: Tensor) -> Tensor:
        """Return the class token, (n, width), that the CLIP paper probes; `x` is (n, 3, r, r), normalised pixels."""
        x = self.conv1(x).flatten(2).transpose(1, 2)  # (n, patches, width)
        # A sum with zeros instead of `expand` puts the device into traced graphs, as in the published archives.
        zeros = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        class_token = self.class_embedding.to(x.dtype) + zeros  # (n, 1, width)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x).transpose(0, 1)  # (1 + patches, n, width)
        x = self.transformer(x).transpose(0, 1)  # (n, 1 + patches, width)
        return self.ln_post(x[:, 0, :])

    def project(self, pre_projection: Tensor) -> Tensor:
        """Project (n, width) to (n, embed_dim). If `proj` is None, return the input, as the reference does."""
        return pre_projection if self.proj is None else pre_projection @ self.proj

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features, (n, embed_dim), of (n, 3, r, r) normalised pixels."""
        return self.project(self.pre_projection(x))


class WithoutInitialization(TorchFunctionMode):
    """Context in which new modules get no initial values, because weights are loaded into them.

    Drawing the values of a large model takes seconds, and on torch's device `meta` it imports torch's compiler.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, except those of `torch.nn.init`."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class CLIP(nn.Module):
    """A CLIP model: image tower, text tower and the learned temperature of the logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.context_length = a.context_length
        self.vocab_size = a.vocab_size
        self.visual = ModifiedResNet(a) if a.vision_patch_size is None else VisionTransformer(a)
        self.transformer = Transformer(
            a.transformer_width,
            a.transformer_layers,
            a.transformer_heads,
            activation=a.activation,
            attn_mask=self.build_attention_mask(),
            mlp_width=a.transformer_mlp_width,
        )
        self.token_embedding = nn.Embedding(a.vocab_size, a.transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(a.context_length, a.transformer_width))
        self.ln_final = LayerNorm(a.transformer_width)
        self.text_projection = nn.Parameter(torch.empty(a.transformer_width, a.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if not self.logit_scale.is_meta:  # tensors on `meta` have no values, but initialising them takes the same time
            self.initialize_parameters()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the image tower computes, read from its first convolution."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode (n, 3, r, r) normalised pixels of any float dtype; return (n, embed_dim) in the model's dtype."""
        return self.visual(image.to(self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids (n, context_length); return (n, embed_dim) in the model's dtype.

        Raises:
            TextError: the rows differ in length from the context, or an id is not in the vocabulary. On a GPU only
                the length is checked, because reading the ids would make the caller wait for the GPU.
        """
        context_length = self.positional_embedding.shape[0]
        if text.shape[1:] != (context_length,):
            raise TextError(f"expected token ids (n, {context_length}), got {tuple(text.shape)}; {TOKENIZE}")
        try:
            x = self.token_embedding(text)  # (n, context_length, transformer_width)
        except IndexError as err:
            ids = f"expected token ids from 0 to {self.vocab_size - 1}, got {int(text.min())} to {int(text.max())}"
            raise TextError(f"{ids}; {TOKENIZE}") from err
        x = x.to(self.dtype) + self.positional_embedding.to(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        x = self.ln_final(x)  # (n, context_length, transformer_width)
        end = text.argmax(dim=-1)  # the end token has the highest id of the vocabulary
        return x[torch.arange(x.shape[0], device=x.device), end] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (n_images, n_texts) and their transpose.

        The logits are the cosine similarities times the exponential of `logit_scale`.
        """
        image_features = F.normalize(self.encode_image(image), dim=1)
        text_features = F.normalize(self.encode_text(text), dim=1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()

    def build_attention_mask(self) -> Tensor:
        """Return the text tower's causal mask, (context_length, context_length): 0 up to the token, -inf after it."""
        # Not on the meta device, where `triu_` imports torch's compiler, which takes two seconds.
        return torch.full((self.context_length, self.context_length), -math.inf, device="cpu").triu_(1)

    def initialize_parameters(self) -> None:
        """Draw new weights from torch's random state, with the scales of OpenAI's text tower for both towers."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, VisionTransformer):
            scale = self.visual.conv1.out_channels**-0.5
            for parameter in (self.visual.class_embedding, self.visual.positional_embedding, self.visual.proj):
                if parameter is not None:
                    nn.init.normal_(parameter, std=scale)
            _initialize_transformer(self.visual.transformer)
        else:
            pool = self.visual.attnpool
            for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(layer.weight, std=pool.c_proj.in_features**-0.5)
            for block in self.visual.modules():
                if isinstance(block, Bottleneck):
                    nn.init.zeros_(block.bn3.weight)
        _initialize_transformer(self.transformer)
        nn.init.normal_(self.text_projection, std=self.transformer.width**-0.5)


def _initialize_transformer(transformer: Transformer) -> None:
    width, layers = transformer.width, transformer.layers
    for block in transformer.resblocks:
        assert isinstance(block, Block)
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast the weights that the published checkpoints store in fp16, in place.

    These are the weights and biases of convolutions and linear layers, the input projections of attention, and both
    projections into the joint space. Embeddings and normalisation layers stay fp32.
    """
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            cast = list(own.values())
        else:
            cast = [own[name] for name in ("proj", "text_projection") if name in own]
        for parameter in cast:
            parameter.data = parameter.data.to(dtype)
