"""Sizes and cost of an encoder of any family: what planning a grid and describing a model need. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from probe.models.encoder import ImageEncoder
from probe.models.families import find_family
from probe.models.memory import activation_bytes, measure_activations
from probe.models.profile import count_flops, describe_sizes
from probe.specs import ModelSpec, Profile

# Activations of a measured model, as a multiple of what its operations return. `activation_bytes`, which is a bound for
# the models of the catalogue, is 1.04 to 1.51 times as large as `measure_activations` for these models.
MARGIN = 1.5


@dataclass(frozen=True)
class ModelSizes:
    """Sizes and cost of an encoder.

    Args:
        shape: height and width of the input images, in pixels.
        embed_dim: width of the projected features.
        pre_projection_dim: width of the features before the projection.
        profile: number of parameters and of operations; None if they are not known.
        activation_bytes: memory that one image needs while it is encoded in fp32, in bytes.
    """

    shape: tuple[int, int]
    embed_dim: int
    pre_projection_dim: int
    profile: Profile | None
    activation_bytes: int

    def describe(self) -> dict[str, Any]:
        """Return the sizes as JSON values, as in `description.model_facts`."""
        return describe_sizes(self.shape[0], self.embed_dim, self.pre_projection_dim, self.profile)


@lru_cache(maxsize=256)
def find_sizes(model: ModelSpec) -> ModelSizes | None:
    """Return the sizes of a model; None if only its weights tell.

    Raises:
        CheckpointError, ExtraMissingError: the message says what to do.
    """
    shape = model.architecture
    if shape is not None:
        side = shape.image_resolution
        widths = (shape.embed_dim, shape.pre_projection_dim)
        return ModelSizes((side, side), *widths, model.profile, activation_bytes(shape))
    family = find_family(model.form)
    return None if family is None else family.measure_sizes(model)


def measure_encoder(encoder: ImageEncoder, module: nn.Module, profile: Profile | None = None) -> ModelSizes:
    """Return the sizes of a loaded encoder, by encoding one black image. On torch's device `meta` this takes no memory.

    Args:
        encoder: the encoder.
        module: the model, whose parameters are counted if `profile` is None.
        profile: cost of the model, if the caller knows it; None for a model that is only an image tower.
    """

    def run(images: Tensor) -> Tensor:
        return encoder.project(encoder.pre_projection(images))

    shape = encoder.preprocess.shape
    image = torch.zeros(1, 3, *shape, device=encoder.execution.device, dtype=encoder.execution.dtype)
    if profile is None:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        profile = Profile(parameters, parameters, count_flops(run, image))
    needed = round(MARGIN * measure_activations(run, image))
    return ModelSizes(shape, encoder.embed_dim, encoder.pre_projection_dim, profile, needed)
