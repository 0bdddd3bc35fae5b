"""What the command line takes: commands, options, and the values that options can have."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from probe.errors import brief

PROTOCOLS = "clip-paper, readme, few-shot and others that `probe protocols` lists, or MINE.toml"
JIT_MODES = {"off": (False,), "on": (True,), "both": (False, True)}


class _Parser(argparse.ArgumentParser):
    """Parser that shortens its error messages as `errors.brief` does; its subcommands have the same class."""

    def error(self, message: str) -> NoReturn:
        super().error(brief(message))


def parser() -> argparse.ArgumentParser:
    """What takes a command line apart; `command` is the name of what to run, as `cli.COMMANDS` has it."""
    found = _Parser(prog="probe", description="Linear-probe evaluation of CLIP models.")
    commands = found.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="extract features, fit probes, write records and tables")
    _add_grid(run)
    run.add_argument("--protocol", action="append", metavar="NAME", help=f"repeatable; {PROTOCOLS} [clip-paper]")
    run.add_argument("--json", action="store_true", help="print records as JSON lines instead of a table")
    run.add_argument(
        "--rerun", action="store_true", help="also run what is recorded, as after images of a dataset were replaced"
    )
    _add_fitting(run)
    _add_execution(run)
    run.add_argument("--executor", choices=("serial", "ray"), default="serial", help="this process, or Ray [serial]")
    run.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        type=_given,
        help="of a running cluster, auto or ray://HOST:PORT [RAY_ADDRESS, or Ray is started here]",
    )
    run.add_argument(
        "--plan",
        type=_positive,
        nargs="?",
        const=0,
        metavar="WORKERS",
        help="run nothing; print what it will take: time, memory, disk [as many workers as there is room for]",
    )
    run.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    run.set_defaults(command="run")

    extract = commands.add_parser("extract", help="extract and keep features, or some shards of them")
    _add_grid(extract)
    extract.add_argument("--shard", type=_shard, metavar="I/N", help="make only the I-th of N shards, from 1 on")
    extract.add_argument("--out", metavar="FILE.npz", help="also write the features of one run to a file")
    _add_execution(extract)
    extract.set_defaults(command="extract")

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
    fit.set_defaults(command="fit")

    cache = commands.add_parser("cache", help="list, explain, verify or remove features that are kept")
    kinds = cache.add_subparsers(required=True, metavar="ACTION")
    listed = kinds.add_parser("ls", help="list the features that are kept")
    listed.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    explain = kinds.add_parser("explain", help="explain a cache miss: which field differs from the nearest entry")
    _add_grid(explain)
    _add_execution(explain)
    verify = kinds.add_parser("verify", help="compare everything that is kept with its digests")
    collect = kinds.add_parser("gc", help="remove what is damaged or of no use, and what was not used for longest")
    collect.add_argument("--max-size", type=_size, metavar="SIZE", help="keep at most so much, such as 500MB or 10GB")
    for action, command in (
        (listed, "cache_ls"),
        (explain, "cache_explain"),
        (verify, "cache_verify"),
        (collect, "cache_gc"),
    ):
        if action is not explain:
            action.add_argument("--cache-dir", metavar="DIR", help="[PROBE_CACHE_DIR, or below ~/.cache]")
        action.set_defaults(command=command)

    datasets = commands.add_parser("datasets", help="list the datasets, or show one")
    datasets.add_argument("name", nargs="?", help="any name that --dataset takes, to show it whole")
    datasets.add_argument("--page", action="store_true", help="the whole catalogue as a page of Markdown")
    datasets.add_argument("--data-dir", metavar="DIR", help="[PROBE_DATA_DIR, or below ~/.cache]")
    datasets.set_defaults(command="datasets")

    parity = commands.add_parser("parity", help="compare the eager and the JIT mode of a model")
    parity.add_argument("--model", default="tiny", metavar="NAME", help="an archive, or random:NAME [tiny]")
    parity.add_argument("--dataset", default="digits", metavar="NAME", help="or folder:PATH [digits]")
    parity.add_argument("--protocol", default="readme", metavar="NAME", help="of the probe that reads both [readme]")
    parity.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parity.add_argument("--cache-dir", metavar="DIR", help="of features [PROBE_CACHE_DIR, or below ~/.cache]")
    _add_execution(parity)
    parity.set_defaults(command="parity")

    diff = commands.add_parser("diff", help="name what differs in two records, and test whether their scores do")
    diff.add_argument("a", metavar="A.json", help="a record of results/records")
    diff.add_argument("b", metavar="B.json", help="another")
    diff.add_argument("--json", action="store_true", help="print JSON instead of a table")
    diff.set_defaults(command="diff")

    reproduce = commands.add_parser("reproduce", help="run records again, and say whether the scores are confirmed")
    reproduce.add_argument("path", nargs="+", metavar="RECORD.json", help="a record, or a results folder with many")
    reproduce.add_argument(
        "--tolerance", type=_count, metavar="N", help="test images by which a score may differ [1 in 1,000, at least 1]"
    )
    reproduce.add_argument("--max-minutes", type=_positive, metavar="N", help="pass over records that took longer")
    reproduce.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, ... [that of the record]")
    reproduce.add_argument("--offline", action="store_true", help="never touch the network")
    reproduce.add_argument("--json", action="store_true", help="print JSON lines instead of tables")
    reproduce.add_argument("--cache-dir", metavar="DIR", help="features that may be used [none: all are made again]")
    reproduce.add_argument("--results-dir", metavar="DIR", help="where to write the new records [nowhere]")
    for name in ("data", "weights"):
        reproduce.add_argument(f"--{name}-dir", metavar="DIR", help=f"[PROBE_{name.upper()}_DIR, or below ~/.cache]")
    reproduce.add_argument("-v", "--verbose", action="store_true", help="log every step of a sweep, and tracebacks")
    reproduce.set_defaults(command="reproduce")

    models = commands.add_parser("models", help="list the models, or show one")
    models.add_argument(
        "name", nargs="?", help="any name that --model takes, to show it whole; open_clip: lists its models"
    )
    models.add_argument("--weights-dir", metavar="DIR", help="[PROBE_WEIGHTS_DIR, or ~/.cache/clip]")
    models.set_defaults(command="models")

    protocols = commands.add_parser("protocols", help="list the protocols, or show one")
    protocols.add_argument("name", nargs="?", help="a protocol or a TOML file, to show it whole")
    protocols.set_defaults(command="protocols")

    doctor = commands.add_parser("doctor", help="say what can be run here, and what to do for the rest")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of tables")
    for name in ("data", "weights", "results"):
        doctor.add_argument(f"--{name}-dir", metavar="DIR", help=f"[PROBE_{name.upper()}_DIR, or its default]")
    doctor.set_defaults(command="doctor")

    board = commands.add_parser("leaderboard", help="print the leaderboard, or make its page and plots")
    form = board.add_mutually_exclusive_group()
    form.add_argument("--format", choices=("md", "csv", "json", "latex", "parquet"), default="md", help="[md]")
    board.add_argument("--out", metavar="FILE", help="write there instead of to standard output, or beside the records")
    board.add_argument("--protocol", action="append", metavar="NAME", help="repeatable: of this protocol alone [all]")
    form.add_argument("--html", action="store_true", help="write a page instead [leaderboard.html beside the records]")
    form.add_argument("--plots", metavar="DIR", help="write plots as PNG and SVG there instead")
    board.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    board.set_defaults(command="leaderboard")

    card = commands.add_parser("card", help="print the model-index of a model card for the Hugging Face hub")
    card.add_argument("path", nargs="+", metavar="RECORD.json", help="records of one model")
    card.set_defaults(command="card")

    tables = commands.add_parser("tables", help="rewrite the tables from the records")
    instead = tables.add_mutually_exclusive_group()
    instead.add_argument(
        "--check", action="store_true", help="change nothing; fail where a table differs from its records"
    )
    instead.add_argument(
        "--compare", choices=("clip-paper",), help="change nothing; print scores beside those that the paper printed"
    )
    tables.add_argument("--results-dir", metavar="DIR", help="[PROBE_RESULTS_DIR, or ./results]")
    tables.set_defaults(command="tables")
    return found


def _add_grid(command: argparse.ArgumentParser) -> None:
    """The options that say which features: datasets, models and modes, and how their images are read."""
    command.add_argument(
        "--dataset",
        action="append",
        required=True,
        metavar="NAME",
        help="repeatable; or all, paper, folder:PATH, csv:PATH, hf:ID, wds:SHARDS, torchvision:CLASS, ROW.toml",
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


def find_conflict(args: argparse.Namespace) -> str | None:
    """What is wrong with options that do not go together; None where nothing is."""
    if getattr(args, "ray_address", None) is not None and args.executor != "ray":
        return "--ray-address is of --executor ray; give both"
    return None


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


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
