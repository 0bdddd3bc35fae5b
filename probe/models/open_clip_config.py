"""Read the configuration of folders that open_clip wrote, and find their weights. This module reads no weights.

Source: open_clip `push_to_hf_hub.save_for_hf` and `factory.create_model` with the schema `local-dir:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import CheckpointError, listed

LOCAL, HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes of models with a configuration next to the weights
CONFIG = "open_clip_config.json"
# open_clip's file names of weights. Safetensors files come first, because they cannot contain code.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # of weights with other file names


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a folder, after checking the entries that open_clip needs.

    Raises:
        CheckpointError: the file is missing or damaged, or has no such entry; the message names the file.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"cannot read {path} ({err}); give a folder that open_clip wrote") from err
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} has no 'model_cfg'; put the architecture under that key, as open_clip does")
    for name, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)):
        if not isinstance(model.get(name), kind):
            raise CheckpointError(
                f"{path}: expected {_json_name(kind)} as model_cfg.{name}, got {model.get(name)!r}; correct the file"
            )
    if not isinstance(config.get("preprocess_cfg", {}), dict):
        raise CheckpointError(f"{path} has a preprocess_cfg that is not a JSON object; correct the file")
    return config


def _json_name(kind: type) -> str:
    return "a JSON object" if kind is dict else "a number"


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
        raise CheckpointError(f"{folder} has no weights, such as {WEIGHTS[0]}; put the weights next to {CONFIG}")
    if len(files) > 1:
        names = listed([path.name for path in files])
        raise CheckpointError(f"{folder} has several files with weights ({names}); give the path of one of them")
    return files[0]
