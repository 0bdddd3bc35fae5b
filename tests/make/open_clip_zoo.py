"""Small versions of open_clip's architectures: the same kinds of towers with one or two narrow layers and small images.

timm, not open_clip's configuration, defines the sizes of timm's towers. Therefore timm is patched to build narrow
towers.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import timm
from transformers import M2M100Config, MT5Config, RobertaConfig, XLMRobertaConfig

HEADS = 2  # of every transformer, so that a wrong number of heads is found
TEXT = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": HEADS, "layers": 1}
# Start of the name in timm -> arguments of the constructor, side of the images in pixels.
TIMM: dict[str, tuple[dict[str, Any], int]] = {
    "convnext": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}, 64),
    "swin": ({"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)}, 224),
    "fastvit_mci3": ({"layers": (1,) * 5, "embed_dims": (8, 16, 32, 64, 128)}, 64),
    "fastvit_mci4": ({"layers": (1,) * 5, "embed_dims": (8, 16, 32, 64, 128)}, 64),
    "fastvit": ({"layers": (1,) * 4, "embed_dims": (16, 32, 64, 128)}, 64),
    "vitamin": ({"depth": 1, "embed_dim": 64, "num_heads": HEADS, "img_size": 64}, 64),
    "vit_base_mci": ({"depth": 1, "img_size": 64}, 64),  # the stem has a fixed width
    "vit": ({"depth": 1, "embed_dim": 64, "num_heads": HEADS, "img_size": 64}, 64),
    "eva": ({"depth": 1, "embed_dim": 64, "num_heads": HEADS, "img_size": 64}, 64),
}
HUGGING_FACE = {
    "roberta-base": RobertaConfig,
    "xlm-roberta-base": XLMRobertaConfig,
    "xlm-roberta-large": XLMRobertaConfig,
    "google/mt5-base": MT5Config,
    "google/mt5-xl": MT5Config,
    "facebook/nllb-200-distilled-600M": M2M100Config,
    "facebook/nllb-200-distilled-1.3B": M2M100Config,
}


def reduced(architecture: str) -> dict[str, Any]:
    """Return the configuration of an open_clip architecture with few and narrow layers."""
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(architecture))
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 32
    if "timm_model_name" in vision:
        vision["image_size"] = _of_timm(vision["timm_model_name"])[1]
        if vision.get("timm_proj") == "none":
            config["embed_dim"] = 64  # the width of the tower
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8 * 32 // HEADS}
    else:
        vision |= {"layers": 1, "width": 64, "head_width": 64 // HEADS, "image_size": 2 * vision["patch_size"]}
        if vision.get("attentional_pool"):
            vision |= {"attn_pooler_heads": HEADS, "attn_pooler_queries": 4}
    if "hf_model_name" not in text:
        text |= TEXT
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT
    return config


def kinds() -> list[str]:
    """Return the first architecture of each kind. The others differ only in sizes, tokenizers or names."""
    found: dict[str, str] = {}
    for name in open_clip.list_models():
        config = reduced(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        for size in ("image_size", "patch_size"):
            vision.pop(size, None)
        for option in ("hf_tokenizer_name", "tokenizer_kwargs", "text_mask", "eos_id"):
            text.pop(option, None)
        if "timm_model_name" in vision:
            vision["timm_model_name"] = re.sub(r"_\d{3}$", "", vision["timm_model_name"])  # the side of the images
        if "hf_model_name" in text:
            text["hf_model_name"] = HUGGING_FACE[text["hf_model_name"]].__name__
        found.setdefault(json.dumps(config, sort_keys=True), name)
    return list(found.values())


def _of_timm(name: str) -> tuple[dict[str, Any], int]:
    return next(sizes for start, sizes in TIMM.items() if name.startswith(start))


@contextmanager
def narrow_timm() -> Iterator[None]:
    """Make timm build narrow towers."""
    create = timm.create_model

    def create_narrow(name: str, **kwargs: Any) -> Any:
        sizes = dict(_of_timm(name)[0])
        if name.startswith("vitamin"):
            from timm.models.vitamin import VitCfg, VitConvCfg

            conv = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
            sizes["embed_cfg"] = VitCfg((16, 32, 64), (1, 1, 1), stem_width=16, conv_cfg=conv, head_type="1d")
        return create(name, **sizes, **kwargs)

    with patch.object(timm, "create_model", create_narrow):
        yield


def write_text_config(name: str, folder: Path) -> Path:
    """Write the configuration of a narrow text tower, of the same kind as in a repository of the Hugging Face hub."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    if HUGGING_FACE[name] is MT5Config:
        sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": HEADS}
    elif HUGGING_FACE[name] is M2M100Config:
        sizes = {"vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        sizes |= {"encoder_attention_heads": HEADS, "encoder_ffn_dim": 32, "decoder_attention_heads": HEADS}
    else:
        sizes["intermediate_size"] = 32
    HUGGING_FACE[name](**sizes).save_pretrained(folder)
    return folder
