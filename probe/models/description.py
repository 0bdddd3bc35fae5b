"""Describe a model for a reader: weights, sizes, cost and modes."""

from __future__ import annotations

from pathlib import Path

from probe.errors import DownloadError
from probe.fetch import file_sha256
from probe.models import get_model, is_here, open_clip, open_clip_names, open_clip_towers
from probe.models.loading import has_jit_mode, read_weights
from probe.models.profile import profile_architecture, profile_model
from probe.specs import ModelSpec, Profile

BOTH, EAGER = "eager, jit", "eager"


def describe_model(name: str | Path, *, weights_dir: str | Path | None = None) -> dict[str, str]:
    """Return a description of a model as pairs of label and text.

    Facts that only the weights contain are included if the weights are on this machine. Nothing is downloaded.

    Raises:
        UnknownNameError, CheckpointError, ExtraMissingError: the message says what to do.
    """
    spec = get_model(name)
    here = is_here(spec, weights_dir)
    facts = {
        "name": spec.name,
        "weights": f"{spec.form}, {spec.source}" + ("" if here else " (downloads on first use)"),
    }
    if spec.architecture is not None:
        shape, profile = spec.architecture, spec.profile or profile_architecture(spec.architecture)
        facts |= {"sha256": spec.sha256, "licence": spec.license, "modes": BOTH}
        facts |= _sizes(shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile)
    elif spec.form == "open_clip":
        facts |= _describe_zoo(spec, here=here)
    else:
        facts |= _describe_checkpoint(spec) if here else {"modes": EAGER}
    return {label: text for label, text in facts.items() if text}


def _describe_checkpoint(spec: ModelSpec) -> dict[str, str]:
    checkpoint = read_weights(spec, offline=True)
    shape = checkpoint.architecture
    return {
        "sha256": checkpoint.sha256,
        "licence": checkpoint.license,
        "modes": BOTH if has_jit_mode(checkpoint) else EAGER,
        **_sizes(shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile_architecture(shape)),
    }


def _describe_zoo(spec: ModelSpec, *, here: bool) -> dict[str, str]:
    facts = {"modes": EAGER}
    if here:
        path, facts["licence"] = open_clip.fetch_zoo_weights(open_clip_names.parse(spec.source), offline=True)
        facts["sha256"] = file_sha256(path)
    try:
        loaded = open_clip.sketch(spec.source)
    except DownloadError:  # the configuration of a text tower of Hugging Face is not on this machine
        return facts
    profile = profile_model(loaded.model, loaded.preprocess.resolution)
    encoder = open_clip_towers.zoo_encoder(spec.name, loaded, open_clip.META)
    return facts | _sizes(encoder.resolution, encoder.embed_dim, encoder.pre_projection_dim, profile)


def _sizes(resolution: int, embed_dim: int, pre_projection_dim: int, profile: Profile) -> dict[str, str]:
    return {
        "pixels": str(resolution),
        "projected": f"{embed_dim}-d",
        "before projection": f"{pre_projection_dim}-d",
        "parameters": f"{profile.parameters:,}, of which {profile.image_parameters:,} in the image tower",
        "GFLOPs per image": f"{profile.flops / 1e9:.3g}",
    }
