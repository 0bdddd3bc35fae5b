"""The options that several commands share -> what the library takes: runs, settings, threads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from probe.cli.arguments import JIT_MODES

if TYPE_CHECKING:
    from probe.settings import Settings
    from probe.specs import RunSpec


def plan_runs(
    args: argparse.Namespace, protocols: Sequence[str], *, device: str = "", elsewhere: bool = False
) -> list[RunSpec]:
    """Return the runs that the options name; `device` and `elsewhere` are for runs on other machines."""
    from probe import datasets, grid, models

    return grid.plan(
        expand_groups(args.dataset, {"all": datasets.dataset_names(), "paper": datasets.paper_names()}),
        expand_groups(args.model or ["ViT-B/32"], {"all": models.model_names()}),
        protocols=protocols,
        jit_modes=JIT_MODES[args.jit],
        device=device or args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        compiled=args.compile,
        solver=getattr(args, "solver", "sklearn"),
        elsewhere=elsewhere,
    )


def settings(args: argparse.Namespace) -> Settings:
    """Return the folders and policies that the options name."""
    from probe.settings import Settings

    return Settings(
        data_dir=args.data_dir,
        weights_dir=args.weights_dir,
        results_dir=getattr(args, "results_dir", None),
        cache_dir=args.cache_dir,
        offline=args.offline,
        allow_partial=args.allow_partial,
        skip_corrupt=args.skip_corrupt,
        workers=args.workers,
        shard=getattr(args, "shard", None),
    )


def expand_groups(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace names of groups by the names in the group."""
    return [name for given in names for name in groups.get(given, (given,))]


def limit_threads(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Have torch and BLAS compute with as many threads as --threads names, if it is given."""
    from probe import environment

    return environment.threads(args.threads or 0, blas=args.threads or 0)
