"""Texts -> token ids under a model's vocabulary, as the reference's `clip.tokenize`; and where the vocabulary is."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from probe import hub, paths
from probe.errors import CheckpointError
from probe.fetch import fetch, file_sha256
from probe.models import get_model, huggingface, split_key
from probe.models.open_clip_config import HUB, LOCAL
from probe.models.tokenizer import Tokenizer, read_merges
from probe.specs import ModelSpec

FILE = "bpe_simple_vocab_16e6.txt.gz"
URL = f"https://github.com/openai/CLIP/raw/main/clip/{FILE}"  # `main`, as the SHA-256 pins the content
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
NUM_MERGES = 49_152 - 256 - 2  # the file has more; the models were trained with these
CARRIERS = ("open_clip", "clip")  # packages that ship the file


def tokenize(
    texts: str | Sequence[str],
    context_length: int | None = None,
    truncate: bool = False,
    *,
    model: str | Path = "ViT-B/32",
    weights_dir: str | Path | None = None,
    offline: bool = False,
) -> Tensor:
    """Turn texts into what `encode_text` takes, as the reference's `clip.tokenize` does.

    Args:
        texts: one text or several.
        context_length: tokens a row; by default the model's, 77 for all of OpenAI's.
        truncate: cut a text that is too long instead of raising.
        model: whose vocabulary: a name of the catalogue, `random:NAME`, or a folder or repository of Hugging Face's.
            All of OpenAI's models share one.
        weights_dir: where OpenAI's vocabulary is kept if it has to be fetched; see `probe.paths`.
        offline: never touch the network.

    Returns:
        int32 (n, context_length): start token, text, end token, zeros.

    Raises:
        TextError: a text is too long; the message names it.
        CheckpointError: the model has no vocabulary that is known.
        DownloadError: OpenAI's vocabulary is neither here nor in an installed open_clip, and could not be fetched.
    """
    spec = get_model(model)
    if spec.architecture is not None:
        context = spec.architecture.context_length
        if spec.merges:
            tokenizer = _tokenizer(Path(str(resources.files("probe"))) / spec.merges, None)
        else:
            tokenizer = _tokenizer(openai_vocabulary(weights_dir=weights_dir, offline=offline), NUM_MERGES)
    else:
        tokenizer, context = _of_folder(spec, offline=offline)
    if context_length is None:
        context_length = context
    rows = tokenizer.tokenize(texts, context_length, truncate=truncate)
    return torch.tensor(rows, dtype=torch.int32).view(-1, context_length)


def openai_vocabulary(*, weights_dir: str | Path | None = None, offline: bool = False) -> Path:
    """OpenAI's merges file: kept beside the weights, else that of an installed package, else fetched.

    Raises:
        DownloadError: it is nowhere and could not be fetched.
    """
    target = paths.weights_dir(weights_dir) / FILE
    if not target.is_file():
        for package in CARRIERS:
            spec = importlib.util.find_spec(package)
            carried = Path(spec.origin).with_name(FILE) if spec is not None and spec.origin else None
            if carried is not None and carried.is_file() and file_sha256(carried) == SHA256:
                return carried
    return fetch(URL, target, sha256=SHA256, offline=offline)


@lru_cache(maxsize=4)
def _tokenizer(path: Path, limit: int | None) -> Tokenizer:
    return Tokenizer(read_merges(path, limit))


def _of_folder(spec: ModelSpec, *, offline: bool) -> tuple[Tokenizer, int]:
    """The tokenizer and the context length of a folder as Hugging Face's libraries write it."""
    if spec.form == "open_clip":
        has_config = spec.source.startswith((LOCAL, HUB))
        model = spec.source if has_config else spec.source.partition("/")[0]
        raise CheckpointError(f"{spec.name} has open_clip's tokenizer; use open_clip.get_tokenizer({model!r})")
    folder = split_key(spec.source)[0]
    if spec.form == "hf":
        folder = hub.fetch_repository(spec.source, [[huggingface.CONFIG]], huggingface.FILES, offline=offline)
    vocabulary = huggingface.read_vocabulary(folder) if folder.is_dir() else None
    if vocabulary is None:
        raise CheckpointError(
            f"{spec.name} has no vocabulary beside its weights; name the model it shares one with, such as ViT-B/32"
        )
    huggingface.check_tokenizer(folder, len(vocabulary.ids))
    return Tokenizer(vocabulary.merges), huggingface.read_context_length(folder)
