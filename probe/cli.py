"""The command line: parse, call the library once, print. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 an error of ours, or a cell that failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import arguments, errors
from probe.arguments import JIT_MODES
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.extraction import Access
    from probe.records import RunRecord
    from probe.reproduction import Reproduction
    from probe.specs import RunSpec

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    args = arguments.parser().parse_args(argv)
    level = logging.DEBUG if getattr(args, "verbose", False) else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("probe").setLevel(level)
    try:
        code = COMMANDS[args.command](args)
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
    way_out = "divide the features by their size" if result["solver"] == "fast" else "use --solver fast"
    print(
        f"probe: {what}: the fit did not converge, its gradient is at {result['gradient_ratio']:.1e} of its start "
        f"after {result['n_iter']} iterations; {way_out}, or raise max_iter in a protocol of your own",
        file=sys.stderr,
    )


def _report(records: Sequence[RunRecord], specs: Sequence[RunSpec], *, as_json: bool) -> None:
    from probe import modes, tables

    if as_json:
        for record in records:
            print(json.dumps(asdict(record), sort_keys=True))
    else:
        print(tables.to_markdown(records), end="")
        parity = modes.to_markdown(records)
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
    from probe.environment import describe
    from probe.models.devices import resolve_execution
    from probe.probes.fitting import fit_folds, hold_out
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
    results = {
        protocol.name: fit_folds(
            folds, metric=metric, protocol=protocol, solver=args.solver, device=device, kept=kept, shows_progress=True
        )
        for protocol in protocols
    }
    unfinished = {name: result for name, result in results.items() if not result.converged}
    if args.json:
        made_by = {
            "file": args.file,
            "about": found.about,
            "features": [{split: part.sha256 for split, part in fold.items()} for fold in folds],
            "device": device,
            "val_fraction": args.val_fraction,
            "seed": args.seed,
            "environment": describe(device),
        }
        for protocol in protocols:
            named = {"protocol": protocol.name, "rules": asdict(protocol)}
            print(json.dumps({**made_by, **named, **results[protocol.name].to_dict()}, allow_nan=False))
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


def _diff(args: argparse.Namespace) -> int:
    from probe import tables
    from probe.difference import diff
    from probe.records import read_record

    found = diff(read_record(args.a), read_record(args.b))
    if args.json:
        print(json.dumps(asdict(found), sort_keys=True))
        return 0
    if found.changes:
        rows = [(c.stage, c.field, _short(c.a), _short(c.b)) for c in found.changes]
        print(tables.markdown_table(("stage", "field", "A", "B"), rows))
        for stage in dict.fromkeys(change.stage for change in found.changes):
            print(f"{stage}: {found.explains(stage)}")
        print()
    print(found.verdict)
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from probe.extraction import Access
    from probe.reproduction import (
        NOT_RUN,
        estimate_seconds,
        find_records,
        refuse_overwriting,
        reproduce_all,
    )

    files = [found for path in args.path for found in find_records(path)]
    refuse_overwriting(args.results_dir, [path for path, _ in files])
    limit = 60 * args.max_minutes if args.max_minutes else float("inf")
    wanted = [record for _, record in files if estimate_seconds(record) <= limit]
    access = Access(
        data=args.data_dir,
        weights=args.weights_dir,
        cache=args.cache_dir,
        results=args.results_dir,
        offline=args.offline,
    )
    done: list[Reproduction] = []
    try:
        for found in reproduce_all(wanted, tolerance=args.tolerance, device=args.device, access=access):
            done.append(found)
            logger.info("%s / %s / %s / %s: %s", *_cell_names(found.record), found.verdict)
            if args.json:
                print(json.dumps(asdict(found), sort_keys=True), flush=True)
    finally:
        if done and not args.json:
            print(_reproduced(done) if len(done) > 1 else _stages_page(done[0]), end="")
    for found in done:
        if found.verdict == NOT_RUN:
            print(f"probe: {' / '.join(_cell_names(found.record))}: {found.reason}", file=sys.stderr)
    failed, left = sum(1 for _, record in files if record.error), len(files) - len(wanted)
    passed = sum(found.passed for found in done)
    if len(files) > 1:
        print(
            f"probe: {passed} of {len(done)} confirmed; passed over: {failed} of failed cells, "
            f"{left} that took longer than --max-minutes",
            file=sys.stderr,
        )
    if not done:
        raise errors.ResultsError("nothing was run again; name records that have a score, or raise --max-minutes")
    return 0 if passed == len(done) else 1


def _cell_names(record: RunRecord) -> tuple[str, str, str, str]:
    return (record.dataset, record.model, record.mode, record.protocol)


def _reproduced(done: Sequence[Reproduction]) -> str:
    from probe import tables

    header = ("dataset", "model", "mode", "protocol", "solver", "record, %", "again, %", "images", "moved", "verdict")
    rows = [
        (
            *_cell_names(found.record),
            found.record.solver,
            tables.percent(found.record),
            tables.percent(found.again) if found.again is not None and found.again.result else "",
            "" if found.images is None else f"{found.images:.3g} of {found.tolerance}",
            found.first_moved,
            found.verdict,
        )
        for found in done
    ]
    return tables.markdown_table(header, rows)


def _stages_page(found: Reproduction) -> str:
    from probe import tables

    rows = [(stage.name, "differs" if stage.moved else "same", stage.moved) for stage in found.stages]
    lines = [tables.markdown_table(("stage", "", "record -> again"), rows)] if rows else []
    if found.images is not None:
        lines.append(f"the score moves by {found.images:.3g} test images; tolerance: {found.tolerance}\n")
    return "\n".join([*lines, f"{found.reason}\nverdict: {found.verdict}\n"])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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


def _leaderboard(args: argparse.Namespace) -> int:
    from probe import derived, exports, leaderboard
    from probe.records import read_records, write_bytes

    results_dir = _results_dir(args)
    records = [r for r in read_records(results_dir) if args.protocol is None or r.protocol in args.protocol]
    if not records:
        raise errors.ResultsError(f"no record in {results_dir} is of {', '.join(args.protocol or ['any cell'])}")
    if args.html is not None:
        from probe import report

        path = Path(args.html) if args.html else results_dir / derived.PAGE
        write_bytes(path, report.render(records, leaderboard.sections(records)).encode())
        print(path)
    if args.plots is not None:
        from probe import plots

        for path in plots.write_plots(records, Path(args.plots)):
            print(path)
    if args.html is not None or args.plots is not None:
        return 0
    text = exports.FORMATS[args.format](leaderboard.sections(records))
    data = text if isinstance(text, bytes) else text.encode()
    if args.out is not None:
        write_bytes(Path(args.out), data)
    elif args.format == "parquet":
        raise errors.ResultsError("Parquet is no text; name a file with --out")
    else:
        print(data.decode(), end="")
    return 0


def _card(args: argparse.Namespace) -> int:
    from probe.model_cards import model_index
    from probe.records import read_record

    print(model_index([read_record(path) for path in args.path]), end="")
    return 0


def _results_dir(args: argparse.Namespace) -> Path:
    from probe import paths

    results_dir = paths.results_dir(args.results_dir)
    if not (results_dir / "records").is_dir():
        raise errors.ResultsError(f"no records in {results_dir}; name the folder of a run with --results-dir")
    return results_dir


def _tables(args: argparse.Namespace) -> int:
    from probe import derived

    results_dir = _results_dir(args)
    if args.compare:
        from probe.published import compare_markdown
        from probe.records import read_records

        page = compare_markdown(read_records(results_dir), args.compare)
        if not page:
            raise errors.ResultsError(
                f"no record in {results_dir} is of a dataset and model of the paper under {args.compare}; run one first"
            )
        print(page, end="")
        return 0
    if args.check:
        stale = derived.find_stale(results_dir)
        for path in stale:
            print(
                f"probe: {path} differs from the records; run python -m probe tables, and remove it if it stays",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in derived.write_derived(results_dir):
        print(path)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "extract": _extract,
    "fit": _fit,
    "datasets": _datasets,
    "parity": _parity,
    "diff": _diff,
    "reproduce": _reproduce,
    "models": _models,
    "protocols": _protocols,
    "doctor": _doctor,
    "leaderboard": _leaderboard,
    "card": _card,
    "tables": _tables,
    "cache_ls": _cache_ls,
    "cache_explain": _cache_explain,
    "cache_verify": _cache_verify,
    "cache_gc": _cache_gc,
}
