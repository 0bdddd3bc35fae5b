"""Split the image tower of a loaded open_clip model into two steps: up to the projection, and the projection."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from probe.models.devices import Execution
from probe.models.encoder import ImageEncoder, dtypes_of, measure_widths, no_projection
from probe.models.open_clip import ZooModel
from probe.models.openai import expose_pre_projection


def zoo_encoder(name: str, loaded: ZooModel, execution: Execution) -> ImageEncoder:
    """Return the image tower of a loaded model as an encoder. The model itself must not be used any more.

    Raises:
        DeviceError: the model cannot compute in this precision on this device.
    """
    visual = loaded.model.visual
    assert isinstance(visual, nn.Module)
    before, project = _split_image_encoder(loaded.model, visual)
    widths = measure_widths(name, before, project, shape=loaded.preprocess.shape, execution=execution)
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
        pre_projection=before,
        project=project,
        preprocess_from=loaded.preprocess_from,
        weights_key=loaded.weights_key,
    )


def _split_image_encoder(
    model: nn.Module, visual: nn.Module
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the tower up to its projection, and the projection.

    Both together compute `model.encode_image(images)` with open_clip's default arguments. By default, open_clip
    normalises the features of CoCa models only.
    """
    before, project = _split_tower(model, visual)
    encode_image: Any = model.encode_image
    if inspect.signature(encode_image).parameters["normalize"].default:
        return before, lambda features: functional.normalize(project(features), dim=-1)
    return before, project


def _split_tower(model: nn.Module, visual: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the tower up to its last layer, and that layer.

    open_clip's own towers have the same last layer as OpenAI's models. A timm tower ends in a layer of timm or of
    open_clip; the input of this layer is the feature before the projection.
    """

    def run(images: Tensor) -> Tensor:
        output = visual(images)
        return output[0] if isinstance(output, tuple) else output  # a CoCa tower also returns its tokens

    if hasattr(visual, "attnpool") or getattr(visual, "proj", None) is not None:
        return run, expose_pre_projection(model)
    projection = _last_layer(visual)
    if projection is None:
        return run, no_projection
    inputs: list[Tensor] = []  # of the projection
    projection.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))

    def run_up_to_projection(images: Tensor) -> Tensor:
        run(images)
        return inputs.pop()

    def project(features: Tensor) -> Tensor:
        projected: Tensor = projection(features)
        inputs.clear()
        return projected

    return run_up_to_projection, project


def _last_layer(visual: nn.Module) -> nn.Module | None:
    """Return the layer that projects, or None if the tower has none."""
    head: Any = getattr(visual, "head", None)
    trunk: Any = getattr(visual, "trunk", None)
    if hasattr(head, "proj"):
        return head.proj
    if hasattr(head, "mlp"):
        return head.mlp
    classifier = trunk.get_classifier() if trunk is not None else None
    return classifier if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.Identity) else None
