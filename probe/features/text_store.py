"""Cached text features: one small file for the classes of a dataset under a model.

    <root>/<dataset>/<model>.<mode>.<precision>.<digest>.texts.npz      `weights`, and `about` as JSON

The key of an entry holds everything that changes its bytes, as in `store.py`. A damaged entry is named in a warning,
removed and encoded again; it is never used.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from probe.atomic import make_folder, write_atomically
from probe.decoder import decode
from probe.errors import CacheError, summarize
from probe.features.sidecars import Key
from probe.features.store import DAMAGE, entry_path
from probe.specs import canonical_json, digest

logger = logging.getLogger(__name__)

SUFFIX = ".texts.npz"
LAYOUT_VERSION = 1
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
        return entry_path(root, self.dataset, self.model, self.mode, self.precision, f"{digest(self.key)[:16]}{SUFFIX}")

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
class TextSidecar:
    """Description of an entry: its names and key, the values beside the weights, and the digest of the weights."""

    version: int
    label: dict[str, str]
    key: Key
    logit_scale: float
    logit_bias: float
    same_tokens: tuple[tuple[int, ...], ...]
    weights_sha256: str


def find_texts(root: Path, spec: TextSpec) -> ClassTexts | None:
    """Read an entry; return None if it is not cached. A damaged entry is named in a warning and removed.

    Raises:
        CacheError: the entry cannot be read, or cannot be removed.
    """
    path = spec.path(root)
    try:
        sidecar, weights = _read(path)
    except FileNotFoundError:
        return None
    except DAMAGE as err:
        logger.warning("the text features in %s are damaged (%s); encoding the prompts again", path, summarize(err))
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"cannot remove {path} ({error.strerror or error}); make it writable") from error
        return None
    except OSError as err:
        raise CacheError(
            f"cannot read {path} ({err.strerror or err}); check its permissions, or name a different folder with "
            "--cache-dir"
        ) from err
    with suppress(OSError):  # in a folder of another user; only `inventory.collect` reads the time
        os.utime(path)
    return ClassTexts(weights, sidecar.logit_scale, sidecar.logit_bias, sidecar.same_tokens)


def store_texts(root: Path, spec: TextSpec, texts: ClassTexts) -> None:
    """Write an entry atomically. If the folder is not writable, log a warning and continue."""
    path = spec.path(root)
    values = {name: value for name, value in vars(texts).items() if name != "weights"}
    sidecar = TextSidecar(LAYOUT_VERSION, spec.label, spec.key, **values, weights_sha256=_sha256(texts.weights))
    plain = json.loads(canonical_json(asdict(sidecar)))
    about = json.dumps({**plain, "sha256": digest(plain)})
    try:
        make_folder(path.parent)
        with write_atomically(path) as file:
            np.savez(file, allow_pickle=False, weights=texts.weights, about=np.array(about))
    except OSError as err:
        logger.warning(
            "cannot cache text features in %s (%s); other runs will encode them again", path, err.strerror or err
        )


def damage_of_texts(path: Path) -> str:
    """Return the reason why an entry is damaged; empty if it is not."""
    try:
        _read(path)
    except DAMAGE as err:
        return summarize(err)
    return ""


def read_text_sidecar(path: Path) -> TextSidecar:
    """Read the description of an entry, after comparing the entry with its digests.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError, TypeError, EOFError, BadZipFile: the file is damaged.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[TextSidecar, np.ndarray]:
    # The file is opened here because `np.load` does not close a damaged file that it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        weights, plain = arrays["weights"], json.loads(arrays["about"].item())
    if digest({name: value for name, value in plain.items() if name != "sha256"}) != plain["sha256"]:
        raise ValueError("the digest of its description differs")
    sidecar = decode(plain, TextSidecar)
    if sidecar.version != LAYOUT_VERSION:
        raise ValueError(f"it has the version {sidecar.version}, not {LAYOUT_VERSION}")
    if _sha256(weights) != sidecar.weights_sha256:
        raise ValueError("the digest of the weights differs")
    return sidecar, weights


def _sha256(weights: np.ndarray) -> str:
    return sha256(f"{weights.dtype} {weights.shape}\n".encode() + weights.tobytes()).hexdigest()
