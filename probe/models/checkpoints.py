"""A file or folder -> the weights of a CLIP model in the naming of the published checkpoints, and what goes with them.

The forms: TorchScript archives, saved state dicts, training checkpoints of open_clip, safetensors, and folders as
Hugging Face's libraries write them. None of them can run code: archives are read by `archive.py`, the rest with
`weights_only=True` or by safetensors.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import CheckpointError, ProbeError
from probe.fetch import file_sha256
from probe.models import hub, huggingface
from probe.models.archive import check_zip, is_archive, read_archive
from probe.models.assumptions import check_assumptions
from probe.models.clip import architecture_of
from probe.models.openai import BUFFERS, check_weights
from probe.preprocess import Preprocess
from probe.specs import Architecture, digest

logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
NESTED = ("state_dict", "model")  # where training checkpoints keep the weights
DISTRIBUTED = "module."  # what training on several GPUs puts before every name


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model on the CPU, in the dtypes of their file.

    Args:
        state_dict: tensors under the names of the published checkpoints.
        architecture: the sizes of the model.
        preprocess: what its images go through.
        sha256: of the file, or of the tensors where there is none.
        path: the file or folder; None for random weights.
        license: what the model card in the folder says; empty where there is none.
        preprocess_from: where the settings of `preprocess` are from.
    """

    state_dict: Mapping[str, Tensor]
    architecture: Architecture
    preprocess: Preprocess
    sha256: str
    path: Path | None
    license: str = ""
    preprocess_from: str = "OpenAI's models"


def read_checkpoint(path: Path, *, sha256: str = "") -> Checkpoint:
    """Read a checkpoint of any form; `sha256` is that of the file where it is known already.

    Raises:
        CheckpointError: the file cannot be read, is damaged or holds something else.
    """
    try:
        return _read(path, sha256)
    except OSError as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointError(f"cannot read {path} ({err.strerror or err}); give a file that can be read") from err


def _read(path: Path, sha256: str) -> Checkpoint:
    if path.is_dir():
        return _read_folder(path)
    state_dict = read_tensors(path)
    if huggingface.is_hugging_face(state_dict):
        if not (path.parent / huggingface.CONFIG).is_file():
            raise CheckpointError(f"{path} is in Hugging Face's naming; put its config.json beside it")
        return _in_hugging_face_naming(path.parent, state_dict, path, sha256 or file_sha256(path))
    is_of_transformers = path.name in hub.FOLDER_WEIGHTS and (path.parent / huggingface.CONFIG).is_file()
    if is_of_transformers and "text_projection" not in state_dict:
        huggingface.check_type(path.parent)
    with _named(path, ", or name another architecture than OpenAI's: open_clip:ARCH/PATH"):
        architecture = architecture_of(state_dict)
        check_weights(state_dict, architecture)
    check_assumptions(path, architecture, is_archive=is_archive(path))
    preprocess = Preprocess(architecture.image_resolution)
    return Checkpoint(state_dict, architecture, preprocess, sha256 or file_sha256(path), path)


@contextmanager
def _named(path: Path, hint: str = "") -> Iterator[None]:
    """Put the name of the file before the message of an error about its weights, and a hint behind it."""
    try:
        yield
    except CheckpointError as err:
        message = str(err)
        raise CheckpointError(message if str(path) in message else f"{path}: {message}{hint}") from err


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, without the wrapping of training checkpoints, under the names of the file.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    if _is_safetensors(path):
        found: Any = _read_safetensors(path)
    else:
        check_zip(path)
        found = read_archive(path) if is_archive(path) else _read_saved(path)
    nested = next((key for key in NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
    if nested is not None:
        found = found[nested]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors; save the model's state_dict()")
    for name, value in found.items():
        if not isinstance(name, str) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{path} has {name!r} in a form that holds no plain numbers; save a state_dict() of it"
            )
    distributed = all(name.startswith(DISTRIBUTED) for name in found)
    names = {name: name.removeprefix(DISTRIBUTED) if distributed else name for name in found}
    return {names[name]: value for name, value in found.items() if names[name] not in BUFFERS}


def _is_safetensors(path: Path) -> bool:
    """By suffix, or by content: the length of a header in eight bytes, and the header, which is JSON."""
    if path.suffix.lower() == SAFETENSORS:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_saved(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch wonders about pickles that it did not write; the error below says all there is to say of them.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as err:  # torch's reader raises whatever the bytes lead it to: struct.error, IndexError, ...
        raise CheckpointError(f"{path} is no CLIP checkpoint or is damaged; get the file again") from err


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path.open("rb").close()  # safetensors says of every file it may not open that there is none
    try:
        return load_file(path)
    except SafetensorError as err:
        raise CheckpointError(f"{path} is no safetensors file or is damaged ({err}); get the file again") from err


def _read_folder(folder: Path) -> Checkpoint:
    huggingface.check_type(folder)
    files = _weight_files(folder)
    state_dict: dict[str, Tensor] = {}
    for file in files:
        state_dict.update(read_tensors(file))
    if not huggingface.is_hugging_face(state_dict):
        raise CheckpointError(f"{folder} holds no weights of a CLIPModel; give a folder that CLIPModel has written")
    hashes = {file.name: file_sha256(file) for file in files}
    sha256 = next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes)
    return _in_hugging_face_naming(folder, state_dict, folder, sha256)


def list_files(path: Path) -> list[Path]:
    """All files that make a model what it is: its weights, and the settings beside them, of a file or folder.

    Raises:
        CheckpointError: a folder without weights.
    """
    folder = path if path.is_dir() else path.parent
    beside = (folder / huggingface.CONFIG).is_file()
    settings = [folder / name for name in huggingface.FILES if beside and (folder / name).is_file()]
    return [*(_weight_files(path) if path.is_dir() else [path]), *settings]


def _weight_files(folder: Path) -> list[Path]:
    """The file with the weights, or the shards that its index lists."""
    for name in hub.FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                missing = [shard for shard in shards if not (folder / Path(shard).name).is_file()]
            except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as err:
                raise CheckpointError(f"{index} is damaged; get the folder again") from err
            if missing:
                raise CheckpointError(f"{folder} has no {missing[0]}, which its index lists; get the folder again")
            return [folder / Path(shard).name for shard in shards]
    raise CheckpointError(
        f"{folder} holds no {' or '.join(hub.FOLDER_WEIGHTS)}; give a folder as save_pretrained writes it"
    )


def _in_hugging_face_naming(folder: Path, state_dict: Mapping[str, Tensor], path: Path, sha256: str) -> Checkpoint:
    with _named(path):
        renamed = huggingface.rename(state_dict)
        architecture = huggingface.read_architecture(folder, renamed)
        check_weights(renamed, architecture)
    huggingface.check_tokenizer(folder, architecture.vocab_size)
    preprocess = huggingface.read_preprocess(folder, architecture.image_resolution)
    settings = huggingface.find_image_settings(folder)
    origin = settings.name if settings is not None else Checkpoint.preprocess_from
    return Checkpoint(renamed, architecture, preprocess, sha256, path, hub.read_license(folder), origin)
