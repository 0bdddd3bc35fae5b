"""Small open_clip models in folders, with tokenizers: a plain CLIP model, CoCa, and a model like SigLIP."""

import copy
import json

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from probe.models.open_clip_config import OPEN_CLIP_CONFIG

VIT = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
TEXT = {"context_length": 40, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 2}
WORDS = ["a", "photo", "of", "the", "red", "green", "blue", "dog", "cat", "c", "tree"]
OWN_TOKENIZER = {
    **{"hf_tokenizer_name": "org/siglip", "tokenizer_kwargs": {"clean": "canonicalize"}},
    **{"context_length": 9, "vocab_size": 3 + len(WORDS)},
}
MODELS = {
    "clip": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "coca": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
    "siglip": {
        "vision_cfg": VIT,
        "text_cfg": TEXT | OWN_TOKENIZER | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        "custom_text": True,
        "init_logit_bias": -10.0,
    },
}


def write_zoo_folder(folder, kind):
    """Write a folder as open_clip's `save_for_hf` does, with random weights; return the folder."""
    folder.mkdir(parents=True)
    config = {"embed_dim": 48, **copy.deepcopy(MODELS[kind])}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_config_for_hf(model, folder / OPEN_CLIP_CONFIG, config)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    if kind == "siglip":
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """Write a tokenizer of whole words in the form of Hugging Face, with an end token and padding."""
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
