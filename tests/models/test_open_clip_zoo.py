"""Narrow versions of all kinds of open_clip architectures give open_clip's features, also in half precision."""

import open_clip
import pytest
import torch
from make import open_clip_zoo
from torch.nn import functional

from probe import hub
from probe.errors import DeviceError
from probe.models import open_clip as zoo
from probe.models import open_clip_towers
from probe.models.devices import resolve_execution
from probe.models.loading import load_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _narrow(tmp_path, monkeypatch):
    """Use narrow towers of timm and Hugging Face without downloading their configurations; add no architectures."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(hub, "fetch_repository", lambda repo, *_, **__: open_clip_zoo.write_text_config(repo, tmp_path))
    with open_clip_zoo.narrow_timm():
        yield


def _make(config, architecture, folder):
    """Return a model that open_clip built, and the name of its weights."""
    open_clip.factory._MODEL_CONFIGS[architecture] = config
    text = config["text_cfg"]
    if "hf_model_name" in text:
        local = open_clip_zoo.write_text_config(text["hf_model_name"], folder)
        text = text | {"hf_model_name": str(local), "hf_model_pretrained": False}
    torch.manual_seed(0)
    theirs = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, text_cfg=text).eval()
    torch.save(theirs.state_dict(), folder / "weights.pt")
    return theirs, f"{architecture}/{folder / 'weights.pt'}"


def _check(config, architecture, folder):
    """Both towers agree with open_clip's own model in fp32, in both precisions.

    The tolerance in fp32 is 1e-5, a few roundings of sums over hundreds of products. In half precision, products are
    rounded to 8 bits or more, and the error of a feature is less than a hundredth of its length.
    """
    theirs, source = _make(config, architecture, folder)
    encoder = load_encoder(f"open_clip:{source}", device="cpu")
    pixels = torch.randint(0, 256, (2, 3, encoder.resolution, encoder.resolution), dtype=torch.uint8)
    texts = torch.randint(2, 48, (2, 8))
    texts[:, -1] = 49
    image, text = theirs.encode_image(encoder.preprocess.normalize(pixels)), theirs.encode_text(texts)
    found = encoder.encode(pixels)
    torch.testing.assert_close(found.projected, image, atol=1e-5, rtol=1e-5)
    assert found.pre_projection.shape == (2, encoder.pre_projection_dim)
    for precision in ("fp16", "bf16"):
        execution = resolve_execution("cpu", precision=precision)
        loaded = zoo.load_model(source, execution)
        half_text = loaded.model.encode_text(texts).float()  # as `load_clip` runs it on a GPU
        half = open_clip_towers.zoo_encoder(source, loaded, execution).encode(pixels)
        assert functional.cosine_similarity(half.projected, image).min() > 0.99, precision
        assert functional.cosine_similarity(half.pre_projection, found.pre_projection).min() > 0.99, precision
        assert functional.cosine_similarity(half_text, text).min() > 0.99, precision


@pytest.mark.parametrize("architecture", open_clip_zoo.kinds())
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
@torch.inference_mode()
def test_projected_is_what_encode_image_returns_by_default(architecture, tmp_path):
    """By default, open_clip normalises the features of CoCa models only."""
    _check(open_clip_zoo.reduced(architecture), architecture, tmp_path)


TANH = {"act_kwargs": {"approximate": "tanh"}}
POOL = {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
# Option -> additions to the configurations of the image tower and of the text tower.
OPTIONS = {
    "layer scale": ({"ls_init_value": 1e-4}, {"ls_init_value": 1e-4}),
    "norm of queries and keys": ({"qk_norm": True}, {"qk_norm": True}),
    "scale of heads": ({"scale_heads": True}, {"scale_heads": True}),
    "more norms": ({"scale_attn_inner": True, "scale_attn": True, "scale_fc": True}, {}),
    "mean of tokens": ({"pool_type": "avg", "final_ln_after_pool": True}, {"pool_type": "last"}),
    "no first norm": ({"no_ln_pre": True}, {"no_causal_mask": True}),
    "fixed positions": ({"pos_embed_type": "sin_cos_2d"}, {}),
    "tanh": (TANH, TANH),
    "attentional pool": (POOL | {"attentional_pool": True}, {}),
    "width of the MLP": ({"mlp_ratio": 4.9231}, {"mlp_ratio": 3.7362}),
}


@pytest.mark.parametrize("option", OPTIONS)
@torch.inference_mode()
def test_options_of_a_configuration_give_what_encode_image_gives(option, tmp_path):
    """The options are in no open_clip architecture, or only in an architecture of a different kind."""
    config = open_clip_zoo.reduced("ViT-B-32")
    vision, text = OPTIONS[option]
    _check(config | {"vision_cfg": config["vision_cfg"] | vision, "text_cfg": config["text_cfg"] | text}, "x", tmp_path)


BROKEN = ({"scaled_cosine_attn": True}, POOL | {"attentional_pool": "parallel"}, POOL | {"attentional_pool": "cascade"})


@pytest.mark.parametrize("vision", BROKEN)
def test_an_option_that_open_clip_itself_does_not_run_is_named(vision, tmp_path):
    """The forward pass of the model fails."""
    config = open_clip_zoo.reduced("ViT-B-32")
    _, source = _make(config | {"vision_cfg": config["vision_cfg"] | vision}, "x", tmp_path)
    with pytest.raises(DeviceError, match=r"x/.*weights\.pt cannot run in fp32 on cpu .*; use another model"):
        load_encoder(f"open_clip:{source}", device="cpu")


def test_an_option_that_open_clip_does_not_cast_is_named(tmp_path):
    config = open_clip_zoo.reduced("ViT-B-32")
    _, source = _make(config | {"text_cfg": config["text_cfg"] | {"proj_bias": True}}, "x", tmp_path)
    assert load_encoder(f"open_clip:{source}", device="cpu").embed_dim == 32
    with pytest.raises(DeviceError, match=r"^open_clip cannot cast x/.*weights\.pt to fp16; use --precision fp32$"):
        load_encoder(f"open_clip:{source}", device="cpu", precision="fp16")
