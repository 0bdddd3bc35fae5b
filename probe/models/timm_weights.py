"""Fetch the weights of timm models and load them with timm's own code. `hub.py` and `fetch.py` download the files.

No code of a file is run: safetensors files cannot contain code, and other files are read with `weights_only=True`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.hub import HASH_REGEX

from probe import hub
from probe.errors import CheckpointError, ChecksumError, ProbeError, listed, summarize
from probe.fetch import fetch, file_sha256
from probe.models.checkpoint_files import SAFETENSORS, naming_unreadable
from probe.models.checkpoints import read_model
from probe.models.timm_names import TimmSource, find_config, import_timm
from probe.models.unwrapping import Candidate

logger = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # of batch normalisation; older checkpoints lack it, and features do not depend on it
# Errors that timm raises for a model that it cannot build, or for weights that do not fit.
FAILURES = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError)


def are_weights_here(source: TimmSource) -> bool:
    """Return True if the weights need no download."""
    if source.path is not None:
        return True
    config = find_config(source)
    if config.hf_hub_id:
        return hub.has_cached_file(config.hf_hub_id, _published_files(config))
    return _torch_file(config.url).is_file()


def fetch_timm_weights(source: TimmSource, *, offline: bool) -> Path:
    """Return the path of the weights of a model, after a download if necessary.

    Raises:
        CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    if source.path is not None:
        return source.path
    config = find_config(source)
    if config.hf_hub_id:
        files = _published_files(config)
        folder = hub.fetch_repository(config.hf_hub_id, [[file] for file in files], offline=offline)
        return next(folder / file for file in files if (folder / file).is_file())
    return fetch(config.url, _torch_file(config.url), check=_check_published_hash, offline=offline)


def _published_files(config: Any) -> tuple[str, ...]:
    """Return the possible names of the weights in the repository of a model, best first."""
    name = config.hf_hub_filename
    return (f"{Path(name).stem}{SAFETENSORS}", name) if name else hub.FOLDER_WEIGHTS


def _torch_file(url: str) -> Path:
    """Return the path of a file in torch's folder of checkpoints, which timm uses, too."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _check_published_hash(part: Path) -> None:
    """Compare a download with the start of its SHA-256, which is the end of its name, as in `gcvit-f009139b.pth`.

    Raises:
        ChecksumError: the file is damaged.
    """
    found, published = file_sha256(part), HASH_REGEX.search(part.name)
    if published is not None and not found.startswith(published[1]):
        raise ChecksumError(
            f"{part.name}: SHA-256 mismatch (expected {published[1]}..., got {found}); the download was deleted; "
            "try again later"
        )


def create_timm_model(source: TimmSource, *, device: str = "cpu", **options: Any) -> nn.Module:
    """Return a model of timm in eval mode without its classifier; its weights are random unless `options` has weights.

    Args:
        source: the model.
        device: `cpu` or `meta`.
        options: further arguments of `timm.create_model`.

    Raises:
        CheckpointError: timm cannot build the model, or the weights do not fit.
    """
    try:
        with torch.device(device), _without_useless_warnings():
            model: nn.Module = import_timm().create_model(
                source.architecture, pretrained_cfg=source.tag or None, num_classes=0, **options
            )
    except FAILURES as err:
        if isinstance(err, ProbeError):
            raise
        raise CheckpointError(
            f"timm cannot build {source} ({summarize(err)}); check that the weights belong to this architecture"
        ) from err
    return model.eval().requires_grad_(False)


def sketch_timm_model(source: TimmSource) -> nn.Module:
    """Return a model of timm on torch's device `meta`. The model has sizes but no weights, and takes no memory.

    A few models read values while they are built. They are built on the CPU first.

    Raises:
        CheckpointError: timm cannot build the model.
    """
    try:
        return create_timm_model(source, device="meta")
    except CheckpointError:
        return create_timm_model(source).to("meta")


def load_timm_model(source: TimmSource, path: Path) -> tuple[nn.Module, Candidate]:
    """Return a model of timm with the weights of a file, in eval mode without its classifier, and these weights.

    timm converts the names that other libraries give to weights, and resizes position embeddings. A classifier in the
    file is not used, so its number of classes does not matter.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the architecture.
    """
    names = list(sketch_timm_model(source).state_dict())
    with naming_unreadable(path):
        weights = read_model(path, source.key, [name for name in names if not name.endswith(COUNTER)])
    tensors = _without_other_modules(source, weights.state_dict, names)
    # Equal numbers of classes make timm load strictly. Otherwise timm would ignore that weights are missing.
    overlay = {"state_dict": tensors, "source": None, "custom_load": False, "num_classes": 0, "label_offset": 0}
    try:
        model = create_timm_model(source, pretrained=True, pretrained_cfg_overlay=overlay)
    except CheckpointError as err:
        if source.path is not None or not _only_unused(err.__cause__):
            raise
        # timm itself ignores unused weights of its published files, which can have other heads.
        overlay |= {"state_dict": dict(tensors), "num_classes": 1}
        model = create_timm_model(source, pretrained=True, pretrained_cfg_overlay=overlay)
    settings: Any = model.pretrained_cfg
    settings.pop("state_dict", None)  # frees the memory
    return model, weights


def _without_other_modules(source: TimmSource, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Return the weights without the classifier, and without modules that the architecture does not have.

    Weights in another naming are returned complete, because only timm knows which of them are used.
    """
    classifiers = find_config(source).classifier or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    ends = {f"{name}.{end}" for name in classifiers for end in ("weight", "bias")}
    kept = {name: tensor for name, tensor in tensors.items() if name not in ends}
    modules = {name.partition(".")[0] for name in names}
    if not all(name in kept for name in names if not name.endswith(COUNTER)):
        return kept
    unused = [name for name in kept if name.partition(".")[0] not in modules]
    if unused:
        logger.warning(
            "%s: %d tensors are not part of the model and are not used: %s", source, len(unused), listed(unused, most=3)
        )
    return {name: tensor for name, tensor in kept.items() if name not in unused}


def _only_unused(err: BaseException | None) -> bool:
    """Return True if an error of torch is only about weights that the model does not have."""
    message = str(err)
    return "Unexpected key(s)" in message and not any(fault in message for fault in ("Missing key(s)", "size mismatch"))


@contextmanager
def _without_useless_warnings() -> Iterator[None]:
    """Hide timm's messages about unused weights: `_without_other_modules` warns about them."""
    timm_logger = logging.getLogger("timm.models._builder")

    def is_useful(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Unexpected keys")

    timm_logger.addFilter(is_useful)
    try:
        yield
    finally:
        timm_logger.removeFilter(is_useful)


def timm_license(source: TimmSource) -> str:
    """Return the licence that timm gives for the published weights; empty for other weights or if it is not known."""
    known: str = find_config(source).license or ""
    return "" if source.path is not None or known == "unknown" else known
