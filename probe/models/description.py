"""One model in words, for a reader: where it is from, its sizes, its cost, its modes."""

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
    """What there is to say of one model; what only the weights tell is said where they are here. Downloads nothing.

    Raises:
        UnknownNameError, CheckpointError, ExtraMissingError: each says what to do.
    """
    spec = get_model(name)
    here = is_here(spec, weights_dir)
    said = {"name": spec.name, "weights": f"{spec.form}, {spec.source}" + ("" if here else " (to be downloaded)")}
    if spec.architecture is not None:
        shape, profile = spec.architecture, spec.profile or profile_architecture(spec.architecture)
        said |= {"sha256": spec.sha256, "licence": spec.license, "modes": BOTH}
        said |= _sizes(shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile)
    elif spec.form == "open_clip":
        said |= _describe_zoo(spec, here=here)
    else:
        said |= _describe_checkpoint(spec) if here else {"modes": EAGER}
    return {key: value for key, value in said.items() if value}


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
    said = {"modes": EAGER}
    if here:
        path, said["licence"] = open_clip.fetch_zoo_weights(open_clip_names.parse(spec.source), offline=True)
        said["sha256"] = file_sha256(path)
    try:
        loaded = open_clip.sketch(spec.source)
    except DownloadError:  # its text tower is Hugging Face's, whose configuration is not here
        return said
    profile = profile_model(loaded.model, loaded.preprocess.resolution)
    encoder = open_clip_towers.zoo_encoder(spec.name, loaded, open_clip.META)
    return said | _sizes(encoder.resolution, encoder.embed_dim, encoder.pre_projection_dim, profile)


def _sizes(resolution: int, embed_dim: int, pre_projection_dim: int, profile: Profile) -> dict[str, str]:
    return {
        "pixels": str(resolution),
        "projected": f"{embed_dim}-d",
        "before projection": f"{pre_projection_dim}-d",
        "parameters": f"{profile.parameters:,}, of which {profile.image_parameters:,} in the image tower",
        "GFLOPs an image": f"{profile.flops / 1e9:.3g}",
    }
