"""Text features of the classes of a dataset, cached as image features are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probe.features.extraction import Session
from probe.records.schema import PromptsRecord
from probe.specs import RunSpec


@dataclass(frozen=True)
class Classifier:
    """Texts of the classes of a dataset under a model.

    Args:
        weights: float32 (k, embed_dim), rows of length 1. The row of a class is the mean of the normalised features of
            its prompts, normalised again.
        logit_scale: factor of the cosine similarities in the logits of the model.
        logit_bias: addend of the logits; 0 for models without one.
        prompts: the prompts, as a record describes them.
        seconds: wall time of loading the text tower and encoding the prompts, or of reading the cache.
    """

    weights: np.ndarray = field(repr=False)
    logit_scale: float
    logit_bias: float
    prompts: PromptsRecord
    seconds: float


def find_classifier(spec: RunSpec, session: Session) -> Classifier:
    """Return the texts of the classes of a zero-shot run, from the cache or encoded now."""
    raise NotImplementedError
