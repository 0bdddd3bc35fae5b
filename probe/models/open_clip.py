"""Models of open_clip's zoo: its own towers, activation, preprocessing and licence, through the extra `open-clip`.

Weights are fetched by `hub.py`, not by open_clip, so that `--offline` holds and files are verified.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.errors import (
    CheckpointError,
    CheckpointMissingError,
    ExtraMissingError,
    ProbeError,
    UnknownNameError,
    listed,
    summarize,
)
from probe.fetch import file_sha256
from probe.models import KEY, OPEN_CLIP, hub, split_key
from probe.models.archive import is_archive
from probe.models.checkpoints import SAFETENSORS, read_model
from probe.models.devices import Execution
from probe.models.encoder import ImageEncoder, dtypes_of
from probe.models.openai import expose_pre_projection
from probe.models.unwrapping import WHOLE, Found
from probe.names import unknown_name
from probe.preprocess import INTERPOLATIONS, RESIZES, Preprocess

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

PREPROCESS_SETTINGS = ("mean", "std", "interpolation", "resize_mode")  # what the table says of images, beside the size
META = Execution(torch.device("meta"), "fp32", jit=False)
# What open_clip raises for files that it was not made for; the last three come from containers that it does not know.
FAILURES = (RuntimeError, ValueError, KeyError, ImportError, OSError, AttributeError, TypeError, UnpicklingError)
DEFAULT_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a repository, best first


@dataclass(frozen=True)
class Source:
    """An architecture of open_clip's and its weights: a `tag` of its table, or else the `path` of a checkpoint.

    `key` chooses one of several models in the checkpoint.
    """

    architecture: str
    tag: str = ""
    path: Path | None = None
    key: str = ""

    def __str__(self) -> str:
        """As in `ModelSpec.source`."""
        return f"{self.architecture}/{self.tag or self.path}{KEY if self.key else ''}{self.key}"


@dataclass(frozen=True)
class ZooModel:
    """A loaded model of open_clip's, in eval mode, and what was read on the way."""

    model: nn.Module
    preprocess: Preprocess
    sha256: str
    checkpoint_dtypes: tuple[str, ...]
    license: str
    weights_key: str = WHOLE


def parse(source: str) -> Source:
    """Look up `ARCH/TAG` or `ARCH/PATH`; an architecture may have a slash, as in `ViT-B/32`.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag; near ones are offered.
        CheckpointMissingError: what follows the architecture reads as a path and no file is there.
        ExtraMissingError: open_clip is not installed.
    """
    architecture, rest = _split(source)
    tags = _import().list_pretrained_tags_by_model(architecture)
    if rest in tags:
        return Source(architecture, tag=rest)
    try:
        written, key = split_key(rest)
        path = written.expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as err:  # a name too long, a home of nobody, a NUL
        raise CheckpointMissingError(f"cannot look at {rest!r} ({err}); give the path of a file") from err
    if is_file:
        return Source(architecture, path=path.absolute(), key=key)
    if "/" in rest or path.suffix:
        raise CheckpointMissingError(f"no checkpoint at {path.absolute()}; give the path of a file")
    if not tags:
        raise UnknownNameError(f"open_clip has no weights for {architecture}; give {OPEN_CLIP}{architecture}/PATH")
    if not rest:
        known = listed(tags)
        raise UnknownNameError(f"{OPEN_CLIP}{architecture} does not say which weights; add one of its tags: /{known}")
    raise unknown_name(f"tag of open_clip's {architecture}", rest, tags)


def _split(source: str) -> tuple[str, str]:
    """The architecture, and what follows it; the former may have a slash, and the latter be empty."""
    architectures = _import().list_models()
    parts = source.split("/")
    for i in range(1, len(parts) + 1):
        architecture = "-".join(parts[:i])
        if architecture in architectures:
            return architecture, "/".join(parts[i:])
    raise unknown_name("architecture of open_clip", "-".join(parts[:-1]) or source, architectures)


def names() -> tuple[str, ...]:
    """All models of the installed open_clip, as `open_clip:ARCH/TAG`.

    Raises:
        ExtraMissingError: open_clip is not installed.
    """
    return tuple(f"{OPEN_CLIP}{architecture}/{tag}" for architecture, tag in _import().list_pretrained())


def load_model(source: str, execution: Execution, *, offline: bool = False) -> ZooModel:
    """Load a model of the zoo on the device and in the precision of `execution`.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, ExtraMissingError: each says what to do.
    """
    found = parse(source)
    path, license_name = fetch(found, offline=offline)
    weights = _read_weights(path, found.key)
    model = _load(found, execution, path, weights.state_dict, offline=offline)
    dtypes = dtypes_of(weights.state_dict.values())
    return ZooModel(model, _preprocess(found, model), file_sha256(path), dtypes, license_name, weights.key)


def _read_weights(path: Path, key: str) -> Found:
    """Read a file before open_clip does, which does not report damage."""
    try:
        weights = read_model(path, key)
        if is_archive(path):
            raise CheckpointError(f"{path} is a TorchScript archive; give its path alone, without {OPEN_CLIP}ARCH/")
    except OSError as err:
        raise CheckpointError(f"cannot read {path} ({err.strerror or err}); give a file that can be read") from err
    return weights


def _load(
    source: Source, execution: Execution, path: Path, state_dict: Mapping[str, Tensor], *, offline: bool
) -> nn.Module:
    """Build a model and load its weights with open_clip, which converts weights of its earlier versions.

    open_clip knows one container and one prefix. From other files of training scripts it gets the model that
    `read_model` found, as a file of its own.
    """
    if not source.key:
        try:
            return _create(source, execution, weights=path, offline=offline)
        except CheckpointError:
            if source.path is None:
                raise
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "weights.pt"
        try:
            torch.save(dict(state_dict), plain)
        except (OSError, RuntimeError) as err:
            raise CheckpointError(f"cannot write the weights of {source} to {folder} ({err}); free disk space") from err
        return _create(source, execution, weights=plain, offline=offline)


def sketch(source: str) -> ZooModel:
    """A model of the zoo on torch's device `meta`: all sizes, no weights, no memory.

    Raises:
        UnknownNameError, CheckpointError, DownloadError, ExtraMissingError: each says what to do.
    """
    found = parse(source)
    with torch.device(META.device):
        model = _create(found, META, weights=None, offline=True)
    return ZooModel(model, _preprocess(found, model), sha256="", checkpoint_dtypes=(), license="")


def _create(source: Source, execution: Execution, *, weights: Path | None, offline: bool) -> nn.Module:
    open_clip, settings = _import(), _settings(source)
    try:
        with warnings.catch_warnings():
            # timm's notice of a model name that open_clip's configurations still use.
            warnings.filterwarnings("ignore", message="Mapping deprecated model name", category=UserWarning)
            model: nn.Module = open_clip.create_model(
                source.architecture,
                pretrained=None if weights is None else str(weights),
                load_weights=weights is not None,
                pretrained_text=False,
                precision=execution.precision,
                device=execution.device,
                # The activation the weights were trained with, which for some tags is not that of the architecture.
                force_quick_gelu=bool(source.tag) and settings.get("quick_gelu", False),
                force_preprocess_cfg={k: settings[k] for k in PREPROCESS_SETTINGS if k in settings},
                weights_only=True,
                **_text_tower(source, offline=offline),
            )
    except FAILURES as err:
        if isinstance(err, ProbeError):
            raise
        what = summarize(err)
        raise CheckpointError(f"open_clip cannot build {source} ({what}); check that the weights are of it") from err
    return model.eval().requires_grad_(False)


def _settings(source: Source) -> Mapping[str, Any]:
    """What open_clip's table says of the weights: for a path, the preprocessing that all tags of its architecture have.

    Where they differ, or there are none, open_clip's default is taken, as open_clip does, and a warning says so.
    """
    open_clip = _import()
    tags = [source.tag] if source.tag else open_clip.list_pretrained_tags_by_model(source.architecture)
    rows: list[dict[str, Any]] = [open_clip.get_pretrained_cfg(source.architecture, tag) for tag in tags]
    if rows and all(all(row[k] == rows[0][k] for k in PREPROCESS_SETTINGS) for row in rows):
        return rows[0]
    logger.warning("nothing says how the images of %s are prepared; it is taken to be as for OpenAI's models", source)
    return {}


def _text_tower(source: Source, *, offline: bool) -> dict[str, Any]:
    """The configuration of a text tower of Hugging Face's from a folder: open_clip would ask the network for it."""
    text: dict[str, Any] = _import().get_model_config(source.architecture)["text_cfg"]
    if "hf_model_name" not in text:
        return {}
    folder = hub.fetch_repository(text["hf_model_name"], [["config.json"]], offline=offline)
    return {"text_cfg": {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _preprocess(source: Source, model: nn.Module) -> Preprocess:
    assert isinstance(model.visual, nn.Module)
    settings: Any = model.visual.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width or settings["interpolation"] not in INTERPOLATIONS or settings["resize_mode"] not in RESIZES:
        raise CheckpointError(f"open_clip's {source} asks for a preprocessing that is not supported: {settings}")
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    return Preprocess(height, mean, std, settings["interpolation"], settings["resize_mode"])


def is_here(source: str) -> bool:
    """Whether the weights need no download."""
    found = parse(source)
    return found.path is not None or hub.holds(*_published(found))


def _published(source: Source) -> tuple[str, tuple[str, ...]]:
    """The repository of a tag, and the names its weights may have there, best first: safetensors carry no code."""
    settings = _import().get_pretrained_cfg(source.architecture, source.tag)
    repo, _, file = settings.get("hf_hub", "").rpartition("/")
    if not repo:
        raise CheckpointError(f"open_clip has no repository for {source}; fetch it and give open_clip:ARCH/PATH")
    return repo, (f"{Path(file).stem}{SAFETENSORS}", file) if file else DEFAULT_WEIGHTS


def fetch(source: Source, *, offline: bool) -> tuple[Path, str]:
    """The file with the weights, fetched if it is not here, and their licence, empty where nobody says.

    Raises:
        CheckpointError, DownloadError, ChecksumError: each says what to do.
    """
    if source.path is not None:
        return source.path, ""
    repo, files = _published(source)
    folder = hub.fetch_repository(repo, [[file] for file in files], [hub.CARD], offline=offline)
    return next(folder / file for file in files if (folder / file).is_file()), hub.read_license(folder)


def as_encoder(name: str, loaded: ZooModel, execution: Execution) -> ImageEncoder:
    """The image tower of a loaded model, which serves as nothing else from then on."""
    visual = loaded.model.visual
    assert isinstance(visual, nn.Module)
    before, project = _in_two_steps(loaded.model, visual)
    side = loaded.preprocess.resolution
    with torch.inference_mode():
        zeros = torch.zeros(1, 3, side, side, device=execution.device, dtype=execution.dtype)
        middle = before(zeros)
        widths = (middle.shape[-1], project(middle).shape[-1])
    return ImageEncoder(
        name,
        execution,
        loaded.preprocess,
        embed_dim=widths[1],
        pre_projection_dim=widths[0],
        weights_sha256=loaded.sha256,
        checkpoint_dtypes=loaded.checkpoint_dtypes,
        weights_dtypes=dtypes_of(visual.parameters()),
        license=loaded.license,
        weights_key=loaded.weights_key,
        pre_projection=before,
        project=project,
    )


def _in_two_steps(model: nn.Module, visual: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The tower up to its projection, and the projection.

    open_clip's own towers have theirs as in OpenAI's models. A tower of timm's ends in a layer of its own or of
    open_clip's; what that layer is given is the feature before the projection.
    """

    def run(images: Tensor) -> Tensor:
        found = visual(images)
        return found[0] if isinstance(found, tuple) else found  # CoCa's gives its tokens too

    if hasattr(visual, "attnpool") or getattr(visual, "proj", None) is not None:
        return run, expose_pre_projection(model)
    projection = _last_layer(visual)
    if projection is None:
        return run, lambda features: features
    given: list[Tensor] = []
    projection.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))

    def run_up_to_projection(images: Tensor) -> Tensor:
        run(images)
        return given.pop()

    def project(features: Tensor) -> Tensor:
        projected: Tensor = projection(features)
        given.clear()
        return projected

    return run_up_to_projection, project


def _last_layer(visual: nn.Module) -> nn.Module | None:
    """The layer that projects; None where the tower ends without one."""
    head: Any = getattr(visual, "head", None)
    trunk: Any = getattr(visual, "trunk", None)
    if hasattr(head, "proj"):
        return head.proj
    if hasattr(head, "mlp"):
        return head.mlp
    classifier = trunk.get_classifier() if trunk is not None else None
    return classifier if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.Identity) else None


def _import() -> ModuleType:
    try:
        import open_clip
    except ModuleNotFoundError as err:
        if err.name != "open_clip":  # one of its own needs is missing
            raise
        raise ExtraMissingError(
            "open_clip is not installed; install the extra open-clip, or pip install 'open_clip_torch>=3,<4'"
        ) from err
    return open_clip
