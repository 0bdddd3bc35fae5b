"""Small models of transformers with random weights, one of each type whose default pooling is known."""

from pathlib import Path
from typing import Any

import torch
import transformers

SIDE = 32  # of the images, in pixels
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = {"image_size": SIDE, "patch_size": 8}
TOKENS = {"vocab_size": 40, "max_position_embeddings": 8, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 0}
STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
SWIN = {"image_size": SIDE, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
BLOCKS = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}

_TOWERS = {"text_config": {**VIT, **TOKENS}, "vision_config": {**VIT, **PATCHES}, "projection_dim": 20}
_TILED = {"size": {"height": SIDE, "width": SIDE}}
_CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_OF_BIT = ("BitImageProcessor", _CROPPED)
_OF_VIT = ("ViTImageProcessor", _TILED)
_OF_CLIP = ("CLIPImageProcessor", _CROPPED)
_OF_SIGLIP = ("SiglipImageProcessor", _TILED)
_OF_CONVNEXT = ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875})

# By model type: settings of the configuration, class and settings of the image processor.
ZOO: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "aimv2": (_TOWERS, _OF_CLIP),
    "aimv2_vision_model": ({**VIT, **PATCHES, "use_head": False}, _OF_CLIP),
    "altclip": (_TOWERS, _OF_CLIP),
    "beit": ({**VIT, **PATCHES}, ("BeitImageProcessor", {**_TILED, "do_center_crop": False})),
    "bit": ({**BLOCKS, "num_groups": 4}, _OF_BIT),
    "chinese_clip": (_TOWERS, ("ChineseCLIPImageProcessor", _CROPPED)),
    "clip": (_TOWERS, _OF_CLIP),
    "clip_vision_model": ({**VIT, **PATCHES}, _OF_CLIP),
    "convnext": (STAGES, _OF_CONVNEXT),
    "convnextv2": (STAGES, _OF_CONVNEXT),
    "deit": ({**VIT, **PATCHES}, ("DeiTImageProcessor", {**_TILED, "crop_size": {"height": SIDE, "width": SIDE}})),
    "dinov2": ({**VIT, **PATCHES}, _OF_BIT),
    "dinov2_with_registers": ({**VIT, **PATCHES, "num_register_tokens": 3}, _OF_BIT),
    "dinov3_convnext": (STAGES, ("DINOv3ViTImageProcessor", _TILED)),
    "dinov3_vit": ({**VIT, **PATCHES, "num_register_tokens": 4}, ("DINOv3ViTImageProcessor", _TILED)),
    "hiera": (
        {**_TILED, "image_size": [SIDE, SIDE], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        _OF_BIT,
    ),
    "ijepa": ({**VIT, **PATCHES}, _OF_VIT),
    "metaclip_2": (_TOWERS, _OF_CLIP),
    "regnet": ({**BLOCKS, "groups_width": 8}, _OF_CONVNEXT),
    "resnet": ({**BLOCKS, "layer_type": "basic"}, _OF_CONVNEXT),
    "siglip": (_TOWERS, _OF_SIGLIP),
    "siglip_vision_model": ({**VIT, **PATCHES}, _OF_SIGLIP),
    "swin": (SWIN, _OF_VIT),
    "swinv2": (SWIN, _OF_VIT),
    "vit": ({**VIT, **PATCHES}, _OF_VIT),
    "vit_mae": ({**VIT, **PATCHES}, _OF_VIT),
    "vit_msn": ({**VIT, **PATCHES}, _OF_VIT),
}


def make_config(model_type: str) -> Any:
    """Return the configuration of a small model."""
    return transformers.AutoConfig.for_model(model_type, **ZOO[model_type][0])


def build_model(model_type: str) -> Any:
    """Return a small model in eval mode. All weights are random, even if transformers initialises them with 0 or 1."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(make_config(model_type)).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:  # the outputs of a layer are about as large as the inputs
            weight.copy_(torch.randn_like(weight) / (weight.numel() / len(weight)) ** 0.5)
        else:
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def save_zoo_model(model_type: str, folder: Path) -> Any:
    """Write a small model with its image processor to a folder; return the model."""
    model = build_model(model_type)
    model.save_pretrained(folder)
    name, settings = ZOO[model_type][1]
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return model
