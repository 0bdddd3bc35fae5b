"""What the weights of a CLIP do not tell, and when it may be taken to be as in OpenAI's models."""

from __future__ import annotations

import logging
from pathlib import Path

from probe.errors import CheckpointError
from probe.models.catalog import CATALOG
from probe.models.open_clip_config import CONFIG
from probe.specs import Architecture

logger = logging.getLogger(__name__)


def check_assumptions(path: Path, architecture: Architecture, *, is_archive: bool) -> None:
    """Warn of all that is taken to be as in OpenAI's models, since the file with the weights does not tell it.

    An archive of OpenAI's sizes is taken to be OpenAI's, without a warning.

    Raises:
        CheckpointError: weights of widths that no model of OpenAI's has, so that heads of 64 channels are a guess.
    """
    widths = f"towers {architecture.vision_width} (image) and {architecture.transformer_width} (text) channels wide"
    if is_archive:
        if not _has_known_widths(architecture):
            logger.warning(
                "%s has %s, as no model of OpenAI's; in eager mode its heads are taken to have %d channels and its "
                "activation to be QuickGELU: compare the modes with `probe parity`, or use --jit on",
                *(path, widths, architecture.vision_head_width),
            )
        return
    if not _has_known_widths(architecture):
        raise CheckpointError(
            f"{path} has {widths}, as no model of OpenAI's, and nothing tells its attention heads and activation; name "
            f"its architecture, open_clip:ARCH/PATH, or put an {CONFIG} next to it"
        )
    logger.warning(
        "%s holds weights alone; all else is taken to be as in OpenAI's models: %d and %d attention heads, QuickGELU, "
        "images resized (bicubic, by the short side) and cropped to %d pixels, their mean and std, the tokenizer and "
        "its %d tokens; a model of open_clip's, most of which use GELU, needs open_clip:ARCH/PATH or an %s next to it",
        *(path, architecture.vision_heads, architecture.transformer_heads, architecture.image_resolution),
        *(architecture.context_length, CONFIG),
    )


def _has_known_widths(architecture: Architecture) -> bool:
    """Return whether the catalogue, where all heads have 64 channels, has towers of both widths."""
    shapes = [spec.architecture for spec in CATALOG if spec.architecture is not None]
    is_vit = architecture.vision_patch_size is not None
    image_widths = {shape.vision_width for shape in shapes if (shape.vision_patch_size is not None) == is_vit}
    return architecture.vision_width in image_widths and architecture.transformer_width in {
        shape.transformer_width for shape in shapes
    }
