"""The options that several commands share -> what the library takes: cells, places, threads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from probe.cli.arguments import JIT_MODES

if TYPE_CHECKING:
    from probe.features.extraction import Access
    from probe.specs import RunSpec


def plan_runs(
    args: argparse.Namespace, protocols: Sequence[str], *, device: str = "", elsewhere: bool = False
) -> list[RunSpec]:
    """The cells that the options name; on another device than they name, and on other machines, where it is said."""
    from probe import datasets, models, runner

    return runner.plan(
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


def access(args: argparse.Namespace) -> Access:
    """Where things are, and how they may be got at, as the options say."""
    from probe.features import extraction

    return extraction.Access(
        data=args.data_dir,
        weights=args.weights_dir,
        results=getattr(args, "results_dir", None),
        cache=args.cache_dir,
        offline=args.offline,
        allow_partial=args.allow_partial,
        skip_corrupt=args.skip_corrupt,
        workers=args.workers,
        shard=getattr(args, "shard", None),
    )


def expand_groups(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Names, with those of groups in the place of theirs."""
    return [name for given in names for name in groups.get(given, (given,))]


def limit_threads(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Have torch and BLAS compute with as many threads as --threads says, if it says."""
    from probe import environment

    return environment.threads(args.threads or 0, blas=args.threads or 0)
