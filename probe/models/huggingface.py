"""CLIP as Hugging Face's libraries write it: names and shapes of weights, and the JSON files beside them.

Pure translation into what the rest of the package speaks; `checkpoints.py` reads the weights, `hub.py` downloads.

Source: transformers `CLIPModel`, `CLIPConfig` and `CLIPImageProcessor`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import CheckpointError
from probe.models.clip import ACTIVATIONS, architecture_of
from probe.models.tokenizer import Tokenizer, read_merges
from probe.preprocess import MEAN, STD, Preprocess
from probe.specs import Architecture

CONFIG, IMAGES, MERGES, VOCABULARY = "config.json", "preprocessor_config.json", "merges.txt", "vocab.json"

MARK = "vision_model.embeddings.class_embedding"  # a key that only this naming has
RENAMED = {
    MARK: "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "logit_scale": "logit_scale",
    **{f"vision_model.pre_layrnorm.{p}": f"visual.ln_pre.{p}" for p in ("weight", "bias")},  # their spelling
    **{f"vision_model.post_layernorm.{p}": f"visual.ln_post.{p}" for p in ("weight", "bias")},
    **{f"text_model.final_layer_norm.{p}": f"ln_final.{p}" for p in ("weight", "bias")},
}
TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TOWERS = {"vision_model": "visual.transformer", "text_model": "transformer"}
BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")

# What a file that leaves a value out means: the defaults of `CLIPVisionConfig` and `CLIPTextConfig`.
DEFAULTS = {
    "vision": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 12},
    "text": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8},
}
EPSILON = 1e-5  # of torch's LayerNorm, which `clip.py` leaves as it is
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # the numbers of PIL's filters
STEPS = ("do_resize", "do_rescale", "do_normalize")


def is_hugging_face(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dict is in Hugging Face's naming."""
    return MARK in state_dict


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a `transformers.CLIPModel` the names and shapes of the published checkpoints.

    Raises:
        CheckpointError: a key that no CLIP model has, or one that is missing; the message names it.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name in RENAMED:
            renamed[RENAMED[name]] = tensor
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.t().contiguous()
        elif (found := BLOCK.fullmatch(name)) is not None:
            tower, block, part, kind = found.groups()
            prefix = f"{TOWERS[tower]}.resblocks.{block}"
            if part in IN_BLOCK:
                renamed[f"{prefix}.{IN_BLOCK[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                renamed[f"{prefix}.attn.in_proj_{kind}"] = _join_projections(state_dict, name)
        elif not name.endswith(".position_ids"):  # positions as a buffer, in files of older versions
            raise CheckpointError(f"unknown key {name!r} among CLIP weights in Hugging Face's naming; give a CLIPModel")
    return renamed


def _join_projections(state_dict: Mapping[str, Tensor], query: str) -> Tensor:
    names = [query.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    for name in names:
        if name not in state_dict:
            raise CheckpointError(f"the state dict has no {name!r}; give the weights of a whole CLIPModel")
    return torch.cat([state_dict[name] for name in names])


def read_architecture(folder: Path, state_dict: Mapping[str, Tensor]) -> Architecture:
    """The sizes of renamed weights, with the activation and heads that `config.json` tells.

    Raises:
        CheckpointError: no CLIP config, or one that our towers cannot follow; the message names the value.
    """
    config = _read_json(folder / CONFIG)
    if config.get("model_type") != "clip":
        raise CheckpointError(f"{folder / CONFIG} is of a {config.get('model_type')!r}, not of a 'clip'; give a CLIP")
    towers = {}
    for tower, defaults in DEFAULTS.items():
        # Some published files say a thing twice; transformers lets the second have its way.
        towers[tower] = {**defaults, **config.get(f"{tower}_config", {}), **(config.get(f"{tower}_config_dict") or {})}
        if towers[tower]["layer_norm_eps"] != EPSILON:
            raise _cannot_follow(folder / CONFIG, f"{tower} layer_norm_eps", towers[tower]["layer_norm_eps"], [EPSILON])
        if towers[tower]["hidden_act"] not in ACTIVATIONS:
            raise _cannot_follow(folder / CONFIG, f"{tower} hidden_act", towers[tower]["hidden_act"], ACTIVATIONS)
    activation = towers["vision"]["hidden_act"]
    if towers["text"]["hidden_act"] != activation:
        raise _cannot_follow(folder / CONFIG, "text hidden_act", towers["text"]["hidden_act"], [activation])
    shape = architecture_of(state_dict)
    return replace(
        shape,
        activation=activation,
        vision_head_width=shape.vision_width // towers["vision"]["num_attention_heads"],
        transformer_head_width=shape.transformer_width // towers["text"]["num_attention_heads"],
    )


def read_preprocess(folder: Path, resolution: int) -> Preprocess:
    """The image settings of `preprocessor_config.json`; CLIP's own where there is none.

    Raises:
        CheckpointError: a setting that ours cannot follow; the message names it.
    """
    path = folder / IMAGES
    if not path.is_file():
        return Preprocess(resolution)
    config = _read_json(path)
    for step in STEPS:
        if not config.get(step, True):
            raise _cannot_follow(path, step, False, [True])
    if config.get("resample", 3) not in RESAMPLE:
        raise _cannot_follow(path, "resample", config["resample"], RESAMPLE)
    size, crop = config.get("size", resolution), config.get("crop_size", resolution)
    if not config.get("do_center_crop", True):
        crop = size
    squash = crop == size and isinstance(size, dict) and "height" in size
    wanted = [{"height": resolution, "width": resolution}, {"shortest_edge": resolution}, resolution]
    for name, value in (("size", size), ("crop_size", crop)):
        if value not in wanted:
            raise _cannot_follow(path, name, value, wanted)
    mean, std = (tuple(config.get(f"image_{name}", ours)) for name, ours in (("mean", MEAN), ("std", STD)))
    return Preprocess(
        resolution, mean, std, RESAMPLE[config.get("resample", 3)], resize="squash" if squash else "shortest"
    )


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """See that the folder's vocabulary is laid out as CLIP's, so that our tokenizer gives the ids of the weights.

    Raises:
        CheckpointError: it is not.
    """
    if not (folder / VOCABULARY).is_file() or not (folder / MERGES).is_file():
        return  # the folder holds weights alone
    ids = Tokenizer(read_merges(folder / MERGES)).ids
    if _read_json(folder / VOCABULARY) != ids or len(ids) != vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} is not CLIP's, or is not of these weights ({len(ids)} tokens for "
            f"{vocab_size} embeddings); take {VOCABULARY} and {MERGES} from where the weights are from"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder as save_pretrained writes it") from err
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; give a folder as save_pretrained writes it")
    return found


def _cannot_follow(path: Path, name: str, value: object, known: Any) -> CheckpointError:
    choices = ", ".join(str(choice) for choice in known)
    return CheckpointError(f"{path} has {name} {value!r}, which this loader cannot follow; it knows {choices}")
