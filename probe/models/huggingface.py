"""Convert CLIP models in Hugging Face's form: the names and shapes of the weights, and the JSON files next to them.

`checkpoints.py` reads the weights, and `hub.py` downloads them.

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
from probe.models.architectures import architecture_of
from probe.models.preprocess import MEAN, STD, Preprocess
from probe.models.tokenizer import Tokenizer, read_merges
from probe.models.towers import ACTIVATIONS, MLP_RATIO
from probe.specs import Architecture

logger = logging.getLogger(__name__)

CONFIG = "config.json"
IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # transformers 5 writes the second file
VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"  # transformers 5 writes the third file
FILES = (CONFIG, IMAGES, PROCESSOR, VOCABULARY, MERGES, TOKENIZER)

MARK = "vision_model.embeddings.class_embedding"  # a key that exists only in Hugging Face's naming
RENAMED = {
    MARK: "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "logit_scale": "logit_scale",
    **{f"vision_model.pre_layrnorm.{p}": f"visual.ln_pre.{p}" for p in ("weight", "bias")},  # misspelt in transformers
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

# Values that a file omits: the defaults of `CLIPVisionConfig` and `CLIPTextConfig`.
DEFAULTS = {
    "vision": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 12},
    "text": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8},
}
CONTEXT_LENGTH = 77  # default of `CLIPTextConfig`
_SIGLIP = "load SigLIP through open_clip, for example open_clip:ViT-B-16-SigLIP/webli"
# Advice by `model_type`, for models that are related to CLIP.
ADVICE = {
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "clip_vision_model": "give the CLIPModel that this image tower belongs to",
    "clip_text_model": "give the CLIPModel that this text tower belongs to",
}
EPSILON = 1e-5  # default of torch's LayerNorm, which `towers.py` uses
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of the filters
STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary in a folder: the merges, and the id of each token."""

    merges: tuple[tuple[str, str], ...]
    ids: Mapping[str, int]


def is_hugging_face(state_dict: Mapping[str, Any]) -> bool:
    """Return True if a state dict is in Hugging Face's naming."""
    return MARK in state_dict


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `transformers.CLIPModel` with the names and shapes of OpenAI's checkpoints.

    Raises:
        CheckpointError: a key is unknown or missing; the message names the key.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name in RENAMED:
            renamed[RENAMED[name]] = tensor
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.t().contiguous()
        elif (match := BLOCK.fullmatch(name)) is not None:
            tower, block, part, kind = match.groups()
            prefix = f"{TOWERS[tower]}.resblocks.{block}"
            if part in IN_BLOCK:
                renamed[f"{prefix}.{IN_BLOCK[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                renamed[f"{prefix}.attn.in_proj_{kind}"] = _join_projections(state_dict, name)
        elif not name.endswith(".position_ids"):  # a buffer in files of older versions of transformers
            raise CheckpointError(f"the state dict has an unknown key {name!r}; give the weights of a CLIPModel")
    return renamed


def _join_projections(state_dict: Mapping[str, Tensor], query: str) -> Tensor:
    names = [query.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    for name in names:
        if name not in state_dict:
            raise CheckpointError(f"the state dict has no {name!r}; give the weights of a whole CLIPModel")
    return torch.cat([state_dict[name] for name in names])


def check_type(folder: Path) -> None:
    """Check in the `config.json` of a folder that the model is a CLIP model with both towers.

    Raises:
        CheckpointError: the folder contains another kind of model; the message says what is supported.
    """
    path = folder / CONFIG
    model_type = read_json(path).get("model_type")
    if model_type != "clip":
        advice = ADVICE.get(str(model_type), "give a folder that CLIPModel.save_pretrained wrote")
        raise CheckpointError(
            f"{path} has model_type {model_type!r}; only model_type 'clip' (CLIPModel, with both towers) is supported; "
            f"{advice}"
        )


def read_architecture(folder: Path, state_dict: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture: sizes from renamed weights, activation and attention heads from `config.json`.

    Raises:
        CheckpointError: the configuration is not CLIP's, or has an unsupported value; the message names the value.
    """
    check_type(folder)
    path = folder / CONFIG
    config = read_json(path)
    vision, text = (_read_tower(path, config, tower) for tower in DEFAULTS)
    if text["hidden_act"] != vision["hidden_act"]:
        raise _unsupported(path, "text hidden_act", text["hidden_act"], [vision["hidden_act"]])
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
            raise _unsupported(path, name, value, [f"{ours} (the size of the weights)"])
    # Our text tower takes the feature at the highest id, as the reference does. transformers does the same for the
    # value 2.
    if text.get("eos_token_id") not in (None, 2, shape.vocab_size - 1):
        raise _unsupported(path, "text eos_token_id", text["eos_token_id"], [shape.vocab_size - 1])
    return replace(
        shape,
        activation=vision["hidden_act"],
        vision_head_width=_head_width(path, "vision", shape.vision_width, vision["num_attention_heads"]),
        transformer_head_width=_head_width(path, "text", shape.transformer_width, text["num_attention_heads"]),
    )


def _read_tower(path: Path, config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Some published files have both keys. transformers then uses only `_config_dict`.
    given = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
    if not isinstance(given, dict):
        raise _unsupported(path, f"{tower}_config", given, ["a JSON object"])
    values = {**DEFAULTS[tower], **given}
    for name, known in (("layer_norm_eps", [EPSILON]), ("hidden_act", list(ACTIVATIONS))):
        if values[name] not in known:
            raise _unsupported(path, f"{tower} {name}", values[name], known)
    return values


def _head_width(path: Path, tower: str, width: int, heads: object) -> int:
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    if type(heads) is not int or heads not in divisors:
        raise _unsupported(path, f"{tower} num_attention_heads", heads, divisors)
    return width // heads


def find_image_settings(folder: Path) -> Path | None:
    """Return the file in a folder with the settings of the preprocessing, or None if the folder has no such file."""
    return next((folder / name for name in (IMAGES, PROCESSOR) if (folder / name).is_file()), None)


def read_preprocess(folder: Path, resolution: int) -> Preprocess:
    """Return the preprocessing that `preprocessor_config.json` or `processor_config.json` describes; else CLIP's own.

    The centre is cropped with torchvision, as in the reference. If the margin is odd, transformers crops one pixel
    further.

    Raises:
        CheckpointError: a setting is not supported; the message names the setting.
    """
    path = find_image_settings(folder)
    config = read_json(path) if path is not None else {}
    path = path or folder / IMAGES
    config = config.get("image_processor", config)
    for step in STEPS:
        if config.get(step) is False:
            raise _unsupported(path, step, False, [True])
    if not math.isclose(config.get("rescale_factor") or 1 / 255, 1 / 255):
        raise _unsupported(path, "rescale_factor", config["rescale_factor"], [1 / 255])
    size, crop = config.get("size") or resolution, config.get("crop_size") or resolution
    squash = isinstance(size, dict) and "height" in size
    if config.get("do_center_crop") is False:
        if not squash:
            raise _unsupported(path, "do_center_crop", False, [True, "False with a height and a width"])
        crop = size
    supported = [{"height": resolution, "width": resolution}, {"shortest_edge": resolution}, resolution]
    for name, value in (("size", size), ("crop_size", crop)):
        if value not in supported:
            raise _unsupported(path, name, value, supported)
    resample = 3 if config.get("resample") is None else config["resample"]
    if resample not in list(RESAMPLE):  # a list, because the value in a file may be unhashable
        raise _unsupported(path, "resample", resample, RESAMPLE)
    mean, std = _three_channels(path, config, "image_mean", MEAN), _three_channels(path, config, "image_std", STD)
    return Preprocess(resolution, mean, std, RESAMPLE[resample], resize="squash" if squash else "shortest")


def _three_channels(
    path: Path, config: Mapping[str, Any], name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    given = config.get(name) or default
    numbers = isinstance(given, list | tuple) and all(isinstance(value, int | float) for value in given)
    if not numbers or len(given) != 3 or (name == "image_std" and 0 in given):
        raise _unsupported(path, name, given, ["three numbers"])
    red, green, blue = given
    return red, green, blue


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary in a folder, from the files of any version of transformers; None if there is no vocabulary.

    Raises:
        CheckpointError: a file is damaged.
    """
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        return Vocabulary(read_merges(folder / MERGES), read_json(folder / VOCABULARY))
    if not (folder / TOKENIZER).is_file():
        return None
    content = read_json(folder / TOKENIZER)
    try:
        model = content["model"]
        pairs = [merge.split() if isinstance(merge, str) else merge for merge in model["merges"]]
        return Vocabulary(tuple((a, b) for a, b in pairs), model["vocab"])
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{folder / TOKENIZER} contains no byte-pair encoding; give the folder of a CLIP model"
        ) from err


def read_context_length(folder: Path) -> int:
    """Return the number of tokens per text of the text tower in a folder."""
    config = read_json(folder / CONFIG)
    length = (config.get("text_config_dict") or config.get("text_config") or {}).get("max_position_embeddings")
    return int(length or CONTEXT_LENGTH)


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that the vocabulary in a folder has CLIP's order and `vocab_size` tokens.

    Otherwise our tokenizer would give wrong token ids. Warn if there is no vocabulary.

    Raises:
        CheckpointError: the vocabulary has a different order or size.
    """
    vocabulary = read_vocabulary(folder)
    if vocabulary is None:
        logger.warning("%s has no tokenizer next to its weights, so texts cannot be tokenized for this model", folder)
    elif vocabulary.ids != Tokenizer(vocabulary.merges).ids or len(vocabulary.ids) != vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} is not CLIP's, or does not belong to the weights "
            f"({len(vocabulary.ids)} tokens, {vocab_size} embeddings); replace it with the tokenizer of the model"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file next to the weights.

    Raises:
        CheckpointError: the file is missing, cannot be read or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder that save_pretrained wrote") from err
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains no JSON object; give a folder that save_pretrained wrote")
    return content


def _unsupported(path: Path, name: str, value: object, supported: Collection[object]) -> CheckpointError:
    values = ", ".join(map(str, supported))
    return CheckpointError(f"{path} has an unsupported {name} {value!r}; supported: {values}")
