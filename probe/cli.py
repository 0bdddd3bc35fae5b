"""The command line: parse, call the library once, print. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 an error of ours, or a cell that failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import errors
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.extraction import Access
    from probe.records import RunRecord
    from probe.specs import RunSpec

logger = logging.getLogger(__name__)

PROTOCOLS = "clip-paper, readme, few-shot and others that `probe protocols` lists, or MINE.toml"
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
    os.environ.setdefault("SCIPY_ARRAY_API", "1")  # which SciPy reads on import, for fits on a GPU
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probe", description="Linear-probe evaluation of CLIP models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="extract features, fit probes, write records and tables")
    _add_grid(run)
    run.add_argument("--protocol", action="append", metavar="NAME", help=f"repeatable; {PROTOCOLS} [clip-paper]")
    run.add_argument("--json", action="store_true", help="print records as JSON lines instead of a table")
    _add_fitting(run)
    _add_execution(run)
    run.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    run.set_defaults(command=_run)

    extract = commands.add_parser("extract", help="extract and keep features, or some shards of them")
    _add_grid(extract)
    extract.add_argument("--shard", type=_shard, metavar="I/N", help="make only the I-th of N shards, from 1 on")
    extract.add_argument("--out", metavar="FILE.npz", help="write the features of one cell to a file as well")
    _add_execution(extract)
    extract.set_defaults(command=_extract)

    fit = commands.add_parser("fit", help="fit a probe on a file of features, of extract --out or anybody's")
    fit.add_argument("file", metavar="FILE.npz", help="train_x, train_y, test_x, test_y, and val_x, val_y for a search")
    fit.add_argument("--protocol", default="clip-paper", metavar="NAME", help=f"{PROTOCOLS} [clip-paper]")
    fit.add_argument("--metric", metavar="NAME", help="[that of the dataset, or accuracy]")
    fit.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_fitting(fit)
    fit.add_argument(
        "--val-fraction", type=_fraction, metavar="F", help="hold out so much of train, of each class, to choose C on"
    )
    fit.add_argument("--seed", type=_count, default=0, metavar="N", help="of --val-fraction [0]")
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...: where to fit [auto]")
    fit.add_argument("--cache-dir", metavar="DIR", help="of fits that are kept [PROBE_CACHE_DIR, or below ~/.cache]")
    fit.add_argument("-v", "--verbose", action="store_true", help="log every step of a sweep, and tracebacks")
    fit.set_defaults(command=_fit)

    cache = commands.add_parser("cache", help="list, explain, verify or remove features that are kept")
    kinds = cache.add_subparsers(required=True, metavar="ACTION")
    listed = kinds.add_parser("ls", help="list the features that are kept")
    listed.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    explain = kinds.add_parser("explain", help="say whether a cell is kept, or which field of its key is another")
    _add_grid(explain)
    _add_execution(explain)
    verify = kinds.add_parser("verify", help="compare everything that is kept with its digests")
    collect = kinds.add_parser("gc", help="remove what is damaged or of no use, and what was not used for longest")
    collect.add_argument("--max-size", type=_size, metavar="SIZE", help="keep at most so much, such as 500MB or 10GB")
    for action, command in (
        (listed, _cache_ls),
        (explain, _cache_explain),
        (verify, _cache_verify),
        (collect, _cache_gc),
    ):
        if action is not explain:
            action.add_argument("--cache-dir", metavar="DIR", help="[PROBE_CACHE_DIR, or below ~/.cache]")
        action.set_defaults(command=command)

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

    protocols = commands.add_parser("protocols", help="list the protocols, or show one")
    protocols.add_argument("name", nargs="?", help="a protocol or a TOML file, to show it whole")
    protocols.set_defaults(command=_protocols)

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


def _add_grid(command: argparse.ArgumentParser) -> None:
    """The options that say which features: datasets, models and modes, and how their images are read."""
    command.add_argument(
        "--dataset",
        action="append",
        required=True,
        metavar="NAME",
        help="repeatable; or all, paper, folder:PATH, hf:ID, wds:SHARDS, torchvision:CLASS, ROW.toml",
    )
    command.add_argument(
        "--model", action="append", metavar="NAME", help="repeatable; or all, random:NAME, a path [ViT-B/32]"
    )
    command.add_argument("--jit", choices=JIT_MODES, default="off", help="run TorchScript archives as they are [off]")
    command.add_argument(
        "--allow-partial", action="store_true", help="evaluate on what is there where images are missing; marks results"
    )
    command.add_argument(
        "--skip-corrupt",
        type=_count,
        default=0,
        metavar="N",
        help="pass over up to N images of a dataset that cannot be read; marks results [0]",
    )
    command.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that read images [16 or a processor each beside a GPU, else 0]",
    )
    command.add_argument("--cache-dir", metavar="DIR", help="of features [PROBE_CACHE_DIR, or below ~/.cache]")
    command.add_argument(
        "--compile", action="store_true", help="have torch compile the rebuilt model, as a mode of its own"
    )


def _add_fitting(command: argparse.ArgumentParser) -> None:
    """The options that say how probes are fitted, beside the protocol."""
    command.add_argument(
        "--solver", default="sklearn", metavar="NAME", help="sklearn, or fast: the same optimum sooner [sklearn]"
    )
    command.add_argument("--strict", action="store_true", help="fail where a final fit did not converge")
    command.add_argument("--threads", type=_positive, metavar="N", help="processors to compute with [all]")


def _add_execution(command: argparse.ArgumentParser) -> None:
    """The options of all commands that run a model."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [auto]")
    command.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16 [auto: fp16 on CUDA, else fp32]")
    command.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images encoded at a time [256 on CUDA, else 64, or as fits]"
    )
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


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction; write 0.1 for a tenth")
    return value


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or not 1 <= int(i) <= int(n):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; write 1/4 for the first of four")
    return int(i), int(n)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 10GB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))


def _plan(args: argparse.Namespace, protocols: Sequence[str]) -> list[RunSpec]:
    from probe import datasets, models, runner

    return runner.plan(
        _expand(args.dataset, {"all": datasets.dataset_names(), "paper": datasets.paper_names()}),
        _expand(args.model or ["ViT-B/32"], {"all": models.model_names()}),
        protocols=protocols,
        jit_modes=JIT_MODES[args.jit],
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        compiled=args.compile,
        solver=getattr(args, "solver", "sklearn"),
    )


def _access(args: argparse.Namespace) -> Access:
    from probe import extraction

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


def _run(args: argparse.Namespace) -> int:
    from probe import runner
    from probe.probes.protocols import GROUPS

    _limit_threads(args)
    specs, access = _plan(args, _expand(args.protocol or ["clip-paper"], GROUPS)), _access(args)
    records: list[RunRecord] = []
    try:
        for record in runner.run_grid(specs, access=access):
            records.append(record)
    finally:
        if records:
            _report(records, specs, as_json=args.json)
    unfinished = [record for record in records if record.result and not record.result["converged"]]
    if args.strict:
        for record in unfinished:
            assert record.result is not None
            _refuse_unfinished(f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}", record.result)
    return 1 if any(record.error for record in records) or (args.strict and unfinished) else 0


def _limit_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        from probe.environment import limit_threads

        limit_threads(args.threads)


def _refuse_unfinished(what: str, result: Mapping[str, Any]) -> None:
    print(
        f"probe: {what}: the fit did not converge, its gradient is at {result['gradient_ratio']:.1e} of its start "
        f"after {result['n_iter']} iterations; raise max_iter in a protocol of your own, or use --solver fast",
        file=sys.stderr,
    )


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


def _extract(args: argparse.Namespace) -> int:
    from probe import files, tables
    from probe.extraction import Extraction, extract_grid

    specs, access = _plan(args, ["readme"]), _access(args)  # the same features for all protocols
    if args.out is not None and (len(specs) > 1 or args.shard is not None):
        raise errors.FeaturesError("--out takes the whole features of one dataset, model and mode; name one of each")
    rows, failed = [], 0
    for spec, outcome in extract_grid(specs, access):
        name = (spec.dataset.name, spec.model.name, spec.mode)
        if isinstance(outcome, Extraction):
            sizes = ", ".join(f"{part} {len(features)}" for part, features in outcome.features.items())
            made = "kept before" if outcome.extraction["from_cache"] else "made now"
            rows.append((*name, sizes, made, str(outcome.folder)))
            if args.out is not None:
                files.save(Path(args.out), outcome.features, outcome.rows, outcome.about(spec))
        elif isinstance(outcome, errors.IncompleteError):
            rows.append((*name, "", str(outcome), ""))
        else:
            failed += 1
            logger.debug("%s", spec, exc_info=None if isinstance(outcome, ProbeError) else outcome)
            error = {"type": type(outcome).__name__, "message": str(outcome)}
            print(f"probe: {' / '.join(name)} failed: {_sentence(error)}", file=sys.stderr)
    if rows:
        print(tables.markdown_table(("dataset", "model", "mode", "images", "state", "folder"), rows), end="")
    return 1 if failed else 0


def _fit(args: argparse.Namespace) -> int:
    from probe import files, paths, tables
    from probe.cache import FITS
    from probe.models.devices import resolve_execution
    from probe.probes.fitting import How, fit_folds, hold_out
    from probe.probes.kept import KeptFits
    from probe.probes.protocols import GROUPS, get_protocol
    from probe.probes.solvers import device_for

    _limit_threads(args)
    protocols = [get_protocol(name) for name in _expand([args.protocol], GROUPS)]
    found = files.load(Path(args.file))
    metric = args.metric or str(found.about.get("metric", "accuracy"))
    folds = list(found.folds)
    if args.val_fraction is not None:
        if any("val" in fold for fold in folds):
            raise errors.FeaturesError(f"{args.file} has validation features; leave out --val-fraction")
        folds = [hold_out(fold, args.val_fraction, seed=args.seed) for fold in folds]
    if all(features.pre_projection is None for fold in folds for features in fold.values()):
        # The only point that this file has.
        protocols = [replace(protocol, feature_point="projected") for protocol in protocols]
    device = device_for(args.solver, str(resolve_execution(args.device).device))
    kept = KeptFits(paths.cache_dir(args.cache_dir) / FITS)
    how = How(args.solver, device, kept, shows_progress=True)
    results = {p.name: fit_folds(folds, metric=metric, protocol=p, how=how) for p in protocols}
    unfinished = {name: result for name, result in results.items() if not result.converged}
    if args.json:
        for name, result in results.items():
            how_made = {"protocol": name, "device": device, "val_fraction": args.val_fraction, "seed": args.seed}
            print(json.dumps({"file": args.file, **how_made, "about": found.about, **result.to_dict()}))
    else:
        rows = []
        for name, result in results.items():
            C = "differs" if result.C is None else f"{result.C:.4g}"  # noqa: N806 - the field's name
            score = f"{100 * result.score:.2f}{'' if result.converged else ' *'}"
            around = tables.interval_text(asdict(result))
            rows.append((name, metric, score, around, C, args.solver, str(result.n_iter), str(result.num_test)))
        header = ("protocol", "metric", "score, %", "95 % interval", "C", "solver", "iterations", "test images")
        print(tables.markdown_table(header, rows), end="")
        if unfinished:
            print("\n* the final fit did not converge")
    kept.clear()
    if args.strict:
        for name, result in unfinished.items():
            _refuse_unfinished(f"{args.file} / {name}", asdict(result))
    return 1 if args.strict and unfinished else 0


def _cache_ls(args: argparse.Namespace) -> int:
    from probe import inventory, paths, tables

    kept = inventory.survey(paths.cache_dir(args.cache_dir))
    if args.json:
        for entry in kept:
            print(json.dumps({**asdict(entry), "path": str(entry.path)}, sort_keys=True))
        return 0
    header = ("dataset", "part", "model", "mode", "precision", "images", "state", "MB", "last used", "folder")
    names = ("dataset", "part", "model", "mode", "precision")
    rows = [
        (
            *(entry.label.get(name, "") for name in names),
            str(entry.num_images or ""),
            entry.state,
            f"{entry.size / 1e6:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            entry.path.name,
        )
        for entry in kept
    ]
    print(tables.markdown_table(header, rows), end="")
    print(f"\n{sum(entry.size for entry in kept) / 1e6:.1f} MB in {paths.cache_dir(args.cache_dir)}")
    return 0


def _cache_explain(args: argparse.Namespace) -> int:
    from probe import cache, inventory, paths
    from probe.extraction import make_cells

    root, access, missed = paths.cache_dir(args.cache_dir), _access(args), 0
    for spec in _plan(args, ["readme"]):
        try:
            cells = make_cells(spec, access)
        except ProbeError as err:
            missed += 1
            print(f"probe: {err}", file=sys.stderr)
            continue
        for cell in cells.values():
            folder = cell.folder(root)
            reason = cache.damage(folder) if folder.is_dir() else "not kept"
            if not reason:
                print(f"{cell}: kept in {folder}")
                continue
            missed += 1
            if folder.is_dir():
                print(f"{cell}: damaged in {folder} ({reason}); the next run makes it again")
                continue
            kept = inventory.nearest(root, cell)
            if kept is None:
                print(f"{cell}: not kept, nor anything of this part of the dataset")
                continue
            fields = inventory.differing(cell, kept)
            print(f"{cell}: not kept; the nearest is {kept.path.name} ({kept.state})")
            for name, (there, wanted) in fields.items():
                print(f"  {name}: {there} there, {wanted} wanted")
    return 1 if missed else 0


def _cache_verify(args: argparse.Namespace) -> int:
    from probe import inventory, paths

    checked, damaged = inventory.verify(paths.cache_dir(args.cache_dir))
    for path, reason in damaged.items():
        print(f"{path}: {reason}")
    print(f"{checked} checked, {len(damaged)} damaged{'; the next run makes them again' if damaged else ''}")
    return 1 if damaged else 0


def _cache_gc(args: argparse.Namespace) -> int:
    from probe import inventory, paths

    removed = inventory.collect(paths.cache_dir(args.cache_dir), max_size=args.max_size)
    for entry in removed:
        print(f"removed {entry.path} ({entry.state}, {entry.size / 1e6:.1f} MB)")
    print(f"{sum(entry.size for entry in removed) / 1e6:.1f} MB freed")
    return 0


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


def _protocols(args: argparse.Namespace) -> int:
    from probe import tables
    from probe.probes.description import describe, images_a_class
    from probe.probes.protocols import CATALOG, FORMS, GROUPS, SHOTS

    if args.name is not None:
        for name in _expand([args.name], GROUPS):
            for key, value in describe(name).items():
                print(f"{key:<15} {value}")
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
