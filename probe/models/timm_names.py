"""Parse names of timm models: an architecture with the tag of published weights, or with the path of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import CheckpointMissingError, UnknownNameError
from probe.models import KEY, TIMM, locate_checkpoint, refuse_options
from probe.models.families import import_library
from probe.names import unknown_name

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class TimmSource:
    """The parts of the name of a timm model.

    Args:
        architecture: timm's name of the architecture.
        tag: tag of the published weights and of the preprocessing; empty for an architecture without tags.
        path: path of a checkpoint; None for the published weights of the tag, and for random weights.
        key: selects one of several models in the checkpoint; empty if there is only one.
        has_tag: True if the name contains the tag; False if the tag is timm's default.
    """

    architecture: str
    tag: str
    path: Path | None = None
    key: str = ""
    has_tag: bool = True

    @property
    def model(self) -> str:
        """The name in timm's own spelling, `ARCH.TAG`."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    def __str__(self) -> str:
        """Return the name in the form of `ModelSpec.source`."""
        if self.path is None:
            return self.model
        model = self.model if self.has_tag else self.architecture
        return f"{model}/{self.path}{KEY}{self.key}" if self.key else f"{model}/{self.path}"


def parse_timm_source(source: str) -> TimmSource:
    """Parse `ARCH`, `ARCH.TAG`, `ARCH/TAG`, `ARCH/PATH` or `ARCH.TAG/PATH`. Without a tag, use timm's default tag.

    Raises:
        UnknownNameError: timm has no such architecture or tag; the message suggests similar names.
        CheckpointMissingError: the path does not exist.
        ExtraMissingError: timm is not installed.
    """
    model, slash, rest = source.partition("/")
    architecture, dot, tag = model.partition(".")
    timm = import_timm()
    known = timm.list_models()
    if not architecture:
        raise UnknownNameError(f"give {TIMM}NAME; python -m probe models {TIMM} lists the names")
    if architecture not in known:
        raise unknown_name("architecture of timm", architecture, known)
    tags = [name.partition(".")[2] for name in timm.models.get_arch_pretrained_cfgs(architecture)]
    if slash and not dot and rest in tags:
        return TimmSource(architecture, rest)
    if dot and tag not in tags:
        raise unknown_name(f"tag of timm's {architecture}", tag, filter(None, tags))
    default = timm.get_pretrained_cfg(architecture).tag or ""
    if not slash:
        return TimmSource(architecture, tag or default)
    path, key = locate_checkpoint(rest)
    if path.is_file():
        return TimmSource(architecture, tag or default, path, key, has_tag=bool(dot))
    refuse_options(rest, f"{KEY}KEY")
    if dot or not rest or "/" in rest or path.suffix:
        raise CheckpointMissingError(f"no checkpoint at {path}; give the path of a file")
    raise unknown_name(f"tag of timm's {architecture}", rest, filter(None, tags), forms=f"{TIMM}{architecture}/PATH")


def find_config(source: TimmSource) -> Any:
    """Return timm's `PretrainedCfg` of a model: where its weights are, its preprocessing and its licence."""
    return import_timm().get_pretrained_cfg(source.model)


def check_has_weights(source: TimmSource) -> None:
    """Check that timm knows weights for a model, or that the name contains the path of a checkpoint.

    Raises:
        UnknownNameError: the message says what to give instead.
    """
    config = find_config(source)
    if source.path is None and not (config.hf_hub_id or config.url):
        raise UnknownNameError(
            f"timm has no weights for {source.model}; give {TIMM}{source.architecture}/PATH, or "
            f"random:{TIMM}{source.model} for random weights"
        )


def timm_sources() -> list[TimmSource]:
    """Return all models of the installed timm with published weights.

    Raises:
        ExtraMissingError: timm is not installed.
    """
    parts = (name.partition(".") for name in import_timm().list_pretrained())
    return [TimmSource(architecture, tag) for architecture, _, tag in parts]


def import_timm() -> ModuleType:
    """Return the module `timm`.

    Raises:
        ExtraMissingError: timm is not installed; the message names the extra.
    """
    return import_library("timm", requirement="timm", extra="timm")
