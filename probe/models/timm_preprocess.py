"""Preprocessing of timm's models, as timm validates them: the settings of a tag, as the preprocessing of this package.

Source: `resolve_model_data_config` and `create_transform` of `timm.data`.
"""

from __future__ import annotations

import math
from typing import Any

from probe.errors import CheckpointError
from probe.models.assumptions import warn_once
from probe.models.preprocess import INTERPOLATIONS, AnyPreprocess, CustomPreprocess, Preprocess
from probe.models.timm_names import TimmSource, find_config, import_timm

RESIZES = {"center": "shortest", "squash": "squash"}  # `crop_mode` of timm -> `Preprocess.resize`


def find_data_config(source: TimmSource) -> dict[str, Any]:
    """Return the arguments of timm's `create_transform` for validation: input size, crop, filter, mean and std."""
    config: dict[str, Any] = import_timm().data.resolve_data_config(pretrained_cfg=find_config(source).to_dict())
    return config


def timm_preprocess(source: TimmSource) -> AnyPreprocess:
    """Return the preprocessing of a model.

    Most models have square images, of which the centre is cropped. Their preprocessing is a `Preprocess`, which is
    faster than timm's transform and gives the same bits. Other models have timm's transform.

    Raises:
        CheckpointError: the model is not for images with three channels.
    """
    settings = find_data_config(source)
    channels, height, width = settings["input_size"]
    if channels != 3:
        raise CheckpointError(f"timm's {source.model} is for images with {channels} channels; give a model for RGB")
    if source.path is not None and not source.has_tag:
        _warn_if_tags_differ(source)
    resize_to = math.floor(height / settings["crop_pct"])
    is_plain = height == width and resize_to >= height and settings["crop_mode"] in RESIZES
    if is_plain and settings["interpolation"] in INTERPOLATIONS:
        return Preprocess(
            height,
            tuple(settings["mean"]),
            tuple(settings["std"]),
            settings["interpolation"],
            RESIZES[settings["crop_mode"]],
            resize_to if resize_to != height else 0,
        )
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    function = import_timm().data.create_transform(**settings, is_training=False)
    return CustomPreprocess(function, (height, width), f"timm.data.create_transform({arguments})")


def _warn_if_tags_differ(source: TimmSource) -> None:
    """Warn that the preprocessing of a checkpoint is assumed, if timm has several for its architecture."""
    tags = import_timm().models.get_arch_pretrained_cfgs(source.architecture)
    settings = find_data_config(source)
    others = [name for name in tags if find_data_config(TimmSource(*name.partition(".")[::2])) != settings]
    if others:
        warn_once(
            f"timm:{source} names no tag; the preprocessing of timm's {source.model} is assumed, and {others[0]} has "
            f"a different preprocessing; name the tag as in timm:{others[0]}/PATH"
        )
