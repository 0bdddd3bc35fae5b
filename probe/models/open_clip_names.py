"""Parse names of open_clip models: an architecture and its weights, or a folder with open_clip's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probe import hub
from probe.errors import CheckpointMissingError, UnknownNameError, listed
from probe.models import KEY, OPEN_CLIP, locate_checkpoint, refuse_options
from probe.models.families import import_library
from probe.models.open_clip_config import HUB, LOCAL, OPEN_CLIP_CONFIG
from probe.names import unknown_name

if TYPE_CHECKING:
    from types import ModuleType

OWN_PREPROCESS = "preprocess=open_clip"  # after the `?` of `ARCH/PATH`, or after `?key=KEY&`


@dataclass(frozen=True)
class ZooSource:
    """The parts of the name of an open_clip model.

    Args:
        architecture: open_clip's name of the architecture; empty if `open_clip_config.json` is next to the weights.
        tag: tag in open_clip's table.
        path: path of a checkpoint, or of a folder with a configuration.
        repo: repository of the Hugging Face hub with a configuration, `ORG/NAME`.
        own_preprocess: True to use open_clip's default preprocessing instead of the settings of the tags.
        key: selects one of several models in the checkpoint; empty if there is only one.
    """

    architecture: str = ""
    tag: str = ""
    path: Path | None = None
    repo: str = ""
    own_preprocess: bool = False
    key: str = ""

    def __str__(self) -> str:
        """Return the name in the form of `ModelSpec.source`."""
        if self.repo:
            return f"{HUB}{self.repo}"
        key = f"{KEY}{self.key}" if self.key else ""
        if not self.architecture:
            return f"{LOCAL}{self.path}{key}"
        own = f"{'&' if key else '?'}{OWN_PREPROCESS}" if self.own_preprocess else ""
        return f"{self.architecture}/{self.tag or self.path}{key}{own}"


def parse(source: str) -> ZooSource:
    """Parse `ARCH/TAG`, `ARCH/PATH`, `local-dir:PATH` or `hf-hub:ORG/NAME`. An architecture may contain a slash.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag; the message suggests similar names.
        CheckpointMissingError: the path does not exist, or the folder has no `open_clip_config.json`.
        ExtraMissingError: open_clip is not installed.
    """
    if source.startswith(HUB):
        repo = source.removeprefix(HUB)
        hub.check_repository(repo)
        return ZooSource(repo=repo)
    if source.startswith(LOCAL):
        return _parse_local(source.removeprefix(LOCAL))
    architecture, rest = _split_architecture(source)
    tags = import_open_clip().list_pretrained_tags_by_model(architecture)
    if rest in tags:
        return ZooSource(architecture, tag=rest)
    own_preprocess = rest.endswith((f"?{OWN_PREPROCESS}", f"&{OWN_PREPROCESS}"))
    path, key = locate_checkpoint(rest[: -len(OWN_PREPROCESS) - 1] if own_preprocess else rest)
    if path.is_file():
        return ZooSource(architecture, path=path, own_preprocess=own_preprocess, key=key)
    refuse_options(rest, f"{KEY}KEY, ?{OWN_PREPROCESS} and {KEY}KEY&{OWN_PREPROCESS}")
    if "/" in rest or path.suffix:
        raise CheckpointMissingError(f"no checkpoint at {path}; give the path of a file")
    if not tags:
        raise UnknownNameError(f"open_clip has no weights for {architecture}; give {OPEN_CLIP}{architecture}/PATH")
    if not rest:
        known = listed(tags)
        raise UnknownNameError(f"{OPEN_CLIP}{architecture} names no weights; add / and one of the tags: {known}")
    raise unknown_name(f"tag of open_clip's {architecture}", rest, tags)


def _parse_local(name: str) -> ZooSource:
    path, key = locate_checkpoint(name)
    if not path.exists():
        raise CheckpointMissingError(f"no file or folder at {path}; give the folder that contains {OPEN_CLIP_CONFIG}")
    folder = path if path.is_dir() else path.parent
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise CheckpointMissingError(f"{folder} has no {OPEN_CLIP_CONFIG}; add that file, or give open_clip:ARCH/PATH")
    return ZooSource(path=path, key=key)


def _split_architecture(source: str) -> tuple[str, str]:
    """Return the architecture, and the text after the architecture, which may be empty."""
    architectures = import_open_clip().list_models()
    parts = source.split("/")
    for i in range(1, len(parts) + 1):
        architecture = "-".join(parts[:i])
        if architecture in architectures:
            return architecture, "/".join(parts[i:])
    raise unknown_name("architecture of open_clip", "-".join(parts[:-1]) or source, architectures)


def names() -> tuple[str, ...]:
    """Return the names of all models of the installed open_clip, as `open_clip:ARCH/TAG`.

    Raises:
        ExtraMissingError: open_clip is not installed.
    """
    return tuple(f"{OPEN_CLIP}{architecture}/{tag}" for architecture, tag in import_open_clip().list_pretrained())


def import_open_clip() -> ModuleType:
    """Return the module `open_clip`.

    Raises:
        ExtraMissingError: open_clip is not installed; the message names the extra.
    """
    return import_library("open_clip", requirement="'open_clip_torch>=3,<4'", extra="open-clip")
