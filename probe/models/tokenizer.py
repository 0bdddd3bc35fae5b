"""Byte-level BPE as CLIP uses it: text -> token ids, from a merges file.

The same code serves OpenAI's vocabulary and the small one of `tiny`: a vocabulary is 256 byte symbols, the same 256
with an end-of-word mark, one token per merge, and the start and end tokens.

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
    """The 256 symbols that stand for bytes, in the order of their token ids.

    Printable Latin-1 bytes stand for themselves and come first; the others follow as the characters from U+0100 on.
    """
    return list(_byte_symbols().values())


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def clean(text: str) -> str:
    """Mend mojibake, resolve HTML entities twice, collapse white space, lower the case; as the reference does."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(regex.split(r"\s+", text.strip())).lower()


def split_words(text: str) -> list[str]:
    """The words of `text` in byte symbols, without end-of-word marks."""
    symbols = _byte_symbols()
    return ["".join(symbols[b] for b in word.encode()) for word in WORDS.findall(clean(text))]


def read_merges(path: Path, limit: int | None = None) -> tuple[tuple[str, str], ...]:
    """Read a merges file (a header line, then one merge a line; `.gz` is gzip), at most `limit` of them."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = content.decode("utf-8").split("\n")[1:]
    pairs = (tuple(line.split()) for line in lines[:limit])
    return tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)


class Tokenizer:
    """Text to token ids and back, for one merges file."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        alphabet = byte_alphabet()
        tokens = [*alphabet, *(s + WORD_END for s in alphabet), *("".join(pair) for pair in merges), START, END]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {START: [self.ids[START]], END: [self.ids[END]]}

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.ids)

    @cached_property
    def _tokens(self) -> list[str]:
        return list(self.ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end tokens."""
        ids: list[int] = []
        for word in split_words(text):
            if word not in self._words:
                self._words[word] = [self.ids[token] for token in self._merge(word)]
            ids += self._words[word]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; words are separated by single spaces."""
        to_byte = {symbol: byte for byte, symbol in _byte_symbols().items()}
        text = "".join(self._tokens[i] for i in ids if self._tokens[i] not in (START, END))
        words = text.split(WORD_END)
        return " ".join(bytes(to_byte[s] for s in word).decode(errors="replace") for word in words).strip()

    def tokenize(
        self, texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False
    ) -> list[list[int]]:
        """Rows of `context_length` token ids: start, text, end, zeros.

        Raises:
            TextError: what is given is no text, the context has no room for one, or a text is too long and
                `truncate` is off; the message names it.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
            raise TextError(f"{texts!r} is no text and no list of texts; give a str, or several")
        if not isinstance(context_length, int) or context_length < 2:
            raise TextError(f"a context of {context_length!r} has no room for start and end; give 2 or more")
        rows = []
        for text in texts:
            ids = [self.ids[START], *self.encode(text), self.ids[END]]
            if len(ids) > context_length:
                if not truncate:
                    raise TextError(
                        f"the text {text!r} has {len(ids)} tokens, more than the context of {context_length}; "
                        "shorten it or pass truncate=True"
                    )
                ids = [*ids[: context_length - 1], self.ids[END]]
            rows.append(ids + [0] * (context_length - len(ids)))
        return rows

    def _merge(self, word: str) -> list[str]:
        """Split one word into tokens: apply the earliest merge of the file everywhere, until none applies."""
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda p: self.ranks.get(p, len(self.ranks)))
            if pair not in self.ranks:
                break
            parts = merge_pair(parts, pair)
        return parts


def merge_pair(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join every non-overlapping occurrence of `pair`, from left to right."""
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
