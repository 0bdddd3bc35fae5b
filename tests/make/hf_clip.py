"""Small CLIP models of transformers."""

import torch
from transformers import CLIPConfig, CLIPModel

MERGES = [("a", "b</w>"), ("x", "y")]


VOCAB_SIZE = 512 + len(MERGES) + 2


def make_model(activation="quick_gelu", *, vision_mlp=384, text_mlp=256):
    torch.manual_seed(0)
    text = {
        **{"hidden_size": 64, "intermediate_size": text_mlp, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"vocab_size": VOCAB_SIZE, "max_position_embeddings": 12, "hidden_act": activation},
        **{"bos_token_id": VOCAB_SIZE - 2, "eos_token_id": VOCAB_SIZE - 1, "pad_token_id": 0},
    }
    vision = {
        **{"hidden_size": 96, "intermediate_size": vision_mlp, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 32, "patch_size": 16, "hidden_act": activation},
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
