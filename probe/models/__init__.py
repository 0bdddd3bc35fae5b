"""Encoders: look up a model by name and describe it as a `ModelSpec`. `loading.py` loads the model.

This module imports torch only for the names of families, and to recognize a TorchScript archive.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from probe import hub, paths
from probe.errors import CheckpointError, CheckpointMissingError, ProbeError, UnknownNameError
from probe.models.catalog import MODELS
from probe.models.families import find_family
from probe.models.open_clip_config import LOCAL, OPEN_CLIP_CONFIG
from probe.names import unknown_name
from probe.specs import SUPPLIED, ModelSpec

if TYPE_CHECKING:
    from probe.models.own import Encoder

RANDOM, OPEN_CLIP, HF = "random:", "open_clip:", "hf:"  # prefixes of the names that are not in the catalogue
TIMM = "timm:"  # prefix of models of timm
TRANSFORMERS = "transformers:"
MODULE = "module:"
RANDOM_SEED = 0
KEY = "?key="  # after the path of a checkpoint that contains several models: selects one of them
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
HUB_MARKS = tuple(f"{file}{index}" for file in hub.FOLDER_WEIGHTS for index in ("", ".index.json"))
FOLDER_MARK = "config.json"  # Hugging Face's libraries write this file next to the weights
DISTRIBUTED_SUFFIX, DISTRIBUTED_MARK = ".distcp", ".metadata"  # files of torch.distributed.checkpoint
MODEL_FORMS = (
    f"{RANDOM}NAME, {OPEN_CLIP}ARCH/TAG, {OPEN_CLIP}ARCH/PATH, {OPEN_CLIP}local-dir:PATH, {OPEN_CLIP}hf-hub:ORG/NAME, "
    f"{TIMM}NAME, {TIMM}ARCH/PATH, "
    f"{TRANSFORMERS}ORG/NAME, {TRANSFORMERS}FOLDER, "
    f"{MODULE}FILE.py:FUNCTION, {HF}ORG/NAME, or the path of a checkpoint or of a folder that Hugging Face's "
    "libraries or open_clip wrote"
)


def model_names() -> tuple[str, ...]:
    """Return the names of the models in the catalogue, in the order of the catalogue."""
    return tuple(spec.name for spec in MODELS)


def get_model(name: str | Path) -> ModelSpec:
    """Return the specification of the model with a name.

    Args:
        name: one of these forms:

            - a name of the catalogue, such as `ViT-B/32`;
            - `random:NAME`, the architecture of a catalogue entry or of `timm:NAME` with seeded random weights;
            - `open_clip:ARCH/TAG`, `open_clip:ARCH/PATH`, `open_clip:local-dir:PATH` or `open_clip:hf-hub:ORG/NAME`;
            - `timm:NAME`, `timm:ARCH/TAG` or `timm:ARCH/PATH`, a model of timm;
            - `hf:ORG/NAME`, a repository of the Hugging Face hub;
            - `transformers:ORG/NAME` or `transformers:FOLDER`, any image tower of transformers, with or without
              `?pool=POOLING`;
            - `module:FILE.py:FUNCTION`, the encoder that a function of yours returns, see `models.own`;
            - the path of a checkpoint, or of a folder that Hugging Face's libraries or open_clip wrote. A checkpoint
              with `open_clip_config.json` next to it is read as `open_clip:local-dir:PATH`;
            - `PATH?key=KEY`, one of several models in a checkpoint, such as `PATH?key=state_dict_ema`.

    Raises:
        UnknownNameError: no model has this name; the message suggests similar names.
        CheckpointMissingError: the name is a path, and no file exists there.
        CheckpointError: the path is a distributed checkpoint, which must first be converted to one file.
        ExtraMissingError: the model needs a library that is not installed; the message names the extra.
    """
    name = str(name)
    for spec in MODELS:
        if spec.name == name:
            return spec
    if name.startswith(RANDOM):
        return _random(name)
    if name.startswith(HF):
        repo = name.removeprefix(HF)
        hub.check_repository(repo)
        return ModelSpec(name, form="hf", source=repo)
    form, colon, source = name.partition(":")
    family = find_family(form) if colon else None
    return _on_disk(name) if family is None else family.find_spec(source)


def resolve_model(model: str | Path | ModelSpec | Encoder) -> ModelSpec:
    """Return the specification of a model: of a name, see `get_model`, or of an `Encoder` of the user.

    Raises:
        UnknownNameError, CheckpointError, ExtraMissingError: see `get_model`.
        CheckpointError: the object is not a model.
    """
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, str | Path):
        return get_model(model)
    register = getattr(model, "register", None)
    if register is None:
        raise CheckpointError(
            f"expected the name of a model or an Encoder, got a {type(model).__name__}; wrap your own module as "
            "probe.Encoder(module, preprocess, name=...)"
        )
    spec: ModelSpec = register()
    return spec


def split_key(source: str) -> tuple[Path, str]:
    """Return the path and the key of `PATH?key=KEY`. The key is empty if a file has the whole text as its name."""
    path, mark, key = source.rpartition(KEY)
    return (Path(path), key) if mark and not Path(source).exists() else (Path(source), "")


def locate_checkpoint(source: str) -> tuple[Path, str]:
    """Return the absolute path and the key of `PATH?key=KEY`. The file need not exist.

    Raises:
        CheckpointMissingError: the path cannot be used on this system.
        FolderError: the path starts with `~`, and this process has no home folder.
    """
    try:
        written, key = split_key(source)
        path = paths.expand_home(written).absolute()
        path.exists()
    except (OSError, ValueError) as err:  # the name is too long or contains a NUL
        if isinstance(err, ProbeError):
            raise
        raise CheckpointMissingError(f"cannot access {source!r} ({err}); give the path of a file") from err
    return path, key


def refuse_options(source: str, known: str) -> None:
    """Check that no unknown option follows the path of an existing file or folder, as in `PATH?option`.

    Raises:
        CheckpointError: an unknown option follows the path; the message lists the `known` options.
    """
    path, mark, options = source.partition("?")
    if mark and paths.expand_home(path).exists():
        raise CheckpointError(f"{path}: unknown option {options!r}; the options of a checkpoint are {known}")


def is_here(spec: ModelSpec, weights_dir: str | Path | None = None) -> bool:
    """Return True if a model needs no download. Only the file's name is checked; loading verifies the checksum."""
    if spec.form == "url":
        try:
            return (paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]).is_file()
        except OSError:  # this user may not list the folder
            return False
    if spec.form == "hf":
        return hub.has_cached_file(spec.source, HUB_MARKS)
    family = find_family(spec.form)
    return family is None or family.is_here(spec)


def _random(name: str) -> ModelSpec:
    form, colon, source = name.removeprefix(RANDOM).partition(":")
    family = find_family(form) if colon else None
    if family is not None:
        return replace(family.find_random_spec(source), seed=RANDOM_SEED)
    shape = get_model(name.removeprefix(RANDOM))
    if shape.architecture is None or shape.form == "random":
        raise unknown_name("model", shape.name, model_names())
    return replace(shape, name=name, form="random", source=shape.name, sha256="", license="", seed=RANDOM_SEED)


def _on_disk(name: str) -> ModelSpec:
    try:
        written, key = split_key(name)
        # Symbolic links of Hugging Face's cache point to files that have no suffix and no config.json next to them.
        path = Path(os.path.abspath(paths.expand_home(written)))  # noqa: PTH100 - `Path.resolve` would follow links
        has_open_clip_config = _has_open_clip_config(path)
        is_checkpoint = path.is_file() or (path / FOLDER_MARK).is_file()
        is_distributed = path.suffix == DISTRIBUTED_SUFFIX or (
            not is_checkpoint and (path / DISTRIBUTED_MARK).is_file()
        )
    # The name is too long or contains a NUL, or this user may not read the folder.
    except (OSError, RuntimeError, ValueError) as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointMissingError(f"cannot access {name!r} ({err}); give the path of a file") from err
    if is_distributed:
        raise CheckpointError(
            f"{path} is a distributed checkpoint; convert it to one file with python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    source = f"{path}{KEY}{key}" if key else str(path)
    if has_open_clip_config:
        return get_model(f"{OPEN_CLIP}{LOCAL}{source}")
    if is_checkpoint:
        return ModelSpec(source, form="file", source=source)
    refuse_options(name, f"{KEY}KEY")
    if name and path.is_dir():
        raise CheckpointMissingError(
            f"the folder {path} has no {FOLDER_MARK} or {OPEN_CLIP_CONFIG}; give the path of a checkpoint file, or of "
            "a folder that Hugging Face's libraries or open_clip wrote"
        )
    if path.suffix in CHECKPOINT_SUFFIXES or name.startswith((".", "/", "~")):
        raise CheckpointMissingError(
            f"no checkpoint at {path}; give the path of a file, or of a folder that contains {FOLDER_MARK} or "
            f"{OPEN_CLIP_CONFIG}"
        )
    if name.startswith(f"{SUPPLIED}:"):
        raise UnknownNameError(
            f"{name} names supplied features, whose encoder is not known; fit them with `probe fit FILE --record`"
        )
    raise unknown_name("model", name, model_names(), forms=MODEL_FORMS)


def _has_open_clip_config(path: Path) -> bool:
    """Return True if open_clip's configuration describes the weights in a file or folder.

    The configuration does not describe weights in Hugging Face's form in the same folder. It does not describe a
    TorchScript archive either, which contains its own program.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / OPEN_CLIP_CONFIG).is_file():
        return False
    hugging_face_weights = [folder / mark for mark in HUB_MARKS if (folder / FOLDER_MARK).is_file()]
    if path.is_dir():
        return not any(file.is_file() for file in hugging_face_weights)
    from probe.models.archive import is_archive  # imports torch

    return path not in hugging_face_weights and not is_archive(path)
