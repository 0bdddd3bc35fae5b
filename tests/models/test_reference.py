"""Code written for OpenAI's `clip` runs with `probe.clip`: its imports, calls, hooks, replacements and reads.

The code here is a short form of common code in other projects: prompt learning as in CoOp, dense heads as in MaskCLIP,
and hooks. The expected values come from the model's own `encode_image` and `encode_text`, which
`test_against_open_clip.py` compares with open_clip.
"""

import inspect
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip
from PIL import Image
from torch import nn

import probe
from probe import clip
from probe.errors import (
    CheckpointError,
    CheckpointMissingError,
    ChecksumError,
    ProbeError,
    TextError,
    UnknownNameError,
)
from probe.models.checkpoints import read_model
from probe.models.devices import resolve_execution
from probe.models.openai import build_model, save_archive
from probe.models.towers import CLIP
from probe.specs import Architecture

VIT = replace(SMALL_VIT, vision_width=128, transformer_width=128)  # two heads in each tower
RESNET = replace(SMALL_RESNET, transformer_width=128)
BOTH = pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])


def rebuilt(architecture: Architecture, precision: str = "fp32") -> CLIP:
    """Return a model with random weights, rebuilt as by `load_clip`."""
    return build_model(
        random_clip(architecture).state_dict(), resolve_execution("cpu", precision=precision), architecture
    )


def images(architecture: Architecture, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, architecture.image_resolution, architecture.image_resolution)


def texts(architecture: Architecture, n: int = 5) -> torch.Tensor:
    """Return token ids with the end token, the highest id, at a different place in every row."""
    ids = torch.randint(1, architecture.vocab_size - 1, (n, architecture.context_length))
    ids[torch.arange(n), torch.arange(n) + 2] = architecture.vocab_size - 1
    return ids


class TextEncoder(nn.Module):
    """Encode prompts instead of tokens, as prompt learning does with the modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        m = self.model
        x = prompts + m.positional_embedding.type(m.dtype)
        x = m.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = m.ln_final(x).type(m.dtype)
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ m.text_projection


@PRECISIONS
@BOTH
@torch.no_grad()
def test_a_text_encoder_over_prompts_gives_the_models_text_features(architecture, precision):
    """In earlier versions, every text attended to the other texts of the batch (cosines from -0.13 to 0.67)."""
    model, tokens = rebuilt(architecture, precision), texts(architecture)
    prompts = model.token_embedding(tokens).type(model.dtype)
    torch.testing.assert_close(TextEncoder(model)(prompts, tokens), model.encode_text(tokens))


def test_prompts_are_learned_after_features_were_taken_in_inference_mode():
    """The model contains no tensor of inference mode, which a backward pass would refuse."""
    model, tokens = rebuilt(VIT, "fp16"), texts(VIT)
    with torch.inference_mode():
        model.encode_text(tokens)
    prompts = model.token_embedding(tokens).type(model.dtype).detach().requires_grad_()
    TextEncoder(model)(prompts, tokens).sum().backward()
    after_end = torch.arange(VIT.context_length) > tokens.argmax(dim=-1, keepdim=True)
    assert prompts.grad[~after_end].abs().sum(dim=-1).min() > 0
    assert prompts.grad[after_end].abs().max() == 0


@PRECISIONS
@torch.no_grad()
def test_a_dense_head_over_values_is_attention_of_every_token_to_itself(precision):
    """The value projection of the last block equals the block's attention when each token attends only to itself."""
    model = rebuilt(VIT, precision)
    visual, seen = model.visual, []
    last = visual.transformer.resblocks[-1]
    last.register_forward_hook(lambda block, inputs, output: seen.append(inputs[0]))
    model.encode_image(images(VIT))
    (x,) = seen  # (1 + patches, n, width)
    width = x.shape[-1]
    normed = last.ln_1(x)
    values = F.linear(normed, last.attn.in_proj_weight[-width:], last.attn.in_proj_bias[-width:])
    values = F.linear(values, last.attn.out_proj.weight, last.attn.out_proj.bias)
    alone = torch.full((len(x), len(x)), -math.inf, dtype=x.dtype).fill_diagonal_(0)
    attended, weights = last.attn(normed, normed, normed, need_weights=False, attn_mask=alone)
    assert weights is None
    torch.testing.assert_close(values, attended)
    dense = (visual.ln_post(x + values) @ visual.proj).permute(1, 0, 2)  # (n, 1 + patches, embed_dim)
    assert dense.shape == (3, 5, VIT.embed_dim)


@PRECISIONS
@torch.no_grad()
def test_a_dense_head_over_a_feature_map_is_the_pool_of_equal_places(precision):
    """The attention pool's value projection and output layer give, at every place, the pool of equal places."""
    model = rebuilt(RESNET, precision)
    pool, seen = model.visual.attnpool, []
    model.visual.layer4.register_forward_hook(lambda stage, inputs, output: seen.append(output))
    model.encode_image(images(RESNET))
    (maps,) = seen  # (n, 32 * width, h, w)
    tolerance = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}[precision]  # a few roundings of features below 0.5
    dense = maps
    for layer in (pool.v_proj, pool.c_proj):
        dense = F.conv2d(dense, layer.weight[..., None, None], layer.bias)
    nn.init.zeros_(pool.positional_embedding)
    for row, column in ((0, 0), (1, 0), (1, 1)):
        same = maps[..., row, column][..., None, None].expand_as(maps)
        torch.testing.assert_close(dense[..., row, column], pool(same), atol=tolerance, rtol=0)


@PRECISIONS
@torch.no_grad()
def test_hooks_on_blocks_see_tokens_then_images_then_channels(precision):
    model, seen = rebuilt(VIT, precision), {}
    for tower in (model.visual.transformer, model.transformer):
        for block in tower.resblocks:
            block.register_forward_hook(lambda module, inputs, output: seen.update({module: (inputs[0], output)}))
    tokens = texts(VIT)
    features = model.encode_image(images(VIT)), model.encode_text(tokens)
    for tower, shape in ((model.visual.transformer, (5, 3, 128)), (model.transformer, (12, 5, 128))):
        first, last = (seen[block] for block in tower.resblocks)
        assert {x.shape for x in (*first, *last)} == {shape}
        assert torch.equal(first[1], last[0])
    of_image = seen[model.visual.transformer.resblocks[-1]][1]
    of_text = seen[model.transformer.resblocks[-1]][1]
    torch.testing.assert_close(model.visual.ln_post(of_image[0]) @ model.visual.proj, features[0])
    ends = of_text[tokens.argmax(dim=-1), torch.arange(5)]
    torch.testing.assert_close(model.ln_final(ends) @ model.text_projection, features[1])


@torch.no_grad()
def test_what_a_hook_returns_replaces_the_output():
    """Deep prompts change the tokens between blocks."""
    model, image = rebuilt(VIT), images(VIT)
    model.visual.transformer.resblocks[-1].register_forward_hook(lambda block, inputs, output: output * 0 + 1)
    ones = model.visual.ln_post(torch.ones(3, 128)) @ model.visual.proj
    torch.testing.assert_close(model.encode_image(image), ones)


@pytest.mark.parametrize("tower", ["visual.transformer", "transformer"])
@torch.no_grad()
def test_attention_is_torchs_module(tower):
    """Attention weights, which many projects plot, equal a softmax written out in NumPy."""
    model = rebuilt(VIT)
    block = model.get_submodule(tower).resblocks[0]
    assert isinstance(block.attn, nn.MultiheadAttention)
    assert (block.attn.num_heads, block.attn.head_dim, block.attn.batch_first) == (2, 64, False)
    x = torch.randn(12, 2, 128)
    output, weights = block.attn(x, x, x, need_weights=True, attn_mask=block.attn_mask)
    torch.testing.assert_close(output, block.attention(x), atol=1e-6, rtol=1e-5)
    w, b = block.attn.in_proj_weight.numpy(), block.attn.in_proj_bias.numpy()
    q, k, _ = (x.numpy()[:, 0] @ w.T + b).reshape(12, 3, 2, 64).transpose(1, 2, 0, 3)  # (heads, tokens, head_dim)
    logits = q @ k.transpose(0, 2, 1) / 8 + (0 if block.attn_mask is None else block.attn_mask.numpy())
    expected = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(weights[0].numpy(), expected.mean(axis=0), atol=1e-6)  # torch's mean over heads


@BOTH
def test_the_attributes_that_others_read(architecture):
    model = rebuilt(architecture)
    a, visual = architecture, model.visual
    assert (model.context_length, model.vocab_size, model.dtype) == (a.context_length, a.vocab_size, torch.float32)
    assert (visual.input_resolution, visual.output_dim) == (a.image_resolution, a.embed_dim)
    assert (model.transformer.width, model.transformer.layers) == (a.transformer_width, a.transformer_layers)
    assert model.ln_final.weight.shape[0] == model.text_projection.shape[0] == a.transformer_width
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    causal = np.triu(np.full((a.context_length, a.context_length), -np.inf), 1)
    np.testing.assert_array_equal(model.build_attention_mask().numpy(), causal)
    for block in model.transformer.resblocks:
        np.testing.assert_array_equal(block.attn_mask.numpy(), causal)
        assert [type(layer).__name__ for layer in block.mlp] == ["Linear", "QuickGELU", "Linear"]
    if architecture is VIT:
        assert all(block.attn_mask is None for block in visual.transformer.resblocks)
        assert visual.proj.shape == (a.vision_width, a.embed_dim)
    else:
        assert visual.attnpool.num_heads == a.vision_heads
        assert [stage[0].stride for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)] == [
            1,
            2,
            2,
            2,
        ]
    assert not [name for name in model.state_dict() if "mask" in name]


@torch.no_grad()
def test_the_mask_of_a_block_can_be_replaced():
    """Without a mask, an early token sees the tokens after it."""
    model, x = rebuilt(VIT), torch.randn(12, 2, 128)
    block = model.transformer.resblocks[0]
    later = x.clone()
    later[-1] += 1
    assert torch.equal(block(x)[0], block(later)[0])
    block.attn_mask = None
    assert not torch.equal(block(x)[0], block(later)[0])


@BOTH
@torch.no_grad()
def test_parts_can_be_taken_out(architecture):
    """Other projects replace `proj` by None or the pool by the identity to get features before the projection."""
    model, image = rebuilt(architecture), images(architecture)
    before = model.visual.pre_projection(image)
    if architecture is VIT:
        model.visual.proj = None
        assert torch.equal(model.encode_image(image), before)
    else:
        model.visual.attnpool = nn.Identity()
        assert model.encode_image(image).shape == (3, 32 * architecture.vision_width, 2, 2)


@BOTH
def test_new_weights_can_be_drawn(architecture):
    model, other = (rebuilt(architecture) for _ in range(2))
    for m in (model, other):
        torch.manual_seed(3)
        m.initialize_parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not torch.equal(model.text_projection, rebuilt(architecture).text_projection)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


@PRECISIONS
@torch.no_grad()
def test_the_tower_of_a_resnet_casts_its_images(precision):
    model, image = rebuilt(RESNET, precision), images(RESNET)
    assert torch.equal(model.visual(image), model.encode_image(image))


@BOTH
def test_an_archive_of_the_model_has_no_mask_among_its_weights(architecture, tmp_path):
    """The masks are constants in the code, as in the published archives, and are patched for the precision."""
    model = rebuilt(architecture)
    save_archive(model, tmp_path / "model.pt")
    state_dict = dict(read_model(tmp_path / "model.pt").state_dict)
    assert list(state_dict) == list(model.state_dict())


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Make an archive with OpenAI's context length and vocabulary, and small towers."""
    path = tmp_path_factory.mktemp("published") / "model.pt"
    save_archive(random_clip(replace(SMALL_VIT, context_length=77, vocab_size=49_408)), path)
    return path


def test_the_drop_in_has_the_functions_and_arguments_of_the_reference():
    assert clip.available_models() == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    assert list(inspect.signature(clip.load).parameters) == ["name", "device", "jit", "download_root"]
    assert list(inspect.signature(clip.tokenize).parameters)[:3] == ["texts", "context_length", "truncate"]
    assert clip.load is probe.load_clip
    assert clip.tokenize is probe.tokenize


@pytest.mark.parametrize("jit", [False, True])
def test_zero_shot_classification_as_in_the_references_readme(published, jit):
    """The first example of OpenAI's README. The expected probabilities come from the cosines of the features."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load(str(published), device=device, jit=jit)
    image = preprocess(Image.new("RGB", (40, 30), (200, 10, 10))).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)
    assert (text.dtype, text.shape) == (torch.int32, (3, 77))
    with torch.no_grad():
        image_features, text_features = model.encode_image(image), model.encode_text(text)
        logits_per_image, _ = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    if device == "cpu":
        assert model.dtype == image_features.dtype == torch.float32
    cosines = F.cosine_similarity(image_features.float(), text_features.float()).cpu().numpy()
    expected = np.exp(cosines / 0.07)
    np.testing.assert_allclose(probs, [expected / expected.sum()], atol=1e-2 if device == "cuda" else 1e-5)


def test_the_transform_has_the_steps_of_the_reference_one_by_one(published):
    """Other projects read mean and std from the last transform, or insert augmentations."""
    _, preprocess = clip.load(published, "cpu")
    resize, crop, _, to_tensor, normalize = preprocess.transforms
    names = [type(step).__name__ for step in (resize, crop, to_tensor, normalize)]
    assert names == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert (resize.size, resize.interpolation.value, tuple(crop.size)) == (32, "bicubic", (32, 32))
    assert normalize.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *((name, UnknownNameError) for name in ("ViT-B32", "vit", "", "random:nothing")),
        *((name, CheckpointMissingError) for name in ("/nowhere/model.pt", "./model.pt", "model.pt", "x" * 300)),
    ],
)
def test_an_unknown_model_is_a_runtime_error_as_in_the_reference(name, error):
    with pytest.raises(RuntimeError) as caught:
        clip.load(name, device="cpu")
    assert type(caught.value) is error
    assert isinstance(caught.value, ProbeError)


def test_weights_that_do_not_fit_are_a_runtime_error_as_in_the_reference(tmp_path):
    """OpenAI's package raises RuntimeError from `load_state_dict` and for a download with a wrong SHA-256."""
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        clip.load(tmp_path / "model.pt", device="cpu")
    assert isinstance(caught.value, CheckpointError)
    assert issubclass(ChecksumError, RuntimeError)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda: clip.tokenize(["a dog", "a cat"]), r"expected token ids \(n, 32\), got \(2, 77\); tokenize with"),
        (lambda: clip.tokenize("a dog", 32), r"expected token ids from 0 to 862, got 0 to 49407; tokenize with"),
        (lambda: -clip.tokenize("a dog", 32, model="tiny"), "expected token ids from 0 to 862, got -862 to 0"),
        (lambda: clip.tokenize("a dog", model="tiny")[0], r"expected token ids \(n, 32\), got \(32,\)"),
        (lambda: clip.tokenize("a dog", 5, model="tiny"), r"expected token ids \(n, 32\), got \(1, 5\)"),
        (lambda: clip.tokenize("a dog", 1000, model="tiny"), r"expected token ids \(n, 32\), got \(1, 1000\)"),
        (lambda: clip.tokenize("a dog", model="tiny")[:, :1], r"expected token ids \(n, 32\), got \(1, 1\)"),
        (lambda: clip.tokenize(["a dog"], model="tiny")[None], r"expected token ids \(n, 32\), got \(1, 1, 32\)"),
    ],
)
def test_token_ids_of_another_model_are_named(tokens, message):
    """`tiny` has its own vocabulary and context length; a plain `tokenize` uses OpenAI's."""
    model, _ = clip.load("tiny", device="cpu")
    with pytest.raises(TextError, match=message) as caught:
        model.encode_text(tokens())
    assert isinstance(caught.value, RuntimeError)
    assert "probe.tokenize(texts, model=NAME)" in str(caught.value)


@torch.no_grad()
def test_tiny_takes_its_own_token_ids():
    model, _ = clip.load("tiny", device="cpu")
    assert model.encode_text(clip.tokenize(["a dog", "a cat"], model="tiny")).shape == (2, 256)
    assert model.encode_text(clip.tokenize([], model="tiny")).shape == (0, 256)
