"""Check which settings of a CLIP model are missing from its file, and whether OpenAI's settings can be assumed."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from probe.errors import CheckpointError, printable, shorten
from probe.models.catalog import MODELS
from probe.models.open_clip_config import OPEN_CLIP_CONFIG
from probe.specs import Architecture

logger = logging.getLogger(__name__)

MAX_PATH = 120  # characters of the path in the long warning


def check_assumptions(path: Path, architecture: Architecture, *, is_archive: bool) -> None:
    """Warn about settings that the file with the weights does not contain and that are assumed to be OpenAI's.

    An archive with the widths of an OpenAI model is assumed to be that model, without a warning.

    Raises:
        CheckpointError: the file is not an archive, and no OpenAI model has these widths. The number of attention heads
            would be a guess.
    """
    widths = f"towers {architecture.vision_width} (image) and {architecture.transformer_width} (text) channels wide"
    if is_archive:
        if not _has_known_widths(architecture):
            warn_once(
                f"{path} has {widths}, unlike any of OpenAI's models; eager mode assumes attention heads of "
                f"{architecture.vision_head_width} channels and the activation QuickGELU; compare the modes with "
                "`probe parity`, or use --jit on"
            )
        return
    if not _has_known_widths(architecture):
        raise CheckpointError(
            f"{path} has {widths}, unlike any of OpenAI's models, so its attention heads and activation are unknown; "
            f"give open_clip:ARCH/PATH with its architecture, or put an {OPEN_CLIP_CONFIG} next to it"
        )
    heads = f"{architecture.vision_heads} and {architecture.transformer_heads} attention heads"
    warn_once(
        f"{shorten(printable(str(path)), MAX_PATH)} contains only weights; the other settings are assumed to be "
        f"OpenAI's: {heads}, QuickGELU, images resized (bicubic, short side) and cropped to "
        f"{architecture.image_resolution} pixels, OpenAI's mean and std, OpenAI's tokenizer with "
        f"{architecture.context_length} tokens per text; an open_clip model usually has GELU and needs "
        f"open_clip:ARCH/PATH or an {OPEN_CLIP_CONFIG} next to it"
    )


@cache
def warn_once(message: str) -> None:
    """Log a warning, unless this process has logged the same message: a run reads the file of a model several times."""
    logger.warning(message)


def _has_known_widths(architecture: Architecture) -> bool:
    """Return True if the catalogue has towers of both widths. All heads in the catalogue have 64 channels."""
    shapes = [spec.architecture for spec in MODELS if spec.architecture is not None]
    is_vit = architecture.vision_patch_size is not None
    image_widths = {shape.vision_width for shape in shapes if (shape.vision_patch_size is not None) == is_vit}
    return architecture.vision_width in image_widths and architecture.transformer_width in {
        shape.transformer_width for shape in shapes
    }
