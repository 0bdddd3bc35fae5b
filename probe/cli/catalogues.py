"""`datasets`, `models`, `protocols` and `doctor`: the catalogues, and the state of this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from probe.cli import grids
from probe.cli.printing import print_facts, print_json, print_rows
from probe.specs import LOGISTIC, Protocol


def datasets(args: argparse.Namespace) -> int:
    """List the datasets, or show one."""
    from probe.datasets import DATASET_FORMS, description
    from probe.datasets.catalog import DATASETS

    if args.page:
        print(description.page(DATASETS), end="")
    elif args.json:
        found = [
            description.dataset_facts(name, data_dir=args.data_dir)
            for name in ([spec.name for spec in DATASETS] if args.name is None else [args.name])
        ]
        print_json(found if args.name is None else found[0])
    elif args.name is not None:
        print_facts(description.describe_dataset(args.name, data_dir=args.data_dir))
    else:
        header = ("name", "title", "classes", "images", "metric", "in the paper", "licence")
        rows = [
            (
                spec.name,
                spec.title,
                spec.num_classes,
                description.sizes(spec),
                spec.metric,
                "yes" if spec.in_paper else "",
                spec.license,
            )
            for spec in DATASETS
        ]
        print_rows(header, rows)
        print(f"\nAlso {DATASET_FORMS}.")
    return 0


def models(args: argparse.Namespace) -> int:
    """List the models, or show one."""
    from probe import models
    from probe.models.families import find_family

    name = args.name or ""
    family = find_family(name.removesuffix(":")) if name.endswith(":") else None
    if family is not None:
        names = family.list_names()
        if args.json:
            print_json([{"name": name, "is_here": here} for name, here in names.items()])
        elif names:
            print("\n".join(f"{name}  ready" if here else name for name, here in names.items()))
        else:
            print(f"probe: there is no model to list for {name!r}; give one of {models.MODEL_FORMS}", file=sys.stderr)
    elif args.json:
        from probe.models.description import model_facts

        wanted = models.model_names() if args.name is None else [args.name]
        found = [model_facts(name, weights_dir=args.weights_dir) for name in wanted]
        print_json(found if args.name is None else found[0])
    elif args.name is None:
        _list_models(args)
    else:
        from probe.models.description import describe_model

        print_facts(describe_model(args.name, weights_dir=args.weights_dir))
    return 0


def _list_models(args: argparse.Namespace) -> None:
    from probe import models
    from probe.models.catalog import MODELS

    header = (
        "name",
        "pixels",
        "projected",
        "before projection",
        "image / all parameters, M",
        "GFLOPs per image",
        "modes",
        "licence",
        "weights",
    )
    rows = [
        (
            spec.name,
            spec.architecture.image_resolution,
            f"{spec.architecture.embed_dim}-d",
            f"{spec.architecture.pre_projection_dim}-d",
            f"{spec.profile.image_parameters / 1e6:.1f} / {spec.profile.parameters / 1e6:.1f}",
            f"{spec.profile.flops / 1e9:.3g}",
            "eager, jit",
            spec.license,
            "ready" if models.is_here(spec, args.weights_dir) else "downloads on first use",
        )
        for spec in MODELS
        if spec.architecture is not None and spec.profile is not None
    ]
    print_rows(header, rows)
    print(f"\nAlso {models.MODEL_FORMS}.")


def protocols(args: argparse.Namespace) -> int:
    """List the protocols, or show one or a group."""
    from probe.probes.description import describe_features, describe_protocol, images_a_class
    from probe.probes.protocols import GROUPS, PROTOCOL_FORMS, PROTOCOLS, SHOTS, get_protocol

    if args.name is not None:
        names = grids.expand_groups([args.name], GROUPS)
        if args.json:
            found = [asdict(get_protocol(name)) for name in names]
            print_json(found if args.name in GROUPS else found[0])
        else:
            for name in names:
                print_facts(describe_protocol(name))
        return 0
    if args.json:
        print_json([asdict(protocol) for protocol in PROTOCOLS])
        return 0
    header = ("name", "title", "feature point", "values of C", "k", "images per class", "seeds", "tol", "iterations")
    rows = [
        (
            protocol.name,
            protocol.title,
            describe_features(protocol),
            f"{len(protocol.grid)} + {max(2, protocol.bisections)}"
            if protocol.bisections
            else len(protocol.grid) or None,
            ", ".join(map(str, protocol.neighbours)),
            images_a_class(protocol),
            protocol.num_seeds if protocol.shots else None,
            f"{protocol.tol:g}" if protocol.method == LOGISTIC else None,
            protocol.max_iter if protocol.method == LOGISTIC else None,
        )
        for protocol in PROTOCOLS
    ]
    print_rows(header, rows)
    *first, last = GROUPS
    print(f"\nAlso {', '.join(first)} and {last}, each for its {len(SHOTS)} protocols, or {PROTOCOL_FORMS}.")
    return 0


def _num_values(protocol: Protocol) -> str:
    """Return the number of values of C of the grid, and of the bisections that follow, which try two or more."""
    bisections = f" + {max(2, protocol.bisections)}" if protocol.bisections else ""
    return f"{len(protocol.grid) or ''}{bisections}"


def doctor(args: argparse.Namespace) -> int:
    """Print what can be run on this machine, and what to do for the rest."""
    from probe.doctor import EXTRAS, diagnose
    from probe.environment import DISTRIBUTION

    found = diagnose(data_dir=args.data_dir, weights_dir=args.weights_dir, results_dir=args.results_dir)
    if args.json:
        print_json(asdict(found))
        return 0
    extras = [
        (package, needed_for, version or "missing", "" if version else f"pip install '{DISTRIBUTION}[{extra}]'")
        for package, version in found.extras.items()
        for needed_for, extra in [EXTRAS[package]]
    ]
    folders = [(f"{name.upper()}_DIR", path, f"{free / 1e9:.1f} GB") for name, (path, free) in found.folders.items()]
    versions = {"python": found.environment.python, **found.environment.packages}
    for header, rows in (
        (("dataset", "state", "what to do"), [(name, at.word, at.step) for name, at in found.datasets.items()]),
        (("model", "state", "what to do"), [(name, at.word, at.step) for name, at in found.models.items()]),
        (("folder", "path", "free"), folders),
        (("device", "name"), list(found.devices.items())),
        (("optional library", "needed for", "version", "what to do"), extras),
        (("library", "version"), [(name, version) for name, version in versions.items() if name not in EXTRAS]),
    ):
        print_rows(header, rows)
        print()
    print("Set a folder with an option such as --data-dir, or an environment variable such as PROBE_DATA_DIR.")
    return 0
