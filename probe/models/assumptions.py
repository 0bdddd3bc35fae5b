"""Check which settings of a CLIP model are missing from its file, and whether OpenAI's settings can be assumed."""

from __future__ import annotations

import logging
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
            logger.warning(
                "%s has %s, unlike any of OpenAI's models; eager mode assumes attention heads of %d channels and the "
                "activation QuickGELU; compare the modes with `probe parity`, or use --jit on",
                *(path, widths, architecture.vision_head_width),
            )
        return
    if not _has_known_widths(architecture):
        raise CheckpointError(
            f"{path} has {widths}, unlike any of OpenAI's models, so its attention heads and activation are unknown; "
            f"give open_clip:ARCH/PATH with its architecture, or put an {OPEN_CLIP_CONFIG} next to it"
        )
    logger.warning(
        "%s contains only weights; the other settings are assumed to be OpenAI's: %d and %d attention heads, "
        "QuickGELU, images resized (bicubic, short side) and cropped to %d pixels, OpenAI's mean and std, OpenAI's "
        "tokenizer with %d tokens per text; an open_clip model usually has GELU and needs open_clip:ARCH/PATH or an "
        "%s next to it",
        *(
            shorten(printable(str(path)), MAX_PATH),
            architecture.vision_heads,
            architecture.transformer_heads,
            architecture.image_resolution,
        ),
        *(architecture.context_length, OPEN_CLIP_CONFIG),
    )


def _has_known_widths(architecture: Architecture) -> bool:
    """Return True if the catalogue has towers of both widths. All heads in the catalogue have 64 channels."""
    shapes = [spec.architecture for spec in MODELS if spec.architecture is not None]
    is_vit = architecture.vision_patch_size is not None
    image_widths = {shape.vision_width for shape in shapes if (shape.vision_patch_size is not None) == is_vit}
    return architecture.vision_width in image_widths and architecture.transformer_width in {
        shape.transformer_width for shape in shapes
    }
