"""Load the tokenizers of open_clip's models. `hub.py` downloads their files instead of open_clip.

Source: open_clip `factory.get_tokenizer`. Only the tokenizers that open_clip's configurations use are supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from probe import hub
from probe.environment import package_version
from probe.errors import CheckpointError, ExtraMissingError, TextError, summarize
from probe.fetch import weights_sha256
from probe.models.open_clip import FAILURES
from probe.models.open_clip_config import LOCAL
from probe.models.open_clip_names import import_open_clip, parse
from probe.models.open_clip_weights import name_for_open_clip
from probe.specs import digest

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # a tokenizer has at least one of these files
SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
LIBRARIES = ("transformers", "tokenizers", "sentencepiece")  # of tokenizers with files
PAD = 0  # token after a text that is shorter than the context


@dataclass(frozen=True)
class ZooTokenizer:
    """Tokenizer of an open_clip model.

    Args:
        context_length: number of tokens per text.
        call: open_clip's tokenizer, which shortens texts to the context.
        pad: id of the tokens after a text.
    """

    context_length: int
    call: Callable[..., Tensor] = field(repr=False)
    pad: int = PAD

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids of texts, int64 (n, context_length).

        Raises:
            TextError: a text is longer than the context; the message quotes the text.
        """
        ids, longer = self.call(list(texts)), self.call(list(texts), context_length=2 * self.context_length)
        added = (longer == self.pad).sum(dim=1) - (ids == self.pad).sum(dim=1)  # in a shorter text, the longer padding
        for text, num_added in zip(texts, added.tolist(), strict=True):
            if num_added != self.context_length:
                raise TextError(
                    f"the text {text!r} is longer than the context of {self.context_length} tokens; shorten the text"
                )
        return ids


def load_zoo_tokenizer(source: str, *, offline: bool = False) -> ZooTokenizer:
    """Load the tokenizer that open_clip uses for a model.

    Args:
        source: as in `open_clip.load_model`.
        offline: never use the network.

    Raises:
        CheckpointError, DownloadError, ExtraMissingError: the message says what to do.
    """
    settings, folder = _find_tokenizer(source, offline=offline)
    tokenizer_module = import_open_clip().tokenizer
    context_length = settings.get("context_length", tokenizer_module.DEFAULT_CONTEXT_LENGTH)
    options = settings.get("tokenizer_kwargs", {})
    try:
        if folder is None:
            call = tokenizer_module.SimpleTokenizer(context_length=context_length, **options)
            return ZooTokenizer(context_length, call)
        mode = settings.get("tokenizer_mode")
        call = tokenizer_module.HFTokenizer(str(folder), context_length, tokenizer_mode=mode, **options)
    except FAILURES as err:
        if isinstance(err, ModuleNotFoundError):
            raise ExtraMissingError(
                f"the tokenizer of open_clip's {source} needs {err.name}; install it with pip install {err.name}"
            ) from err
        raise CheckpointError(
            f"open_clip cannot load the tokenizer of {source} ({summarize(err)}); check the tokenizer's files in "
            f"{folder or 'its package'}"
        ) from err
    return ZooTokenizer(context_length, call, call.tokenizer.pad_token_id or PAD)


def identify_zoo_tokenizer(source: str, *, offline: bool = False) -> str:
    """Return a digest that identifies the tokenizer of an open_clip model: its settings and files.

    Raises:
        CheckpointError, DownloadError, ExtraMissingError: the message says what to do.
    """
    settings, folder = _find_tokenizer(source, offline=offline)
    if folder is None:
        return digest(settings)
    files = {file for pattern in (*VOCABULARIES, *SETTINGS) for file in folder.glob(pattern)}
    versions = {name: package_version(name) for name in LIBRARIES}
    return digest([settings, {file.name: weights_sha256(file) for file in sorted(files)}, versions])


def _find_tokenizer(source: str, *, offline: bool) -> tuple[dict[str, Any], Path | None]:
    """Return the settings of a text tower, and the folder of its tokenizer; None for a tokenizer of open_clip itself.

    As in open_clip, the tokenizer of `local-dir:` is in the folder of the model.
    """
    zoo_source = parse(source)
    name = name_for_open_clip(zoo_source, offline=offline)
    settings: dict[str, Any] = import_open_clip().get_model_config(name)["text_cfg"]
    repo = settings.get("hf_tokenizer_name")
    if not repo:
        return settings, None
    if source.startswith(LOCAL):
        return settings, Path(name.removeprefix(LOCAL))
    return settings, hub.fetch_repository(repo, [[file] for file in VOCABULARIES], SETTINGS, offline=offline)
