"""Compare image towers of transformers with transformers' own code, at small sizes and with random weights."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from make.colours import write_colours
from make.hf_clip import make_model
from make.hub_server import serve
from make.kills import KILLED, run_command
from make.transformers_zoo import SIDE, VIT, ZOO, make_config, save_zoo_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, modeling_utils

import probe
from probe.cli.main import main
from probe.errors import CheckpointError, CheckpointMissingError, DownloadError, ExtraMissingError, UnknownNameError
from probe.features.extraction import extract_grid
from probe.grid import plan
from probe.models import get_model, transformers_names
from probe.models.description import model_facts
from probe.models.loading import identify, load_encoder
from probe.models.preprocess import Preprocess
from probe.models.profile import count_flops
from probe.models.sizes import find_sizes
from probe.models.transformers_pooling import RULES
from probe.records.verdicts import IDENTICAL
from probe.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "your-model.md"
SIZES = ((47, 61), (90, 33), (SIDE, SIDE), (19, 20))  # widths and heights of the images, in pixels
# Rounding of fp32 sums over a hundred products, for features of the order of 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _quiet():
    """Hide the messages that transformers itself writes when a test saves or loads a model."""
    logging = transformers.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    if has_bars:
        logging.enable_progress_bar()


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def _encode(name, pictures):
    encoder = load_encoder(name, device="cpu")
    return encoder, encoder.encode(torch.stack([torch.from_numpy(encoder.preprocess.to_pixels(p)) for p in pictures]))


def _pixels_of_transformers(folder, pictures):
    return AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_every_type_with_a_default_pooling_is_tested_and_documented():
    assert set(RULES) == set(ZOO)
    rows = re.findall(r"^\| `(cls|mean|pooler)` \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: pooling for pooling, types in rows for name in re.findall("`([^`]+)`", types)}
    assert documented == {name: rule.default for name, rule in RULES.items()}


# Types whose models are tested without the option `-m slow`, too.
FAST = (
    "clip",
    "siglip",
    "dinov2_with_registers",
    "dinov3_vit",
    "aimv2",
    "vit",
    "vit_mae",
    "convnext",
    "swin",
    "resnet",
)


@pytest.mark.parametrize(
    "model_type", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
@torch.inference_mode()
def test_features_are_those_of_transformers(model_type, pictures, tmp_path):
    """Pixels of odd sizes are equal, and features agree within 1e-5, at both points."""
    theirs = save_zoo_model(model_type, tmp_path)
    encoder, found = _encode(f"transformers:{tmp_path}", pictures)
    pixels = _pixels_of_transformers(tmp_path, pictures)
    assert torch.equal(torch.stack([encoder.preprocess.function(picture) for picture in pictures]), pixels)
    tower = getattr(theirs, "vision_model", theirs)
    if model_type == "vit_mae":
        output = _vit_with_weights_of(theirs, tmp_path)(pixel_values=pixels)
    else:
        output = tower(pixel_values=pixels)
    if encoder.pooling == "pooler":
        expected = output.pooler_output.flatten(1)
    else:
        hidden = output.last_hidden_state
        expected = hidden[:, 0] if encoder.pooling == "cls" else hidden.mean(1)
    torch.testing.assert_close(found.pre_projection, expected, **CLOSE)
    if hasattr(theirs, "get_image_features"):
        expected = theirs.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(found.projected, expected, **CLOSE)
    assert encoder.has_projection == hasattr(theirs, "visual_projection")
    assert encoder.execution.precision == "fp32"
    assert found.projected.std(0).mean() > 1e-3  # the features of the images differ


def _vit_with_weights_of(autoencoder, folder):
    """Return a ViT without masks that has the weights of the encoder of a masked autoencoder."""
    weights = load_file(folder / "model.safetensors")
    config = transformers.ViTConfig(
        **VIT, image_size=SIDE, patch_size=8, layer_norm_eps=autoencoder.config.layer_norm_eps
    )
    model, report = transformers.ViTModel.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    return model.eval()


@torch.inference_mode()
def test_a_masked_autoencoder_sees_all_patches_in_order(pictures, tmp_path):
    """The mean over patches has the same bits twice, and all 16 patches of the image are in the output."""
    theirs = save_zoo_model("vit_mae", tmp_path)
    first, again = (_encode(f"transformers:{tmp_path}?pool=mean", pictures) for _ in range(2))
    assert torch.equal(first[1].projected, again[1].projected)
    pixels = _pixels_of_transformers(tmp_path, pictures)
    output = _vit_with_weights_of(theirs, tmp_path)(pixel_values=pixels)
    torch.testing.assert_close(first[1].projected, output.last_hidden_state[:, 1:].mean(1), **CLOSE)
    encoder = first[0]
    assert encoder.pre_projection.tower(pixels, noise=torch.zeros(4, 16)).last_hidden_state.shape == (4, 17, 32)


@pytest.mark.parametrize(
    ("model_type", "others"),
    [
        ("dinov2_with_registers", 4),
        ("dinov3_vit", 5),
        ("dinov2", 1),
        ("deit", 2),
        ("siglip", 0),
        ("dinov3_convnext", 1),
    ],
)
@torch.inference_mode()
def test_the_mean_is_over_patches_only(model_type, others, pictures, tmp_path):
    """The class token and the registers do not count."""
    theirs = save_zoo_model(model_type, tmp_path)
    encoder, found = _encode(f"transformers:{tmp_path}?pool=mean", pictures)
    pixels = _pixels_of_transformers(tmp_path, pictures)
    hidden = getattr(theirs, "vision_model", theirs)(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found.projected, hidden[:, others:].mean(1), **CLOSE)
    assert (encoder.pooling, encoder.has_projection) == ("mean", False)


@pytest.mark.parametrize("model_type", ["resnet", "convnext"])
@torch.inference_mode()
def test_the_mean_of_a_map_is_over_space(model_type, pictures, tmp_path):
    theirs = save_zoo_model(model_type, tmp_path)
    _, found = _encode(f"transformers:{tmp_path}?pool=mean", pictures)
    hidden = theirs(pixel_values=_pixels_of_transformers(tmp_path, pictures)).last_hidden_state
    assert hidden.ndim == 4
    torch.testing.assert_close(found.projected, hidden.mean((2, 3)), **CLOSE)


@torch.inference_mode()
def test_another_pooling_of_a_clip_has_no_projection(pictures, tmp_path):
    """The projection was trained on the pooled output."""
    theirs = save_zoo_model("clip", tmp_path)
    encoder, found = _encode(f"transformers:{tmp_path}?pool=cls", pictures)
    hidden = theirs.vision_model(pixel_values=_pixels_of_transformers(tmp_path, pictures)).last_hidden_state
    torch.testing.assert_close(found.projected, hidden[:, 0], **CLOSE)
    assert not encoder.has_projection


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_clip_gives_equal_features_with_and_without_the_prefix(activation, tmp_path):
    """Our own towers read the same folder."""
    make_model(activation).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(**ZOO["clip"][1][1]).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    ours, theirs = (load_encoder(name, device="cpu") for name in (tmp_path, f"transformers:{tmp_path}"))
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected, found = ours.encode(pixels), theirs.encode(Preprocess(32).normalize(pixels))
    torch.testing.assert_close(found.projected, expected.projected, **CLOSE)
    torch.testing.assert_close(found.pre_projection, expected.pre_projection, **CLOSE)
    assert (theirs.embed_dim, theirs.pre_projection_dim) == (ours.embed_dim, ours.pre_projection_dim) == (48, 96)
    for name in ("weights_sha256", "checkpoint_dtypes", "weights_dtypes", "license", "preprocess_from"):
        assert getattr(theirs, name) == getattr(ours, name)


@torch.inference_mode()
def test_a_tower_that_was_saved_alone_keeps_its_projection(pictures, tmp_path):
    config = transformers.CLIPVisionConfig(**ZOO["clip_vision_model"][0], projection_dim=20)
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(**ZOO["clip"][1][1]).save_pretrained(tmp_path)
    _, found = _encode(f"transformers:{tmp_path}", pictures)
    pixels = _pixels_of_transformers(tmp_path, pictures)
    torch.testing.assert_close(found.projected, theirs(pixel_values=pixels).image_embeds, **CLOSE)
    assert found.pre_projection.shape == (4, 32)


@torch.inference_mode()
def test_a_type_without_a_default_needs_a_pooling(pictures, tmp_path):
    """The number of patches follows from the size of the image, so that the other tokens are known."""
    config = transformers.Data2VecVisionConfig(**VIT, image_size=SIDE, patch_size=8)
    theirs = transformers.Data2VecVisionModel(config).eval()
    theirs.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'data2vec-vision', for which no pooling is known; add one of"):
        get_model(f"transformers:{tmp_path}")
    _, found = _encode(f"transformers:{tmp_path}?pool=mean", pictures)
    hidden = theirs(pixel_values=_pixels_of_transformers(tmp_path, pictures)).last_hidden_state
    torch.testing.assert_close(found.projected, hidden[:, 1:].mean(1), **CLOSE)


@pytest.mark.parametrize(
    ("model_type", "pooling", "message"),
    [
        ("siglip", "cls", r"'siglip' has no class token, which \?pool=cls needs; use \?pool=mean or \?pool=pooler"),
        ("resnet", "cls", "'resnet' has no class token"),
        ("vit_mae", "pooler", "'vit_mae' has no pooled output"),
    ],
)
def test_a_pooling_that_the_model_does_not_have_is_refused(model_type, pooling, message, tmp_path):
    save_zoo_model(model_type, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(f"transformers:{tmp_path}?pool={pooling}", device="cpu")


@pytest.fixture
def classifier(tmp_path):
    """Write a ViT for classification, which has no weights of the pooling layer; return the folder."""
    transformers.ViTForImageClassification(make_config("vit")).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    return tmp_path


@torch.inference_mode()
def test_weights_that_the_features_do_not_need_may_be_missing(classifier, pictures, capfd):
    """The classifier is not used, and nothing is said about it."""
    _, found = _encode(f"transformers:{classifier}", pictures)
    theirs = transformers.ViTForImageClassification.from_pretrained(classifier).eval().vit
    hidden = theirs(pixel_values=_pixels_of_transformers(classifier, pictures)).last_hidden_state
    torch.testing.assert_close(found.projected, hidden[:, 0], **CLOSE)
    assert capfd.readouterr() == ("", "")


def test_random_weights_are_never_used_in_place_of_missing_ones(classifier):
    with pytest.raises(CheckpointError, match=r"has no weights pooler.dense.bias, .* which .*'pooler'"):
        load_encoder(f"transformers:{classifier}?pool=pooler", device="cpu")
    weights = load_file(classifier / "model.safetensors")
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, classifier / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no weights layernorm.weight, pooler.dense.bias"):
        load_encoder(f"transformers:{classifier}", device="cpu")


def test_shards_and_pickles_give_equal_features(pictures, tmp_path):
    model = save_zoo_model("dinov2", tmp_path / "one")
    expected = _encode(f"transformers:{tmp_path / 'one'}", pictures)[1].projected
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "one" / "pytorch_model.bin")
    settings = (tmp_path / "one" / "preprocessor_config.json").read_text()
    (tmp_path / "shards" / "preprocessor_config.json").write_text(settings)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "one" / "model.safetensors").unlink()
    for folder in ("shards", "one"):
        assert torch.equal(_encode(f"transformers:{tmp_path / folder}", pictures)[1].projected, expected)


def test_the_preprocessing_can_be_sent_to_another_process(pictures, tmp_path):
    save_zoo_model("dinov2", tmp_path)
    preprocess = load_encoder(f"transformers:{tmp_path}", device="cpu").preprocess
    sent = pickle.loads(pickle.dumps(preprocess))
    assert all(np.array_equal(sent.to_pixels(picture), preprocess.to_pixels(picture)) for picture in pictures)
    assert sent.describe() == preprocess.describe()
    assert preprocess.describe()["function"].startswith('transformers BitImageProcessor {"crop_size": ')


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_similar_features(precision, pictures, tmp_path):
    """Products are rounded to 8 bits or more, so that the error is less than a hundredth of the length."""
    save_zoo_model("siglip", tmp_path)
    _, expected = _encode(f"transformers:{tmp_path}", pictures)
    encoder = load_encoder(f"transformers:{tmp_path}", device="cpu", precision=precision)
    found = encoder.encode(torch.stack([torch.from_numpy(encoder.preprocess.to_pixels(p)) for p in pictures]))
    assert (found.projected - expected.projected).norm() < 0.02 * expected.projected.norm()


def test_the_digest_depends_on_weights_preprocessing_and_pooling(tmp_path):
    save_zoo_model("dinov2", tmp_path)
    spec = get_model(f"transformers:{tmp_path}")
    digests = [identify(spec), identify(get_model(f"{spec.name}?pool=mean"))]
    _edit(tmp_path / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    digests.append(identify(spec))
    torch.save({}, tmp_path / "vocab.json")  # not read
    assert identify(spec) == digests[-1]
    _edit(tmp_path / "config.json", layer_norm_eps=1e-3)
    digests.append(identify(spec))
    assert len(set(digests)) == 4
    assert identify(get_model(f"{spec.name}?pool=cls")) == digests[-1]  # the default of this type


def test_the_facts_of_a_folder_are_known(tmp_path):
    model = save_zoo_model("clip", tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    facts = model_facts(f"transformers:{tmp_path}")
    assert (facts["resolution"], facts["embed_dim"], facts["pre_projection_dim"]) == (SIDE, 20, 32)
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    sizes = find_sizes(get_model(f"transformers:{tmp_path}"))  # for `run --plan`
    assert sizes.profile.flops == facts["flops"]
    assert sizes.activation_bytes > 4 * 3 * SIDE * SIDE
    towers = (model.vision_model, model.visual_projection)
    assert facts["image_parameters"] == sum(weight.numel() for tower in towers for weight in tower.parameters())
    assert facts["flops"] > 2 * 17 * sum(weight.numel() for weight in model.vision_model.encoder.parameters()) * 0.9
    assert (facts["license"], facts["modes"], facts["is_here"]) == ("apache-2.0", ["eager"], True)
    assert facts["sha256"] == load_encoder(f"transformers:{tmp_path}", device="cpu").weights_sha256


@torch.inference_mode()
def test_a_model_for_images_that_are_not_square_has_sizes(tmp_path):
    """Operations of attention grow with the number of patches, which is 8 here."""
    config = transformers.ViTConfig(**VIT, image_size=[16, 32], patch_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 32}).save_pretrained(tmp_path)
    encoder = load_encoder(f"transformers:{tmp_path}", device="cpu")
    sizes = find_sizes(get_model(f"transformers:{tmp_path}"))
    assert sizes.shape == encoder.preprocess.shape == (16, 32)
    expected = count_flops(encoder.pre_projection, torch.zeros(1, 3, 16, 32))
    assert sizes.profile.flops == expected > 0


def test_the_origin_of_the_preprocessing_is_the_file_that_transformers_reads(folder):
    """The older file stays where a newer version of transformers has saved the processor again."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Processor"}))
    assert load_encoder(f"transformers:{folder}", device="cpu").preprocess_from == "preprocessor_config.json"
    newer = settings | {"image_mean": [0.1, 0.2, 0.3]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": newer}))
    encoder = load_encoder(f"transformers:{folder}", device="cpu")
    assert encoder.preprocess_from == "processor_config.json"
    assert "0.1, 0.2, 0.3" in encoder.preprocess.describe()["function"]
    (folder / "preprocessor_config.json").unlink()
    assert load_encoder(f"transformers:{folder}", device="cpu").preprocess_from == "processor_config.json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "kernels-community/flash-attn2"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", {"vision_config": "flash_attention_2"}),
        ("experts_implementation", "deepgemm"),
    ],
)
def test_the_configuration_cannot_choose_the_code_of_attention(name, value, tmp_path, monkeypatch):
    """The library transformers downloads native code for these values, if the package `kernels` is installed."""
    save_zoo_model("clip", tmp_path)
    expected = find_sizes(get_model(f"transformers:{tmp_path}"))
    find_sizes.cache_clear()
    _edit(tmp_path / "config.json", **{name: value})
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *_, **__: pytest.fail("code is loaded"))
    encoder = load_encoder(f"transformers:{tmp_path}", device="cpu")
    own = encoder.pre_projection.tower.config
    assert own._attn_implementation == "sdpa"
    assert own._experts_implementation != value
    assert find_sizes(get_model(f"transformers:{tmp_path}")) == expected


@pytest.fixture
def folder(tmp_path):
    save_zoo_model("dinov2", tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}, r"config.json needs code .* is never run; give"),
        ("config.json", {"backbone_config": [{"auto_map": {}}]}, r"config.json needs code .* is never run; give"),
        ("config.json", {"text_config": {"quantization_config": {}}}, r"config.json describes quantized weights; give"),
        ("preprocessor_config.json", {"auto_map": {}}, r"preprocessor_config.json needs code .*auto_map"),
        ("config.json", {"model_type": None}, "config.json has no model_type"),
        ("config.json", {"model_type": None, "architecture": "vit_tiny"}, "a model of timm; give timm:vit_tiny"),
        (
            "config.json",
            {"model_type": "siglip2"},
            "'siglip2', which is not supported; give a SigLIP 2 model",
        ),
        ("config.json", {"model_type": "later"}, r"'later', for which no pooling is known; add one of \?pool=cls"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_it_is_loaded(file, values, message, folder):
    _edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=message):
        get_model(f"transformers:{folder}")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "later"}, r"'later', which transformers [\d.]+ does not know; install a newer"),
        ("config.json", {"hidden_size": 48}, "transformers cannot load the weights in"),
        ("config.json", {"hidden_size": "wide"}, "transformers cannot load the weights in"),
        ("config.json", {"num_hidden_layers": 3}, r"has no weights (encoder\.)?layers?\.2"),
        ("config.json", {"quantization_config": {"load_in_8bit": True}}, "describes quantized weights"),
        ("config.json", {"num_channels": 1}, "transformers cannot load the weights in"),
        ("preprocessor_config.json", {"image_processor_type": "NoProcessor"}, "cannot preprocess images with the"),
        ("preprocessor_config.json", {"do_center_crop": False}, "pixels of shapes .* set a crop_size"),
        ("preprocessor_config.json", {"image_mean": "grey"}, "cannot preprocess images with the settings in"),
    ],
)
def test_settings_that_do_not_work_are_named(file, values, message, folder):
    _edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(f"transformers:{folder}?pool=cls", device="cpu")


def test_images_of_another_size_than_the_models_are_refused(tmp_path):
    save_zoo_model("vit", tmp_path)
    _edit(tmp_path / "preprocessor_config.json", size={"height": 40, "width": 40})
    with pytest.raises(CheckpointError, match=r"transformers cannot encode images with the model in .* \(Input image"):
        load_encoder(f"transformers:{tmp_path}", device="cpu")


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"{}"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_named(content, file, folder):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(file) + "|has no weights"):
        load_encoder(f"transformers:{folder}", device="cpu")


class _Attack:
    def __reduce__(self):
        return (print, ("code of the checkpoint runs",))


def test_pickled_objects_are_not_loaded(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "attack": _Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"contains pickled objects .* which are not loaded"):
        load_encoder(f"transformers:{folder}", device="cpu")
    assert "code of the checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"small has no config\.json; give a folder that save_pretrained wrote"),
        (
            "preprocessor_config.json",
            r"has no preprocessor_config\.json or processor_config\.json, with",
        ),
    ],
)
def test_a_missing_file_is_named(missing, message, folder):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        get_model(f"transformers:{folder}")


def test_names_that_do_not_exist_are_explained(folder, monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown pooling 'max'; choose one of cls, mean, pooler"):
        get_model(f"transformers:{folder}?pool=max")
    with pytest.raises(UnknownNameError, match="unknown pooling 'men'; did you mean 'mean'"):
        get_model("transformers:org/name?pool=men")
    with pytest.raises(CheckpointMissingError, match=rf"no folder at {folder}r; did you mean {folder}\?"):
        get_model(f"transformers:{folder}r")
    with pytest.raises(CheckpointError, match=r"unknown option 'pooling=cls'; the options .* are \?pool=POOLING"):
        get_model(f"transformers:{folder}?pooling=cls")
    with pytest.raises(CheckpointError, match=r"is a file; give the folder"):
        get_model(f"transformers:{folder / 'config.json'}")
    with pytest.raises(UnknownNameError, match=r"'resnet' is not a folder or the name of a repository .*:ORG/NAME or"):
        get_model("transformers:resnet")
    with pytest.raises(CheckpointMissingError, match=r"cannot access .* give the path of a folder"):
        get_model(f"transformers:{'x' * 5000}?pool=cls")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(CheckpointMissingError, match=r"did you mean .*/small\?"):
        get_model("transformers:smal")
    assert get_model("transformers:small").name == f"transformers:{folder}"


def test_a_missing_or_old_library_is_named(monkeypatch):
    monkeypatch.setattr(transformers_names, "version", lambda _: "4.57.0")
    with pytest.raises(ExtraMissingError, match=r"transformers 4\.57\.0 is too old; install it with pip install"):
        get_model("transformers:org/name")
    monkeypatch.setattr(transformers_names, "find_spec", lambda _: None)
    with pytest.raises(ExtraMissingError, match=r"transformers is not installed; .* or the extra transformers"):
        get_model("transformers:org/name")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve the repository `org/small` with a small DINOv2; yield the folder of the repository."""
    repository = tmp_path / "hub" / "org" / "small"
    save_zoo_model("dinov2", repository)
    (repository / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path / "hub") as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield repository


def test_a_repository_is_downloaded_once(hub, pictures, capsys):
    """The features equal the features from the folder, and the cached model is listed."""
    name = "transformers:org/small"
    assert not model_facts(name)["is_here"]
    with pytest.raises(DownloadError, match="--offline forbids the download"):
        load_encoder(name, device="cpu", offline=True)
    encoder, found = _encode(name, pictures)
    assert torch.equal(found.projected, _encode(f"transformers:{hub}", pictures)[1].projected)
    assert identify(get_model(name), offline=True) == identify(get_model(f"transformers:{hub}"))
    facts = model_facts(f"{name}?pool=mean")
    assert (facts["is_here"], facts["license"], encoder.license) == (True, "apache-2.0", "apache-2.0")
    assert facts["embed_dim"] == encoder.embed_dim == 32
    assert load_encoder(name, device="cpu", offline=True).pooling == "cls"
    assert main(["models", "transformers:"]) == 0
    assert capsys.readouterr().out == f"{name}  ready\n"


def test_an_unknown_repository_is_named(hub):
    with pytest.raises(UnknownNameError, match="no repository 'org/large'"):
        load_encoder("transformers:org/large", device="cpu")


@pytest.mark.slow
def test_a_run_is_recorded_cached_reproduced_and_compared(folder, tmp_path):
    images = write_colours(tmp_path)
    folders = {"cache_dir": tmp_path / "cache", "results_dir": tmp_path / "results"}
    arguments = {"protocol": "readme", "solver": "fast", "device": "cpu", "workers": 2, **folders}
    record = probe.run(images, model=f"transformers:{folder}", **arguments)
    encoder = record.encoder
    assert (encoder.pooling, encoder.has_projection) == ("cls", False)
    assert encoder.preprocess_from == "preprocessor_config.json"
    assert record.environment.packages["transformers"] == transformers.__version__
    again = probe.run(images, model=f"transformers:{folder}", rerun=True, **arguments)
    assert again.extraction.from_cache
    assert not record.extraction.from_cache
    other = probe.run(images, model=f"transformers:{folder}?pool=mean", **arguments)
    assert other.encoder.pooling == "mean"
    assert not other.extraction.from_cache
    assert probe.reproduce(record).verdict == IDENTICAL
    assert "encoder.pooling" in [change.field for change in probe.diff(record, other).changes]


@pytest.mark.slow
def test_a_killed_extraction_is_resumed(folder, tmp_path):
    """A second extraction reads only the chunks that the killed command had not written."""
    cache, output, name = tmp_path / "cache", tmp_path / "output", f"transformers:{folder}"
    line = ["extract", "--dataset", "digits", "--model", name, "--device", "cpu", "--offline"]
    assert run_command([*line, "--cache-dir", str(cache)], output, watched=cache, moment=30) == KILLED
    num_written = len(list(cache.rglob("*.pieces/*.npz")))
    assert 0 < num_written < 8
    specs = plan(["digits"], [name], protocols=["readme"], device="cpu")
    (resumed,), (undisturbed,) = (
        [outcome for _, outcome in extract_grid(specs, Settings(cache_dir=root, offline=True))]
        for root in (cache, tmp_path / "other")
    )
    assert sum(subset.images or 0 for subset in resumed.extraction.subsets.values()) == 1797 - 256 * num_written
    assert resumed.features["all"].compute_sha256() == undisturbed.features["all"].compute_sha256()


@pytest.mark.slow
def test_planning_does_not_import_the_library(folder):
    """Only the JSON files of a folder are read."""
    script = (
        "import sys, probe, probe.models as models\n"
        f"models.get_model('transformers:{folder}')\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
