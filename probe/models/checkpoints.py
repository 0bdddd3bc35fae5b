"""A file or folder -> the weights of a CLIP model in the naming of the published checkpoints, and what goes with them.

The forms: TorchScript archives, saved state dicts, checkpoints of training scripts, safetensors, and folders as
Hugging Face's libraries write them. None of them can run code: archives are read by `archive.py`, the rest with
`weights_only=True`, by safetensors, or, if a file holds objects as well, by `saved.py`. `unwrapping.py` finds the model
in the content.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from probe import hub
from probe.errors import CheckpointError, ProbeError, listed
from probe.fetch import weights_sha256
from probe.models import KEY, huggingface
from probe.models.archive import check_zip, is_archive, read_archive
from probe.models.assumptions import check_assumptions
from probe.models.openai import BUFFERS, check_weights
from probe.models.preprocess import Preprocess
from probe.models.saved import Saved, read_saved
from probe.models.towers import architecture_of
from probe.models.unwrapping import WHOLE, Candidate, find_clips, largest_table, without_shared_prefix
from probe.paths import is_utf8
from probe.specs import Architecture, digest

logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"


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
        key: place of the weights in the file, such as `state_dict.model`; `.` if the file holds nothing else.
        preprocess_from: origin of the settings of `preprocess`.
    """

    state_dict: Mapping[str, Tensor]
    architecture: Architecture
    preprocess: Preprocess
    sha256: str
    path: Path | None
    license: str = ""
    key: str = WHOLE
    preprocess_from: str = "OpenAI's models"


def read_checkpoint(path: Path, *, sha256: str = "", key: str = "") -> Checkpoint:
    """Read a checkpoint of any form.

    Args:
        path: a file, or a folder as Hugging Face's libraries write it.
        sha256: digest of the file, if the caller knows it.
        key: chooses one of several models in the file, such as `state_dict_ema`; empty if it holds only one.

    Raises:
        CheckpointError: the file cannot be read, is damaged, holds no CLIP model, or holds several and `key` chooses
            none of them.
    """
    try:
        return _read(path, sha256, key)
    except OSError as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointError(f"cannot read {path} ({err.strerror or err}); give a file that can be read") from err


def _read(path: Path, sha256: str, key: str) -> Checkpoint:
    if path.is_dir():
        return _read_folder(path, key)
    found = read_model(path, key)
    state_dict = found.state_dict
    if huggingface.is_hugging_face(state_dict):
        if not (path.parent / huggingface.CONFIG).is_file():
            raise CheckpointError(f"{path} is in Hugging Face's naming; put its config.json beside it")
        checkpoint = _in_hugging_face_naming(path.parent, state_dict, path, sha256 or weights_sha256(path))
        return replace(checkpoint, key=found.key)
    is_of_transformers = path.name in hub.FOLDER_WEIGHTS and (path.parent / huggingface.CONFIG).is_file()
    if is_of_transformers and "text_projection" not in state_dict:
        huggingface.check_type(path.parent)
    with _named(path, ", or name another architecture than OpenAI's: open_clip:ARCH/PATH"):
        architecture = architecture_of(state_dict)
        check_weights(state_dict, architecture)
    check_assumptions(path, architecture, is_archive=is_archive(path))
    preprocess = Preprocess(architecture.image_resolution)
    return Checkpoint(state_dict, architecture, preprocess, sha256 or weights_sha256(path), path, key=found.key)


@contextmanager
def _named(path: Path, hint: str = "") -> Iterator[None]:
    """Put the name of the file before the message of an error about its weights, and a hint after the message."""
    try:
        yield
    except CheckpointError as err:
        message = str(err)
        raise CheckpointError(message if str(path) in message else f"{path}: {message}{hint}") from err


def read_model(path: Path, key: str = "") -> Candidate:
    """Find the CLIP model in one file, and remove the containers and prefixes of training scripts from its names.

    If the file holds no known CLIP model, return its largest group of tensors, for callers that know other models.

    Raises:
        CheckpointError: the file is damaged, holds no tensors, or holds several models and `key` chooses none of them.
    """
    return _choose(path, _read_content(path), key)


def _read_content(path: Path) -> Saved:
    if _is_safetensors(path):
        return Saved(_read_safetensors(path), ())
    check_zip(path)
    return Saved(read_archive(path), ()) if is_archive(path) else _read_saved(path)


def _choose(path: Path, saved: Saved, key: str) -> Candidate:
    models = find_clips(saved.content)
    chosen = [model for model in models if key in ("", model.key)]
    if len(chosen) > 1:
        keys = listed(f"?key={model.key}" for model in chosen)
        raise CheckpointError(f"{path} holds {len(chosen)} CLIP models; add one of these to its path: {keys}")
    if key and not chosen:
        if [model.key for model in models] == [WHOLE]:
            raise CheckpointError(f"{path} holds one CLIP model, without a container; leave out {KEY}{key}")
        keys = listed(model.key for model in models) or "none"
        raise CheckpointError(f"{path} holds no CLIP model under the key {key!r}; the keys of its models are: {keys}")
    if not chosen and saved.classes:
        raise _refused(path, saved.classes)
    found = chosen[0] if chosen else Candidate(WHOLE, without_shared_prefix(largest_table(saved.content)))
    if not found.state_dict:
        raise CheckpointError(f"{path} holds no state dict of tensors; save the model's state_dict()")
    if found.unused:
        logger.warning(
            "%s: %d tensors are not part of the CLIP model under %s and are not used: %s",
            path,
            len(found.unused),
            found.key,
            listed(found.unused, most=3),
        )
    plain = {name: tensor for name, tensor in found.state_dict.items() if name not in BUFFERS}
    for name, value in plain.items():
        if (
            type(value) not in (Tensor, Parameter)
            or value.layout != torch.strided
            or value.is_quantized
            or value.is_meta
        ):
            raise CheckpointError(
                f"{path} has {name!r} in a form without plain numbers, such as a shard of FSDP; save a whole "
                "state_dict() (of FSDP: get_model_state_dict with full_state_dict=True)"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a stride of 0
            raise CheckpointError(f"{path} has {name!r} with more numbers than the file holds; save a copy of it")
    return replace(found, state_dict=plain)


def _refused(path: Path, classes: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} holds pickled objects ({listed(classes, most=3)}), which are not loaded, because that would run "
        "code; load the file where it was made and save only the weights: torch.save(model.state_dict(), PATH)"
    )


def _is_safetensors(path: Path) -> bool:
    """By suffix, or by content: the length of a header in eight bytes, and the header, which is JSON."""
    if path.suffix.lower() == SAFETENSORS:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_saved(path: Path) -> Saved:
    try:
        with warnings.catch_warnings():
            # torch warns about pickles that it did not write. The errors below say what the user needs to know.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            warnings.filterwarnings("ignore", message="Validating sparse tensor", category=UserWarning)
            return Saved(torch.load(path, map_location="cpu", weights_only=True), ())
    except OSError:
        raise
    except Exception as err:  # torch's reader raises whatever the bytes lead it to: struct.error, IndexError, ...
        try:
            saved = read_saved(path)
        except Exception:  # as above
            saved = Saved(None, ())
        if saved.content is not None or saved.classes:
            return saved
        raise CheckpointError(f"{path} is no CLIP checkpoint or is damaged; get the file again") from err


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    path.open("rb").close()  # safetensors says of every file it may not open that there is none
    try:
        return load_file(path) if is_utf8(path) else load(path.read_bytes())
    except SafetensorError as err:
        raise CheckpointError(f"{path} is no safetensors file or is damaged ({err}); get the file again") from err


def _read_folder(folder: Path, key: str) -> Checkpoint:
    huggingface.check_type(folder)
    files = _weight_files(folder)
    saved = [_read_content(file) for file in files]
    if len(files) > 1:  # parts of one state dict
        tensors = {name: tensor for shard in saved for name, tensor in largest_table(shard.content).items()}
        saved = [Saved(tensors, tuple(name for shard in saved for name in shard.classes))]
    found = _choose(folder, saved[0], key)
    state_dict = found.state_dict
    if not huggingface.is_hugging_face(state_dict):
        raise CheckpointError(f"{folder} holds no weights of a CLIPModel; give a folder that CLIPModel has written")
    hashes = {file.name: weights_sha256(file) for file in files}
    sha256 = next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes)
    return replace(_in_hugging_face_naming(folder, state_dict, folder, sha256), key=found.key)


def list_checkpoint_files(path: Path) -> list[Path]:
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
