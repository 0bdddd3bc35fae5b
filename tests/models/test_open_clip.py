"""Compare models with settings next to their weights with open_clip's; check weights without settings."""

import copy
import json
import logging
import re
import shutil

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from make.clips import SMALL_VIT, random_clip
from make.hf_clip import make_model
from make.hub_server import serve
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel

import probe
from probe.errors import CheckpointError, CheckpointMissingError, DeviceError
from probe.models import get_model, open_clip_towers
from probe.models import open_clip as zoo
from probe.models.architectures import architecture_of
from probe.models.assumptions import check_assumptions
from probe.models.description import describe_model
from probe.models.devices import resolve_execution
from probe.models.loading import identify, load_clip, load_encoder
from probe.models.open_clip_config import OPEN_CLIP_CONFIG
from probe.models.openai import check_weights
from probe.models.preprocess import MEAN, STD, Preprocess

CPU = resolve_execution("cpu")
# Two heads of 80 channels (ViT-H/14 has sixteen). OpenAI's rule would give two heads of 64 channels and a remainder.
VIT = {"image_size": 32, "patch_size": 16, "width": 160, "head_width": 80, "layers": 2}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 128}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 2, "layers": 1}
TIMM = {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
MODELS = {
    "vit": {"vision_cfg": VIT, "text_cfg": TEXT},
    "quick-gelu": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "wide-mlp": {"vision_cfg": VIT | {"mlp_ratio": 4.9231}, "text_cfg": TEXT},
    "clipa": {
        "vision_cfg": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True},
    },
    "resnet": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 128},
        "text_cfg": TEXT,
    },
    "timm": {"vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True},
    "coca": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
}
FILE = "open_clip_model.safetensors"
IMAGES = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear", "resize_mode": "squash"}


def write_folder(folder, kind="vit", images=IMAGES):
    """Write a folder as open_clip's `save_for_hf` does, without a tokenizer."""
    folder.mkdir(parents=True)
    config = {"embed_dim": 32, **copy.deepcopy(MODELS[kind])}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, force_preprocess_cfg=images)
    save_config_for_hf(model, folder / OPEN_CLIP_CONFIG, config)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors"
    )
    (folder / "weights.safetensors").rename(folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("vit") / "vit")


def _pixels(side, n=2):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def _picture():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_folder_is_open_clips_own_model(kind, tmp_path):
    """Heads, activation, MLP, pooling and preprocessing follow the configuration."""
    folder = write_folder(tmp_path / kind, kind)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    encoder = load_encoder(folder, device="cpu")
    pixels = _pixels(encoder.resolution)
    expected = theirs.eval().encode_image(encoder.preprocess.normalize(pixels))
    torch.testing.assert_close(encoder.encode(pixels).projected, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.preprocess.transform(_picture()), transform(_picture()))
    assert encoder.preprocess_from == OPEN_CLIP_CONFIG


@pytest.mark.parametrize("name", ["open_clip:local-dir:{}", "open_clip:local-dir:{}/" + FILE, "{}", "{}/" + FILE])
def test_all_names_of_a_folder_are_of_one_model(name, vit):
    encoder, expected = load_encoder(name.format(vit), device="cpu"), load_encoder(vit, device="cpu")
    assert encoder.name.startswith(f"open_clip:local-dir:{vit}")
    assert encoder.preprocess == Preprocess(32, *IMAGES.values())
    assert torch.equal(encoder.encode(_pixels(32)).projected, expected.encode(_pixels(32)).projected)
    assert load_clip(name.format(vit), "cpu")[0].visual.transformer.resblocks[0].attn.num_heads == 2
    assert get_model(get_model(name.format(vit)).name) == get_model(name.format(vit))


@torch.inference_mode()
def test_a_repository_of_the_hub_is_open_clips_own_model(tmp_path, monkeypatch):
    """The repository is downloaded by the same client, verified, and then used offline."""
    folder = write_folder(tmp_path / "hub" / "org" / "vit")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    name = "open_clip:hf-hub:org/vit"
    with serve(tmp_path / "hub") as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert not probe.models.is_here(get_model(name))
        with pytest.raises(probe.errors.DownloadError, match="--offline forbids"):
            load_encoder(name, device="cpu", offline=True)
        with pytest.raises(CheckpointError, match=r"contains no model.*, or open_clip:hf-hub:org/vit"):
            load_encoder("hf:org/vit", device="cpu")
        load_encoder(name, device="cpu")
    encoder = load_encoder(name, device="cpu", offline=True)
    expected = load_encoder(folder, device="cpu")
    assert torch.equal(encoder.encode(_pixels(32)).projected, expected.encode(_pixels(32)).projected)
    assert (encoder.name, encoder.license, encoder.preprocess) == (name, "mit", expected.preprocess)
    assert describe_model(name)["projected"] == "32-d"


def test_a_model_is_sketched_before_its_weights_are_here(vit, caplog):
    """open_clip's warning that the weights are random is hidden."""
    with caplog.at_level(logging.WARNING):
        said = describe_model(vit)
    assert (said["pixels"], said["projected"], said["before projection"]) == ("32", "32-d", "160-d")
    assert not caplog.text


def test_a_configuration_without_image_settings_takes_open_clips_with_a_warning(tmp_path, caplog):
    folder = write_folder(tmp_path / "vit")
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    del config["preprocess_cfg"]
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config))
    encoder = load_encoder(folder, device="cpu")
    assert (encoder.preprocess, encoder.preprocess_from) == (Preprocess(32), "open_clip's default")
    assert "has no settings for the preprocessing of images" in caplog.text


def test_other_settings_are_another_model(tmp_path):
    """Cached features of the old settings must not be used."""
    folder = write_folder(tmp_path / "vit")
    before = identify(get_model(folder))
    _edit(folder / OPEN_CLIP_CONFIG, preprocess_cfg={"mean": [0.5] * 3})
    assert identify(get_model(folder)) != before


def test_archives_and_hugging_face_weights_ignore_the_configuration_next_to_them(vit, archive, tmp_path):
    make_model().save_pretrained(tmp_path)
    shutil.copy(vit / OPEN_CLIP_CONFIG, tmp_path)
    shutil.copy(vit / "open_clip_model.safetensors", tmp_path)
    shutil.copy(archive, tmp_path / "archive.pt")
    forms = {path: get_model(path).form for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "archive.pt")}
    assert set(forms.values()) == {"file"}
    assert get_model(tmp_path / "open_clip_model.safetensors").form == "open_clip"
    assert get_model(f"open_clip:local-dir:{tmp_path}").form == "open_clip"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read"),
        ("[1]", "Expected object, got array"),
        (json.dumps(MODELS["vit"]), "model_cfg is missing"),
        (json.dumps({"model_cfg": MODELS["vit"]}), "model_cfg.embed_dim is missing"),
        (
            json.dumps({"model_cfg": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": 3}}),
            "model_cfg.text_cfg: expected object, got int",
        ),
        (
            json.dumps({"model_cfg": {"embed_dim": 32} | MODELS["vit"], "preprocess_cfg": 1}),
            "preprocess_cfg: expected object, got int",
        ),
        (json.dumps({"model_cfg": {"embed_dim": 32, "vision_cfg": {"depth": 1}, "text_cfg": TEXT}}), "cannot load"),
        (json.dumps({"model_cfg": {"embed_dim": 48} | MODELS["vit"]}), "cannot load"),
        (json.dumps({"model_cfg": {"embed_dim": 32} | MODELS["resnet"]}), "cannot load"),
        (
            json.dumps({"model_cfg": {"embed_dim": 32} | MODELS["vit"], "preprocess_cfg": {"mean": [0.5]}}),
            "the preprocessing of .* is not supported",
        ),
        (
            json.dumps({"model_cfg": {"embed_dim": 32} | MODELS["vit"], "preprocess_cfg": {"resize_mode": "longest"}}),
            "the preprocessing of .* is not supported",
        ),
    ],
)
def test_an_unusable_configuration_is_named(content, message, vit, tmp_path):
    shutil.copytree(vit, tmp_path / "vit")
    (tmp_path / "vit" / OPEN_CLIP_CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(tmp_path / "vit", device="cpu")
    assert str(tmp_path / "vit") in str(caught.value)


def test_missing_files_of_a_folder_are_named(vit, tmp_path):
    with pytest.raises(CheckpointMissingError, match="no file or folder at /none"):
        get_model("open_clip:local-dir:/none")
    with pytest.raises(CheckpointMissingError, match=rf"{tmp_path} has no open_clip_config\.json; add that file"):
        get_model(f"open_clip:local-dir:{tmp_path}")
    shutil.copy(vit / OPEN_CLIP_CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no weights, such as open_clip_model\.safetensors"):
        load_encoder(tmp_path, device="cpu")
    for name in ("epoch_1.pt", "epoch_2.pt"):
        shutil.copy(vit / "open_clip_model.safetensors", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several files with weights \(epoch_1\.pt, epoch_2\.pt\); give"):
        load_encoder(tmp_path, device="cpu")
    assert load_encoder(tmp_path / "epoch_2.pt", device="cpu").embed_dim == 32


def test_weights_alone_are_refused_where_heads_are_a_guess(vit, tmp_path):
    shutil.copy(vit / "open_clip_model.safetensors", tmp_path / "h.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"towers 160 \(image\) and 64 .*open_clip:ARCH/PATH with its architecture, or put an open",
    ):
        load_encoder(tmp_path / "h.safetensors", device="cpu")


NATIVE = [
    name
    for name in open_clip.list_models()
    if "timm_model_name" not in open_clip.get_model_config(name)["vision_cfg"]
    and "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_no_architecture_of_open_clips_gets_other_heads_than_its_own(name, tmp_path):
    """Weights without settings are refused if the number of heads is not known. One layer is enough for this test."""
    config = open_clip.get_model_config(name)
    layers = [1, 1, 1, 1] if isinstance(config["vision_cfg"]["layers"], list) else 1
    vision, text = config["vision_cfg"] | {"layers": layers}, config["text_cfg"] | {"layers": 1}
    with torch.device("meta"):
        theirs = open_clip.create_model(name, load_weights=False, device="meta", vision_cfg=vision, text_cfg=text)
    weights = theirs.state_dict()
    try:
        found = architecture_of(weights)
        check_weights(weights, found)
        check_assumptions(tmp_path, found, is_archive=False)
    except CheckpointError:
        return
    blocks = getattr(theirs.visual, "transformer", None)
    heads = theirs.visual.attnpool.num_heads if blocks is None else blocks.resblocks[0].attn.num_heads
    assert (found.vision_heads, found.transformer_heads) == (heads, theirs.transformer.resblocks[0].attn.num_heads)


def test_weights_alone_warn_of_all_that_is_assumed(tmp_path, caplog):
    torch.save(random_clip(SMALL_VIT).state_dict(), tmp_path / "weights.pt")
    encoder = load_encoder(tmp_path / "weights.pt", device="cpu")
    for assumed in (
        "3 and 2 attention heads",
        "QuickGELU",
        "bicubic",
        "32 pixels",
        "mean and std",
        "12 tokens",
        OPEN_CLIP_CONFIG,
    ):
        assert assumed in caplog.text
    assert encoder.preprocess_from == "OpenAI's models"


@pytest.mark.parametrize("kind", ["coca", "timm", "clipa"])
def test_weights_of_another_model_are_refused_by_name_before_any_warning(kind, tmp_path, caplog):
    folder = write_folder(tmp_path / kind, kind)
    (folder / OPEN_CLIP_CONFIG).unlink()
    caplog.clear()
    with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors: .*open_clip:ARCH/PATH"):
        load_encoder(folder / "open_clip_model.safetensors", device="cpu")
    assert not caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {"fc.weight": torch.zeros(3, 3)},
        lambda weights: weights | {"more": torch.zeros(2)},
        lambda weights: {name: tensor for name, tensor in weights.items() if "ln_post" not in name},
        lambda weights: weights | {"visual.proj": torch.zeros(3, 3)},
        lambda weights: weights | {"logit_scale": torch.zeros((), dtype=torch.int8)},
    ],
)
def test_weights_that_are_no_clip_are_refused_by_name_before_any_warning(change, tmp_path, caplog):
    torch.save(change(dict(random_clip(SMALL_VIT).state_dict())), tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt: "):
        load_encoder(tmp_path / "odd.pt", device="cpu")
    assert not caplog.text


SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION = SIZES | {"image_size": 32, "patch_size": 16}


@pytest.mark.parametrize(
    ("make", "kind", "instead"),
    [
        (
            lambda: SiglipModel(SiglipConfig(text_config=SIZES | {"vocab_size": 60}, vision_config=VISION)),
            "siglip",
            "open_clip:ViT-B-16-SigLIP/webli",
        ),
        (
            lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
            "clip_vision_model",
            "give the CLIPModel that",
        ),
    ],
    ids=["siglip", "vision"],
)
def test_a_folder_of_another_model_says_what_is_supported(make, kind, instead, tmp_path):
    make().save_pretrained(tmp_path)
    message = rf"^{tmp_path}.* has model_type '{kind}'; only model_type 'clip' .* is supported; .*{instead}"
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path, device="cpu")


def test_the_weights_of_another_model_say_what_is_supported(tmp_path):
    """The path is a weights file that has its `config.json` next to it."""
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has model_type 'clip_vision_model'"):
        load_encoder(tmp_path / "model.safetensors", device="cpu")


def test_texts_are_left_to_open_clips_tokenizer(vit, tmp_path):
    torch.save({}, tmp_path / "x.pt")
    names = {f"ViT-B-32/{tmp_path / 'x.pt'}": "ViT-B-32", "hf-hub:org/vit": "hf-hub:org/vit"}
    for name, theirs in {**names, f"local-dir:{vit}": f"local-dir:{vit}"}.items():
        with pytest.raises(CheckpointError, match=re.escape(f"tokenize with open_clip.get_tokenizer('{theirs}')")):
            probe.tokenize("a dog", model=f"open_clip:{name}")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Return the name of weights of an architecture whose tags have other settings than open_clip's default."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    architecture = "ViT-B-16-SigLIP"  # a narrow architecture with this name
    open_clip.factory._MODEL_CONFIGS[architecture] = {"embed_dim": 32} | MODELS["vit"]
    torch.save(open_clip.create_model(architecture, load_weights=False).state_dict(), tmp_path / "epoch_1.pt")
    return f"open_clip:{architecture}/{tmp_path / 'epoch_1.pt'}"


def test_images_for_a_path_have_the_preprocessing_of_the_tags_or_of_open_clip(trained):
    by_tags, own = load_encoder(trained, device="cpu"), load_encoder(f"{trained}?preprocess=open_clip", device="cpu")
    assert by_tags.preprocess == Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
    assert by_tags.preprocess_from == "tags of open_clip's ViT-B-16-SigLIP"
    architecture, _, path = trained.removeprefix("open_clip:").partition("/")
    transform = open_clip.create_model_and_transforms(architecture, pretrained=path)[2]
    assert torch.equal(own.preprocess.transform(_picture()), transform(_picture()))
    assert (own.preprocess, own.preprocess_from) == (Preprocess(32, MEAN, STD), "open_clip's default")
    assert own.name == f"{trained}?preprocess=open_clip"
    assert identify(get_model(trained)) != identify(get_model(own.name))


@pytest.mark.slow
def test_the_record_says_where_the_preprocessing_is_from(trained, image_folder, tmp_path):
    images = f"folder:{image_folder({'train/red': 4, 'train/blue': 4, 'test/red': 2, 'test/blue': 2})}"
    folders = {"cache_dir": tmp_path / "cache", "results_dir": tmp_path / "results"}
    record = probe.run(images, model=trained, protocol="readme", solver="fast", **folders)
    assert record.encoder.preprocess_from == "tags of open_clip's ViT-B-16-SigLIP"


WRAPPINGS = {
    "model": lambda weights: {"epoch": 3, "model": weights},
    "state_dict": lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_of_a_named_architecture_may_be_wrapped(wrapping, trained):
    path = trained.partition("/")[2]
    expected = load_encoder(trained, device="cpu").encode(_pixels(32)).projected
    torch.save(WRAPPINGS[wrapping](torch.load(path)), path)
    assert torch.equal(load_encoder(trained, device="cpu").encode(_pixels(32)).projected, expected)


@pytest.mark.parametrize(
    ("precision", "instead"), [("fp16", "--precision fp32"), ("bf16", "--precision fp32"), ("fp32", "another model")]
)
def test_a_tower_that_does_not_run_is_named_with_its_precision(precision, instead, vit, monkeypatch):
    def fail(images):
        raise RuntimeError("mat1 and mat2 must have the same dtype")

    execution = resolve_execution("cpu", precision=precision)
    loaded = zoo.load_model(f"local-dir:{vit}", execution)
    monkeypatch.setattr(loaded.model.visual, "forward", fail)
    with pytest.raises(DeviceError, match=rf"^open_clip:x cannot run in {precision} on cpu \(mat1.*\); use {instead}"):
        open_clip_towers.zoo_encoder("open_clip:x", loaded, execution)
