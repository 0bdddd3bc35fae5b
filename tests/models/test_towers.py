from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip

from probe.errors import CheckpointError
from probe.models.architectures import architecture_of
from probe.models.catalog import MODELS
from probe.models.resnet import AttentionPool
from probe.models.towers import CLIP, LayerNorm, convert_weights

BOTH = pytest.mark.parametrize("architecture", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_sizes_are_read_off_the_state_dict(spec):
    """Every published model is built with the sizes of the catalogue."""
    with torch.device("meta"):
        model = CLIP(spec.architecture)
    assert architecture_of(model.state_dict()) == spec.architecture


SIZES = ["text_projection", "token_embedding.weight", "visual.conv1.weight", "visual.positional_embedding"]


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_key_is_named(name):
    state_dict = random_clip(SMALL_VIT).state_dict()
    del state_dict[name]
    with pytest.raises(CheckpointError, match=f"has no '{name}'"):
        architecture_of(state_dict)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(), (7,), (0, 0, 0, 0)])
def test_a_misshapen_key_is_named(name, shape):
    state_dict = random_clip(SMALL_VIT).state_dict() | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=f"'{name}' has the shape"):
        architecture_of(state_dict)


def test_a_tower_without_room_for_a_head_is_named():
    with torch.device("meta"):
        model = CLIP(replace(SMALL_VIT, vision_width=32, vision_head_width=32))
    with pytest.raises(CheckpointError, match="the image tower is 32 channels wide"):
        architecture_of(model.state_dict())


def test_attention_pool_equals_torchs():
    """The reference pools with `multi_head_attention_forward` and separate projections."""
    torch.manual_seed(0)
    pool = AttentionPool(2, 64, 4, 24).eval()
    x = torch.randn(3, 64, 2, 2)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=64,
        num_heads=4,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        training=False,
        need_weights=False,
    )
    torch.testing.assert_close(pool(x), expected[0], atol=1e-6, rtol=0)


def test_layer_norm_computes_in_fp32_and_keeps_the_dtype():
    norm = LayerNorm(8)
    x = (torch.randn(4, 8) * 3e4).half()  # the square overflows fp16
    result = norm(x)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result, F.layer_norm(x.float(), (8,)).half())


@BOTH
def test_convert_weights_halves_what_the_published_files_hold_in_fp16(architecture):
    model = random_clip(architecture)
    convert_weights(model)
    for name, parameter in model.named_parameters():
        kept = any(part in name for part in ("ln_", "bn", "downsample.1", "embedding", "logit_scale"))
        assert parameter.dtype == (torch.float32 if kept else torch.float16), name
    assert model.dtype == torch.float16


@BOTH
def test_encode_image_casts_its_input(architecture):
    model = random_clip(architecture)
    image = torch.zeros(1, 3, architecture.image_resolution, architecture.image_resolution, dtype=torch.float64)
    assert model.encode_image(image).dtype == torch.float32


@BOTH
def test_logits_are_scaled_cosines(architecture):
    model = random_clip(architecture)
    image = torch.randn(3, 3, architecture.image_resolution, architecture.image_resolution)
    text = torch.randint(1, 100, (4, 12))
    per_image, per_text = model(image, text)
    cosines = F.cosine_similarity(model.encode_image(image)[:, None], model.encode_text(text)[None], dim=-1)
    torch.testing.assert_close(per_image, cosines / 0.07, atol=1e-5, rtol=0)
    assert torch.equal(per_text, per_image.t())


def test_text_after_the_end_token_does_not_count():
    model = random_clip(SMALL_VIT)
    first, second = torch.zeros(2, 12, dtype=torch.long)
    first[:3] = second[:3] = torch.tensor([98, 5, 99])
    second[3:] = 7
    torch.testing.assert_close(*model.encode_text(torch.stack([first, second])), atol=1e-6, rtol=0)
