"""Read the weights of a CLIP model and their settings from a file or folder.

The weights are returned under the names of the published checkpoints. The supported forms are TorchScript archives,
saved state dicts, checkpoints of training scripts, safetensors files, and folders that Hugging Face's libraries wrote.

Reading never runs code of a file. `archive.py` reads archives, safetensors its own files, and `torch.load` with
`weights_only=True` all other files; `saved.py` reads those that also contain other objects. `unwrapping.py` finds the
model in the content.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from probe import hub
from probe.errors import CheckpointError, listed
from probe.fetch import weights_sha256
from probe.models import KEY, huggingface
from probe.models.architectures import architecture_of
from probe.models.archive import check_zip, is_archive, read_archive
from probe.models.assumptions import check_assumptions
from probe.models.checkpoint_files import SAFETENSORS, digest_weights, naming_unreadable, weight_files
from probe.models.openai import BUFFERS, check_weights
from probe.models.preprocess import Preprocess
from probe.models.saved import Saved, read_saved
from probe.models.unwrapping import WHOLE, Candidate, find_clips, find_state_dicts, largest_table, without_shared_prefix
from probe.paths import is_utf8
from probe.specs import Architecture

logger = logging.getLogger(__name__)

CLIP_MODEL = "CLIP model"


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model, on the CPU and in the dtypes of the file.

    Args:
        state_dict: tensors under the names of the published checkpoints.
        architecture: architecture of the model.
        preprocess: preprocessing of the images.
        sha256: SHA-256 of the file, or of the tensors of random weights; for a folder with several files, a digest.
        path: path of the file or folder; None for random weights.
        license: licence that the model card in the folder names; empty if there is no card.
        key: place of the weights in the file, such as `state_dict.model`; `.` if the file contains nothing else.
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
        path: path of a file, or of a folder that Hugging Face's libraries wrote.
        sha256: digest of the file, if the caller knows it.
        key: selects one of several models in the file, such as `state_dict_ema`; empty if there is only one.

    Raises:
        CheckpointError: the file cannot be read, is damaged, contains no CLIP model, or contains several models and
            `key` selects none of them.
    """
    with naming_unreadable(path):
        return _read_file_or_folder(path, sha256, key)


def _read_file_or_folder(path: Path, sha256: str, key: str) -> Checkpoint:
    if path.is_dir():
        return _read_folder(path, key)
    model = read_model(path, key)
    state_dict = model.state_dict
    if huggingface.is_hugging_face(state_dict):
        if not (path.parent / huggingface.CONFIG).is_file():
            raise CheckpointError(
                f"{path} has weights in Hugging Face's naming, but no config.json next to it; add that file"
            )
        checkpoint = _from_hugging_face(path.parent, state_dict, path, sha256 or weights_sha256(path))
        return replace(checkpoint, key=model.key)
    is_from_transformers = path.name in hub.FOLDER_WEIGHTS and (path.parent / huggingface.CONFIG).is_file()
    if is_from_transformers and "text_projection" not in state_dict:
        huggingface.check_type(path.parent)
    with _naming(path, ", or give open_clip:ARCH/PATH if its architecture is not one of OpenAI's"):
        architecture = architecture_of(state_dict)
        check_weights(state_dict, architecture)
    check_assumptions(path, architecture, is_archive=is_archive(path))
    preprocess = Preprocess(architecture.image_resolution)
    return Checkpoint(state_dict, architecture, preprocess, sha256 or weights_sha256(path), path, key=model.key)


@contextmanager
def _naming(path: Path, hint: str = "") -> Iterator[None]:
    """Add the name of the file and a hint to the message of an error about the weights in the file."""
    try:
        yield
    except CheckpointError as err:
        message = str(err)
        raise CheckpointError(message if str(path) in message else f"{path}: {message}{hint}") from err


def read_model(path: Path, key: str = "", expected: Collection[str] = ()) -> Candidate:
    """Return the model in one file, without the containers and prefixes of training scripts.

    If the file contains no such model, return the largest group of tensors, because open_clip and timm can load weights
    in namings that this package does not know.

    Args:
        path: path of the file.
        key: selects one of several models in the file; empty if there is only one.
        expected: names of the weights of the model; empty for a CLIP model.

    Raises:
        CheckpointError: the file is damaged, contains no tensors, or contains several models and `key` selects none.
    """
    saved = _read_content(path)
    models = find_state_dicts(saved.content, expected) if expected else find_clips(saved.content)
    return _select_model(path, saved, models, key, "model" if expected else CLIP_MODEL)


def _read_content(path: Path) -> Saved:
    if _is_safetensors(path):
        return Saved(_read_safetensors(path), ())
    check_zip(path)
    return Saved(read_archive(path), ()) if is_archive(path) else _read_saved(path)


def _select_model(path: Path, saved: Saved, models: Sequence[Candidate], key: str, kind: str) -> Candidate:
    """Return the model with a key, or the only model. `kind` names the models in messages."""
    selected = [model for model in models if key in ("", model.key)]
    if len(selected) > 1:
        keys = listed(f"?key={model.key}" for model in selected)
        raise CheckpointError(f"{path} contains {len(selected)} {kind}s; add one of these to the path: {keys}")
    if key and not selected:
        if [model.key for model in models] == [WHOLE]:
            raise CheckpointError(f"{path} contains one {kind} without a container; leave out {KEY}{key}")
        keys = listed(model.key for model in models) or "none"
        raise CheckpointError(
            f"{path} contains no {kind} under the key {key!r}; use one of the keys of its models: {keys}"
        )
    if not selected and saved.classes:
        raise _cannot_load_objects(path, saved.classes)
    model = selected[0] if selected else Candidate(WHOLE, without_shared_prefix(largest_table(saved.content)))
    if not model.state_dict:
        raise CheckpointError(f"{path} contains no state dict; save the model's state_dict()")
    if model.unused:
        logger.warning(
            "%s: %d tensors are not part of the %s under %s and are not used: %s",
            path,
            len(model.unused),
            kind,
            model.key,
            listed(model.unused, most=3),
        )
    plain = {name: tensor for name, tensor in model.state_dict.items() if name not in BUFFERS}
    _check_plain(path, plain)
    return replace(model, state_dict=plain)


def _check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if (
            type(value) not in (Tensor, Parameter)
            or value.layout != torch.strided
            or value.is_quantized
            or value.is_meta
        ):
            raise CheckpointError(
                f"{path} has {name!r} as a sparse, quantized or sharded tensor; save a plain state_dict() "
                "(with FSDP: get_model_state_dict with full_state_dict=True)"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a stride of 0
            raise CheckpointError(f"{path} has {name!r} as an expanded view; save a contiguous copy of the tensor")


def _cannot_load_objects(path: Path, classes: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} contains pickled objects ({listed(classes, most=3)}), which are not loaded, because that would run "
        "code; load the file where it was made and save only the weights: torch.save(model.state_dict(), PATH)"
    )


def _is_safetensors(path: Path) -> bool:
    """Return True for the suffix `.safetensors`, or for content that starts as the format does: length, JSON header."""
    if path.suffix.lower() == SAFETENSORS:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_saved(path: Path) -> Saved:
    try:
        with warnings.catch_warnings():
            # torch warns about pickles that it did not write. The errors below say what to do.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            warnings.filterwarnings("ignore", message="Validating sparse tensor", category=UserWarning)
            return Saved(torch.load(path, map_location="cpu", weights_only=True), ())
    except Exception as err:  # damaged bytes make torch's reader raise struct.error, IndexError and others
        if isinstance(err, OSError) and err.errno != errno.EINVAL:  # it seeks before the start of a short damaged file
            raise
        try:
            saved = read_saved(path)
        except Exception:  # damaged bytes can raise any exception here, too
            saved = Saved(None, ())
        if saved.content is not None or saved.classes:
            return saved
        raise CheckpointError(f"{path} is not a checkpoint or is damaged; download or save it again") from err


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    path.open("rb").close()  # safetensors reports a file without read permission as missing
    try:
        return load_file(path) if is_utf8(path) else load(path.read_bytes())
    except SafetensorError as err:
        raise CheckpointError(
            f"{path} is not a safetensors file or is damaged ({err}); download or save it again"
        ) from err


def _read_folder(folder: Path, key: str) -> Checkpoint:
    huggingface.check_type(folder)
    saved = _read_shards(folder)
    model = _select_model(folder, saved, find_clips(saved.content), key, CLIP_MODEL)
    state_dict = model.state_dict
    if not huggingface.is_hugging_face(state_dict):
        raise CheckpointError(
            f"{folder} contains no weights of a CLIPModel; give a folder that CLIPModel.save_pretrained wrote"
        )
    return replace(_from_hugging_face(folder, state_dict, folder, digest_weights(folder)), key=model.key)


def _read_shards(folder: Path) -> Saved:
    """Return the content of the weights in a folder, with the shards of a state dict joined."""
    saved = [_read_content(file) for file in weight_files(folder)]
    if len(saved) > 1:
        tensors = {name: tensor for shard in saved for name, tensor in largest_table(shard.content).items()}
        saved = [Saved(tensors, tuple(name for shard in saved for name in shard.classes))]
    return saved[0]


def read_folder_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a folder that Hugging Face's libraries wrote, of any model.

    Raises:
        CheckpointError: a file is missing, cannot be read, is damaged, or contains pickled objects.
    """
    with naming_unreadable(folder):
        saved = _read_shards(folder)
    if saved.classes:
        raise _cannot_load_objects(folder, saved.classes)
    tensors = largest_table(saved.content)
    _check_plain(folder, tensors)
    return tensors


def _from_hugging_face(folder: Path, state_dict: Mapping[str, Tensor], path: Path, sha256: str) -> Checkpoint:
    with _naming(path):
        renamed = huggingface.rename(state_dict)
        architecture = huggingface.read_architecture(folder, renamed)
        check_weights(renamed, architecture)
    huggingface.check_tokenizer(folder, architecture.vocab_size)
    preprocess = huggingface.read_preprocess(folder, architecture.image_resolution)
    settings = huggingface.find_image_settings(folder)
    origin = settings.name if settings is not None else Checkpoint.preprocess_from
    license_name = hub.read_license(folder)
    return Checkpoint(renamed, architecture, preprocess, sha256, path, license_name, preprocess_from=origin)
