"""Downloads from the Hugging Face hub, with the hub's own client and a local server in place of the hub."""

import argparse
import json
import sys

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from make.hf_clip import make_model
from make.hub_server import COMMIT, serve
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, RobertaConfig

from probe.cli.main import main
from probe.errors import (
    CheckpointError,
    CheckpointMissingError,
    ChecksumError,
    DownloadError,
    ExtraMissingError,
    UnknownNameError,
)
from probe.hub import read_license
from probe.models import get_model, is_here
from probe.models.description import describe_model
from probe.models.families import find_family
from probe.models.loading import identify, load_clip, load_encoder
from probe.models.preprocess import Preprocess

CARD = "---\nlicense: other\nlicense_name: a-licence\n---\n# A model\n"
# The smallest architecture of open_clip whose mean, filter and resize mode differ from OpenAI's.
ARCHITECTURE, TAG = "PE-Core-T-16-384", "meta"
ZOO = f"open_clip:{ARCHITECTURE}/{TAG}"
TIMM_MODEL = "timm:test_vit.r160_in1k"


def _timm_model(num_classes):
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=num_classes).eval()


def _zoo_model():
    torch.manual_seed(0)
    return open_clip.create_model(ARCHITECTURE, load_weights=False).eval()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Make a folder `ORG/NAME/` for each repository: a CLIPModel, and a model of open_clip's zoo."""
    root = tmp_path_factory.mktemp("hub")
    small = root / "org" / "small"
    make_model().save_pretrained(small)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(small)
    zoo = root / open_clip.get_pretrained_cfg(ARCHITECTURE, TAG)["hf_hub"].rpartition("/")[0]
    zoo.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in _zoo_model().state_dict().items()}
    save_file(weights, zoo / "open_clip_model.safetensors")
    of_timm = root / "timm" / "test_vit.r160_in1k"
    of_timm.mkdir(parents=True)
    save_file(_timm_model(1000).state_dict(), of_timm / "model.safetensors")
    torch.save({"not": "used"}, of_timm / "pytorch_model.bin")
    (root / "org" / "empty").mkdir()
    for folder in (small, zoo, root / "org" / "empty"):
        (folder / "README.md").write_text(CARD)
    return root


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """Start a local hub and point the client to it, which reads its settings from the environment on import."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(repositories) as endpoint:
        _point_to(endpoint, monkeypatch)
        yield tmp_path / "cache"


def _point_to(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def _pixels(side):
    return torch.arange(3 * side**2).remainder(256).to(torch.uint8).view(1, 3, side, side)


@torch.inference_mode()
def test_a_model_of_the_hub_is_downloaded_once_and_then_used_offline(hub):
    assert not is_here(get_model("hf:org/small"))
    encoder = load_encoder("hf:org/small", device="cpu")
    expected = make_model().get_image_features(pixel_values=Preprocess(32).normalize(_pixels(32))).pooler_output
    torch.testing.assert_close(encoder.encode(_pixels(32)).projected, expected, atol=1e-5, rtol=1e-5)
    assert encoder.license == "a-licence"
    assert is_here(get_model("hf:org/small"))
    again = load_encoder("hf:org/small", device="cpu", offline=True)
    assert again.weights_sha256 == encoder.weights_sha256
    assert describe_model("hf:org/small")["sha256"] == encoder.weights_sha256


@torch.inference_mode()
def test_a_model_of_timm_is_downloaded_once_and_then_used_offline(hub):
    """The file with safetensors is used, and its classifier is not."""
    assert not is_here(get_model(TIMM_MODEL))
    assert not find_family("timm").list_names()[TIMM_MODEL]
    encoder = load_encoder(TIMM_MODEL, device="cpu")
    theirs = _timm_model(1000)
    theirs.reset_classifier(0)
    pixels = _pixels(160)
    expected = theirs(encoder.preprocess.normalize(pixels))
    torch.testing.assert_close(encoder.encode(pixels).projected, expected, atol=1e-5, rtol=1e-5)
    assert encoder.license == "apache-2.0"
    assert is_here(get_model(TIMM_MODEL))
    assert [name for name, is_ready in find_family("timm").list_names().items() if is_ready] == [TIMM_MODEL]
    again = load_encoder(TIMM_MODEL, device="cpu", offline=True)
    assert again.weights_sha256 == encoder.weights_sha256 == describe_model(TIMM_MODEL)["sha256"]
    assert identify(get_model(TIMM_MODEL), offline=True) == identify(get_model(TIMM_MODEL))
    path = hub / "models--timm--test_vit.r160_in1k" / "snapshots" / COMMIT / "model.safetensors"
    path.resolve().write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ChecksumError, match=r"model\.safetensors differs from the published file; delete"):
        load_encoder(TIMM_MODEL, device="cpu", offline=True)


def test_a_file_that_was_changed_in_the_cache_is_refused(hub):
    load_encoder("hf:org/small", device="cpu")
    path = hub / "models--org--small" / "snapshots" / COMMIT / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    with pytest.raises(ChecksumError, match=r"model\.safetensors differs from the published file; delete"):
        load_encoder("hf:org/small", device="cpu", offline=True)
    with pytest.raises(ChecksumError, match=r"model\.safetensors differed from the published file and was deleted"):
        load_encoder("hf:org/small", device="cpu")
    load_encoder("hf:org/small", device="cpu")


@pytest.mark.parametrize(
    ("denial", "error", "message"),
    [
        ((401, "GatedRepo"), UnknownNameError, r"org/small is gated; accept its terms at http\S+/org/small and log in"),
        (
            (401, "RepoNotFound"),
            UnknownNameError,
            "no repository 'org/small' .* check the name; if the repository is private",
        ),
        ((403, ""), DownloadError, r"the hub refuses access to http\S+/org/small; log in with `hf auth login`"),
    ],
)
def test_the_error_for_a_model_without_access_says_to_log_in(
    denial, error, message, repositories, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(repositories, {"org/small": denial}) as endpoint:
        _point_to(endpoint, monkeypatch)
        with pytest.raises(error, match=message):
            load_encoder("hf:org/small", device="cpu")


@pytest.mark.parametrize(
    ("name", "offline", "error", "message"),
    [
        ("hf:org/none", False, UnknownNameError, "no repository 'org/none' at http"),
        ("hf:org/a--b", False, UnknownNameError, "'org/a--b' is not the name of a repository"),
        ("hf:org/" + "x" * 100, False, UnknownNameError, "is not the name of a repository"),
        ("hf:org/empty", False, CheckpointError, r"the repository org/empty contains no model\*\.safetensors\* or"),
        (
            "hf:none",
            False,
            UnknownNameError,
            "'none' is not the name of a repository of the Hugging Face hub; write it as ORG/NAME",
        ),
        (
            "hf:org/small",
            True,
            DownloadError,
            "/org/small is not cached in .*cache.*, and --offline forbids the download; download it with `hf download",
        ),
        (TIMM_MODEL, True, DownloadError, r"/timm/test_vit\S* is not cached in .*cache.*, and --offline forbids"),
        (ZOO, True, DownloadError, r"/timm/.* is not cached in .*cache.*, and --offline"),
        ("open_clip:ViT-B-32/laion2b", False, UnknownNameError, "unknown tag of open_clip's ViT-B-32.*'laion2b_e16'"),
        ("open_clip:ViT-B-33/openai", False, UnknownNameError, "unknown architecture of open_clip.*'ViT-B-32'"),
        (
            "open_clip:ViT-B-32",
            False,
            UnknownNameError,
            "open_clip:ViT-B-32 names no weights; add / and one of the tags: openai, ",
        ),
        ("open_clip:ViT-B-32//none/x.pt", False, CheckpointMissingError, r"no checkpoint at /none/x\.pt"),
    ],
)
def test_unavailable_models_are_refused(hub, name, offline, error, message):
    with pytest.raises(error, match=message):
        load_encoder(name, device="cpu", offline=offline)


def test_a_partly_cached_repository_is_refused_offline(hub):
    with pytest.raises(CheckpointError):
        load_encoder("hf:org/empty", device="cpu")  # its card is here now
    with pytest.raises(DownloadError, match=r"is cached without .*safetensors.*, and --offline forbids"):
        load_encoder("hf:org/empty", device="cpu", offline=True)


def test_no_network_is_named(hub, monkeypatch):
    _point_to("http://127.0.0.1:9", monkeypatch)  # no server listens on this port, `discard`
    with pytest.raises(
        DownloadError, match=r"http://127\.0\.0\.1:9/org/small is not cached .*, and the download failed"
    ):
        load_encoder("hf:org/small", device="cpu")


@pytest.mark.slow
@torch.inference_mode()
def test_a_model_of_the_zoo_equals_open_clips(hub):
    """Features, preprocessing and licence are equal. Features before the projection are the input of the last layer."""
    encoder = load_encoder(ZOO, device="cpu")
    assert [name for name, is_ready in find_family("open_clip").list_names().items() if is_ready] == [ZOO]
    theirs = _zoo_model()
    expected = theirs.encode_image(_pixels(384).float() / 255 * 2 - 1)  # the mean and the standard deviation are 0.5
    found = encoder.encode(_pixels(384))
    torch.testing.assert_close(found.projected, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs.visual.trunk.head(found.pre_projection), expected, atol=1e-5, rtol=1e-4)
    assert encoder.preprocess == Preprocess(384, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash")
    assert encoder.license == "a-licence"
    said = describe_model(ZOO)
    assert said["parameters"].startswith(f"{sum(p.numel() for p in theirs.parameters()):,}, of which")
    assert (said["modes"], said["before projection"]) == ("eager", "192-d")


@pytest.mark.slow
def test_the_zoo_in_jit_mode_is_rebuilt_with_a_warning(hub):
    with pytest.warns(UserWarning, match="is not a TorchScript archive"):
        encoder = load_encoder(ZOO, device="cpu", jit=True)
    assert encoder.execution.jit is False


VIT = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
DECODER = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
TIMM = {"image_size": 32, "timm_model_name": "test_resnet", "timm_model_pretrained": False}
TOWERS = {
    "vit": ({"vision_cfg": VIT}, 64),
    "resnet": ({"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}, 256),
    "coca": ({"vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 1, "output_tokens": True}}, 32),
    "timm-linear": ({"vision_cfg": TIMM | {"timm_pool": "avg", "timm_proj": "linear"}}, 96),
    "timm-mlp": ({"vision_cfg": TIMM | {"timm_pool": "avg", "timm_proj": "mlp"}}, 96),
    "timm-classifier": ({"vision_cfg": TIMM | {"timm_pool": "avg", "timm_proj": ""}}, 96),
    "timm-none": ({"vision_cfg": TIMM | {"timm_pool": "avg", "timm_proj": "none"}, "embed_dim": 96}, 96),
}


@pytest.mark.parametrize("tower", TOWERS)
@torch.inference_mode()
def test_a_users_checkpoint_takes_its_architecture_from_open_clip(tower, tmp_path):
    """For every kind of tower, features before the projection have the right width and project to its output."""
    cfg, width = TOWERS[tower]
    cfg = {"embed_dim": 32, "text_cfg": TEXT, **cfg} | (
        {"multimodal_cfg": DECODER, "custom_text": True} if tower == "coca" else {}
    )
    architecture = f"small-{tower}"
    (tmp_path / f"{architecture}.json").write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    theirs = open_clip.create_model(architecture, load_weights=False).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "epoch_1.pt")
    name = f"open_clip:{architecture}/{tmp_path / 'epoch_1.pt'}"
    encoder = load_encoder(name, device="cpu")
    image = torch.randn(1, 3, encoder.resolution, encoder.resolution)
    expected = theirs.encode_image(image)
    torch.testing.assert_close(encoder.project(encoder.pre_projection(image)), expected, atol=1e-5, rtol=1e-5)
    model, _ = load_clip(name, "cpu")
    assert torch.equal(model.encode_image(image), theirs.encode_image(image))
    assert encoder.pre_projection_dim == width


@torch.inference_mode()
def test_checkpoints_of_training_scripts_are_read_for_open_clip(tmp_path):
    """open_clip itself supports only `state_dict` and `module.`, and uses the first of several models."""
    cfg = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True}
    (tmp_path / "small-wrapped.json").write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path)
    theirs, other = (open_clip.create_model("small-wrapped", load_weights=False).eval() for _ in range(2))
    weights = {f"model._orig_mod.{name}": tensor for name, tensor in theirs.state_dict().items()}
    args = argparse.Namespace(lr=1)
    torch.save({"model_state_dict": weights, "args": args}, tmp_path / "one.pt")
    torch.save([theirs.state_dict()], tmp_path / "list.pt")
    torch.save({"state_dict": other.state_dict(), "ema": theirs.state_dict()}, tmp_path / "two.pt")
    image = torch.randn(1, 3, 32, 32)
    for path, key in (("one.pt", "model_state_dict.model"), ("list.pt", "0"), ("two.pt?key=ema", "ema")):
        encoder = load_encoder(f"open_clip:small-wrapped/{tmp_path}/{path}", device="cpu")
        assert torch.equal(encoder.project(encoder.pre_projection(image)), theirs.visual(image))
        assert encoder.weights_key == key
    with pytest.raises(CheckpointError, match=r"contains 2 CLIP models; .* \?key=state_dict, \?key=ema"):
        load_encoder(f"open_clip:small-wrapped/{tmp_path}/two.pt", device="cpu")
    names = [f"open_clip:small-wrapped/{tmp_path}/two.pt?key={key}" for key in ("ema", "state_dict")]
    assert [get_model(name).name for name in names] == names
    assert len({identify(get_model(name)) for name in names}) == 2


def test_a_users_checkpoint_has_the_preprocessing_of_its_architecture(hub, repositories):
    """Images are squashed for PE. open_clip's default for a path would crop the centre."""
    (weights,) = repositories.glob("*/PE-*/open_clip_model.safetensors")
    encoder = load_encoder(f"open_clip:{ARCHITECTURE}/{weights}", device="cpu")
    assert encoder.preprocess == Preprocess(384, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash")


@torch.inference_mode()
def test_a_text_tower_of_hugging_face_is_loaded_offline(hub, repositories, tmp_path):
    """open_clip would request the configuration from the hub. The package downloads it once and then works offline."""
    text = {"hf_model_name": "org/text", "hf_tokenizer_name": "org/text", "hf_pooler_type": "mean_pooler"}
    cfg = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": text}
    (tmp_path / "small-hf-text.json").write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    RobertaConfig(vocab_size=60, **sizes).save_pretrained(repositories / "org" / "text")
    local = {"text_cfg": text | {"hf_model_name": str(repositories / "org" / "text"), "hf_model_pretrained": False}}
    theirs = open_clip.create_model("small-hf-text", load_weights=False, pretrained_text=False, **local).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    name = f"open_clip:small-hf-text/{tmp_path / 'weights.pt'}"
    with pytest.raises(DownloadError, match=r"org/text.*--offline forbids"):
        load_encoder(name, device="cpu", offline=True)
    load_encoder(name, device="cpu")
    encoder = load_encoder(name, device="cpu", offline=True)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder.project(encoder.pre_projection(image)), theirs.visual(image))


def test_a_torchscript_archive_is_refused_for_open_clip(archive):
    with pytest.raises(CheckpointError, match="is a TorchScript archive; give its path alone"):
        load_encoder(f"open_clip:ViT-B-32/{archive}", device="cpu")


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save({"state_dict": make_model().state_dict()}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"open_clip cannot load RN50/.*other\.pt"):
        load_encoder(f"open_clip:RN50/{tmp_path / 'other.pt'}", device="cpu")


def test_the_error_without_open_clip_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert main(["models", ZOO]) == 1
    assert (
        capsys.readouterr().err
        == "probe: open_clip is not installed; install it with pip install 'open_clip_torch>=3,<4', "
        "or the extra open-clip\n"
    )
    with pytest.raises(ExtraMissingError):
        get_model(ZOO)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        (CARD, "a-licence"),
        ("---\nlicense: other\nlicense_name:\n---\n", "other"),
        ("---\nlicense: [mit, cc0]\n---\n", "mit, cc0"),
        ("---\nlicense: [mit\n---\n", ""),
        ("---\n- a list\n---\n", ""),
        ("# No front matter\n", ""),
        (None, ""),
    ],
)
def test_the_licence_is_read_from_the_card(card, expected, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_license(tmp_path) == expected


def test_preprocessing_equals_open_clips():
    """All settings of open_clip's table of weights give the same bits."""
    image = Image.effect_mandelbrot((70, 50), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    seen = set()
    for architecture, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(architecture, tag)
        seen.add((tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"]))
    assert len(seen) > 3
    for settings in seen:
        theirs = image_transform_v2(PreprocessCfg(32, "RGB", *settings), is_train=False)
        assert torch.equal(Preprocess(32, *settings).transform(image), theirs(image))
