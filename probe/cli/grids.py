"""Conversion of the options that several commands share into the runs and settings that the library takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from probe.cli.arguments import JIT_MODES, UsageError
from probe.specs import DEFAULT_SOLVER

if TYPE_CHECKING:
    from probe.settings import Settings
    from probe.specs import DatasetSpec, RunSpec


def settings(args: argparse.Namespace) -> Settings:
    """Return the folders and policies that the options give."""
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
        allow_duplicate_names=getattr(args, "allow_duplicate_names", False),
        shard=getattr(args, "shard", None),
        save_heads=getattr(args, "save_heads", False),
        predictions_dir=getattr(args, "predictions", None),
        with_logits=getattr(args, "with_logits", False),
        log=tuple(getattr(args, "log", None) or ()),
    )


def plan_runs(args: argparse.Namespace, *, device: str = "", elsewhere: bool = False) -> list[RunSpec]:
    """Return the runs that the options give; `device` and `elsewhere` are for runs on other machines.

    Raises:
        UsageError: an option for zero-shot runs is given, but no run is zero-shot.
    """
    from probe import datasets, grid, models
    from probe.datasets.prompt_files import with_prompts
    from probe.probes.protocols import GROUPS

    # Commands without --protocol only need features, which do not depend on the protocol.
    protocols = getattr(args, "protocol", ["readme"]) or ["clip-paper"]
    names = expand_groups(args.dataset, {"all": datasets.dataset_names(), "paper": datasets.paper_names()})
    rows: Sequence[str | DatasetSpec] = names
    prompts = getattr(args, "prompts", None)
    if prompts is not None:
        rows = with_prompts([datasets.get_dataset(name) for name in dict.fromkeys(names)], prompts)
    runs = grid.plan(
        rows,
        expand_groups(args.model or ["ViT-B/32"], {"all": models.model_names()}),
        protocols=expand_groups(protocols, GROUPS),
        jit_modes=JIT_MODES[args.jit],
        device=device or args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        compiled=args.compile,
        solver=getattr(args, "solver", DEFAULT_SOLVER),
        tests=getattr(args, "also_test", None) or (),
        clean=getattr(args, "clean", False),
        elsewhere=elsewhere,
    )
    if not any(run.prompts for run in runs):
        for name in ("prompts", "allow_duplicate_names"):
            if getattr(args, name, None):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is for zero-shot runs; add --protocol zero-shot")
    return runs


def expand_groups(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace the name of a group by the names in the group."""
    return [name for given in names for name in groups.get(given, (given,))]
