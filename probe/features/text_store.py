"""Cached text features: one small file for the classes of a dataset under a model.

    <root>/<dataset>/<model>.<mode>.<precision>.<digest>.texts.npz      `weights`, and `about` as JSON

The key of an entry holds everything that changes its bytes, as in `store.py`; see `file_entries.py` for the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from probe.features.file_entries import FileSidecar, find_file, store_file
from probe.features.sidecars import Key
from probe.features.store import entry_path
from probe.specs import digest

TEXTS = ".texts.npz"  # end of the name of an entry
SUBSET = "texts"  # in place of a subset in lists of the cache


@dataclass(frozen=True)
class TextSpec:
    """Specification of a cache entry: the texts of the classes of a dataset under a model.

    `key` has everything that changes the bytes of the entry. The other fields are names, for readable paths.
    """

    dataset: str
    model: str
    mode: str
    precision: str
    key: Key

    def path(self, root: Path) -> Path:
        """Return the file of the entry."""
        return entry_path(root, self.dataset, self.model, self.mode, self.precision, f"{digest(self.key)[:16]}{TEXTS}")

    @property
    def label(self) -> dict[str, str]:
        """Names of the entry for listings."""
        names = {name: getattr(self, name) for name in ("dataset", "model", "mode", "precision")}
        return {**names, "subset": SUBSET}


@dataclass(frozen=True)
class ClassTexts:
    """Text features of the classes of a dataset.

    Args:
        weights: float32 (k, embed_dim), rows of length 1.
        logit_scale: factor of the cosine similarities in the logits of the model.
        logit_bias: addend of the logits.
        same_tokens: groups of the labels of classes whose prompts have equal tokens.
    """

    weights: np.ndarray = field(repr=False)
    logit_scale: float
    logit_bias: float
    same_tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class TextSidecar(FileSidecar):
    """Description of an entry, with the values that are not arrays, and the digest of the weights."""

    logit_scale: float
    logit_bias: float
    same_tokens: tuple[tuple[int, ...], ...]
    weights_sha256: str


def find_texts(root: Path, spec: TextSpec) -> ClassTexts | None:
    """Read an entry; return None if it is not cached. A damaged entry is named in a warning and removed.

    Raises:
        CacheError: the entry cannot be read, or cannot be removed.
    """
    found = find_file(spec.path(root), TextSidecar, "text features")
    if found is None:
        return None
    sidecar, arrays = found
    return ClassTexts(arrays["weights"], sidecar.logit_scale, sidecar.logit_bias, sidecar.same_tokens)


def store_texts(root: Path, spec: TextSpec, texts: ClassTexts) -> None:
    """Write an entry atomically. If the folder is not writable, log a warning and continue."""
    values = {name: value for name, value in vars(texts).items() if name != "weights"}
    about = {"label": spec.label, "key": spec.key, **values}
    store_file(spec.path(root), about, {"weights": texts.weights}, "text features")
