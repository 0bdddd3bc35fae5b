"""Compare eager and JIT mode as the tests of OpenAI's package do, by the softmax of the logits.

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
    """Return the softmax of a model's logits for n images and n seeded random texts.

    Returns:
        Two float32 arrays (n, n): the probabilities of the texts for each image, and of the images for each text.
    """
    pixels = torch.from_numpy(np.stack([checkpoint.preprocess.to_pixels(image) for image in images]))
    texts = random_texts(len(images), checkpoint.architecture).to(execution.device)
    batch = checkpoint.preprocess.normalize(pixels.to(execution.device)).to(execution.dtype)
    per_image, per_text = model(batch, texts)
    image_probs, text_probs = (logits.float().softmax(dim=-1).cpu().numpy() for logits in (per_image, per_text))
    return image_probs, text_probs


def random_texts(n: int, shape: Architecture) -> Tensor:
    """Return n random texts as token ids, int64 (n, context_length).

    Each row has the start token, a random number of random tokens, the end token, and zeros. No vocabulary is needed.
    """
    rng = np.random.default_rng(0)
    start, end = shape.vocab_size - 2, shape.vocab_size - 1
    texts = np.zeros((n, shape.context_length), dtype=np.int64)
    for row, length in zip(texts, rng.integers(1, shape.context_length - 1, size=n), strict=True):
        row[: length + 2] = [start, *rng.integers(start, size=length), end]
    return torch.from_numpy(texts)
