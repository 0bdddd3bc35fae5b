"""Read the configuration of folders that open_clip wrote, and find their weights. This module reads no weights.

Source: open_clip `push_to_hf_hub.save_for_hf` and `factory.create_model` with the schema `local-dir:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.decoder import decode
from probe.errors import CheckpointError, listed

LOCAL, HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes of models with a configuration next to the weights
OPEN_CLIP_CONFIG = "open_clip_config.json"
# open_clip's file names of weights. Safetensors files come first, because they cannot contain code.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # of weights with other file names


@dataclass(frozen=True)
class ArchitectureConfig:
    """Settings of an architecture that every configuration must have. open_clip reads the file again for the others."""

    embed_dim: int
    vision_cfg: Mapping[str, Any]
    text_cfg: Mapping[str, Any]


@dataclass(frozen=True)
class OpenClipConfig:
    """Content of `open_clip_config.json`: the architecture, and settings of the preprocessing."""

    model_cfg: ArchitectureConfig
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)


def read_config(folder: Path) -> OpenClipConfig:
    """Return the configuration of a folder.

    Raises:
        CheckpointError: the file is missing or damaged, or an entry is missing or has a wrong type; the message names
            the file and the entry.
    """
    path = folder / OPEN_CLIP_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder that open_clip wrote") from err
    try:
        return decode(content, OpenClipConfig)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: {err}; correct the file, or give a folder that open_clip wrote") from err


def find_weights(folder: Path) -> Path:
    """Return the weights file of a folder: the file with one of open_clip's names, else the only weights file.

    Raises:
        CheckpointError: there is no weights file, or there are several and none has one of open_clip's names.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise CheckpointError(
            f"{folder} has no weights, such as {WEIGHTS[0]}; put the weights next to {OPEN_CLIP_CONFIG}"
        )
    if len(files) > 1:
        names = listed([path.name for path in files])
        raise CheckpointError(f"{folder} has several files with weights ({names}); give the path of one of them")
    return files[0]
