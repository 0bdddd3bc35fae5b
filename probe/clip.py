"""Replacement for OpenAI's package `clip`: code for that package runs with `import probe.clip as clip`.

This module implements nothing itself: `load` is `probe.load_clip` and `tokenize` is `probe.tokenize`. The towers are in
`probe.models.towers`.
"""

from __future__ import annotations

from probe.models.catalog import MODELS
from probe.models.loading import load_clip as load
from probe.models.vocabulary import tokenize

__all__ = ["available_models", "load", "tokenize"]


def available_models() -> list[str]:
    """Return the names of OpenAI's models, in the order of OpenAI's package.

    `load` accepts every name that `probe.load_clip` accepts, such as `tiny`.
    """
    return [spec.name for spec in MODELS if spec.form == "url"]
