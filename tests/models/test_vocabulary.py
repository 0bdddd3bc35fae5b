"""Compare token ids with the tokenizers of open_clip and transformers, on the vocabulary in open_clip's package."""

import html
import json
import random
import unicodedata

import ftfy
import open_clip
import pytest
import torch
from transformers import CLIPTokenizer

import probe
from probe.errors import CheckpointError, DownloadError, TextError
from probe.models import get_model, vocabulary
from probe.models.tokenizer import Tokenizer, read_merges
from probe.tiny import ARCHIVE

POOLS = [
    *("abc xyz ABC", "0123456789", "éüñçß", "日本語漢字", "👩\u200d👧🎉", "\u200b\u00a0\t\n", "<>&;#'\"!?.,"),
    *("ﬁＡ①", "אבג", "कखग", "\u0130\u0131\u017f\u212a", "\u0301\u0308", "\ud7ff\ufffd\U0010ffff", "Ã©â€™", "&amp;&lt;"),
]
HOSTILE = ["", " ", "don't WON'T it's'", "naïve café", "&amp;amp;lt;", "x\x00y", "'S'T'RE", "a" * 60]


def _random_texts(n):
    rng = random.Random(0)
    return ["".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(0, 30))) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(read_merges(vocabulary.openai_vocabulary(offline=True), vocabulary.NUM_MERGES))


def test_any_text_has_the_ids_of_open_clip(tokenizer):
    theirs = open_clip.SimpleTokenizer()
    for text in HOSTILE + _random_texts(1000):
        assert tokenizer.encode(text) == theirs.encode(text), repr(text)


def test_clean_text_has_the_ids_of_transformers(tokenizer, tmp_path):
    """Unlike the reference, transformers repairs no encoding errors and does not read U+017F as an s."""
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in tokenizer.ranks))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [text for text in _random_texts(1000) if _is_clean(text)]
    assert len(texts) > 200
    marks = ["<|endoftext|> twice", "a <|startoftext|>"]  # one token each in the reference, several in open_clip
    for text in texts + marks:
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)


def _is_clean(text):
    mended = unicodedata.normalize("NFC", ftfy.fix_text(html.unescape(text)))
    return mended == text and "\u017f" not in text


def test_rows_are_those_of_open_clips_tokenizer():
    texts = ["a diagram", "a dog", "a cat"]
    rows = probe.tokenize(texts)
    assert rows.dtype == torch.int32
    assert torch.equal(rows.long(), open_clip.get_tokenizer("ViT-B-32")(texts))
    assert torch.equal(probe.tokenize("a dog"), rows[1:2])


def test_the_published_example(tokenizer):
    """The ids agree with OpenAI's notebook, which prints them for "Hello world!"."""
    row = probe.tokenize("Hello World!")[0, :6].tolist()
    assert row == [49406, 3306, 1002, 256, 49407, 0]


def test_a_text_that_is_too_long_is_named_unless_truncated():
    """The error is also a RuntimeError, because the reference raises RuntimeError."""
    long = "a photo of a cat " * 30
    with pytest.raises(TextError, match="but the context has 77"):
        probe.tokenize(long)
    with pytest.raises(RuntimeError):
        probe.tokenize(long)
    cut = probe.tokenize(long, truncate=True)
    assert torch.equal(cut.long(), open_clip.get_tokenizer("ViT-B-32")(long))


def test_tiny_has_a_vocabulary_of_its_own():
    rows = probe.tokenize("a white digit 3", model="tiny")
    assert rows.shape == (1, 32)
    assert rows.max() == 862
    assert torch.equal(rows, probe.tokenize("a white digit 3", model="random:tiny"))


@pytest.mark.parametrize("texts", [None, 5, [1], [None], b"abc", [["a"]]])
def test_a_value_that_is_not_a_text_is_named(texts):
    with pytest.raises(TextError, match="expected a str or a sequence of str"):
        probe.tokenize(texts, model="tiny")


@pytest.mark.parametrize("length", [1, 0, -3, 77.0, "77"])
def test_a_context_without_room_is_named(length):
    with pytest.raises(TextError, match="expected a context_length >= 2"):
        probe.tokenize("a", length, truncate=True, model="tiny")


def test_an_empty_list_of_texts_gives_no_rows():
    assert probe.tokenize([]).shape == (0, 77)


def test_open_clips_models_have_their_own_tokenizers():
    with pytest.raises(CheckpointError, match=r"tokenize with open_clip\.get_tokenizer\('ViT-B-32'\)"):
        probe.tokenize("a", model="open_clip:ViT-B-32/openai")


def test_openais_vocabulary_is_not_assumed_for_a_file():
    with pytest.raises(CheckpointError, match="has no vocabulary next to its weights"):
        probe.tokenize("a white digit 3", model=ARCHIVE)


def test_a_run_of_a_file_without_vocabulary_is_told_what_zero_shot_needs(tmp_path):
    (tmp_path / "own.pt").touch()
    spec = get_model(tmp_path / "own.pt")
    advice = r"own\.pt has 500 token embeddings and no vocabulary .* a folder in Hugging Face's form, with vocab.json"
    with pytest.raises(CheckpointError, match=advice):
        vocabulary.load_tokenizer(spec, sha256="", vocab_size=500)


def test_the_vocabulary_next_to_the_weights_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGES", ())  # as if neither open_clip nor clip were installed
    with pytest.raises(DownloadError, match=r"bpe_simple_vocab_16e6\.txt\.gz is missing.*openai/CLIP/raw/main/clip/"):
        vocabulary.openai_vocabulary(weights_dir=tmp_path, offline=True)
    monkeypatch.undo()
    kept = tmp_path / vocabulary.FILE
    kept.write_bytes(vocabulary.openai_vocabulary(weights_dir=tmp_path, offline=True).read_bytes())
    assert vocabulary.openai_vocabulary(weights_dir=tmp_path, offline=True) == kept
