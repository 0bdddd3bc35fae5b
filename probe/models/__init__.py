"""CLIP models: a name -> something that encodes images. Imports torch only when a model is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from probe import hub, paths
from probe.errors import CheckpointError, CheckpointMissingError, ProbeError
from probe.models.catalog import CATALOG
from probe.models.open_clip_config import CONFIG, LOCAL
from probe.names import unknown_name
from probe.specs import ModelSpec

RANDOM, OPEN_CLIP, HF = "random:", "open_clip:", "hf:"  # what makes the names that no catalogue has
RANDOM_SEED = 0
KEY = "?key="  # after the path of a checkpoint: chooses one of its models
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
HUB_MARKS = tuple(f"{file}{index}" for file in hub.FOLDER_WEIGHTS for index in ("", ".index.json"))
FOLDER_MARK = "config.json"  # what Hugging Face's libraries write beside weights
DISTRIBUTED_SUFFIX, DISTRIBUTED_MARK = ".distcp", ".metadata"  # files that torch.distributed.checkpoint writes
FORMS = (
    f"{RANDOM}NAME, {OPEN_CLIP}ARCH/TAG, {OPEN_CLIP}ARCH/PATH, {OPEN_CLIP}local-dir:PATH, {OPEN_CLIP}hf-hub:ORG/NAME, "
    f"{HF}ORG/NAME, or the path of a checkpoint or of a folder as Hugging Face's libraries or open_clip write it"
)


def model_names() -> tuple[str, ...]:
    """The models that have a name of their own, in the order of the catalogue."""
    return tuple(spec.name for spec in CATALOG)


def get_model(name: str | Path) -> ModelSpec:
    """Find a model by what a user calls it.

    Args:
        name: a name of the catalogue; `random:NAME` for its sizes with seeded random weights; `open_clip:ARCH/TAG`,
            `open_clip:ARCH/PATH`, `open_clip:local-dir:PATH` or `open_clip:hf-hub:ORG/NAME`; `hf:ORG/NAME`; the path of
            a checkpoint, or of a folder as Hugging Face's libraries or open_clip write it. A checkpoint with
            `open_clip_config.json` next to it is read as `open_clip:local-dir:PATH`. `PATH?key=KEY` is one of several
            models in a checkpoint, such as `PATH?key=state_dict_ema`.

    Raises:
        UnknownNameError: no such model; the message offers what is near.
        CheckpointMissingError: the name reads as a path and no file is there.
        CheckpointError: the path is a distributed checkpoint, which has to be converted to one file first.
        ExtraMissingError: a model of open_clip, and open_clip is not installed.
    """
    name = str(name)
    for spec in CATALOG:
        if spec.name == name:
            return spec
    if name.startswith(RANDOM):
        return _random(name)
    if name.startswith(HF):
        repo = name.removeprefix(HF)
        hub.check_repository(repo)
        return ModelSpec(name, form="hf", source=repo)
    if name.startswith(OPEN_CLIP):
        from probe.models import open_clip_names  # imports open_clip, and with it torch

        source = str(open_clip_names.parse(name.removeprefix(OPEN_CLIP)))
        return ModelSpec(f"{OPEN_CLIP}{source}", form="open_clip", source=source)
    return _on_disk(name)


def split_key(source: str) -> tuple[Path, str]:
    """Split `PATH?key=KEY` into path and key. If a file with the whole text as its name exists, there is no key."""
    path, mark, key = source.rpartition(KEY)
    return (Path(path), key) if mark and not Path(source).exists() else (Path(source), "")


def refuse_options(source: str, known: str) -> None:
    """Raise if `source` is the path of a file or folder with options after a `?` that do not exist.

    Raises:
        CheckpointError: the message has the `known` options.
    """
    path, mark, options = source.partition("?")
    if mark and paths.expand_home(path).exists():
        raise CheckpointError(f"{path}: unknown option {options!r}; the options of a checkpoint are {known}")


def is_here(spec: ModelSpec, weights_dir: str | Path | None = None) -> bool:
    """Whether a model needs no download: a file of its name is there; its checksum is verified on loading."""
    if spec.form == "url":
        try:
            return (paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]).is_file()
        except OSError:  # a folder that may not be looked into
            return False
    if spec.form == "hf":
        return hub.has_cached_file(spec.source, HUB_MARKS)
    if spec.form == "open_clip":
        from probe.models import open_clip  # loads torch

        return open_clip.is_zoo_model_here(spec.source)
    return True


def _random(name: str) -> ModelSpec:
    shape = get_model(name.removeprefix(RANDOM))
    if shape.architecture is None or shape.form == "random":
        raise unknown_name("model", shape.name, model_names())
    return replace(shape, name=name, form="random", source=shape.name, sha256="", license="", seed=RANDOM_SEED)


def _on_disk(name: str) -> ModelSpec:
    try:
        written, key = split_key(name)
        # Links are not followed: those of Hugging Face's cache lead to files without suffix and neighbours.
        path = Path(os.path.abspath(paths.expand_home(written)))  # noqa: PTH100 - `Path.resolve` would follow them
        is_open_clips = _is_open_clips(path)
        found = path.is_file() or (path / FOLDER_MARK).is_file()
        is_distributed = path.suffix == DISTRIBUTED_SUFFIX or (not found and (path / DISTRIBUTED_MARK).is_file())
    # A name that is too long, a folder that may not be read, a NUL.
    except (OSError, RuntimeError, ValueError) as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointMissingError(f"cannot look at {name!r} ({err}); give the path of a file") from err
    if is_distributed:
        raise CheckpointError(
            f"{path} is a distributed checkpoint; make a file of it with python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    source = f"{path}{KEY}{key}" if key else str(path)
    if is_open_clips:
        return get_model(f"{OPEN_CLIP}{LOCAL}{source}")
    if found:
        return ModelSpec(source, form="file", source=source)
    refuse_options(name, f"{KEY}KEY")
    if path.suffix in CHECKPOINT_SUFFIXES or name.startswith((".", "/", "~")):
        raise CheckpointMissingError(
            f"no checkpoint at {path}; give the path of a file, or of a folder with a {FOLDER_MARK} or {CONFIG}"
        )
    raise unknown_name("model", name, model_names(), forms=FORMS)


def _is_open_clips(path: Path) -> bool:
    """Return True if open_clip's configuration describes the weights in a file or folder.

    It does not describe weights in Hugging Face's form in the same folder, or a TorchScript archive, which holds its
    own program.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / CONFIG).is_file():
        return False
    of_hugging_face = [folder / mark for mark in HUB_MARKS if (folder / FOLDER_MARK).is_file()]
    if path.is_dir():
        return not any(file.is_file() for file in of_hugging_face)
    from probe.models.archive import is_archive  # imports torch

    return path not in of_hugging_face and not is_archive(path)
