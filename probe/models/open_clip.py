"""Load models of open_clip with their own towers, activation, preprocessing and licence. Needs the extra `open-clip`.

`hub.py` downloads the weights instead of open_clip, because `hub.py` respects `--offline` and verifies files.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from probe import hub
from probe.errors import CheckpointError, DeviceError, ProbeError, summarize
from probe.fetch import weights_sha256
from probe.models import OPEN_CLIP
from probe.models.archive import is_archive
from probe.models.assumptions import warn_once
from probe.models.checkpoint_files import naming_unreadable
from probe.models.checkpoints import read_model
from probe.models.devices import META, Execution
from probe.models.encoder import dtypes_of
from probe.models.open_clip_config import OPEN_CLIP_CONFIG, read_config
from probe.models.open_clip_names import ZooSource, import_open_clip, parse
from probe.models.open_clip_weights import DEFAULT_ORIGIN, fetch_zoo_weights, find_config_folder, name_for_open_clip
from probe.models.preprocess import INTERPOLATIONS, RESIZES, Preprocess
from probe.models.unwrapping import WHOLE, Candidate

PREPROCESS_SETTINGS = ("mean", "std", "interpolation", "resize_mode")  # open_clip's image settings without the size
# Errors that open_clip raises for a configuration or weights that it cannot use.
FAILURES = (
    *(RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, ImportError, OSError),
    UnpicklingError,
)


@dataclass(frozen=True)
class OpenClipSettings:
    """Settings of a model that come from open_clip's table or from a configuration.

    Args:
        values: settings of the preprocessing (`PREPROCESS_SETTINGS`), and `quick_gelu` if a tag sets the activation.
        origin: origin of the settings, such as `open_clip_config.json`.
    """

    values: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class ZooModel:
    """A loaded open_clip model in eval mode.

    Args:
        model: open_clip's model.
        preprocess: preprocessing of the images.
        preprocess_from: origin of the settings of `preprocess`.
        sha256: SHA-256 of the file with the weights.
        checkpoint_dtypes: dtypes of the tensors in the file, sorted.
        license: licence of the weights; empty if it is not known.
        weights_key: place of the weights in the file; `.` if the file contains nothing else.
    """

    model: nn.Module
    preprocess: Preprocess
    preprocess_from: str
    sha256: str
    checkpoint_dtypes: tuple[str, ...]
    license: str
    weights_key: str = WHOLE


def load_model(source: str, execution: Execution, *, offline: bool = False) -> ZooModel:
    """Load an open_clip model on the device and in the precision of `execution`.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, ExtraMissingError: the message says what to do.
    """
    zoo_source = parse(source)
    path, license_name = fetch_zoo_weights(zoo_source, offline=offline)
    if not zoo_source.architecture:  # downloaded weights are next to their configuration
        zoo_source = ZooSource(path=path, key=zoo_source.key)
    weights = _read_weights(path, zoo_source.key)
    settings = _find_settings(zoo_source, offline=offline)
    model = _create(zoo_source, settings, execution, offline=offline)
    _load_weights(model, zoo_source, path, weights.state_dict)
    if execution.dtype != torch.float32:
        _cast_the_rest(model, execution.dtype)
    return ZooModel(
        model,
        _read_preprocess(zoo_source, model),
        settings.origin,
        weights_sha256(path),
        dtypes_of(weights.state_dict.values()),
        license_name,
        weights.key,
    )


def sketch(source: str) -> ZooModel:
    """Return an open_clip model on torch's device `meta`. The model has sizes but no weights, and takes no memory.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, ExtraMissingError: the message says what to do.
    """
    zoo_source = parse(source)
    settings = _find_settings(zoo_source, offline=True)
    with torch.device(META.device):
        model = _create(zoo_source, settings, META, offline=True)
    preprocess = _read_preprocess(zoo_source, model)
    return ZooModel(model, preprocess, settings.origin, sha256="", checkpoint_dtypes=(), license="")


def _read_weights(path: Path, key: str) -> Candidate:
    """Return the weights in a file, after checking for damage, which open_clip does not report."""
    with naming_unreadable(path):
        weights = read_model(path, key)
        if is_archive(path):
            raise CheckpointError(f"{path} is a TorchScript archive; give its path alone, without {OPEN_CLIP}ARCH/")
    return weights


def _create(source: ZooSource, settings: OpenClipSettings, execution: Execution, *, offline: bool) -> nn.Module:
    open_clip, name = import_open_clip(), name_for_open_clip(source, offline=offline)
    try:
        with _without_useless_warnings():
            model: nn.Module = open_clip.create_model(
                name,
                load_weights=False,
                pretrained_text=False,
                precision=execution.precision,
                device=execution.device,
                # Some tags were trained with another activation than the architecture's.
                force_quick_gelu=bool(source.tag) and settings.values.get("quick_gelu", False),
                force_preprocess_cfg={k: settings.values[k] for k in PREPROCESS_SETTINGS if k in settings.values},
                **_text_tower_config(name, offline=offline),
            )
    except FAILURES as err:
        if execution.precision != "fp32" and isinstance(err, AttributeError):  # a layer that open_clip's cast misses
            raise DeviceError(f"open_clip cannot cast {source} to {execution.precision}; use --precision fp32") from err
        raise _cannot_build(source, err) from err
    return model.eval().requires_grad_(False)


def _load_weights(model: nn.Module, source: ZooSource, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load a checkpoint with open_clip, which also converts the weight names of other libraries.

    open_clip knows one container and one prefix. For other containers and prefixes, and if a key chooses one of several
    models, open_clip gets the tensors as a plain state dict.
    """
    load = import_open_clip().load_checkpoint
    if not source.key:
        try:
            load(model, str(path), weights_only=True)
        except FAILURES:
            pass
        else:
            return
    try:
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "weights.pt"
            torch.save(dict(tensors), plain)
            load(model, str(plain), weights_only=True)
    except FAILURES as err:
        raise _cannot_build(source, err) from err


def _cannot_build(source: ZooSource, err: Exception) -> Exception:
    if isinstance(err, ProbeError):
        return err
    return CheckpointError(
        f"open_clip cannot load {source} ({summarize(err)}); check that the weights belong to this architecture"
    )


def _cast_the_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights that open_clip's cast leaves in fp32 although they are multiplied with half-precision values.

    These are the queries of attentional pools, the scales of layers and heads, and text towers of Hugging Face.
    Normalisation layers that compute in fp32, and the model's temperature and bias, stay fp32.
    """
    from open_clip.transformer import LayerNormFp32

    for module in list(model.modules())[1:]:
        if not isinstance(module, LayerNormFp32 | nn.modules.batchnorm._BatchNorm):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


@contextmanager
def _without_useless_warnings() -> Iterator[None]:
    """Hide warnings that a user cannot act on.

    timm warns about an old model name that open_clip's configurations still use. open_clip's module `factory` warns, on
    the root logger, that a model has no weights, although the weights are loaded afterwards.
    """
    root = logging.getLogger()

    def is_useful(record: logging.LogRecord) -> bool:
        return record.module != "factory"

    root.addFilter(is_useful)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mapping deprecated model name", category=UserWarning)
            yield
    finally:
        root.removeFilter(is_useful)


def _find_settings(source: ZooSource, *, offline: bool) -> OpenClipSettings:
    """Return the settings of a model's preprocessing, by the first rule that applies.

    1. `local-dir:` and `hf-hub:`: the settings of `open_clip_config.json`.
    2. `ARCH/TAG`: the settings of the tag in open_clip's table.
    3. `ARCH/PATH`: the settings of the architecture's tags in the table, if all tags agree. open_clip itself
       uses its default for a path, which is OpenAI's preprocessing; `?preprocess=open_clip` selects that default here.
    4. Otherwise open_clip's default, with a warning.
    """
    if not source.architecture:
        values = read_config(find_config_folder(source, offline=offline)).preprocess_cfg
        if set(values) & set(PREPROCESS_SETTINGS):
            return OpenClipSettings(values, OPEN_CLIP_CONFIG)
    elif source.own_preprocess:
        return OpenClipSettings({}, DEFAULT_ORIGIN)
    else:
        open_clip, architecture = import_open_clip(), source.architecture
        tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(architecture)
        rows: list[dict[str, Any]] = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
        if rows and all(all(row[k] == rows[0][k] for k in PREPROCESS_SETTINGS) for row in rows):
            kind = f"tag {source.tag}" if source.tag else "tags"
            return OpenClipSettings(rows[0], f"{kind} of open_clip's {architecture}")
    warn_once(f"{source} has no settings for the preprocessing of images; OpenAI's preprocessing is assumed")
    return OpenClipSettings({}, DEFAULT_ORIGIN)


def _text_tower_config(name: str, *, offline: bool) -> dict[str, Any]:
    """Return the configuration of a text tower of Hugging Face, from a folder. open_clip would download it itself."""
    text: dict[str, Any] = import_open_clip().get_model_config(name)["text_cfg"]
    if "hf_model_name" not in text:
        return {}
    folder = hub.fetch_repository(text["hf_model_name"], [["config.json"]], offline=offline)
    return {"text_cfg": {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _read_preprocess(source: ZooSource, model: nn.Module) -> Preprocess:
    assert isinstance(model.visual, nn.Module)
    settings: Any = model.visual.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    is_supported = settings["interpolation"] in INTERPOLATIONS and settings["resize_mode"] in RESIZES
    mean, std = (_three_numbers(settings[name]) for name in ("mean", "std"))
    if height != width or not is_supported or mean is None or std is None or 0 in std:
        raise CheckpointError(
            f"the preprocessing of open_clip's {source} is not supported: {settings}; use another model"
        )
    return Preprocess(height, mean, std, settings["interpolation"], settings["resize_mode"])


def _three_numbers(values: Any) -> tuple[float, float, float] | None:
    """Return a value as a tuple of three numbers, or None if it is not a sequence of three numbers."""
    if not isinstance(values, list | tuple) or [isinstance(value, int | float) for value in values] != [True] * 3:
        return None
    red, green, blue = values
    return red, green, blue
