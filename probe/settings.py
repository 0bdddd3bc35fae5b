"""Folders and policies of a run. Settings are not part of a `RunSpec`: they do not change results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from probe import paths


@dataclass(frozen=True)
class Settings:
    """Folders and policies of a run. A folder that is None has the default of `probe.paths`.

    Args:
        data_dir: folder of datasets.
        weights_dir: folder of checkpoints.
        results_dir: folder of records and tables.
        cache_dir: folder of cached features and fits.
        offline: never touch the network.
        allow_partial: evaluate on the images that are present if a dataset lacks some; the record is marked.
        skip_corrupt: skip up to this many images of a dataset that cannot be read; the record names them.
        workers: processes that read images; None for `features.reading.default_workers`.
        allow_duplicate_names: run zero-shot even if several classes have the same name; the record names them.
        save_heads: write the fitted weights of each run.
        predictions_dir: folder to write the predictions of each run to; None writes none.
        with_logits: also write the logits of each test image.
        log: names of experiment trackers to log each new record to, see `tracking.trackers`.
        shard: extract only the i-th of n shards, from 1 on; None for all images.
    """

    data_dir: str | Path | None = None
    weights_dir: str | Path | None = None
    results_dir: str | Path | None = None
    cache_dir: str | Path | None = None
    offline: bool = False
    allow_partial: bool = False
    skip_corrupt: int = 0
    workers: int | None = None
    allow_duplicate_names: bool = False
    save_heads: bool = False
    predictions_dir: str | Path | None = None
    with_logits: bool = False
    log: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None

    def absolute(self) -> Settings:
        """Return the settings with absolute folders, for a process in another working directory."""
        folders = (self.data_dir, self.weights_dir, self.results_dir, self.cache_dir, self.predictions_dir)
        data, weights, results, cache, predictions = (
            None if path is None else paths.absolute(path) for path in folders
        )
        return replace(
            self, data_dir=data, weights_dir=weights, results_dir=results, cache_dir=cache, predictions_dir=predictions
        )


DEFAULT_SETTINGS = Settings()
