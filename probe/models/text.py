"""Load the text tower of a model, to encode the prompts of zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probe.errors import CheckpointError
from probe.models import get_model, open_clip
from probe.models.devices import Execution, naming_precision, resolve_execution
from probe.models.families import find_family
from probe.models.layout import lay_out_text
from probe.models.loading import open_model, read_weights, without_jit
from probe.models.open_clip_names import import_open_clip
from probe.models.open_clip_tokenizers import ZooTokenizer, load_zoo_tokenizer
from probe.models.tokenizer import Tokenizer
from probe.models.towers import CLIP
from probe.models.vocabulary import load_tokenizer
from probe.specs import ModelSpec


@dataclass(frozen=True)
class TextEncoder:
    """A loaded text tower with its tokenizer.

    Args:
        name: name of the `ModelSpec`.
        execution: device, precision and mode.
        context_length: number of tokens per text.
        embed_dim: width of the text features, which is that of the projected image features.
        logit_scale: factor of the cosine similarities in the logits of the model.
        logit_bias: addend of the logits; 0 for models without one.
        tokenize: maps n texts to token ids, an integer tensor (n, context_length) on the CPU. Raises TextError, with
            the text, for a text that is longer than the context.
        encode_tokens: maps token ids on the device of `execution` to features (n, embed_dim).
    """

    name: str
    execution: Execution
    context_length: int
    embed_dim: int
    logit_scale: float
    logit_bias: float
    tokenize: Callable[[Sequence[str]], Tensor] = field(repr=False)
    encode_tokens: Callable[[Tensor], Tensor] = field(repr=False)

    @torch.inference_mode()
    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids from `tokenize`; return fp32 features (n, embed_dim) on the CPU, which are not normalised.

        Raises:
            DeviceError: the model cannot compute in this precision on this device.
        """
        with naming_precision(f"the text tower of {self.name}", self.execution):
            return self.encode_tokens(ids.long().to(self.execution.device)).float().cpu()


def load_text_encoder(
    model: str | Path | ModelSpec,
    *,
    jit: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    weights_dir: str | Path | None = None,
    offline: bool = False,
) -> TextEncoder:
    """Load the text tower of a model and its tokenizer. The arguments are those of `loading.load_encoder`.

    Raises:
        CheckpointError: the model has no text tower or no vocabulary, or cannot be loaded.
        UnknownNameError, DownloadError, DeviceError, ExtraMissingError: the message says what to do.
    """
    spec = model if isinstance(model, ModelSpec) else get_model(model)
    execution = resolve_execution(device, precision=precision, jit=jit, form=spec.form)
    if spec.form == "open_clip":
        return _load_from_zoo(spec, without_jit(execution, spec.name), offline=offline)
    if find_family(spec.form) is not None:
        raise CheckpointError(
            f"{spec.name} is loaded without a text tower; give a CLIP model, or a protocol other than zero-shot"
        )
    checkpoint = read_weights(spec, weights_dir=weights_dir, offline=offline)
    shape = checkpoint.architecture
    tokenizer = load_tokenizer(
        spec,
        sha256=checkpoint.sha256,
        vocab_size=shape.vocab_size,
        weights_dir=weights_dir,
        offline=offline,
    )
    loaded = open_model(checkpoint, execution)
    encode_tokens: Callable[[Tensor], Tensor] = loaded.encode_text
    if isinstance(loaded, CLIP):
        lay_out_text(loaded, execution)
        encode_tokens = partial(_encode_up_to_end, loaded)
    return TextEncoder(
        spec.name,
        replace(execution, jit=not isinstance(loaded, CLIP)),
        context_length=shape.context_length,
        embed_dim=shape.embed_dim,
        logit_scale=checkpoint.state_dict["logit_scale"].float().exp().item(),
        logit_bias=0.0,
        tokenize=partial(_tokenize, tokenizer, shape.context_length),
        encode_tokens=encode_tokens,
    )


def _tokenize(tokenizer: Tokenizer, context_length: int, texts: Sequence[str]) -> Tensor:
    return torch.tensor(tokenizer.tokenize(texts, context_length), dtype=torch.int32).view(-1, context_length)


def _load_from_zoo(spec: ModelSpec, execution: Execution, *, offline: bool) -> TextEncoder:
    tokenizer = load_zoo_tokenizer(spec.source, offline=offline)
    model = open_clip.load_model(spec.source, execution, offline=offline).model
    return as_text_encoder(spec.name, model, tokenizer, execution)


def as_text_encoder(name: str, model: nn.Module, tokenizer: ZooTokenizer, execution: Execution) -> TextEncoder:
    """Return the text tower of an open_clip model as an encoder.

    Raises:
        CheckpointError: the model has no text tower.
        DeviceError: the model cannot compute in this precision on this device.
    """
    if not hasattr(model, "encode_text"):
        raise CheckpointError(
            f"{name} has no text tower, which zero-shot needs; use another protocol, or another model"
        )
    values: Any = model  # open_clip has no base class with these attributes
    encoder = TextEncoder(
        name,
        execution,
        context_length=tokenizer.context_length,
        embed_dim=0,
        logit_scale=float(values.logit_scale.float().exp()),
        logit_bias=0.0 if values.logit_bias is None else float(values.logit_bias),
        tokenize=tokenizer.tokenize,
        encode_tokens=partial(_encode_up_to_end, model) if _is_causal(model) else values.encode_text,
    )
    return replace(encoder, embed_dim=encoder.encode(tokenizer.tokenize(["a"])).shape[1])


def _is_causal(model: nn.Module) -> bool:
    """Return True if the features of an open_clip model come from the token with the highest id and those before it."""
    is_plain = isinstance(model, import_open_clip().CLIP)
    return is_plain and model.attn_mask is not None and model.text_pool_type == "argmax"


def _encode_up_to_end(model: nn.Module, ids: Tensor) -> Tensor:
    """Return what `model.encode_text` returns, in less time.

    The feature of a text is that of its end token, which has the highest id, and no token attends to later tokens. So
    the tokens after the last end token of the batch are left out.
    """
    length = int(ids.argmax(dim=-1).max()) + 1
    values: Any = model
    shorter = {"model.positional_embedding": values.positional_embedding[:length]}
    if hasattr(model, "attn_mask"):  # of open_clip's models; `lay_out_text` replaces the masks of other models
        shorter["model.attn_mask"] = values.attn_mask[:length, :length]
    features: Tensor = functional_call(_EncodeText(model), shorter, (ids[:, :length],))
    return features


class _EncodeText(nn.Module):
    """The text tower of a model as a module, whose tensors `functional_call` replaces."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids (n, length)."""
        encode_text: Any = self.model.encode_text
        features: Tensor = encode_text(ids)
        return features
