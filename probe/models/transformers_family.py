"""Image towers of transformers, as a family of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from probe import hub
from probe.fetch import weights_sha256
from probe.models.checkpoint_files import digest_weights, list_checkpoint_files, naming_unreadable
from probe.models.checkpoints import read_folder_tensors
from probe.models.devices import META, Execution
from probe.models.encoder import ImageEncoder, dtypes_of, measure_widths
from probe.models.families import Family
from probe.models.huggingface import MERGES, TOKENIZER, VOCABULARY
from probe.models.profile import profile_model
from probe.models.sizes import ModelSizes, measure_encoder
from probe.models.transformers_models import (
    SplitModel,
    load_processor,
    load_split_model,
    naming_failures,
    sketch_split_model,
)
from probe.models.transformers_names import (
    cached_names,
    fetch_folder,
    find_processor_settings,
    is_repository_here,
    parse_source,
    read_settings,
)
from probe.specs import ModelSpec, digest


class TransformersFamily(Family):
    """Family of the models that `AutoModel` of transformers builds."""

    def find_spec(self, source: str) -> ModelSpec:
        """Return the specification of `ORG/NAME` or of a folder, with or without `?pool=POOLING`."""
        source = str(parse_source(source))
        return ModelSpec(f"transformers:{source}", form="transformers", source=source)

    def list_names(self) -> Mapping[str, bool]:
        """Return the names of the cached models. Any repository of the hub with a supported model has a name."""
        return dict.fromkeys(cached_names(), True)

    def is_here(self, spec: ModelSpec) -> bool:
        """Return True if the model needs no download."""
        return is_repository_here(parse_source(spec.source))

    def identify_weights(self, spec: ModelSpec, *, offline: bool) -> str:
        """Return a digest of the weights, the configuration, the preprocessing and the pooling."""
        source = parse_source(spec.source)
        folder = fetch_folder(source, offline=offline)
        _, pooling = read_settings(folder, source.pooling)
        with naming_unreadable(folder):
            files = [file for file in list_checkpoint_files(folder) if file.name not in (VOCABULARY, MERGES, TOKENIZER)]
            return digest({"pooling": pooling, **{file.name: weights_sha256(file) for file in files}})

    def load_tower(self, spec: ModelSpec, execution: Execution, *, offline: bool) -> ImageEncoder:
        """Load the image tower."""
        source = parse_source(spec.source)
        folder = fetch_folder(source, offline=offline)
        config, pooling = read_settings(folder, source.pooling)
        tensors = read_folder_tensors(folder)
        split = load_split_model(folder, config, pooling, tensors, load_processor(folder).shape)
        split.model.to(execution.device, execution.dtype)
        encoder = _as_encoder(spec.name, folder, split, execution)
        dtypes = dtypes_of(tensors.values())
        return replace(encoder, weights_sha256=digest_weights(folder), checkpoint_dtypes=dtypes, pooling=pooling)

    def describe_weights(self, spec: ModelSpec, *, is_here: bool) -> dict[str, Any]:
        """Return sizes, cost, digest and licence of a model on this machine; nothing is known about other models."""
        sizes = self.measure_sizes(spec)
        if not is_here or sizes is None:
            return {}
        folder = fetch_folder(parse_source(spec.source), offline=True)
        return {"license": hub.read_license(folder) or None, "sha256": digest_weights(folder), **sizes.describe()}

    def measure_sizes(self, spec: ModelSpec) -> ModelSizes | None:
        """Return the sizes and the cost; None if the configuration is not on this machine."""
        source = parse_source(spec.source)
        if not is_repository_here(source):
            return None
        folder = fetch_folder(source, offline=True)
        split = sketch_split_model(folder, *read_settings(folder, source.pooling))
        encoder = _as_encoder(spec.name, folder, split, META)
        with naming_failures(folder, "encode images with the model of"):
            profile = profile_model(_for_profile(split), encoder.preprocess.shape)
            return measure_encoder(encoder, split.model, profile)


def _as_encoder(name: str, folder: Path, split: SplitModel, execution: Execution) -> ImageEncoder:
    """Return a model as an encoder. Digest and dtypes of the checkpoint and the pooling are empty."""
    preprocess, settings = load_processor(folder), find_processor_settings(folder)
    with naming_failures(folder, "encode images with the model in"):
        widths = measure_widths(name, split.tower, split.project, shape=preprocess.shape, execution=execution)
    return ImageEncoder(
        name,
        execution,
        preprocess,
        embed_dim=widths[1],
        pre_projection_dim=widths[0],
        weights_sha256="",
        checkpoint_dtypes=(),
        weights_dtypes=dtypes_of(split.tower.parameters()),
        license=hub.read_license(folder),
        pre_projection=split.tower,
        project=split.project,
        preprocess_from=settings.name if settings is not None else "",
    )


def _for_profile(split: SplitModel) -> nn.Module:
    """Return a module with the image tower as `visual`, which also has all other parameters of the model."""
    whole = nn.Module()
    whole.add_module("model", split.model)
    whole.add_module("visual", nn.Sequential(split.tower, split.projection or nn.Identity()))
    return whole
