"""Compare zero-shot logits with open_clip's, transformers' and the notebook's; test the cache of text features."""

import errno
import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from make.hf_clip import MERGES, make_model
from make.text_towers import MODELS, write_zoo_folder
from transformers import CLIPTokenizer

import probe
from probe.datasets.prompts import Prompts
from probe.errors import CheckpointError, FeaturesError, PromptsError, TextError
from probe.features import extraction, file_entries, inventory, text_store
from probe.features.extraction import Session
from probe.features.text import Classifier, encode_classes, find_classifier
from probe.grid import plan
from probe.models import get_model
from probe.models.loading import load_clip, load_encoder, read_weights
from probe.models.text import load_text_encoder
from probe.models.tokenizer import Tokenizer
from probe.probes.protocols import get_protocol
from probe.probes.zero_shot import zero_shot_logits
from probe.settings import Settings
from probe.specs import NO_SOLVER

NAMES = ("red dog", "blue tree", "c", "green cat")
TEMPLATES = ("a photo of a {}.", "the {}", "a {} of the tree.")


def _prompts(names=NAMES, templates=TEMPLATES):
    return Prompts(tuple(names), "a test", tuple(templates), "a test")


def _pixels(side, n=5):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def _our_logits(name, prompts, *, jit=False):
    """Return the zero-shot logits of random pixels, and the normalised pixels."""
    encoder = load_encoder(name, device="cpu", jit=jit)
    pixels = _pixels(encoder.resolution)
    texts = encode_classes(load_text_encoder(name, device="cpu", jit=jit), prompts, where="a test")
    classifier = Classifier(texts.weights, texts.logit_scale, texts.logit_bias, None, 0.0)
    return zero_shot_logits(encoder.encode(pixels).projected.numpy(), classifier), encoder.preprocess.normalize(pixels)


def _open_clips_logits(model, tokenizer, images):
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES)
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ weights
    return logits if model.logit_bias is None else logits + model.logit_bias


def _check(logits, expected):
    """Compare logits with a tolerance of 1e-5 of the largest logit: fp32 rounding of sums over hundreds of products."""
    largest = float(expected.abs().max())
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5 * largest)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "theirs"), [("ViT-B/32", "ViT-B-32-quickgelu"), ("RN50", "RN50-quickgelu")])
@torch.inference_mode()
def test_logits_of_openais_architectures_are_open_clips(name, theirs):
    logits, images = _our_logits(f"random:{name}", _prompts())
    model = open_clip.create_model(theirs, load_weights=False).eval()
    weights = read_weights(get_model(f"random:{name}")).state_dict
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    _check(logits, _open_clips_logits(model, open_clip.get_tokenizer(theirs), images))


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_logits_of_open_clips_models_are_open_clips(kind, tmp_path):
    folder = write_zoo_folder(tmp_path / kind, kind)
    logits, images = _our_logits(folder, _prompts())
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    _check(logits, _open_clips_logits(model, open_clip.get_tokenizer(f"local-dir:{folder}"), images))


@torch.inference_mode()
def test_logits_of_a_folder_of_hugging_face_are_transformers(tmp_path):
    theirs = make_model()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(Tokenizer(MERGES).ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    prompts = _prompts(["ab", "xy", "xyab"], ["a {}."])
    logits, images = _our_logits(tmp_path, prompts)
    texts = [text for (text,) in prompts.texts]
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    _check(logits, theirs(pixel_values=images, **tokens).logits_per_image)


@pytest.mark.parametrize("jit", [False, True])
@torch.inference_mode()
def test_logits_are_those_of_the_notebook(jit):
    """This is the code of OpenAI's notebook 'Prompt Engineering for ImageNet', with this package's replacements."""
    names, templates = ["white digit 3", "black square", "circle"], ["a {}", "a photo of a {}.", "a {} on the ground"]
    logits, images = _our_logits("tiny", _prompts(names, templates), jit=jit)
    model, _ = load_clip("tiny", "cpu", jit=jit)
    weights = []
    for name in names:
        texts = probe.tokenize([template.format(name) for template in templates], model="tiny")
        class_embeddings = model.encode_text(texts)
        class_embeddings /= class_embeddings.norm(dim=-1, keepdim=True)
        class_embedding = class_embeddings.mean(dim=0)
        class_embedding /= class_embedding.norm()
        weights.append(class_embedding)
    image_features = model.encode_image(images)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    _check(logits, model.logit_scale.exp() * image_features @ torch.stack(weights, dim=1))


def test_equal_prompts_have_equal_features_whatever_their_batch():
    encoder = load_text_encoder("tiny", device="cpu")
    names = ("red dog", *(f"dog {i}" for i in range(80)), "red dog")
    weights = encode_classes(encoder, Prompts(names, "here", ("a {}.",), "here"), where="digits").weights
    assert np.array_equal(weights[0], weights[-1])


def test_features_that_are_not_finite_are_an_error():
    encoder = load_text_encoder("tiny", device="cpu")
    broken = replace(encoder, encode_tokens=lambda ids: torch.full((len(ids), 256), torch.nan))
    with pytest.raises(FeaturesError, match=r"digits: the text features of class 0, 'red dog', contain NaN"):
        encode_classes(broken, _prompts(), where="digits")


def _spec(tmp_path, image_folder, model="tiny", *, jit=False, **prompts):
    """Return a zero-shot run of a folder of three colours, and a session with an empty cache."""
    root = image_folder({"red": 3, "green": 3, "blue": 3})
    (spec,) = plan([f"folder:{root}"], [model], protocols=["readme"], jit_modes=[jit], device="cpu")
    spec = replace(spec, protocol=get_protocol("zero-shot"), solver=NO_SOLVER, dataset=replace(spec.dataset, **prompts))
    return spec, Session(Settings(cache_dir=tmp_path / "cache"))


@pytest.fixture
def run(tmp_path, image_folder):
    return _spec(tmp_path, image_folder)


def _files(session):
    return sorted(session.settings.cache_dir.glob(f"*/*{text_store.TEXTS}"))


def _refuse(*_, **__):
    raise AssertionError("the text tower was loaded")


def test_a_second_call_reads_the_cache_and_gives_the_same_bytes(run, monkeypatch):
    spec, session = run
    first = find_classifier(spec, session)
    assert first.weights.shape == (3, 256)
    assert first.weights.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first.weights, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(extraction, "load_text_encoder", _refuse)
    second = find_classifier(spec, Session(session.settings))
    assert second.weights.tobytes() == first.weights.tobytes()
    assert replace(second, weights=None, seconds=0) == replace(first, weights=None, seconds=0)
    assert second.prompts.class_names_from == "the files of the dataset"
    (file,) = _files(session)
    assert file.stat().st_size < 10_000


def test_no_image_encoder_is_loaded(run, monkeypatch):
    monkeypatch.setattr(extraction, "load_encoder", _refuse)
    find_classifier(*run)


def test_a_cached_classifier_needs_no_vocabulary(run, monkeypatch):
    spec, session = run
    find_classifier(spec, session)
    monkeypatch.setattr("probe.models.tokenizer.read_merges", _refuse)
    find_classifier(spec, Session(session.settings))


def test_everything_that_changes_the_texts_is_in_the_key(run):
    spec, session = run
    own = [
        spec,
        replace(spec, precision="bf16"),
        replace(spec, jit=True),
        replace(spec, model=get_model("random:tiny")),
    ]
    for change in ({"templates": ("a {}",)}, {"class_names": ("red", "green", "black")}):
        own.append(replace(spec, dataset=replace(spec.dataset, **change)))
    for changed in own:
        find_classifier(changed, session)
    assert len(_files(session)) == len(own)
    find_classifier(replace(spec, compiled=True), session)  # compiled mode compiles only the image tower
    assert len(_files(session)) == len(own)


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty", "not an archive"])
def test_damage_is_named_and_encoded_again(run, caplog, kind):
    spec, session = run
    first = find_classifier(spec, session)
    (file,) = _files(session)
    whole = file.read_bytes()
    middle = whole.index(b"weights.npy") + 400
    damaged = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "not an archive": b"<html>" * 100,
    }
    file.write_bytes(damaged[kind])
    assert list(inventory.verify(session.settings.cache_dir)[1]) == [file]
    assert [cached.state for cached in inventory.survey(session.settings.cache_dir)] == ["damaged"]
    second = find_classifier(spec, Session(session.settings))
    assert f"the text features in {file} are damaged" in caplog.text
    assert second.weights.tobytes() == first.weights.tobytes()
    assert file.read_bytes() == whole


def test_an_entry_that_was_edited_is_not_used(run, caplog):
    """The digest covers the key and the scale, too."""
    spec, session = run
    first = find_classifier(spec, session)
    (file,) = _files(session)
    with np.load(file) as arrays:
        weights, about = arrays["weights"], json.loads(arrays["about"].item())
    for name, value in (("logit_scale", 1.0), ("version", 2)):
        np.savez(file.with_suffix(""), weights=weights, about=np.array(json.dumps(about | {name: value})))
        assert find_classifier(spec, Session(session.settings)).logit_scale == first.logit_scale
        assert "the digest of its description differs" in caplog.text


def test_a_full_disk_is_a_warning(run, caplog, monkeypatch):
    """The texts of one run can be encoded again, unlike the features of many images."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_entries, "write_atomically", fail)
    assert find_classifier(*run).weights.shape == (3, 256)
    assert "cannot cache text features in" in caplog.text


def test_the_cache_lists_verifies_and_removes_texts(run):
    spec, session = run
    find_classifier(spec, session)
    root = session.settings.cache_dir
    (cached,) = inventory.survey(root)
    names = {"dataset": spec.dataset.name, "model": "tiny", "mode": "eager", "precision": "fp32", "subset": "texts"}
    assert (dict(cached.label), cached.state, cached.num_images) == (names, "complete", 0)
    assert cached.size == _files(session)[0].stat().st_size
    assert inventory.verify(root) == (1, {})
    assert inventory.collect(root) == []
    assert inventory.collect(root, max_size=0) == [cached]
    assert _files(session) == []


def test_a_prompt_that_is_too_long_names_the_class(tmp_path, image_folder):
    run = _spec(tmp_path, image_folder, class_names=("red", "a" * 40, "blue"))
    with pytest.raises(
        TextError, match=r"the prompt 'a photo of a a{40}\.' of class 1 is longer than the 32 tokens that tiny can read"
    ):
        find_classifier(*run)


def test_a_template_that_is_too_long_is_quoted_shortened(tmp_path, image_folder):
    run = _spec(tmp_path, image_folder, templates=("a {}", f"the {'very ' * 60}{{}} end"))
    with pytest.raises(TextError, match=r"the prompt 'the very .{30,50} end' of class 0 is longer than the 32 tokens"):
        find_classifier(*run)


def test_classes_with_one_name_are_an_error_or_a_remark(tmp_path, image_folder):
    spec, session = _spec(tmp_path, image_folder, class_names=("red", "crane", "Crane"))
    permitting = Session(replace(session.settings, allow_duplicate_names=True))
    found = find_classifier(spec, permitting)
    assert found.prompts.duplicates == ("crane",)
    assert np.array_equal(found.weights[1], found.weights[2])
    with pytest.raises(PromptsError, match=r"1 \('crane'\) and 2 \('Crane'\) have the same name.*--allow-dup"):
        find_classifier(spec, session)


def test_classes_with_equal_tokens_are_an_error_or_a_remark(tmp_path, image_folder):
    """A tokenizer that removes punctuation cannot tell C from C#. The cache does not hide the error."""
    folder = write_zoo_folder(tmp_path / "siglip", "siglip")
    spec, session = _spec(tmp_path, image_folder, folder, class_names=("c", "c#", "dog"))
    permitting = Session(replace(session.settings, allow_duplicate_names=True))
    message = r"the prompts of the classes 0 \('c'\) and 1 \('c#'\) have the same tokens for .*--allow-duplicate-names"
    for _ in range(2):
        with pytest.raises(PromptsError, match=message):
            find_classifier(spec, session)
        assert find_classifier(spec, permitting).prompts.duplicates == ("c", "c#")


def test_no_jit_run_has_the_texts_of_a_rebuilt_model(tmp_path, image_folder):
    folder = write_zoo_folder(tmp_path / "clip", "clip")
    with pytest.raises(CheckpointError, match="is not a TorchScript archive and has no JIT mode; use --jit off"):
        find_classifier(*_spec(tmp_path, image_folder, folder, jit=True))
