"""CLIP as Hugging Face's libraries write it: names and shapes of weights, and the JSON files beside them.

Pure translation into what the rest of the package speaks; `checkpoints.py` reads the weights, `hub.py` downloads.

Source: transformers `CLIPModel`, `CLIPConfig`, `CLIPImageProcessor` and `CLIPTokenizer`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import CheckpointError
from probe.models.preprocess import MEAN, STD, Preprocess
from probe.models.tokenizer import Tokenizer, read_merges
from probe.models.towers import ACTIVATIONS, MLP_RATIO, architecture_of
from probe.specs import Architecture

logger = logging.getLogger(__name__)

CONFIG = "config.json"
IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # the second is what transformers 5 writes
VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"  # the third likewise
FILES = (CONFIG, IMAGES, PROCESSOR, VOCABULARY, MERGES, TOKENIZER)

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
CONTEXT_LENGTH = 77  # likewise
_SIGLIP = "SigLIP runs through open_clip, such as open_clip:ViT-B-16-SigLIP/webli"
# model_type -> what to give instead, for models that are related to CLIP.
INSTEAD = {
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "clip_vision_model": "give the CLIPModel that this image tower belongs to",
    "clip_text_model": "give the CLIPModel that this text tower belongs to",
}
EPSILON = 1e-5  # of torch's LayerNorm, which `towers.py` leaves as it is
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # the numbers of PIL's filters
STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Vocabulary:
    """The merges of a folder's tokenizer, and the ids that the folder gives to tokens."""

    merges: tuple[tuple[str, str], ...]
    ids: Mapping[str, int]


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


def check_type(folder: Path) -> None:
    """Check in the `config.json` of a folder that it holds a CLIP model with both towers.

    Raises:
        CheckpointError: the folder holds another model; the message says what is supported.
    """
    path = folder / CONFIG
    found = _read_json(path).get("model_type")
    if found != "clip":
        instead = INSTEAD.get(str(found), "give a folder that CLIPModel wrote")
        raise CheckpointError(
            f"{path} has model_type {found!r}; only CLIP models with both towers are supported (CLIPModel, model_type "
            f"'clip'): {instead}"
        )


def read_architecture(folder: Path, state_dict: Mapping[str, Tensor]) -> Architecture:
    """The sizes of renamed weights, with the activation and heads that `config.json` tells.

    Raises:
        CheckpointError: no CLIP config, or one that our towers cannot follow; the message names the value.
    """
    check_type(folder)
    path = folder / CONFIG
    config = _read_json(path)
    vision, text = (_read_tower(path, config, tower) for tower in DEFAULTS)
    if text["hidden_act"] != vision["hidden_act"]:
        raise _cannot_follow(path, "text hidden_act", text["hidden_act"], [vision["hidden_act"]])
    shape = architecture_of(state_dict)
    vision_mlp = shape.vision_mlp_width or MLP_RATIO * shape.vision_width
    text_mlp = shape.transformer_mlp_width or MLP_RATIO * shape.transformer_width
    for name, value, ours in (
        ("vision num_hidden_layers", vision.get("num_hidden_layers"), shape.vision_layers),
        ("vision image_size", vision.get("image_size"), shape.image_resolution),
        ("vision patch_size", vision.get("patch_size"), shape.vision_patch_size),
        ("vision intermediate_size", vision.get("intermediate_size"), vision_mlp),
        ("text num_hidden_layers", text.get("num_hidden_layers"), shape.transformer_layers),
        ("text intermediate_size", text.get("intermediate_size"), text_mlp),
    ):
        if value not in (None, ours):
            raise _cannot_follow(path, name, value, [f"{ours}, that of the weights"])
    # Ours takes the feature at the highest id, as the reference; so does transformers where a file says 2.
    if text.get("eos_token_id") not in (None, 2, shape.vocab_size - 1):
        raise _cannot_follow(path, "text eos_token_id", text["eos_token_id"], [shape.vocab_size - 1])
    return replace(
        shape,
        activation=vision["hidden_act"],
        vision_head_width=_head_width(path, "vision", shape.vision_width, vision["num_attention_heads"]),
        transformer_head_width=_head_width(path, "text", shape.transformer_width, text["num_attention_heads"]),
    )


def _read_tower(path: Path, config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Some published files have both; transformers then reads the second alone.
    given = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
    if not isinstance(given, dict):
        raise _cannot_follow(path, f"{tower}_config", given, ["an object"])
    values = {**DEFAULTS[tower], **given}
    for name, known in (("layer_norm_eps", [EPSILON]), ("hidden_act", list(ACTIVATIONS))):
        if values[name] not in known:
            raise _cannot_follow(path, f"{tower} {name}", values[name], known)
    return values


def _head_width(path: Path, tower: str, width: int, heads: object) -> int:
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    if type(heads) is not int or heads not in divisors:
        raise _cannot_follow(path, f"{tower} num_attention_heads", heads, divisors)
    return width // heads


def find_image_settings(folder: Path) -> Path | None:
    """Return the file of a folder that says how images are prepared; None if there is no such file."""
    return next((folder / name for name in (IMAGES, PROCESSOR) if (folder / name).is_file()), None)


def read_preprocess(folder: Path, resolution: int) -> Preprocess:
    """The image settings of `preprocessor_config.json`, or of `processor_config.json`; CLIP's own where neither is.

    The middle is cut out as the reference does it, with torchvision; where the margin is odd, transformers takes the
    neighbouring pixel.

    Raises:
        CheckpointError: a setting that ours cannot follow; the message names it.
    """
    path = find_image_settings(folder)
    config = _read_json(path) if path is not None else {}
    path = path or folder / IMAGES
    config = config.get("image_processor", config)
    for step in STEPS:
        if config.get(step) is False:
            raise _cannot_follow(path, step, False, [True])
    if not math.isclose(config.get("rescale_factor") or 1 / 255, 1 / 255):
        raise _cannot_follow(path, "rescale_factor", config["rescale_factor"], [1 / 255])
    size, crop = config.get("size") or resolution, config.get("crop_size") or resolution
    squash = isinstance(size, dict) and "height" in size
    if config.get("do_center_crop") is False:
        if not squash:
            raise _cannot_follow(path, "do_center_crop", False, [True, "False with a height and a width"])
        crop = size
    wanted = [{"height": resolution, "width": resolution}, {"shortest_edge": resolution}, resolution]
    for name, value in (("size", size), ("crop_size", crop)):
        if value not in wanted:
            raise _cannot_follow(path, name, value, wanted)
    resample = 3 if config.get("resample") is None else config["resample"]
    if resample not in list(RESAMPLE):  # a list, since what a file says need not have a hash
        raise _cannot_follow(path, "resample", resample, RESAMPLE)
    mean, std = _three(path, config, "image_mean", MEAN), _three(path, config, "image_std", STD)
    return Preprocess(resolution, mean, std, RESAMPLE[resample], resize="squash" if squash else "shortest")


def _three(
    path: Path, config: Mapping[str, Any], name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    given = config.get(name) or default
    numbers = isinstance(given, list | tuple) and all(isinstance(value, int | float) for value in given)
    if not numbers or len(given) != 3 or (name == "image_std" and 0 in given):
        raise _cannot_follow(path, name, given, ["three numbers"])
    red, green, blue = given
    return red, green, blue


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokenizer of a folder, in the files of older and of newer versions; None where it has none.

    Raises:
        CheckpointError: its files are damaged.
    """
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        return Vocabulary(read_merges(folder / MERGES), _read_json(folder / VOCABULARY))
    if not (folder / TOKENIZER).is_file():
        return None
    found = _read_json(folder / TOKENIZER)
    try:
        model = found["model"]
        pairs = [merge.split() if isinstance(merge, str) else merge for merge in model["merges"]]
        return Vocabulary(tuple((a, b) for a, b in pairs), model["vocab"])
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{folder / TOKENIZER} holds no byte-pair encoding; give the folder of a CLIP") from err


def read_context_length(folder: Path) -> int:
    """The number of tokens that the text tower takes."""
    config = _read_json(folder / CONFIG)
    length = (config.get("text_config_dict") or config.get("text_config") or {}).get("max_position_embeddings")
    return int(length or CONTEXT_LENGTH)


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """See that the folder's vocabulary is laid out as CLIP's, so that our tokenizer gives the ids of the weights.

    Raises:
        CheckpointError: it is not.
    """
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        logger.warning("%s has no tokenizer beside its weights; nothing says which ids its texts have", folder)
    elif vocabulary.ids != Tokenizer(vocabulary.merges).ids or len(vocabulary.ids) != vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} is not CLIP's, or is not of these weights ({len(vocabulary.ids)} tokens for "
            f"{vocab_size} embeddings); take it from where the weights are from"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder as save_pretrained writes it") from err
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; give a folder as save_pretrained writes it")
    return found


def _cannot_follow(path: Path, name: str, value: object, known: Collection[object]) -> CheckpointError:
    choices = ", ".join(str(choice) for choice in known)
    return CheckpointError(f"{path} has {name} {value!r}, which this loader cannot follow; it knows {choices}")
