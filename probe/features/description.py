"""Cache entries of a run -> its features and their description in a record."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from probe.datasets import dataset_names
from probe.datasets.opening import OpenedDataset
from probe.datasets.splits.folds import digest_splits
from probe.errors import DatasetError, FeaturesError
from probe.features.arrays import Extraction, Features
from probe.features.store import EXTRACTION_VERSION, Entry
from probe.models.encoder import ImageEncoder
from probe.models.preprocess import PREPROCESS_VERSION
from probe.models.unwrapping import WHOLE
from probe.records.schema import (
    DtypesRecord,
    EncoderRecord,
    ExtractionRecord,
    PreprocessRecord,
    ReadRecord,
    SkippedImage,
    SplitRecord,
)


def describe_extraction(
    entries: Mapping[str, Entry],
    dataset: OpenedDataset,
    *,
    weights: str,
    from_cache: bool,
    seconds: dict[str, float],
    skip_corrupt: int,
) -> Extraction:
    """Return the features of a run, with the rows of each split and their description.

    Raises:
        DatasetError: more images could not be read than are allowed.
        FeaturesError: no image of a subset could be read.
    """
    used = dataset.used
    features = {subset: entries[subset].features for subset in used}
    skipped = [message for subset in used for _, message in features[subset].skipped]
    if len(skipped) > skip_corrupt:
        raise DatasetError(skipped[skip_corrupt])
    for subset in used:
        if not len(features[subset]):
            raise FeaturesError(f"{used[subset].images.name}: no image could be read; get its files again")
    # Skipped images have no row.
    readable = {s: np.delete(used[s].positions, [row for row, _ in features[s].skipped]) for s in used}
    rows = [
        {
            name: (fold[name].subset, np.flatnonzero(np.isin(readable[fold[name].subset], fold[name].positions)))
            for name in dataset.needed
        }
        for fold in dataset.folds
    ]
    splits = digest_splits(dataset.subsets, dataset.folds, readable, dataset.needed) if skipped else dataset.splits
    first = next(iter(entries.values()))
    return Extraction(
        features=features,
        rows=rows,
        read=_describe_reading(dataset, features),
        splits={name: SplitRecord(size=split.size, sha256=split.sha256) for name, split in splits.items()},
        encoder=first.provenance.encoder,
        extraction=ExtractionRecord(
            from_cache=from_cache,
            subsets={subset: entries[subset].provenance.extraction for subset in used},
            weights=weights,
            extraction_version=EXTRACTION_VERSION,
            preprocess_version=PREPROCESS_VERSION,
        ),
        seconds=seconds,
        folder=first.path.parent,
    )


def _describe_reading(dataset: OpenedDataset, features: Mapping[str, Features]) -> ReadRecord:
    skipped = [
        SkippedImage(subset, dataset.used[subset].images.ids[row], message)
        for subset, extracted in features.items()
        for row, message in extracted.skipped
    ]
    # The catalogue defines the labels of its datasets. For other datasets, only the record can.
    is_listed = dataset.spec.name in dataset_names()
    return ReadRecord(
        source=dataset.source,
        revisions={name: images.revision for name, images in dataset.subsets.items() if images.revision},
        partial={name: (len(dataset.subsets[name]), size) for name, size in dataset.incomplete.items()},
        skipped=tuple(skipped),
        class_names=() if is_listed else tuple(dataset.class_names),
    )


def describe_encoder(encoder: ImageEncoder) -> EncoderRecord:
    """Return the description of an encoder that is stored with its features."""
    return EncoderRecord(
        weights_sha256=encoder.weights_sha256,
        weights_key=encoder.weights_key if encoder.weights_key != WHOLE else "",
        license=encoder.license,
        resolution=encoder.resolution,
        embed_dim=encoder.embed_dim,
        pre_projection_dim=encoder.pre_projection_dim,
        preprocess=PreprocessRecord(**encoder.preprocess.describe()),
        preprocess_from=encoder.preprocess_from,
        has_projection=encoder.has_projection,
        pooling=encoder.pooling,
        dtypes=DtypesRecord(encoder.checkpoint_dtypes, encoder.weights_dtypes, features="float32"),
    )
