"""Describe a model for a reader: weights, sizes, cost and modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.models import get_model, is_here
from probe.models.families import find_family
from probe.models.loading import has_jit_mode, read_weights
from probe.models.profile import describe_sizes, profile_architecture
from probe.specs import ModelSpec

BOTH, EAGER = ["eager", "jit"], ["eager"]


def model_facts(name: str | Path, *, weights_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the facts about a model as JSON values; None for a fact that is not known.

    Facts that only the weights contain are included if the weights are on this machine. Nothing is downloaded.

    Raises:
        UnknownNameError, CheckpointError, ExtraMissingError: the message says what to do.
    """
    spec = get_model(name)
    here, family = is_here(spec, weights_dir), find_family(spec.form)
    facts: dict[str, Any] = {
        "name": spec.name,
        "form": spec.form,
        "source": spec.source,
        "is_here": here,
        "sha256": spec.sha256 or None,
        "license": spec.license or None,
        "modes": EAGER,
        **describe_sizes(None, None, None, None),
    }
    if spec.architecture is not None:
        shape, profile = spec.architecture, spec.profile or profile_architecture(spec.architecture)
        sizes = describe_sizes(shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile)
        facts |= {"modes": BOTH} | sizes
    elif family is not None:
        facts |= family.describe_weights(spec, is_here=here)
    elif here:
        facts |= _describe_checkpoint(spec)
    return facts


def describe_model(name: str | Path, *, weights_dir: str | Path | None = None) -> dict[str, str]:
    """Return the known facts about a model as pairs of label and text; see `model_facts`."""
    facts = model_facts(name, weights_dir=weights_dir)
    texts = {
        "name": facts["name"],
        "weights": f"{facts['form']}, {facts['source']}" + ("" if facts["is_here"] else " (downloads on first use)"),
        "sha256": facts["sha256"],
        "licence": facts["license"],
        "modes": ", ".join(facts["modes"]),
    }
    if facts["parameters"] is not None:
        texts |= {
            "pixels": str(facts["resolution"]),
            "projected": f"{facts['embed_dim']}-d",
            "before projection": f"{facts['pre_projection_dim']}-d",
            "parameters": f"{facts['parameters']:,}, of which {facts['image_parameters']:,} in the image tower",
            "GFLOPs per image": f"{facts['flops'] / 1e9:.3g}",
        }
    return {label: text for label, text in texts.items() if text}


def _describe_checkpoint(spec: ModelSpec) -> dict[str, Any]:
    checkpoint = read_weights(spec, offline=True)
    shape = checkpoint.architecture
    return {
        "sha256": checkpoint.sha256,
        "license": checkpoint.license or None,
        "modes": BOTH if has_jit_mode(checkpoint) else EAGER,
        **describe_sizes(
            shape.image_resolution, shape.embed_dim, shape.pre_projection_dim, profile_architecture(shape)
        ),
    }
