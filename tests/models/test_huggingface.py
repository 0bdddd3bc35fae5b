"""Compare models from folders of Hugging Face's libraries with transformers' CLIPModel."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from make.hf_clip import MERGES, VOCAB_SIZE, make_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

import probe
from probe.errors import CheckpointError
from probe.models.checkpoints import read_checkpoint
from probe.models.loading import load_clip, load_encoder, read_weights
from probe.models.preprocess import Preprocess
from probe.models.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    make_model().save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(Tokenizer(MERGES).ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return tmp_path


def _edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.inference_mode()
def test_a_folder_gives_the_features_of_transformers(activation, tmp_path):
    """fp32 features on the CPU agree within 1e-5. The heads do not have OpenAI's 64 channels."""
    theirs = make_model(activation)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_clip(tmp_path, "cpu")
    image = torch.randn(3, 3, 32, 32)
    text = torch.randint(1, VOCAB_SIZE - 2, (4, 12))
    text[:, -1] = VOCAB_SIZE - 1
    expected = theirs(pixel_values=image, input_ids=text)
    torch.testing.assert_close(ours(image, text)[0], expected.logits_per_image, atol=1e-5, rtol=1e-5)
    before = theirs.vision_model(image).pooler_output
    torch.testing.assert_close(ours.visual.pre_projection(image), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_image(image), theirs.visual_projection(before), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vision_mlp", "text_mlp"),
    [(419, 256), (473, 256), (384, 315), (419, 100), (96, 64), (1, 1)],
    ids=["ViT-g", "ViT-bigG", "text", "both", "once", "one"],
)
@torch.inference_mode()
def test_any_width_of_the_mlps_gives_the_features_of_transformers(vision_mlp, text_mlp, tmp_path):
    """LAION's ViT-g and ViT-bigG have MLPs 4.36 and 4.92 times as wide as the image tower."""
    theirs = make_model("gelu", vision_mlp=vision_mlp, text_mlp=text_mlp)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_clip(tmp_path, "cpu")
    image, text = torch.randn(3, 3, 32, 32), torch.randint(1, VOCAB_SIZE - 2, (4, 12))
    text[:, -1] = VOCAB_SIZE - 1
    expected = theirs(pixel_values=image, input_ids=text)
    torch.testing.assert_close(ours(image, text)[0], expected.logits_per_image, atol=1e-5, rtol=1e-5)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = load_encoder(tmp_path, device="cpu").encode(pixels)  # with the memory layout for the CPU
    expected = theirs.get_image_features(pixel_values=Preprocess(32).normalize(pixels)).pooler_output
    torch.testing.assert_close(found.projected, expected, atol=1e-5, rtol=1e-5)


def test_the_weights_file_of_a_folder_loads_by_path_too(folder):
    alone, whole = load_encoder(folder / "model.safetensors", device="cpu"), load_encoder(folder, device="cpu")
    assert alone.weights_sha256 == whole.weights_sha256
    assert whole.license == "apache-2.0"
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(alone.encode(pixels).projected, whole.encode(pixels).projected)


def test_weights_without_a_config_say_what_is_missing(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json next to it; add that file"):
        read_checkpoint(folder / "model.safetensors")


def test_shards_are_joined(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    expected = read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    joined = read_checkpoint(folder)
    assert all(torch.equal(joined.state_dict[name], tensor) for name, tensor in expected.state_dict.items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model-00002-of-00002"):
        read_checkpoint(folder)


def test_checkpoints_of_training_scripts_around_a_clip_model_are_read(folder):
    """The checkpoint of a Lightning module is next to `config.json`, or is the file of the folder's weights."""
    expected = read_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    prefixed = {f"model._orig_mod.{name}": tensor for name, tensor in weights.items()}
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": prefixed, "ema": weights}, folder / "pytorch_model.bin")
    torch.save({"state_dict": prefixed, "epoch": 3}, folder / "last.ckpt")
    names = [folder / "last.ckpt", f"{folder}?key=ema", f"{folder}/pytorch_model.bin?key=state_dict.model"]
    for found in (read_weights(probe.get_model(name)) for name in names):
        assert found.architecture == expected.architecture
        assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in expected.state_dict.items())
    with pytest.raises(CheckpointError, match=r"contains 2 CLIP models; .*: \?key=state_dict.model, \?key=ema"):
        read_checkpoint(folder)
    assert probe.tokenize("ab", model=f"{folder}?key=ema").shape == (1, 12)
    torch.save(dict(list(prefixed.items())[:40]), folder / "a.bin")
    torch.save(dict(list(prefixed.items())[40:]), folder / "b.bin")
    (folder / "pytorch_model.bin").unlink()
    shards = {"weight_map": {name: "ab"[i >= 40] + ".bin" for i, name in enumerate(prefixed)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(shards))
    joined = read_checkpoint(folder).state_dict
    assert all(torch.equal(joined[name], tensor) for name, tensor in expected.state_dict.items())


def test_images_are_preprocessed_with_the_settings_of_the_folder(folder):
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 2}
    _edit(folder / "preprocessor_config.json", **settings)
    ours = load_encoder(folder, device="cpu").preprocess
    assert ours == Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    theirs = CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    # fp32 rounding: transformers fuses the steps.
    torch.testing.assert_close(ours.transform(image), theirs, atol=1e-6, rtol=0)


def test_both_sides_are_resized_where_nothing_is_cropped(folder):
    size = {"height": 32, "width": 32}
    _edit(folder / "preprocessor_config.json", size=size, do_center_crop=False)
    assert read_checkpoint(folder).preprocess.resize == "squash"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "config.json",
            {"model_type": "siglip"},
            "has model_type 'siglip'; only model_type 'clip' .CLIPModel, with both towers. is supported; load SigLIP",
        ),
        ("config.json", {"text_config_dict": {"hidden_act": "relu"}}, "text hidden_act 'relu'"),
        ("config.json", {"vision_config_dict": {"hidden_act": "gelu"}}, "text hidden_act 'quick_gelu'"),
        ("config.json", {"vision_config_dict": {"layer_norm_eps": 1e-6}}, "vision layer_norm_eps 1e-06"),
        ("preprocessor_config.json", {"resample": 0}, "resample 0"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize False"),
        ("preprocessor_config.json", {"crop_size": {"height": 30, "width": 30}}, "crop_size"),
        ("config.json", {"text_config": {"eos_token_id": 7, "num_attention_heads": 4}}, "text eos_token_id 7"),
        ("config.json", {"vision_config": {"num_hidden_layers": 1}}, "vision num_hidden_layers 1"),
        ("config.json", {"vision_config": {"image_size": 224}}, "vision image_size 224"),
        ("config.json", {"vision_config": {"intermediate_size": 400}}, "vision intermediate_size 400"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False"),
        ("vocab.json", {"more": 516}, "the tokenizer in .* is not CLIP's"),
    ],
)
def test_an_unsupported_setting_is_named(folder, file, values, message):
    """Otherwise the features would be wrong without a warning."""
    _edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"vision_config": 3}),
        ("config.json", {"vision_config": {"num_attention_heads": 0}}),
        ("config.json", {"vision_config": {"num_attention_heads": 5}}),  # of 96 channels
        ("config.json", {"text_config": {"hidden_act": ["gelu"]}}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}),
        ("preprocessor_config.json", {"image_std": 0.5}),
        ("preprocessor_config.json", {"rescale_factor": 1.0}),
        ("preprocessor_config.json", {"resample": [3]}),
    ],
)
def test_a_value_that_makes_no_sense_is_named(folder, file, values):
    _edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=file):
        read_checkpoint(folder)


def test_duplicate_settings_are_read_as_transformers_reads_them(folder):
    """Transformers uses only `_config_dict`, with the defaults for missing values."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    second = {key: value for key, value in text.items() if key not in ("hidden_act", "num_attention_heads")}
    _edit(folder / "config.json", text_config=text | {"hidden_act": "gelu"}, text_config_dict=second)
    theirs = CLIPConfig.from_pretrained(folder).text_config
    ours = read_checkpoint(folder).architecture
    assert (theirs.hidden_act, theirs.num_attention_heads) == (ours.activation, ours.transformer_heads)


def test_the_files_of_newer_versions_are_read_too(folder):
    """Transformers 5 writes one file for the image processor and one file for the tokenizer."""
    old, tokens = read_checkpoint(folder), probe.tokenize("ab xy!", model=folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = CLIPImageProcessor.from_pretrained(folder, image_mean=[0.5, 0.5, 0.5], resample=2)
    for file in ("preprocessor_config.json", "vocab.json", "merges.txt"):
        (folder / file).unlink()
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    new = read_checkpoint(folder)
    assert new.preprocess == replace(old.preprocess, mean=(0.5, 0.5, 0.5), interpolation="bilinear")
    assert torch.equal(probe.tokenize("ab xy!", model=folder), tokens)


def test_texts_have_the_ids_of_the_folders_own_vocabulary(folder):
    rows = probe.tokenize(["ab", "xy ab!"], model=folder)
    expected = CLIPTokenizer.from_pretrained(folder)(["ab", "xy ab!"])["input_ids"]
    assert rows.shape == (2, 12)
    assert [row[: len(ids)] for row, ids in zip(rows.tolist(), expected, strict=True)] == expected


def test_a_folder_without_a_tokenizer_says_so(folder, caplog):
    (folder / "vocab.json").unlink()
    read_checkpoint(folder)
    assert "has no tokenizer next to its weights" in caplog.text
    with pytest.raises(CheckpointError, match="has no vocabulary"):
        probe.tokenize("ab", model=folder)


@pytest.mark.parametrize("content", ["", "[1]", "<html>"])
def test_a_damaged_config_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize("key", ["vision_model.post_layernorm.bias", "text_projection.weight", "layers.0.self_attn.k"])
def test_a_missing_key_is_named(folder, key):
    weights = load_file(folder / "model.safetensors")
    missing = next(name for name in weights if key in name)
    save_file({name: tensor for name, tensor in weights.items() if name != missing}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no"):
        load_encoder(folder, device="cpu")


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"contains no model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(folder)


def test_the_architecture_is_read_whole(folder):
    shape = read_checkpoint(folder).architecture
    assert (shape.vision_head_width, shape.transformer_head_width) == (48, 16)
