"""`datasets`, `models`, `protocols` and `doctor`: what there is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from probe.cli import grids
from probe.errors import printable


def datasets(args: argparse.Namespace) -> int:
    """List the datasets, or show one."""
    from probe.datasets import FORMS, description
    from probe.datasets.catalog import CATALOG
    from probe.leaderboard import tables

    if args.page:
        print(description.page(CATALOG), end="")
    elif args.name is not None:
        for key, value in description.describe_dataset(args.name, data_dir=args.data_dir).items():
            print(f"{key:<13} {printable(value)}")
    else:
        header = ("name", "title", "classes", "images", "metric", "in the paper", "licence")
        rows = [
            (
                spec.name,
                spec.title,
                str(spec.num_classes),
                description.sizes(spec),
                spec.metric,
                "yes" if spec.in_paper else "",
                spec.license,
            )
            for spec in CATALOG
        ]
        print(tables.markdown_table(header, rows))
        print(f"Also {FORMS}.")
    return 0


def models(args: argparse.Namespace) -> int:
    """List the models, or show one."""
    from probe import models

    if args.name is None:
        _list_models(args.weights_dir)
    elif args.name == models.OPEN_CLIP:
        from probe.models import open_clip_names

        print("\n".join(open_clip_names.names()))
    else:
        from probe.models.description import describe_model

        for key, value in describe_model(args.name, weights_dir=args.weights_dir).items():
            print(f"{key:<18} {printable(value)}")
    return 0


def _list_models(weights_dir: str | None) -> None:
    from probe import models
    from probe.leaderboard import tables
    from probe.models.catalog import CATALOG

    header = (
        "name",
        "pixels",
        "projected",
        "before projection",
        "image / all parameters, M",
        "GFLOPs an image",
        "modes",
        "licence",
        "weights",
    )
    rows = [
        (
            spec.name,
            str(spec.architecture.image_resolution),
            f"{spec.architecture.embed_dim}-d",
            f"{spec.architecture.pre_projection_dim}-d",
            f"{spec.profile.image_parameters / 1e6:.1f} / {spec.profile.parameters / 1e6:.1f}",
            f"{spec.profile.flops / 1e9:.3g}",
            "eager, jit",
            spec.license,
            "here" if models.is_here(spec, weights_dir) else "to be downloaded",
        )
        for spec in CATALOG
        if spec.architecture is not None and spec.profile is not None
    ]
    print(tables.markdown_table(header, rows))
    print(f"Also {models.FORMS}.")


def protocols(args: argparse.Namespace) -> int:
    """List the protocols, or show some."""
    from probe.leaderboard import tables
    from probe.probes.description import describe_protocol, images_a_class
    from probe.probes.protocols import CATALOG, FORMS, GROUPS, SHOTS

    if args.name is not None:
        for name in grids.expand_groups([args.name], GROUPS):
            for key, value in describe_protocol(name).items():
                print(f"{key:<15} {printable(value)}")
        return 0
    header = ("name", "title", "feature point", "values of C", "images a class", "seeds", "tol", "iterations")
    rows = [
        (
            protocol.name,
            protocol.title,
            protocol.feature_point,
            str(len(protocol.grid)),
            images_a_class(protocol),
            str(protocol.num_seeds) if protocol.shots else "",
            f"{protocol.tol:g}",
            str(protocol.max_iter),
        )
        for protocol in CATALOG
    ]
    print(tables.markdown_table(header, rows))
    print(f"Also {' and '.join(GROUPS)}, each for its {len(SHOTS)} rows, or {FORMS}.")
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Say what can be run here."""
    from probe.doctor import EXTRAS, diagnose
    from probe.leaderboard import tables

    found = diagnose(data_dir=args.data_dir, weights_dir=args.weights_dir, results_dir=args.results_dir)
    if args.json:
        print(json.dumps(asdict(found), sort_keys=True))
        return 0
    for kind, states in (("dataset", found.datasets), ("model", found.models)):
        rows = [(name, state.word, state.step) for name, state in states.items()]
        print(tables.markdown_table((kind, "state", "what to do"), rows))
    rows = [(name, path, f"{free / 1e9:.1f} GB") for name, (path, free) in found.folders.items()]
    print(tables.markdown_table(("folder", "path", "free"), rows))
    print(tables.markdown_table(("device", "name"), list(found.devices.items())))
    versions = {"python": found.environment["python"], **found.environment["packages"]}
    print(tables.markdown_table(("library", "version"), [(name, str(value)) for name, value in versions.items()]))
    for package, version in found.extras.items():
        print(f"{package}: {version or f'not installed, needed for {EXTRAS[package]}; pip install {package}'}")
    return 0
