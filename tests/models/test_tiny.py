"""The embedded model is a real CLIP model that is small, reproducible and better than a model without training."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from scenes import RESOLUTION, Painter, usable_fonts
from sklearn.datasets import load_digits
from train import Settings, architecture, learn_merges, train, write_merges

from probe.datasets.opening import open_dataset
from probe.features.arrays import Features
from probe.models import get_model
from probe.models.architectures import architecture_of
from probe.models.archive import is_archive
from probe.models.checkpoints import read_model
from probe.models.loading import load_clip
from probe.models.tokenizer import Tokenizer, read_merges
from probe.probes.fit import fit_probe
from probe.runner import run
from probe.tiny import ARCHIVE, MERGES


@pytest.fixture
def fonts(tmp_path):
    """Return the path of a file with the font that Pillow contains."""
    path = tmp_path / "font.ttf"
    path.write_bytes(io.BytesIO(ImageFont.load_default(20).path.getvalue()).read())
    return usable_fonts(tmp_path)


def test_it_is_a_small_archive_of_the_catalogues_sizes():
    assert is_archive(ARCHIVE)
    assert ARCHIVE.stat().st_size < 8_000_000
    assert MERGES.stat().st_size < 8_000
    assert architecture_of(read_model(ARCHIVE).state_dict) == get_model("tiny").architecture


def test_its_weights_are_fp16_as_in_the_published_files():
    state_dict = dict(read_model(ARCHIVE).state_dict)
    assert state_dict["visual.proj"].dtype == state_dict["visual.conv1.weight"].dtype == torch.float16
    assert state_dict["visual.ln_post.weight"].dtype == torch.float32


def test_it_matches_images_with_captions(fonts):
    """Both towers work: the text of a drawn digit is found far more often than one time in ten."""
    model, preprocess = load_clip("tiny", "cpu")
    tokenizer = Tokenizer(read_merges(MERGES))
    captions = [f"a white digit {d} in the middle on black" for d in range(10)]
    text = torch.tensor(tokenizer.tokenize(captions, model.context_length))
    font = ImageFont.truetype(str(fonts[0]), 80)
    images = []
    for digit in range(10):
        image = Image.new("RGB", (96, 96))
        mask = font.getmask(str(digit))
        glyph = Image.frombytes("L", mask.size, bytes(mask))
        image.paste((255, 255, 255), ((96 - glyph.width) // 2, (96 - glyph.height) // 2), glyph)
        images.append(preprocess(image))
    with torch.no_grad():
        logits, _ = model(torch.stack(images), text)
    assert (logits.argmax(dim=1) == torch.arange(10)).sum() >= 8


@pytest.mark.slow
def test_its_projected_features_beat_pixels_and_random_weights(tmp_path):
    """The models are compared with the same probe, on images that `tiny` was not trained on."""
    splits = open_dataset("digits")
    digits = load_digits()
    parts = {name: splits.split(name) for name in ("train", "val", "test")}
    rows = {name: [int(key.split("/")[1]) for key in part.ids] for name, part in parts.items()}
    pixels = {name: Features(np.float32(digits.data[i] / 16), digits.target[i]) for name, i in rows.items()}
    scores = {"pixels": fit_probe(**pixels, protocol="readme").score}
    for name in ("tiny", "random:tiny"):
        record = run("digits", model=name, protocol="readme", device="cpu", results_dir=tmp_path)
        scores[name] = record.result.score
    assert scores["tiny"] > scores["pixels"] > scores["random:tiny"]


def test_the_same_seed_draws_the_same_scenes(fonts):
    def draw(seed):
        painter = Painter(fonts, np.random.default_rng(seed))
        return [(scene.caption, scene.image.tobytes()) for scene in (painter.scene() for _ in range(30))]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_scenes_are_small_rgb_images_with_captions(fonts):
    painter = Painter(fonts, np.random.default_rng(0))
    scenes = [painter.scene() for _ in range(200)]
    assert {scene.image.size for scene in scenes} == {(RESOLUTION, RESOLUTION)}
    assert {scene.image.mode for scene in scenes} == {"RGB"}
    assert len({scene.caption for scene in scenes}) > 150


def test_fonts_without_letters_are_skipped(tmp_path, fonts):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert usable_fonts(tmp_path) == fonts


def test_merges_join_the_most_frequent_pair_first(tmp_path):
    merges = learn_merges(["low low low lower"], 10)
    assert merges[0] == ("l", "o")
    write_merges(merges, tmp_path / "merges.gz")
    assert list(read_merges(tmp_path / "merges.gz")) == merges
    assert len(Tokenizer(merges).encode("low")) == 1


@pytest.mark.slow
def test_training_lowers_the_loss(fonts):
    """A few steps on a few scenes reduce the loss, and the same seed gives the same weights."""
    painter = Painter(fonts, np.random.default_rng(0))
    scenes = [painter.scene() for _ in range(64)]
    tokenizer = Tokenizer(learn_merges([scene.caption for scene in scenes], 300))
    tokens = torch.tensor(tokenizer.tokenize([scene.caption for scene in scenes], 32))
    images = np.stack([np.asarray(scene.image).transpose(2, 0, 1) for scene in scenes])
    settings = Settings(scenes=64, batch_size=16, steps=10, warmup_steps=3)
    shape = replace(architecture(tokenizer.vocab_size), vision_layers=1, transformer_layers=1)
    first, losses = train(images, tokens, shape, settings, log_every=5)
    assert losses[-1] < losses[0]
    second, _ = train(images, tokens, shape, settings)
    assert torch.equal(first.visual.proj, second.visual.proj)
