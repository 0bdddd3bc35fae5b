import pytest

from probe.models.tokenizer import END, START, Tokenizer, byte_alphabet, read_merges
from probe.tiny import MERGES

HOSTILE = [
    "",
    " ",
    "a white digit 3",
    "naïve café",
    "日本語",
    "👩‍👩‍👧",
    "don't",
    "1234",
    "x\x00y",
    "&amp;lt;",
    "\u200b",
    "A" * 50,
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(read_merges(MERGES))


def test_the_byte_alphabet_has_256_different_symbols():
    assert len(set(byte_alphabet())) == 256


def test_a_vocabulary_is_bytes_twice_merges_and_two_marks(tokenizer):
    assert tokenizer.vocab_size == 512 + len(read_merges(MERGES)) + 2
    assert tokenizer.ids[END] == tokenizer.vocab_size - 1  # `encode_text` searches the highest id


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_becomes_ids_of_the_vocabulary(tokenizer, text):
    assert all(0 <= i < tokenizer.vocab_size - 2 for i in tokenizer.encode(text))


def test_decoding_gives_the_words_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode("A White  digit 3 on café")) == "a white digit 3 on café"


def test_rows_are_start_text_end_zeros(tokenizer):
    (row,) = tokenizer.tokenize("digit", 8)
    assert row == [tokenizer.ids[START], *tokenizer.encode("digit"), tokenizer.ids[END], *[0] * 5]


def test_a_text_that_is_too_long_is_an_error_unless_truncated(tokenizer):
    with pytest.raises(ValueError, match="but the context has 8"):
        tokenizer.tokenize("red " * 20, 8)
    (row,) = tokenizer.tokenize("red " * 20, 8, truncate=True)
    assert len(row) == 8
    assert row[-1] == tokenizer.ids[END]


def test_the_earliest_merge_is_applied_first():
    tokenizer = Tokenizer([("b", "c</w>"), ("a", "b")])
    assert [list(tokenizer.ids)[i] for i in tokenizer.encode("abc")] == ["a", "bc</w>"]
