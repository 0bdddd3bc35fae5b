"""The command line: parse, call the library once, print. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 an error of ours, or a cell that failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from probe import errors
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.records import RunRecord
    from probe.specs import RunSpec

JIT_MODES = {"off": (False,), "on": (True,), "both": (False, True)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    args = _parser().parse_args(argv)
    level = logging.DEBUG if getattr(args, "verbose", False) else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("probe").setLevel(level)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
    except ProbeError as err:
        print(f"probe: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does; there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("probe: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return code


def entry_point() -> None:
    """Run the command that `probe` was called with, and exit."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probe", description="Linear-probe evaluation of CLIP models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="extract features, fit probes, write records and tables")
    run.add_argument(
        "--dataset",
        action="append",
        required=True,
        metavar="NAME",
        help="repeatable; or all, paper, folder:PATH, hf:ID, wds:SHARDS, torchvision:CLASS, ROW.toml",
    )
    run.add_argument(
        "--model", action="append", metavar="NAME", help="repeatable; or all, random:NAME, a path [ViT-B/32]"
    )
    run.add_argument(
        "--protocol", action="append", metavar="NAME", help="repeatable; readme or clip-paper [clip-paper]"
    )
    run.add_argument("--jit", choices=JIT_MODES, default="off", help="run TorchScript archives as they are [off]")
    run.add_argument(
        "--allow-partial", action="store_true", help="evaluate on what is there where images are missing; marks results"
    )
    run.add_argument(
        "--skip-corrupt",
        type=_count,
        default=0,
        metavar="N",
        help="pass over up to N images of a dataset that cannot be read; marks results [0]",
    )
    run.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that read images [16 or a processor each beside a GPU, else 0]",
    )
    run.add_argument("--json", action="store_true", help="print records as JSON lines instead of a table")
    _add_execution(run)
    run.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    run.set_defaults(command=_run)

    datasets = commands.add_parser("datasets", help="list the datasets, or show one")
    datasets.add_argument("name", nargs="?", help="any name that --dataset takes, to show it whole")
    datasets.add_argument("--page", action="store_true", help="the whole catalogue as a page of Markdown")
    datasets.add_argument("--data-dir", metavar="DIR", help="[PROBE_DATA_DIR, or below ~/.cache]")
    datasets.set_defaults(command=_datasets)

    parity = commands.add_parser("parity", help="compare the eager and the JIT mode of a model")
    parity.add_argument("--model", default="tiny", metavar="NAME", help="an archive, or random:NAME [tiny]")
    parity.add_argument("--dataset", default="digits", metavar="NAME", help="or folder:PATH [digits]")
    parity.add_argument("--protocol", default="readme", metavar="NAME", help="of the probe that reads both [readme]")
    parity.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_execution(parity)
    parity.set_defaults(command=_parity)

    models = commands.add_parser("models", help="list the models, or show one")
    models.add_argument(
        "name", nargs="?", help="any name that --model takes, to show it whole; open_clip: lists its models"
    )
    models.add_argument("--weights-dir", metavar="DIR", help="[PROBE_WEIGHTS_DIR, or ~/.cache/clip]")
    models.set_defaults(command=_models)

    doctor = commands.add_parser("doctor", help="say what can be run here, and what to do for the rest")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of tables")
    doctor.add_argument("--offline", action="store_true", help="as always here: nothing is fetched")
    for name in ("data", "weights", "results"):
        doctor.add_argument(f"--{name}-dir", metavar="DIR", help=f"[PROBE_{name.upper()}_DIR, or its default]")
    doctor.set_defaults(command=_doctor)

    tables = commands.add_parser("tables", help="rewrite the tables from the records")
    tables.add_argument(
        "--check", action="store_true", help="change nothing; fail where a table differs from its records"
    )
    tables.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    tables.set_defaults(command=_tables)
    return parser


def _add_execution(command: argparse.ArgumentParser) -> None:
    """The options of all commands that run a model."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [auto]")
    command.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16 [auto: fp16 on CUDA, else fp32]")
    command.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images encoded at a time [64]")
    command.add_argument("--offline", action="store_true", help="never touch the network")
    command.add_argument("-v", "--verbose", action="store_true", help="log every step of a sweep, and tracebacks")
    for name in ("data", "weights"):
        command.add_argument(f"--{name}-dir", metavar="DIR", help=f"[PROBE_{name.upper()}_DIR, or below ~/.cache]")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    from probe import datasets, extraction, models, runner

    specs = runner.plan(
        _expand(args.dataset, {"all": datasets.dataset_names(), "paper": datasets.paper_names()}),
        _expand(args.model or ["ViT-B/32"], {"all": models.model_names()}),
        protocols=args.protocol or ["clip-paper"],
        jit_modes=JIT_MODES[args.jit],
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
    )
    access = extraction.Access(
        data=args.data_dir,
        weights=args.weights_dir,
        results=args.results_dir,
        offline=args.offline,
        allow_partial=args.allow_partial,
        skip_corrupt=args.skip_corrupt,
        workers=args.workers,
    )
    records: list[RunRecord] = []
    try:
        for record in runner.run_grid(specs, access=access):
            records.append(record)
    finally:
        if records:
            _report(records, specs, as_json=args.json)
    return 1 if any(record.error for record in records) else 0


def _report(records: Sequence[RunRecord], specs: Sequence[RunSpec], *, as_json: bool) -> None:
    from probe import tables

    if as_json:
        for record in records:
            print(json.dumps(asdict(record), sort_keys=True))
    else:
        print(tables.to_markdown(records), end="")
        parity = tables.parity_markdown(records)
        if parity:
            print("\n" + parity, end="")
        for note in tables.footnotes(records):
            print(f"\n{note}")
    failed = [(spec, record) for spec, record in zip(specs, records, strict=False) if record.error]  # in one order
    for spec, record in failed:
        assert record.error is not None
        print(f"probe: {spec} failed: {_sentence(record.error)}", file=sys.stderr)
    if len(records) < len(specs):
        print(f"probe: {len(records)} of {len(specs)} cells were run", file=sys.stderr)


def _sentence(error: Mapping[str, str]) -> str:
    """The message; of an error that is not ours the type too, since `KeyError` says no more than the key."""
    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}
    return error["message"] if error["type"] in ours else f"{error['type']}: {error['message']}"


def _expand(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for given in names for name in groups.get(given, (given,))]


def _datasets(args: argparse.Namespace) -> int:
    from probe import tables
    from probe.datasets import FORMS, description
    from probe.datasets.catalog import CATALOG

    if args.page:
        print(description.page(CATALOG), end="")
    elif args.name is not None:
        for key, value in description.describe(args.name, data_dir=args.data_dir).items():
            print(f"{key:<13} {value}")
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


def _doctor(args: argparse.Namespace) -> int:
    from probe import tables
    from probe.doctor import EXTRAS, diagnose

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


def _parity(args: argparse.Namespace) -> int:
    from probe import tables
    from probe.comparison import parity

    found = parity(
        args.model,
        args.dataset,
        protocol=args.protocol,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        data_dir=args.data_dir,
        weights_dir=args.weights_dir,
        offline=args.offline,
    )
    if args.json:
        print(json.dumps(asdict(found) | {"verdict": found.verdict}, sort_keys=True))
    else:
        header = ("eager against jit", "largest difference", "mean difference", "smallest cosine")
        rows = [
            (f"features, {point}", f"{d.max_abs:.2g}", f"{d.mean_abs:.2g}", f"{d.min_cosine:.8f}")
            for point, d in found.features.items()
        ]
        names = ("softmax of an image over texts", "softmax of a text over images")
        rows += [(name, f"{value:.2g}", "", "") for name, value in zip(names, found.softmax, strict=True)]
        print(tables.markdown_table(header, rows))
        print(f"{found.model} on {found.dataset}, {found.device}, {found.precision}: {found.num_images} images")
        print(f"predictions that flip: {found.predictions_flipped} of {found.num_test} ({found.protocol})")
        print(f"verdict: {found.verdict}")
    return 0 if found.within_tolerance else 1


def _models(args: argparse.Namespace) -> int:
    from probe import models

    if args.name is None:
        _list_models(args.weights_dir)
    elif args.name == models.OPEN_CLIP:
        from probe.models import open_clip

        print("\n".join(open_clip.names()))
    else:
        from probe.models.description import describe

        for key, value in describe(args.name, weights_dir=args.weights_dir).items():
            print(f"{key:<18} {value}")
    return 0


def _list_models(weights_dir: str | None) -> None:
    from probe import models, tables
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


def _tables(args: argparse.Namespace) -> int:
    from probe import paths, tables

    results_dir = paths.results_dir(args.results_dir)
    if not (results_dir / "records").is_dir():
        raise errors.ResultsError(f"no records in {results_dir}; name the folder of a run with --results-dir")
    if args.check:
        stale = tables.stale_tables(results_dir)
        for path in stale:
            print(
                f"probe: {path} differs from the records; run python -m probe tables, and remove it if it stays",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in tables.write_tables(results_dir):
        print(path)
    return 0
