"""Byte-level BPE as CLIP uses it: convert text to token ids, with the merges of a file.

A vocabulary consists of 256 byte symbols, the same 256 symbols with an end-of-word mark, one token per merge, and the
start and end tokens. OpenAI's vocabulary and the small vocabulary of `tiny` both have this form.

Source of the scheme: Sennrich et al. 2016 for BPE, Radford et al. 2019 for the byte alphabet; lower-casing and the word
pattern are CLIP's.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

from probe.errors import TextError

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def byte_alphabet() -> list[str]:
    """Return the 256 symbols that stand for bytes, in the order of their token ids.

    Printable Latin-1 bytes come first and are their own symbols. The other bytes have the characters from U+0100 on.
    """
    return list(_byte_symbols().values())


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def clean(text: str) -> str:
    """Repair encoding errors, unescape HTML twice, merge white space and lower-case a text, as the reference does."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # other texts do not change, which saves time
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(regex.split(r"\s+", text.strip())).lower()


def split_words(text: str) -> list[str]:
    """Return the words of a text in byte symbols, without end-of-word marks."""
    symbols = _byte_symbols()
    return ["".join(symbols[b] for b in word.encode()) for word in WORDS.findall(clean(text))]


def read_merges(path: Path, limit: int | None = None) -> tuple[tuple[str, str], ...]:
    """Return the first `limit` merges of a file with one merge per line after a header; `.gz` files are unpacked."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = content.decode("utf-8").split("\n")[1:]
    pairs = (tuple(line.split()) for line in lines[:limit])
    return tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)


class Tokenizer:
    """Converter between text and token ids, for one list of merges."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        alphabet = byte_alphabet()
        tokens = [*alphabet, *(s + WORD_END for s in alphabet), *("".join(pair) for pair in merges), START, END]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {START: [self.ids[START]], END: [self.ids[END]]}

    @property
    def vocab_size(self) -> int:
        """Number of token ids in the vocabulary."""
        return len(self.ids)

    @cached_property
    def _tokens(self) -> list[str]:
        return list(self.ids)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end tokens."""
        ids: list[int] = []
        for word in split_words(text):
            if word not in self._words:
                self._words[word] = [self.ids[token] for token in self._merge(word)]
            ids += self._words[word]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with single spaces between words."""
        to_byte = {symbol: byte for byte, symbol in _byte_symbols().items()}
        text = "".join(self._tokens[i] for i in ids if self._tokens[i] not in (START, END))
        words = text.split(WORD_END)
        return " ".join(bytes(to_byte[s] for s in word).decode(errors="replace") for word in words).strip()

    def tokenize(
        self, texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False
    ) -> list[list[int]]:
        """Return one row of `context_length` token ids per text: start token, text, end token, zeros.

        Raises:
            TextError: `texts` contains a value that is not a str, `context_length` is less than 2, or a text is too
                long and `truncate` is False; the message quotes the text.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
            raise TextError(f"expected a str or a sequence of str, got {texts!r}")
        if not isinstance(context_length, int) or context_length < 2:
            raise TextError(f"expected a context_length >= 2 for the start and end tokens, got {context_length!r}")
        rows = []
        for text in texts:
            ids = [self.ids[START], *self.encode(text), self.ids[END]]
            if len(ids) > context_length:
                if not truncate:
                    raise TextError(
                        f"the text {text!r} has {len(ids)} tokens, but the context has {context_length}; "
                        "shorten the text or pass truncate=True"
                    )
                ids = [*ids[: context_length - 1], self.ids[END]]
            rows.append(ids + [0] * (context_length - len(ids)))
        return rows

    def _merge(self, word: str) -> list[str]:
        """Split one word into tokens: apply the merge with the lowest rank, and repeat until no merge applies."""
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda p: self.ranks.get(p, len(self.ranks)))
            if pair not in self.ranks:
                break
            parts = merge_pair(parts, pair)
        return parts


def merge_pair(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join every non-overlapping occurrence of a pair of tokens, from left to right."""
    merged: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            merged.append(parts[i] + parts[i + 1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged
