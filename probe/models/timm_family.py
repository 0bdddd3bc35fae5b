"""Models of timm, as a family of encoders. Needs the extra `timm`.

Features are taken before the classifier: timm's `forward_features` and the pooling of `forward_head(pre_logits=True)`.
There is no projection, so both feature points have these features. Images are preprocessed as in timm's validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.environment import package_version
from probe.errors import CheckpointError
from probe.fetch import file_sha256, weights_sha256
from probe.models import RANDOM, TIMM
from probe.models.devices import META, Execution
from probe.models.encoder import ImageEncoder, dtypes_of, measure_widths, no_projection, tensors_sha256
from probe.models.families import Family
from probe.models.sizes import ModelSizes, measure_encoder
from probe.models.timm_names import TimmSource, check_has_weights, parse_timm_source, timm_sources
from probe.models.timm_preprocess import find_data_config, timm_preprocess
from probe.models.timm_weights import (
    are_weights_here,
    create_timm_model,
    fetch_timm_weights,
    load_timm_model,
    sketch_timm_model,
    timm_license,
)
from probe.specs import ModelSpec, digest


class TimmFamily(Family):
    """Family of the models that timm builds."""

    def find_spec(self, source: str) -> ModelSpec:
        """Return the specification of `ARCH`, `ARCH.TAG`, `ARCH/TAG`, `ARCH/PATH` or `ARCH.TAG/PATH`."""
        parsed = parse_timm_source(source)
        check_has_weights(parsed)
        return ModelSpec(f"{TIMM}{parsed}", form="timm", source=str(parsed), license=timm_license(parsed))

    def find_random_spec(self, source: str) -> ModelSpec:
        """Return the specification of `ARCH` or `ARCH.TAG`. The tag decides the resolution and the preprocessing."""
        parsed = parse_timm_source(source)
        if parsed.path is not None:
            raise CheckpointError(
                f"{source} names weights; give {RANDOM}{TIMM}{parsed.architecture} for random weights"
            )
        return ModelSpec(f"{RANDOM}{TIMM}{parsed}", form="timm", source=str(parsed))

    def list_names(self) -> Mapping[str, bool]:
        """Return the names of all models with published weights; True if the weights are here."""
        return {f"{TIMM}{source}": are_weights_here(source) for source in timm_sources()}

    def measure_sizes(self, spec: ModelSpec) -> ModelSizes:
        """Return the sizes of a model without its weights."""
        source = parse_timm_source(spec.source)
        model = sketch_timm_model(source)
        return measure_encoder(_as_encoder(spec, source, model, META), model)

    def is_here(self, spec: ModelSpec) -> bool:
        """Return True if the model needs no download."""
        return spec.seed is not None or are_weights_here(parse_timm_source(spec.source))

    def identify_weights(self, spec: ModelSpec, *, offline: bool) -> str:
        """Return a digest of the weights, the architecture and the preprocessing."""
        source = parse_timm_source(spec.source)
        facts = {"architecture": source.architecture, "preprocess": find_data_config(source)}
        if spec.seed is not None:
            versions = {"torch": torch.__version__, "timm": package_version("timm")}
            return digest({**facts, "model": source.model, "seed": spec.seed, **versions})
        facts["sha256"] = weights_sha256(fetch_timm_weights(source, offline=offline))
        return digest({**facts, "key": source.key} if source.key else facts)

    def load_tower(self, spec: ModelSpec, execution: Execution, *, offline: bool) -> ImageEncoder:
        """Load the model without its classifier."""
        source = parse_timm_source(spec.source)
        if spec.seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(spec.seed)
                model = create_timm_model(source)
            sha256 = tensors_sha256(model.state_dict())  # before the weights are cast
            return replace(_as_encoder(spec, source, model, execution), weights_sha256=sha256)
        path = fetch_timm_weights(source, offline=offline)
        model, weights = load_timm_model(source, path)
        return replace(
            _as_encoder(spec, source, model, execution),
            weights_sha256=weights_sha256(path),
            checkpoint_dtypes=dtypes_of(weights.state_dict.values()),
            weights_key=weights.key,
        )

    def describe_weights(self, spec: ModelSpec, *, is_here: bool) -> dict[str, Any]:
        """Return sizes and cost, and the digest of weights on this machine."""
        facts = self.measure_sizes(spec).describe()
        if is_here and spec.seed is None:
            facts["sha256"] = file_sha256(fetch_timm_weights(parse_timm_source(spec.source), offline=True))
        return facts


def _as_encoder(spec: ModelSpec, source: TimmSource, model: nn.Module, execution: Execution) -> ImageEncoder:
    """Return a model as an encoder without a digest, as if its weights came from no file."""
    model.to(execution.device, execution.dtype)
    preprocess = timm_preprocess(source)
    run = features_before_classifier(model)
    shape = preprocess.shape
    _, width = measure_widths(spec.name, run, no_projection, shape=shape, execution=execution)
    pooling = getattr(model, "global_pool", "")
    return ImageEncoder(
        spec.name,
        execution,
        preprocess,
        embed_dim=width,
        pre_projection_dim=width,
        weights_sha256="",
        checkpoint_dtypes=dtypes_of(model.parameters()),
        weights_dtypes=dtypes_of(model.parameters()),
        license=spec.license,
        pre_projection=run,
        project=no_projection,
        preprocess_from=f"timm's {source.model}",
        pooling=pooling if isinstance(pooling, str) else "",
    )


def features_before_classifier(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that maps pixels (n, 3, height, width) to the features that timm's classifier would take.

    A model without a classifier computes the same features. `tests/models/test_timm.py` checks this.
    """
    functions: Any = model  # timm has no base class with these functions
    return lambda images: functions.forward_head(functions.forward_features(images), pre_logits=True)
