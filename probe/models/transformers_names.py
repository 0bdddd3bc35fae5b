"""Parse names of models of transformers: a repository of the Hugging Face hub or a folder, and the pooling.

This module does not import transformers.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probe import hub, paths
from probe.errors import CheckpointError, CheckpointMissingError, ExtraMissingError, ProbeError, UnknownNameError
from probe.models import FOLDER_MARK, HUB_MARKS, TRANSFORMERS, refuse_options
from probe.models.huggingface import IMAGES, PROCESSOR, find_image_settings, read_json
from probe.models.loading import HUB_WEIGHTS
from probe.models.transformers_pooling import POOLINGS, RULES, choose_pooling
from probe.names import unknown_name

POOL = "?pool="  # after the repository or folder
INSTALL = "install it with pip install 'transformers>=5,<6', or the extra transformers"
REMOTE_CODE = "auto_map"  # entry of a configuration that names code in the repository
QUANTIZED = "quantization_config"  # entry of a configuration of quantized weights
# Ends of entries that choose the code for attention and experts, such as `_attn_implementation`. transformers downloads
# and runs native code for some values.
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation", "implementation_internal")
# Advice by `model_type`, for models that cannot be used.
_NAFLEX = "give a SigLIP 2 model with a fixed resolution instead, such as google/siglip2-base-patch16-224"
_TIMM = "give timm:NAME instead"
ADVICE = {"siglip2": _NAFLEX, "siglip2_vision_model": _NAFLEX, "timm_wrapper": _TIMM, "timm_backbone": _TIMM}


@dataclass(frozen=True)
class TransformersSource:
    """The parts of the name of a model of transformers.

    Args:
        repo: repository of the Hugging Face hub, `ORG/NAME`; empty for a folder.
        folder: folder that `save_pretrained` wrote; None for a repository.
        pooling: one of `POOLINGS`; empty for the default of the model's type.
    """

    repo: str = ""
    folder: Path | None = None
    pooling: str = ""

    def __str__(self) -> str:
        """Return the name in the form of `ModelSpec.source`."""
        return f"{self.folder or self.repo}{POOL}{self.pooling}" if self.pooling else str(self.folder or self.repo)


def parse_source(source: str) -> TransformersSource:
    """Parse `ORG/NAME` or the path of a folder, with or without `?pool=POOLING`. An existing folder comes first.

    Raises:
        UnknownNameError: the text is not the name of a repository or a folder, or the pooling is unknown.
        CheckpointMissingError: the folder does not exist or has no `config.json`.
        CheckpointError: a model in this folder cannot be used; the message says why.
        ExtraMissingError: transformers is not installed.
    """
    check_transformers()
    try:
        written, pooling = _split_pooling(source)
        folder = paths.expand_home(Path(written)).absolute()
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError, ValueError) as err:  # the name is too long or contains a NUL
        if isinstance(err, ProbeError):
            raise
        raise CheckpointMissingError(f"cannot access {source!r} ({err}); give the path of a folder") from err
    if written and is_folder:
        read_settings(folder, pooling)
        return TransformersSource(folder=folder, pooling=pooling)
    if written and exists:
        raise CheckpointError(f"{folder} is a file; give the folder that contains this file and {FOLDER_MARK}")
    refuse_options(source, f"{POOL}POOLING")
    if not hub.is_repository(written):
        raise _missing_folder(folder, written)
    return TransformersSource(repo=written, pooling=pooling)


def _split_pooling(source: str) -> tuple[str, str]:
    """Return the repository or folder and the pooling. A folder may have the whole text as its name."""
    written, mark, pooling = source.rpartition(POOL)
    if not mark or Path(source).exists():
        return source, ""
    if pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, POOLINGS)
    return written, pooling


def _missing_folder(folder: Path, written: str) -> UnknownNameError | CheckpointMissingError:
    try:
        beside = [path.name for path in folder.parent.iterdir() if (path / FOLDER_MARK).is_file()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f"did you mean {folder.parent / near[0]}?" if near else "give a folder that save_pretrained wrote"
    if "/" in written or near or written.startswith((".", "~")):
        return CheckpointMissingError(f"no folder at {folder}; {hint}")
    return UnknownNameError(
        f"{written!r} is not a folder or the name of a repository of the Hugging Face hub; write {TRANSFORMERS}ORG/NAME"
        f" or {TRANSFORMERS}FOLDER"
    )


def read_settings(folder: Path, pooling: str) -> tuple[dict[str, Any], str]:
    """Return the content of `config.json` in a folder and the pooling, after checking that the model can be used.

    The returned content has no entries that choose the code for attention and experts. transformers then uses its own.

    Raises:
        CheckpointMissingError: the folder has no `config.json`.
        CheckpointError: the model needs code or inputs that are not supported, its weights are quantized, or no pooling
            is known.
    """
    path = folder / FOLDER_MARK
    if not path.is_file():
        raise CheckpointMissingError(f"{folder} has no {FOLDER_MARK}; give a folder that save_pretrained wrote")
    config = read_json(path)
    images = find_processor_settings(folder)
    for file in filter(None, (path, images)):
        if any(REMOTE_CODE in part for part in _list_objects(read_json(file))):
            raise CheckpointError(
                f"{file} needs code from the model's repository ({REMOTE_CODE}), which is never run; give a model "
                "whose code is part of transformers"
            )
    for part in _list_objects(config):
        if QUANTIZED in part:
            raise CheckpointError(f"{path} describes quantized weights; give the model with its original weights")
        for name in [name for name in part if name.endswith(IMPLEMENTATIONS)]:
            del part[name]
    model_type = config.get("model_type")
    if model_type is None and "architecture" in config:
        raise CheckpointError(f"{path} describes a model of timm; give timm:{config['architecture']}")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{path} has no model_type; give a folder that save_pretrained wrote")
    if model_type in ADVICE:
        raise CheckpointError(f"{path} has model_type {model_type!r}, which is not supported; {ADVICE[model_type]}")
    if images is None:
        raise CheckpointError(
            f"{folder} has no {IMAGES} or {PROCESSOR}, with the preprocessing of images; add the file of the model"
        )
    return config, choose_pooling(str(folder), model_type, pooling)


def find_processor_settings(folder: Path) -> Path | None:
    """Return the file in a folder from which transformers reads the preprocessing of images; None if there is no file.

    Raises:
        CheckpointError: `processor_config.json` is damaged.
    """
    path = folder / PROCESSOR
    if path.is_file() and "image_processor" in read_json(path):
        return path
    return find_image_settings(folder)


def _list_objects(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a JSON object and all JSON objects in it."""
    pending: list[Any] = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def fetch_folder(source: TransformersSource, *, offline: bool) -> Path:
    """Return the folder of a model. A repository is downloaded first if necessary.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    if source.folder is not None:
        return source.folder
    return hub.fetch_repository(source.repo, HUB_WEIGHTS, [FOLDER_MARK, IMAGES, PROCESSOR, hub.CARD], offline=offline)


def is_repository_here(source: TransformersSource) -> bool:
    """Return True if the model needs no download."""
    return source.folder is not None or hub.has_cached_file(source.repo, HUB_MARKS)


def cached_names() -> tuple[str, ...]:
    """Return the names of the cached repositories with a model of a known type, as `transformers:ORG/NAME`."""
    return tuple(
        f"{TRANSFORMERS}{repo}" for repo, config in hub.cached_models(FOLDER_MARK).items() if _has_known_type(config)
    )


def _has_known_type(config: Path) -> bool:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") in RULES
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def check_transformers() -> None:
    """Check that transformers is installed, without importing the library.

    Raises:
        ExtraMissingError: transformers is not installed, or is too old; the message names the extra.
    """
    if find_spec("transformers") is None:
        raise ExtraMissingError(f"transformers is not installed; {INSTALL}")
    installed = version("transformers")
    if int(installed.split(".")[0]) < 5:
        raise ExtraMissingError(f"transformers {installed} is too old; {INSTALL}")


def import_transformers() -> Any:
    """Return the module `transformers`, which takes seconds to import."""
    return import_module("transformers")
