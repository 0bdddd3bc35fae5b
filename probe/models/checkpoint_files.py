"""Files of a checkpoint: the weights or their shards, and the settings next to them. This module reads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from probe import hub
from probe.errors import CheckpointError, ProbeError
from probe.fetch import weights_sha256
from probe.models import huggingface
from probe.specs import digest

SAFETENSORS = ".safetensors"


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Raise a CheckpointError that names the path if reading fails in the block."""
    try:
        yield
    except ProbeError:  # some of them are OSErrors
        raise
    except OSError as err:
        raise CheckpointError(
            f"cannot read {path} ({err.strerror or err}); check its permissions, or give another file"
        ) from err


def list_checkpoint_files(path: Path) -> list[Path]:
    """Return all files of a checkpoint: the weights, and the settings that Hugging Face's libraries put next to them.

    Raises:
        CheckpointError: the path is a folder without weights.
    """
    folder = path if path.is_dir() else path.parent
    has_settings = (folder / huggingface.CONFIG).is_file()
    settings = [folder / name for name in huggingface.FILES if has_settings and (folder / name).is_file()]
    return [*(weight_files(path) if path.is_dir() else [path]), *settings]


def digest_weights(folder: Path) -> str:
    """Return the SHA-256 of the weights in a folder, or a digest of the shards."""
    hashes = {file.name: weights_sha256(file) for file in weight_files(folder)}
    return next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes)


def weight_files(folder: Path) -> list[Path]:
    """Return the file with the weights, or the shards that an index lists."""
    for name in hub.FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                missing = [shard for shard in shards if not (folder / Path(shard).name).is_file()]
            except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as err:
                raise CheckpointError(f"{index} is damaged; download or save the folder again") from err
            if missing:
                raise CheckpointError(
                    f"{folder} has no {missing[0]}, which {index.name} lists; download or save the folder again"
                )
            return [folder / Path(shard).name for shard in shards]
    raise CheckpointError(
        f"{folder} contains no {' or '.join(hub.FOLDER_WEIGHTS)}; give a folder that save_pretrained wrote"
    )
