"""Build models and preprocessing with transformers. Needs the extra `transformers`.

`trust_remote_code` is always False: code of a repository is never run. `checkpoints.py` reads the weights instead of
transformers, because `checkpoints.py` checks the files and runs no code of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from probe.errors import CheckpointError, ProbeError, listed, summarize
from probe.models import FOLDER_MARK
from probe.models.encoder import no_projection
from probe.models.preprocess import CustomPreprocess
from probe.models.transformers_names import find_processor_settings, import_transformers
from probe.models.transformers_pooling import RULES, PooledTower

WITH_PROJECTION = "VisionModelWithProjection"  # end of the names of classes that `AutoModel` does not build
TEST_SIZES = ((64, 48), (48, 64))  # sizes of the images with which the shape of the pixels is found


@dataclass(frozen=True)
class SplitModel:
    """A model of transformers in eval mode, in two steps.

    Args:
        model: the whole model, with the text tower if there is one.
        tower: the image tower with its pooling, up to the projection.
        projection: the projection, or None.
    """

    model: nn.Module
    tower: PooledTower
    projection: nn.Module | None

    @property
    def project(self) -> Callable[[Tensor], Tensor]:
        """Function from the features before the projection to the projected features."""
        return no_projection if self.projection is None else self.projection


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """Function that preprocesses one image with an image processor of transformers."""

    processor: Any = field(repr=False)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels (3, height, width), fp32."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the log messages and progress bars of transformers in the block.

    Most messages are about weights that transformers drew at random. Such weights are errors of this package.
    """
    logging = import_transformers().utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def naming_failures(folder: Path, what: str) -> Iterator[None]:
    """Raise a CheckpointError that names the folder for an exception of transformers in the block."""
    try:
        with quiet():
            yield
    except (ProbeError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as err:  # transformers raises exceptions of many classes for settings that it cannot use
        raise CheckpointError(
            f"transformers cannot {what} {folder} ({summarize(err)}); check the files, or give another model"
        ) from err


def load_processor(folder: Path) -> CustomPreprocess:
    """Return the preprocessing that `AutoImageProcessor` gives for a folder.

    The processor itself preprocesses each image, so that code that uses transformers gives the same pixels. Processors
    of transformers 5 resize with torchvision by default. `Preprocess` resizes with Pillow. Up to one percent of the
    pixels differ between the two, by one step of 255.

    Raises:
        CheckpointError: the settings cannot be used, or images of different shapes give pixels of different shapes.
    """
    with naming_failures(folder, "preprocess images with the settings in"):
        auto = import_transformers().AutoImageProcessor
        processor = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        function = ImageProcessor(processor)
        shapes = [tuple(function(Image.new("RGB", size)).shape) for size in TEST_SIZES]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][0] != 3:
        raise CheckpointError(
            f"{find_processor_settings(folder)} gives pixels of shapes {shapes[0]} and {shapes[1]} for images of "
            "different shapes; set a crop_size and do_center_crop, or a height and a width"
        )
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return CustomPreprocess(function, shapes[0][1:], f"transformers {type(processor).__name__} {settings}")


def load_split_model(
    folder: Path, config: Mapping[str, Any], pooling: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]
) -> SplitModel:
    """Return a model with its weights, in fp32 on the CPU.

    Args:
        folder: folder of the model.
        config: content of its `config.json`, from `read_settings`.
        pooling: one of `POOLINGS`.
        tensors: content of the files with the weights.
        shape: height and width of the pixels.

    Raises:
        CheckpointError: transformers cannot build the model, or weights that the features need are missing.
    """
    with naming_failures(folder, "load the weights in"):
        settings, model_class = _find_class(config, folder)
        model, report = model_class.from_pretrained(
            None, config=settings, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
        )
        split = _split(model.eval().requires_grad_(False), config, pooling)
        missing = sorted(report["missing_keys"])
        if missing and _needs(split, missing, shape):
            raise CheckpointError(
                f"{folder} has no weights {listed(missing, most=3)}, which the features with {pooling!r} pooling need; "
                "give a complete checkpoint, or another pooling with ?pool="
            )
    return split


def sketch_split_model(folder: Path, config: Mapping[str, Any], pooling: str) -> SplitModel:
    """Return a model on torch's device `meta`. The model has sizes but no weights, and takes no memory.

    Raises:
        CheckpointError: transformers cannot build the model.
    """
    with naming_failures(folder, "build the model of"), torch.device("meta"):
        settings, model_class = _find_class(config, folder)
        return _split(model_class(settings).float().eval(), config, pooling)


def _find_class(config: Mapping[str, Any], folder: Path) -> tuple[Any, Any]:
    """Return the configuration as an object of transformers, and the class that `AutoModel` chooses.

    `AutoModel` drops the projection of an image tower that was saved without its text tower. The class that saved such
    a tower is used instead.
    """
    transformers = import_transformers()
    path, model_type = folder / FOLDER_MARK, config["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"{path} has model_type {model_type!r}, which transformers {transformers.__version__} does not know; "
            "install a newer version, or give another model"
        )
    settings = transformers.CONFIG_MAPPING[model_type].from_dict(dict(config))
    if model_type == "vit_mae":
        settings.mask_ratio = 0.0  # otherwise the encoder sees a random quarter of the patches
    architecture = (settings.architectures or [""])[0]
    if architecture.endswith(WITH_PROJECTION) and hasattr(transformers, architecture):
        return settings, getattr(transformers, architecture)
    if type(settings) not in transformers.MODEL_MAPPING:
        raise CheckpointError(f"{path} has model_type {model_type!r}, which AutoModel cannot build; give another model")
    return settings, transformers.MODEL_MAPPING[type(settings)]


def _split(model: Any, config: Mapping[str, Any], pooling: str) -> SplitModel:
    """Return the image tower and the projection of a model.

    The projection takes the pooled output, so that a model with another pooling has no projection.
    """
    model_type = config["model_type"]
    tower = model.vision_model if hasattr(model, "vision_model") else model
    if tower is model and hasattr(model.config, "vision_config"):
        raise CheckpointError(
            f"models with model_type {model_type!r} do not encode images alone; give a model with an image tower"
        )
    has_projection = pooling == "pooler" and model_type in RULES and RULES[model_type].has_projection
    projection = getattr(model, "visual_projection", None) if has_projection else None
    return SplitModel(model, PooledTower(tower, model_type, pooling), projection)


def _needs(split: SplitModel, missing: Sequence[str], shape: tuple[int, int]) -> bool:
    """Return True if the features depend on some weights. These weights are overwritten with NaN.

    transformers draws missing weights at random. Many checkpoints lack weights that the features do not need, such as a
    pooling layer.
    """
    weights = {**dict(split.model.named_parameters()), **dict(split.model.named_buffers())}
    for name in missing:
        if name in weights and weights[name].is_floating_point():
            weights[name].data.fill_(torch.nan)
    with torch.inference_mode():
        return bool(split.project(split.tower(torch.zeros(1, 3, *shape))).isnan().any())
