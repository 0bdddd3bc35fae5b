"""One model in words, for a reader: where it is from, its sizes, its cost, its modes."""

from __future__ import annotations

from pathlib import Path

from probe.models import get_model, is_here, open_clip
from probe.models.catalog import PROFILES
from probe.models.devices import resolve_execution
from probe.models.loading import has_jit_mode, read_weights
from probe.models.profile import profile_architecture, profile_model
from probe.specs import Architecture, ModelSpec, Profile

NO_JIT, BOTH = "eager", "eager, jit"


def describe(name: str | Path, *, weights_dir: str | Path | None = None) -> dict[str, str]:
    """What there is to say of one model. Sizes that only the weights tell are said where the weights are here.

    Raises:
        UnknownNameError, CheckpointError, ExtraMissingError: each says what to do.
    """
    spec = get_model(name)
    here = is_here(spec, weights_dir)
    said = {
        "name": spec.name,
        "weights": f"{spec.form}, {spec.source}" + ("" if here else " (to be downloaded)"),
        "sha256": spec.sha256,
        "licence": spec.license,
    }
    if spec.architecture is not None:
        profile = PROFILES[spec.source if spec.form == "random" else spec.name]
        said |= {**_sizes(spec.architecture, profile), "modes": BOTH}
    elif here:
        said |= _read_zoo(spec) if spec.form == "open_clip" else _read_checkpoint(spec)
    return {key: value for key, value in said.items() if value}


def _read_checkpoint(spec: ModelSpec) -> dict[str, str]:
    checkpoint = read_weights(spec, offline=True)
    return {
        **_sizes(checkpoint.architecture, profile_architecture(checkpoint.architecture)),
        "sha256": checkpoint.sha256,
        "licence": checkpoint.license,
        "modes": BOTH if has_jit_mode(checkpoint) else NO_JIT,
    }


def _read_zoo(spec: ModelSpec) -> dict[str, str]:
    execution = resolve_execution("cpu")
    loaded = open_clip.load_model(spec.source, execution, offline=True)
    profile = profile_model(loaded.model, loaded.preprocess.resolution)
    encoder = open_clip.as_encoder(spec.name, loaded, execution)
    return {
        **_words(encoder.resolution, encoder.embed_dim, encoder.pre_projection_dim, profile),
        "sha256": loaded.sha256,
        "licence": loaded.license,
        "modes": NO_JIT,
    }


def _sizes(shape: Architecture, profile: Profile) -> dict[str, str]:
    return _words(shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile)


def _words(resolution: int, embed_dim: int, pre_projection_dim: int, profile: Profile) -> dict[str, str]:
    return {
        "pixels": str(resolution),
        "projected": f"{embed_dim}-d",
        "before projection": f"{pre_projection_dim}-d",
        "parameters": f"{profile.parameters:,}, of which {profile.image_parameters:,} in the image tower",
        "GFLOPs an image": f"{profile.flops / 1e9:.3g}",
    }
