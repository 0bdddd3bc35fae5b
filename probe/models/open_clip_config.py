"""Folders as open_clip writes them: `open_clip_config.json` and the weights next to it. Reads no weights.

Source: open_clip `push_to_hf_hub.save_for_hf` and `factory.create_model` with the schema `local-dir:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import CheckpointError, listed

LOCAL, HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes for models with a configuration next to their weights
CONFIG = "open_clip_config.json"
# What open_clip calls weights, best first: safetensors carry no code.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # of weights under any other name


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a folder, with the parts that open_clip cannot do without.

    Raises:
        CheckpointError: the file is missing or damaged, or lacks such a part; the message names the file.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder that open_clip has written") from err
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} has no 'model_cfg'; put the architecture under that key, as open_clip does")
    for name, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)):
        if not isinstance(model.get(name), kind):
            raise CheckpointError(
                f"{path} has model_cfg.{name} {model.get(name)!r} where open_clip has {_kind(kind)}; mend the file"
            )
    if not isinstance(config.get("preprocess_cfg", {}), dict):
        raise CheckpointError(f"{path} has a preprocess_cfg that is not an object; mend the file")
    return config


def _kind(kind: type) -> str:
    return "an object" if kind is dict else "a number"


def find_weights(folder: Path) -> Path:
    """Return the file with the weights of a folder: under open_clip's names, else the only one.

    Raises:
        CheckpointError: there is none, or several and none has open_clip's name.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise CheckpointError(f"{folder} has no {WEIGHTS[0]} or {WEIGHTS[2]}; put the weights next to {CONFIG}")
    if len(found) > 1:
        names = listed([path.name for path in found])
        raise CheckpointError(f"{folder} has several files with weights ({names}); give the path of one of them")
    return found[0]
