"""Compare text towers and tokenizers with open_clip, transformers and the whole model; test missing parts."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from huggingface_hub import constants
from make.clips import SMALL_VIT, random_clip
from make.hf_clip import MERGES, make_model
from make.hub_server import serve
from make.text_towers import MODELS, write_tokenizer, write_zoo_folder
from torch import nn
from transformers import CLIPTokenizer

import probe
from probe.errors import CheckpointError, DownloadError, TextError
from probe.models import get_model, vocabulary
from probe.models.devices import resolve_execution
from probe.models.loading import identify, load_clip
from probe.models.open_clip_tokenizers import identify_zoo_tokenizer, load_zoo_tokenizer
from probe.models.openai import save_archive
from probe.models.text import as_text_encoder, load_text_encoder
from probe.models.tokenizer import Tokenizer
from probe.models.towers import convert_weights
from probe.models.vocabulary import identify_vocabulary
from probe.tiny import ARCHIVE

TEXTS = ["a photo of a red dog.", "the blue tree", "a cat, a c"]
SLOW = pytest.mark.slow
WITH_OPENAIS_VOCABULARY = replace(SMALL_VIT, vocab_size=49_408, context_length=16)


@pytest.fixture(scope="module", params=MODELS)
def zoo(request, tmp_path_factory):
    return write_zoo_folder(tmp_path_factory.mktemp("zoo") / request.param, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Write the weights of a small model with OpenAI's vocabulary, as an archive and as a plain state dict."""
    folder = tmp_path_factory.mktemp("small")
    model = random_clip(WITH_OPENAIS_VOCABULARY)
    save_archive(model, folder / "archive.pt")
    convert_weights(model)
    torch.save(model.state_dict(), folder / "plain.pt")
    return folder


@pytest.fixture
def hugging_face(tmp_path):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(Tokenizer(MERGES).ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return tmp_path


def _encode(encoder, texts=TEXTS):
    return encoder.encode(encoder.tokenize(texts))


@torch.inference_mode()
def test_open_clips_models_give_open_clips_features_with_its_own_tokenizer(zoo):
    """CoCa models normalise features by default, and SigLIP-like models have a bias."""
    theirs = open_clip.create_model(f"local-dir:{zoo}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{zoo}")(TEXTS)
    encoder = load_text_encoder(zoo, device="cpu")
    assert torch.equal(encoder.tokenize(TEXTS), tokens)
    assert encoder.context_length == tokens.shape[1]
    assert encoder.logit_scale == theirs.logit_scale.exp().item()
    assert encoder.logit_bias == (0 if theirs.logit_bias is None else theirs.logit_bias.item())
    # The tokens after the end token are left out of towers that do not use them, so sums can have another order.
    torch.testing.assert_close(_encode(encoder), theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)
    assert encoder.embed_dim == 48


@pytest.mark.parametrize(
    ("name", "jit"),
    [
        ("tiny", False),
        ("tiny", True),
        ("random:tiny", False),
        pytest.param("random:tiny", True, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_models_of_the_catalogue_give_the_features_of_the_whole_model(name, jit):
    """The eager text tower leaves out the tokens after the end token and packs its weights; hence 1e-5."""
    encoder, (model, _) = load_text_encoder(name, jit=jit, device="cpu"), load_clip(name, "cpu", jit=jit)
    texts = ["a white digit 3", "a", "a photo of the number seven on a black ground"]
    ids = probe.tokenize(texts, model=name)
    assert torch.equal(encoder.tokenize(texts), ids)
    assert encoder.execution.jit is jit
    torch.testing.assert_close(_encode(encoder, texts), model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert encoder.logit_scale == model.logit_scale.exp().item()


@pytest.mark.parametrize("name", ["tiny", "open_clip"])
@torch.inference_mode()
def test_a_text_has_the_same_features_in_any_batch(name, tmp_path):
    """A batch is as long as its longest text, so sums can have another order."""
    if name == "open_clip":
        name = write_zoo_folder(tmp_path / "clip", "clip")
    encoder = load_text_encoder(name, device="cpu")
    texts = ["a", "a long text about a white digit 3 on a black ground"]
    torch.testing.assert_close(_encode(encoder, texts)[:1], _encode(encoder, texts[:1]), atol=1e-5, rtol=1e-5)


# In JIT mode, a file that is not an archive is rebuilt with this warning, which `test_loading` checks.
@pytest.mark.filterwarnings("ignore:.* is not a TorchScript archive")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("file", ["archive.pt", "plain.pt"])
@torch.inference_mode()
def test_a_file_with_as_many_tokens_has_openais_vocabulary(small, file, jit):
    encoder = load_text_encoder(small / file, jit=jit, device="cpu")
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    assert torch.equal(encoder.tokenize(TEXTS).long(), tokens)
    model = random_clip(WITH_OPENAIS_VOCABULARY)
    convert_weights(model)
    expected = model.float().encode_text(tokens)
    torch.testing.assert_close(_encode(encoder), expected, atol=1e-5, rtol=1e-5)
    assert encoder.execution.jit is (jit and file == "archive.pt")


@torch.inference_mode()
def test_a_copy_of_tiny_has_its_vocabulary(tmp_path):
    (tmp_path / "copy.pt").write_bytes(ARCHIVE.read_bytes())
    copy, expected = (load_text_encoder(name, device="cpu") for name in (tmp_path / "copy.pt", "tiny"))
    assert torch.equal(_encode(copy), _encode(expected))


@pytest.mark.parametrize("name", ["", "model.safetensors"])
@torch.inference_mode()
def test_a_folder_of_hugging_face_has_its_own_vocabulary(hugging_face, name):
    encoder, theirs = load_text_encoder(hugging_face / name, device="cpu"), make_model()
    texts = ["ab", "xy ab!"]
    tokens = CLIPTokenizer.from_pretrained(hugging_face)(texts, padding=True, return_tensors="pt")
    expected = theirs.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(_encode(encoder, texts), expected, atol=1e-5, rtol=1e-5)
    assert encoder.context_length == 12
    assert encoder.logit_scale == theirs.logit_scale.exp().item()


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("bf16", 0.999)])
@torch.inference_mode()
def test_half_precision_is_near_fp32(precision, least):
    half, whole = (load_text_encoder("tiny", device="cpu", precision=p) for p in (precision, "fp32"))
    similarity = nn.functional.cosine_similarity(_encode(half), _encode(whole))
    assert _encode(half).dtype == torch.float32
    assert similarity.min() > least


def test_a_text_that_is_too_long_is_named_and_never_cut(zoo):
    """A text that fills the context is read completely. open_clip's tokenizers would truncate a longer one silently."""
    encoder = load_zoo_tokenizer(f"local-dir:{zoo}")
    marks = 1 if zoo.name == "siglip" else 2  # the end token, and the start token of OpenAI's vocabulary
    longest = " ".join(["a"] * (encoder.context_length - marks))
    assert (encoder.tokenize([longest]) != encoder.pad).all()
    with pytest.raises(TextError, match=f"the text '{longest} a' is longer than the context of"):
        encoder.tokenize(["a", f"{longest} a"])


def test_a_text_that_is_too_long_for_openais_tokenizer_is_named():
    encoder = load_text_encoder("tiny", device="cpu")
    with pytest.raises(TextError, match="but the context has 32"):
        encoder.tokenize(["a " * 31])


def test_a_checkpoint_without_a_text_tower_is_one_sentence(small, tmp_path):
    weights = torch.load(small / "plain.pt")
    image = {name: tensor for name, tensor in weights.items() if name.startswith(("visual.", "logit_scale"))}
    torch.save(image, tmp_path / "image.pt")
    with pytest.raises(CheckpointError, match=r"image\.pt: the state dict has no 'text_projection'; give the weights"):
        load_text_encoder(tmp_path / "image.pt", device="cpu")


def test_an_open_clip_model_without_a_text_tower_is_one_sentence(tmp_path):
    tokenizer = load_zoo_tokenizer(f"local-dir:{write_zoo_folder(tmp_path / 'clip', 'clip')}")
    with pytest.raises(CheckpointError, match="open_clip:image has no text tower, which zero-shot needs; use another"):
        as_text_encoder("open_clip:image", nn.Linear(2, 2), tokenizer, resolve_execution("cpu"))


def test_a_model_without_a_vocabulary_is_one_sentence(archive, hugging_face):
    """The archive has 100 tokens, and no file lists them."""
    (hugging_face / "vocab.json").unlink()
    for path in (archive, hugging_face):
        with pytest.raises(
            CheckpointError, match="no vocabulary next to its weights; zero-shot needs the vocabulary: give a folder"
        ):
            load_text_encoder(path, device="cpu")


def test_a_vocabulary_that_is_not_here_is_one_sentence_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGES", ())  # as if neither open_clip nor clip were installed
    with pytest.raises(DownloadError, match=r"bpe_simple_vocab_16e6\.txt\.gz is missing, and --offline forbids"):
        vocabulary.load_tokenizer(
            get_model("random:ViT-B/32"), sha256="", vocab_size=49_408, weights_dir=tmp_path, offline=True
        )


def test_a_tokenizer_that_is_not_in_its_folder_is_one_sentence(tmp_path):
    folder = write_zoo_folder(tmp_path / "siglip", "siglip")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"open_clip cannot load the tokenizer of local-dir:.*; check the"):
        load_text_encoder(folder, device="cpu")


def test_a_tokenizer_of_the_hub_is_downloaded_once(tmp_path, monkeypatch):
    """Weights of an architecture of open_clip's table need the repository of the tokenizer that the table names."""
    write_tokenizer(tmp_path / "hub" / "timm" / "ViT-B-16-SigLIP")
    (tmp_path / "weights.pt").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    source = f"ViT-B-16-SigLIP/{tmp_path / 'weights.pt'}"
    with serve(tmp_path / "hub") as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(DownloadError, match="--offline forbids"):
            load_zoo_tokenizer(source, offline=True)
        load_zoo_tokenizer(source)
    tokenizer = load_zoo_tokenizer(source, offline=True)
    assert tokenizer.context_length == 64
    assert tokenizer.tokenize(["A red dog!"])[0, :5].tolist() == [3, 7, 10, 1, 0]


def test_the_digests_tell_vocabularies_apart(tmp_path, hugging_face):
    """Key of the cache: the digest of the weights covers the vocabulary of a folder, and other digests all others."""
    digests = {name: identify_vocabulary(get_model(name)) for name in ("tiny", "random:tiny", "ViT-B/32", "RN50")}
    assert digests["tiny"] == digests["random:tiny"] != digests["ViT-B/32"] == digests["RN50"]
    before = identify(get_model(hugging_face))
    (hugging_face / "merges.txt").write_text("#version: 0.2\n")
    assert identify(get_model(hugging_face)) != before
    folder = write_zoo_folder(tmp_path / "siglip", "siglip")
    found = {identify_zoo_tokenizer(f"local-dir:{folder}")}
    changed = (folder / "tokenizer.json").read_text().replace("dog", "dig")
    (folder / "tokenizer.json").write_text(changed)
    found.add(identify_zoo_tokenizer(f"local-dir:{folder}"))
    assert len(found) == 2
