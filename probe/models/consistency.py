"""The check of OpenAI's loader between eager and JIT mode: the softmax of their logits.

Source: openai/CLIP `tests/test_consistency.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probe.models.checkpoints import Checkpoint
from probe.models.devices import Execution
from probe.models.towers import CLIP
from probe.specs import Architecture

ATOL, RTOL = 0.01, 0.1


@torch.inference_mode()
def softmax_of_logits(
    model: CLIP | torch.jit.ScriptModule, checkpoint: Checkpoint, execution: Execution, images: Sequence[Image.Image]
) -> tuple[np.ndarray, np.ndarray]:
    """How a model matches n images and n seeded texts, in the order of `forward`.

    Returns:
        Two float32 (n, n): for each image the chances of the texts, for each text those of the images.
    """
    pixels = torch.from_numpy(np.stack([checkpoint.preprocess.to_pixels(image) for image in images]))
    texts = random_texts(len(images), checkpoint.architecture).to(execution.device)
    batch = checkpoint.preprocess.normalize(pixels.to(execution.device)).to(execution.dtype)
    per_image, per_text = model(batch, texts)
    image_chances, text_chances = (logits.float().softmax(dim=-1).cpu().numpy() for logits in (per_image, per_text))
    return image_chances, text_chances


def random_texts(n: int, shape: Architecture) -> Tensor:
    """Token ids, int64 (n, context_length), of random length: start, tokens, end, zeros. They need no vocabulary."""
    rng = np.random.default_rng(0)
    start, end = shape.vocab_size - 2, shape.vocab_size - 1
    texts = np.zeros((n, shape.context_length), dtype=np.int64)
    for row, length in zip(texts, rng.integers(1, shape.context_length - 1, size=n), strict=True):
        row[: length + 2] = [start, *rng.integers(start, size=length), end]
    return torch.from_numpy(texts)
