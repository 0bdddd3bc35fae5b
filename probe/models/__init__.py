"""CLIP models: a name -> something that encodes images. Imports torch only when a model is loaded."""

from __future__ import annotations

from pathlib import Path

from probe import paths
from probe.errors import CheckpointMissingError
from probe.models.catalog import CATALOG
from probe.names import unknown_name
from probe.specs import ModelSpec

RANDOM = "random:"
RANDOM_SEED = 0
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def model_names() -> tuple[str, ...]:
    """The models that have a name of their own, in the order of the catalogue."""
    return tuple(spec.name for spec in CATALOG)


def get_model(name: str) -> ModelSpec:
    """Find a model: a name of the catalogue, `random:NAME` for its sizes with seeded random weights, or a path.

    Raises:
        UnknownNameError: no such model; the message offers what is near.
        CheckpointMissingError: the name reads as a path and no file is there.
    """
    for spec in CATALOG:
        if spec.name == name:
            return spec
    if name.startswith(RANDOM):
        shape = get_model(name.removeprefix(RANDOM))
        if shape.architecture is None or shape.form == "random":
            raise unknown_name("model", shape.name, model_names())
        return ModelSpec(name, form="random", source=shape.name, architecture=shape.architecture, seed=RANDOM_SEED)
    try:
        path = Path(name).expanduser().resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError) as err:  # a name too long, a home of nobody, a folder that may not be looked into
        raise CheckpointMissingError(f"cannot look at {name!r} ({err}); give the path of a file") from err
    if is_file:
        return ModelSpec(str(path), form="file", source=str(path))
    if path.suffix in CHECKPOINT_SUFFIXES or name.startswith((".", "/", "~")):
        raise CheckpointMissingError(f"no checkpoint at {path}; give the path of a file")
    raise unknown_name("model", name, model_names(), forms=f"{RANDOM}NAME, or the path of a checkpoint")


def is_here(spec: ModelSpec, weights_dir: str | Path | None = None) -> bool:
    """Whether a model needs no download: a file of its name is there; its checksum is verified on loading."""
    if spec.form != "url":
        return True
    return (paths.weights_dir(weights_dir) / spec.source.rsplit("/", 1)[-1]).is_file()
