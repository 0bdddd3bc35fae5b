"""Find the weights and the configuration of an open_clip model, and identify them without loading the model."""

from __future__ import annotations

from pathlib import Path

from probe import hub
from probe.errors import CheckpointError
from probe.fetch import weights_sha256
from probe.models.checkpoint_files import SAFETENSORS
from probe.models.open_clip_config import LOCAL, OPEN_CLIP_CONFIG, WEIGHTS, find_weights, read_config
from probe.models.open_clip_names import ZooSource, import_open_clip, parse
from probe.specs import digest

DEFAULT_ORIGIN = "open_clip's default"


def is_zoo_model_here(source: str) -> bool:
    """Return True if the weights need no download."""
    zoo_source = parse(source)
    return zoo_source.path is not None or hub.has_cached_file(*_published_files(zoo_source))


def _published_files(source: ZooSource) -> tuple[str, tuple[str, ...]]:
    """Return the repository of a model and the possible names of its weights, best first.

    Safetensors files come first, because they cannot contain code.
    """
    if source.repo:
        return source.repo, WEIGHTS
    settings = import_open_clip().get_pretrained_cfg(source.architecture, source.tag)
    repo, _, file = settings.get("hf_hub", "").rpartition("/")
    if not repo:
        raise CheckpointError(
            f"open_clip has no repository for {source}; download the weights and give open_clip:ARCH/PATH"
        )
    return repo, (f"{Path(file).stem}{SAFETENSORS}", file) if file else WEIGHTS


def fetch_zoo_weights(source: ZooSource, *, offline: bool) -> tuple[Path, str]:
    """Return the path of the weights, after a download if necessary, and their licence, empty if it is not known.

    Raises:
        CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    if source.path is not None:
        path = find_weights(source.path) if source.path.is_dir() else source.path
        return path, "" if source.architecture else hub.read_license(path.parent)
    repo, files = _published_files(source)
    folder = hub.fetch_repository(repo, [[file] for file in files], [OPEN_CLIP_CONFIG, hub.CARD], offline=offline)
    return next(folder / file for file in files if (folder / file).is_file()), hub.read_license(folder)


def identify_zoo_weights(source: str, *, offline: bool) -> str:
    """Return a digest of all that determines the features of a model: the weights and the settings.

    Raises:
        CheckpointError, DownloadError, ChecksumError: the message says what to do.
    """
    zoo_source = parse(source)
    path, _ = fetch_zoo_weights(zoo_source, offline=offline)
    if not zoo_source.architecture:
        zoo_source = ZooSource(path=path, key=zoo_source.key)
    facts = {"architecture": zoo_source.architecture, "tag": zoo_source.tag, "sha256": weights_sha256(path)}
    if zoo_source.key:
        facts["key"] = zoo_source.key
    if zoo_source.own_preprocess:
        facts["preprocess"] = DEFAULT_ORIGIN
    if not zoo_source.architecture:
        facts["config"] = weights_sha256(find_config_folder(zoo_source, offline=offline) / OPEN_CLIP_CONFIG)
    if "multimodal_cfg" in import_open_clip().get_model_config(name_for_open_clip(zoo_source, offline=offline)):
        facts["projected"] = "unit length"  # CoCa models; earlier versions cached features that were not normalised
    return digest(facts)


def name_for_open_clip(source: ZooSource, *, offline: bool) -> str:
    """Return the architecture as open_clip expects it: its name, or the folder of its configuration."""
    return source.architecture or f"{LOCAL}{find_config_folder(source, offline=offline)}"


def find_config_folder(source: ZooSource, *, offline: bool) -> Path:
    """Return the folder with the configuration, after checking that the configuration is complete."""
    if source.repo:
        folder = hub.fetch_repository(source.repo, [[OPEN_CLIP_CONFIG]], offline=offline)
    else:
        assert source.path is not None
        folder = source.path if source.path.is_dir() else source.path.parent
    read_config(folder)
    return folder
