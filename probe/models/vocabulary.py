"""Tokenize texts with a model's vocabulary, as the reference's `clip.tokenize` does, and find the vocabulary.

`open_clip_tokenizers.py` loads the tokenizers of open_clip's models.
"""

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
from probe.fetch import fetch, file_sha256, weights_sha256
from probe.models import get_model, huggingface, open_clip_tokenizers, split_key
from probe.models.catalog import MODELS
from probe.models.families import find_family
from probe.models.open_clip_config import HUB, LOCAL
from probe.models.tokenizer import Tokenizer, read_merges
from probe.specs import ModelSpec

FILE = "bpe_simple_vocab_16e6.txt.gz"
URL = f"https://github.com/openai/CLIP/raw/main/clip/{FILE}"  # a branch, because the SHA-256 pins the content
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
NUM_MERGES = 49_152 - 256 - 2  # the file has more merges, but the models were trained with this number
VOCAB_SIZE = NUM_MERGES + 2 * 256 + 2
OPENAI = "ViT-B/32"  # any of OpenAI's models, which share one vocabulary
PACKAGES = ("open_clip", "clip")  # packages that contain the file


def tokenize(
    texts: str | Sequence[str],
    context_length: int | None = None,
    truncate: bool = False,
    *,
    model: str | Path = OPENAI,
    weights_dir: str | Path | None = None,
    offline: bool = False,
) -> Tensor:
    """Return the token ids of texts for `encode_text`, as the reference's `clip.tokenize` does.

    Args:
        texts: one text, or a sequence of texts.
        context_length: number of tokens per row; by default the model's context, 77 for all of OpenAI's models.
        truncate: shorten a text that is too long instead of raising an error.
        model: model whose vocabulary is used: a name of the catalogue, `random:NAME`, or a folder or repository in
            Hugging Face's form. All of OpenAI's models have the same vocabulary.
        weights_dir: folder of OpenAI's vocabulary, which is downloaded if necessary; see `probe.paths`.
        offline: never use the network.

    Returns:
        int32 (n, context_length): start token, text, end token, zeros.

    Raises:
        TextError: a text is too long; the message quotes the text.
        CheckpointError: the model has no vocabulary, or an unsupported vocabulary.
        DownloadError: OpenAI's vocabulary is not on this machine and could not be downloaded.
    """
    spec = get_model(model)
    if spec.architecture is not None:
        context = spec.architecture.context_length
        tokenizer = _load_from_catalog(spec, weights_dir=weights_dir, offline=offline)
    else:
        without = "no vocabulary next to its weights; give a model with that vocabulary, such as ViT-B/32"
        tokenizer, context = _load_from_folder(spec, without, offline=offline)
    if context_length is None:
        context_length = context
    rows = tokenizer.tokenize(texts, context_length, truncate=truncate)
    return torch.tensor(rows, dtype=torch.int32).view(-1, context_length)


def load_tokenizer(
    spec: ModelSpec, *, sha256: str, vocab_size: int, weights_dir: str | Path | None = None, offline: bool = False
) -> Tokenizer:
    """Return the tokenizer of a model that is not open_clip's.

    A checkpoint without a configuration next to it is assumed to have OpenAI's vocabulary if it has as many token
    embeddings. `models.assumptions` warns about this and other assumptions.

    Args:
        spec: the model.
        sha256: SHA-256 of its checkpoint. A copy of a checkpoint of the catalogue has the vocabulary of its entry.
        vocab_size: number of token embeddings.
        weights_dir: folder of OpenAI's vocabulary, which is downloaded if necessary.
        offline: never use the network.

    Raises:
        CheckpointError: the model has no vocabulary, or an unsupported vocabulary.
        DownloadError: OpenAI's vocabulary is not on this machine and could not be downloaded.
    """
    if spec.form == "file" and not (_folder_of(spec) / huggingface.CONFIG).is_file():
        spec = next((entry for entry in MODELS if entry.sha256 == sha256), spec)
        if spec.architecture is None and vocab_size == VOCAB_SIZE:
            spec = get_model(OPENAI)
    if spec.architecture is not None:
        return _load_from_catalog(spec, weights_dir=weights_dir, offline=offline)
    without = (
        f"{vocab_size} token embeddings and no vocabulary next to its weights; zero-shot needs the vocabulary: give a "
        "folder in Hugging Face's form, with vocab.json and merges.txt"
    )
    return _load_from_folder(spec, without, offline=offline)[0]


def identify_vocabulary(spec: ModelSpec, *, offline: bool = False) -> str:
    """Return a digest that, together with `loading.identify`, identifies the tokenizer of a model.

    The digest is empty for checkpoints, because the digests of their files and settings decide the vocabulary.

    Raises:
        CheckpointError, DownloadError, ExtraMissingError: the tokenizer of an open_clip model is not available.
    """
    if spec.form == "open_clip":
        return open_clip_tokenizers.identify_zoo_tokenizer(spec.source, offline=offline)
    if spec.merges:
        return weights_sha256(_packaged(spec))
    return SHA256 if spec.architecture is not None else ""


def _packaged(spec: ModelSpec) -> Path:
    return Path(str(resources.files("probe"))) / spec.merges


def _load_from_catalog(spec: ModelSpec, *, weights_dir: str | Path | None, offline: bool) -> Tokenizer:
    if spec.merges:
        return _load_tokenizer(_packaged(spec), None)
    return _load_tokenizer(openai_vocabulary(weights_dir=weights_dir, offline=offline), NUM_MERGES)


def openai_vocabulary(*, weights_dir: str | Path | None = None, offline: bool = False) -> Path:
    """Return the path of OpenAI's merges file in the weights folder or an installed package; else download the file.

    Raises:
        DownloadError: the file is not on this machine and could not be downloaded.
    """
    target = paths.weights_dir(weights_dir) / FILE
    if not target.is_file():
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            file = Path(spec.origin).with_name(FILE) if spec is not None and spec.origin else None
            if file is not None and file.is_file() and file_sha256(file) == SHA256:
                return file
    return fetch(URL, target, sha256=SHA256, offline=offline)


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path, limit: int | None) -> Tokenizer:
    return Tokenizer(read_merges(path, limit))


def _load_from_folder(spec: ModelSpec, without: str, *, offline: bool) -> tuple[Tokenizer, int]:
    """Return the tokenizer and the context length of a folder or repository in Hugging Face's form.

    `without` ends the message if there is no vocabulary.
    """
    if spec.form == "open_clip":
        has_config = spec.source.startswith((LOCAL, HUB))
        model = spec.source if has_config else spec.source.partition("/")[0]
        raise CheckpointError(f"{spec.name} is an open_clip model; tokenize with open_clip.get_tokenizer({model!r})")
    if find_family(spec.form) is not None:
        raise CheckpointError(f"{spec.name} is loaded without a text tower, so it has no vocabulary; give a CLIP model")
    folder = _folder_of(spec)
    if spec.form == "hf":
        folder = hub.fetch_repository(spec.source, [[huggingface.CONFIG]], huggingface.FILES, offline=offline)
    has_config = (folder / huggingface.CONFIG).is_file()
    vocabulary = huggingface.read_vocabulary(folder) if has_config else None
    if vocabulary is None:
        raise CheckpointError(f"{spec.name} has {without}")
    huggingface.check_tokenizer(folder, len(vocabulary.ids))
    return Tokenizer(vocabulary.merges), huggingface.read_context_length(folder)


def _folder_of(spec: ModelSpec) -> Path:
    """Return the folder of a checkpoint, or the path of a checkpoint that is a folder."""
    path = split_key(spec.source)[0]
    return path.parent if path.is_file() else path
