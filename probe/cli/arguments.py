"""Commands and options of the command line. Each option is defined once, whichever commands have it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from probe.errors import brief
from probe.specs import DEFAULT_SOLVER, SPLITS

JIT_MODES = {"off": (False,), "on": (True,), "both": (False, True)}


class _Parser(argparse.ArgumentParser):
    """Parser that shortens its error messages as `errors.brief` does. The parsers of commands have the same class."""

    def error(self, message: str) -> NoReturn:
        super().error(brief(message))


class UsageError(Exception):
    """Options that cannot be used together, or a wrong experiment file. The command line exits with 2."""


class _Once(argparse.Action):
    """Action of an option that is repeatable in other commands, but not in this one."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: object, option: str | None = None
    ) -> None:
        mark = f"_has_{self.dest}"
        if hasattr(args, mark):
            parser.error(f"argument {option}: this command takes one value, so give the option once")
        setattr(args, mark, True)
        setattr(args, self.dest, value)


class _Version(argparse.Action):
    """Action that prints the version, which is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from probe.environment import DISTRIBUTION, package_version

        print(f"probe {package_version(DISTRIBUTION)}")
        parser.exit()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


def _distance(text: str) -> int:
    if not text.isdecimal() or int(text) > 16:  # `stats.near_hashes.MAX_DISTANCE`, whose module imports NumPy
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 16, got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 1, such as 0.1, got {text!r}")
    return value


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or not 1 <= int(i) <= int(n):
        raise argparse.ArgumentTypeError(f"expected a shard such as 1/4, the first of four, got {text!r}")
    return int(i), int(n)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 10GB, got {text!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected an address, got an empty text")
    return text


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


def _value(metavar: str, text: str, **settings: Any) -> dict[str, Any]:
    return {"metavar": metavar, "help": text, **settings}


def _choice(choices: Collection[str], default: str | None, text: str) -> dict[str, Any]:
    return {"choices": choices, "default": default, "help": text}


def _single(default: str, text: str) -> dict[str, Any]:
    return {"action": _Once, "required": False, "default": default, "help": text}


def _folder(name: str, content: str, default: str) -> dict[str, Any]:
    return _value("DIR", f"Folder of {content}. [PROBE_{name}_DIR, or {default}]")


# Help texts begin with a verb or a noun; square brackets at their end hold the default.
FORMS_OF_ONE = "a name, folder:PATH, csv:PATH, hf:ID, wds:SHARDS, torchvision:CLASS or FILE.toml"
FORMS = FORMS_OF_ONE.replace("a name,", "a name, all, paper,")
METRICS = ("accuracy", "top5", "mean_top1_top5", "mean_per_class", "roc_auc", "voc2007_11pt_map")
TRACKERS = ("wandb", "mlflow", "trackio")  # of `tracking.trackers`, which imports more than the parser needs
PROTOCOLS = "a name that `probe protocols` lists, or a TOML file"
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "what to run": {
        "--dataset": _value(
            "NAME", f"Dataset to evaluate on, repeatable: {FORMS}. Required.", action="append", required=True
        ),
        "--model": _value(
            "NAME",
            "Model, repeatable: a name, all, the path of a checkpoint, or a form that `probe models` lists, such as "
            "timm:NAME. [ViT-B/32]",
            action="append",
        ),
        "--jit": _choice(
            JIT_MODES, "off", "Run TorchScript archives (on), models rebuilt from their weights (off), or both. [off]"
        ),
        "--compile": _flag("Compile the rebuilt model with torch.compile. Results have the mode `compiled`."),
        "--protocol": _value("NAME", f"Protocol, repeatable: {PROTOCOLS}. [clip-paper]", action="append"),
        "--prompts": _value(
            "FILE.toml", "TOML file with templates or class names for zero-shot runs. [the prompts of each dataset]"
        ),
        "--also-test": _value(
            "NAME",
            "Further test set to score the same probe on, repeatable: a name that `probe datasets DATASET` lists, all, "
            "or FILE.toml. [none]",
            action="append",
        ),
        "--clean": _flag(
            "Also score each run without test images that have the same pixels as a training or validation image."
        ),
        "--metric": _choice(METRICS, None, "Metric of the scores. [the metric of the dataset, or accuracy]"),
        "--shard": _value("I/N", "Extract only the I-th of N shards, counted from 1.", type=_shard),
        "--val-fraction": _value(
            "F",
            "Hold out this fraction of the training features of each class to choose C or k on.",
            type=_fraction,
        ),
        "--seed": _value("N", "Seed of --val-fraction. [0]", type=_count),
        "--max-minutes": _value("N", "Skip records whose run took longer than this.", type=_positive),
        "--tolerance": _value(
            "N", "Number of test images by which a score may differ. [1 in 1,000, at least 1]", type=_count
        ),
        "--split": _choice(SPLITS, "test", "Split of --dataset. [test]"),
        "--rerun": _flag(
            "Also repeat runs that have a complete record, for example after you replaced images of a dataset."
        ),
        "--save-heads": _flag("Also write the fitted weights of each run, for `predict`."),
        "--record": _flag("Also write a record of each probe and the tables, both marked as supplied features."),
        "--about": _value(
            "FILE.toml",
            "Description of the features for --record and --save-head: dataset, model and more. "
            "[the description in PATH]",
        ),
        "--features": _value("PATH", "File or folder of features, as for `fit`, for a record of supplied features."),
        "--save-head": _value("FILE", "Also write the fitted weights to this file, for `predict`."),
        "--predictions": _value(
            "DIR",
            "Also write the prediction for each test image of each run and of its further test sets into this folder, "
            "as Parquet.",
        ),
        "--test-set": _value("NAME", "Further test set of the record to list. [the test split of the dataset]"),
        "--with-logits": _flag("Also write the logits of each test image; requires --predictions."),
        "--distance": _value(
            "N",
            "Largest number of bits, from 0 to 16 of 64, in which the perceptual hashes of near-duplicates differ. [4]",
            type=_distance,
            default=4,
        ),
        "--top": _value("N", "Number of images to list. [20]", type=_positive, default=20),
        "--log": {
            **_value("TRACKER", "Also log each new record to a tracker, repeatable: wandb, mlflow or trackio. [none]"),
            "action": "append",
            "choices": TRACKERS,
        },
        "--plan": _flag("Run nothing; print an estimate of the time, memory and disk space that the grid needs."),
    },
    "how to run it": {
        "--solver": _value(
            "NAME",
            "Solver: fast, which reaches the optimum, or sklearn, scikit-learn's L-BFGS, as a reference. No effect on "
            "zero-shot and k-NN. [fast]",
            default=DEFAULT_SOLVER,
        ),
        "--strict": _flag("Exit with 1 if a final fit did not converge."),
        "--device": _value(
            "NAME", "Device, such as cpu or cuda:1. [auto: cuda if available, else cpu]", default="auto"
        ),
        "--precision": _choice(
            ("auto", "fp32", "fp16", "bf16"), "auto", "Precision of the weights. [auto: fp16 on CUDA, else fp32]"
        ),
        "--batch-size": _value(
            "N",
            "Number of images encoded at a time. [256 on CUDA, else 64, or fewer to fit into memory]",
            type=_positive,
        ),
        "--threads": _value(
            "N",
            "Number of threads. On a CPU, each number of threads has its own cached features. [all processors]",
            type=_positive,
        ),
        "--workers": _value(
            "N", "Number of processes that read images. [with a GPU 16 or one per processor, else 0]", type=_count
        ),
        "--executor": _choice(("serial", "ray"), "serial", "Run in this process, or on Ray. [serial]"),
        "--ray-address": _value(
            "ADDRESS",
            "Address of a running Ray cluster: auto or ray://HOST:PORT. [RAY_ADDRESS, or start Ray here]",
            type=_given,
        ),
        "--ray-workers": _value(
            "N", "Number of Ray workers that --plan assumes. [as many as there is room for]", type=_positive
        ),
        "--allow-partial": _flag("Evaluate on the images that are present if some are missing, and mark the results."),
        "--skip-corrupt": _value(
            "N", "Skip up to N unreadable images of a dataset, and mark the results. [0]", type=_count, default=0
        ),
        "--allow-duplicate-names": _flag(
            "Run zero-shot even if several classes have equal prompts; the record names them."
        ),
        "--allow-code": _flag("Run the Python files that records of models module:FILE.py:FUNCTION name."),
        "--offline": _flag("Do not use the network."),
        "--max-size": _value("SIZE", "Size limit of the cache, such as 10GB. [none]", type=_size),
    },
    "folders": {
        "--data-dir": _folder("DATA", "datasets", "~/.cache/probe/data"),
        "--weights-dir": _folder("WEIGHTS", "checkpoints", "~/.cache/clip"),
        "--cache-dir": _folder("CACHE", "cached features and fits", "~/.cache/probe/features"),
        "--results-dir": _folder("RESULTS", "records and tables", "./results"),
    },
    "output": {
        "--out": _value("FILE", "File to write to."),
        "--format": _choice(("md", "csv", "json", "latex", "parquet"), "md", "Format of the leaderboard. [md]"),
        "--classes": _value("N", "Number of classes to print, the worst first. [20]", type=_positive, default=20),
        "--csv": _value("FILE.csv", "Write the scores of all classes to this file, and print only its path."),
        "--confusions": _value("FILE.csv", "Write the recorded confusions to this file, and print only its path."),
        "--calibration": _flag("Also give NLL, Brier score and ECE, before and after temperature scaling."),
        "--html": _flag("Write the page of results."),
        "--plots": _value("DIR", "Write plots as PNG and SVG into this folder."),
        "--check": _flag("Change nothing; exit with 1 if a table differs from the records, or a record is damaged."),
        "--compare": _choice(
            ("clip-paper", "figure-14", "laion", "dinov2"),
            None,
            "Change nothing; print the scores next to published scores: tables 10 and 11 or figure 14 of the CLIP "
            "paper, LAION's linear probes, or DINOv2's README.",
        ),
        "--page": _flag("Print the whole catalogue as a page of Markdown."),
        "--json": _flag("Print JSON instead of text."),
        "-v, --verbose": _flag("Log details and tracebacks."),
        "-h, --help": {"action": "help", "help": "Print this help."},
    },
}
IMAGES = "--dataset --model --jit --compile --allow-partial --skip-corrupt --workers --cache-dir"  # which features
ENCODING = "--device --precision --batch-size --threads --offline --data-dir --weights-dir"  # how a model runs
FITTING = "--solver --strict"
PRINTING = "--json -v,--verbose -h,--help"
EXCLUSIVE = (("--format", "--html", "--plots", "--json"), ("--check", "--compare"))  # at most one option of each


@dataclass(frozen=True)
class _Command:
    """A command: its help, its options, its positional arguments, and options that differ from `OPTIONS`."""

    help: str
    options: str
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_RECORDS: dict[str, Any] = {"nargs": "+", "metavar": "RECORD.json"}
COMMANDS: dict[str, dict[str, _Command]] = {
    "features and probes": {
        "run": _Command(
            "Extract features, fit probes, and write records and tables.",
            f"{IMAGES} {ENCODING} {FITTING} --protocol --prompts --allow-duplicate-names --also-test --clean --rerun "
            "--save-heads --predictions --with-logits --log --plan --executor --ray-address --ray-workers "
            "--results-dir",
            {
                "experiment": _value(
                    "FILE.toml", "Experiment file: options of this command. Options given here override it.", nargs="?"
                )
            },
            {"--dataset": {"required": False}},
        ),
        "extract": _Command(
            "Extract and cache features, or some shards of them.",
            f"{IMAGES} {ENCODING} --shard --out",
            changes={"--out": _value("FILE.npz", "File for the features of one run, besides the cache.")},
        ),
        "fit": _Command(
            "Fit probes on features from a file.",
            f"--protocol --metric --val-fraction --seed {FITTING} --record --about --save-head --threads --device "
            "--cache-dir --results-dir",
            {
                "file": _value(
                    "PATH",
                    "File of `extract --out`, any .npz or .parquet file of features, or a folder of .npy files.",
                )
            },
        ),
        "predict": _Command(
            "Predict the classes of images with the fitted weights of a run.",
            "--dataset --split --model --device --batch-size --threads --offline --data-dir --weights-dir --out",
            {
                "head": _value("HEAD", "File that `run --save-heads` wrote, below RESULTS/heads."),
                "images": _value("IMAGE", "Image, or a folder of images.", nargs="*"),
            },
            {
                "--dataset": _single("", "Dataset to predict instead of files. [none]"),
                "--model": _single("", "Place of the encoder's weights, if they have moved. [the model of the head]"),
                "--batch-size": {"default": 64, "help": "Number of images encoded at a time. [64]"},
                "--out": _value("FILE.csv", "CSV file to write to. [standard output]"),
            },
        ),
        "parity": _Command(
            "Compare the eager and the JIT mode of a model.",
            f"--dataset --model --protocol {ENCODING} --cache-dir",
            changes={
                "--dataset": _single("digits", "Dataset whose images both modes encode. [digits]"),
                "--model": _single("tiny", "Model with a TorchScript archive, or random:NAME. [tiny]"),
                "--protocol": _single("readme", f"Protocol of the probe: {PROTOCOLS}. [readme]"),
            },
        ),
    },
    "results": {
        "show": _Command(
            "Show one record: scores of classes, calibration and further test sets.",
            "--classes --csv --confusions",
            {"record": _value("RECORD.json", "Record of a run.")},
        ),
        "tables": _Command(
            "Write all tables from the records, check them, or print all runs as one table.",
            "--check --compare --format --out --results-dir",
            changes={
                "--format": {
                    "choices": ("md", "csv", "latex", "parquet"),
                    "default": None,
                    "help": "Change nothing; print all runs as one table in this format.",
                },
                "--out": {"help": "File to write the table of --format to. [standard output]"},
            },
        ),
        "leaderboard": _Command(
            "Print the leaderboard, or write its page or plots.",
            "--protocol --format --calibration --html --plots --out --results-dir",
            changes={
                "--protocol": {"help": "Protocol to show, repeatable. [all]"},
                "--json": {"help": "Print JSON, as --format json."},
                "--out": {"help": "File to write to. [standard output, or leaderboard.html for --html]"},
            },
        ),
        "diff": _Command(
            "Compare two records, and test whether their scores differ.",
            "",
            {"a": _value("A.json", "Record of a run."), "b": _value("B.json", "Record of another run.")},
        ),
        "reproduce": _Command(
            "Run records again, and report whether their scores are confirmed.",
            "--features --max-minutes --tolerance --allow-code --device --offline --data-dir --weights-dir --cache-dir "
            "--results-dir",
            {"path": {**_RECORDS, "help": "Record, or a results folder with records."}},
            {
                "--device": {"default": None, "help": "Device to compute on. [the device of the record]"},
                "--cache-dir": {"help": "Folder of cached features to use. [none: all features are extracted again]"},
                "--results-dir": {"help": "Folder to write the new records to. [none: they are not written]"},
            },
        ),
        "errors": _Command(
            "List the test images with the most confident wrong predictions.",
            "--test-set --predictions --top --html --offline --data-dir",
            {"record": _value("RECORD.json", "Record of a run with --predictions.")},
            {
                "--predictions": _value("DIR", "Folder of predictions. [RESULTS/predictions, for RESULTS/records]"),
                "--html": _value("FILE", "Also write a page with thumbnails of these images.", action="store"),
            },
        ),
        "log": _Command(
            "Log all records to experiment trackers: Weights & Biases, MLflow or Trackio.",
            "--offline --results-dir",
            {"tracker": {"nargs": "+", "choices": TRACKERS, "help": "Tracker: wandb, mlflow or trackio."}},
        ),
        "card": _Command(
            "Print scores of one model for the Hugging Face hub or for Every Eval Ever.",
            "--format",
            {"path": {**_RECORDS, "help": "Records of one model."}},
            {
                "--format": {
                    "choices": ("model-index", "eval-results", "every-eval-ever"),
                    "default": "model-index",
                    "help": "Format: YAML for the top of a model card, YAML for a file in the folder .eval_results of "
                    "a model, or JSON of the project Every Eval Ever. [model-index]",
                },
                "--json": {"help": "Print the model-index as JSON."},
            },
        ),
    },
    "catalogues, installation and cache": {
        "datasets": _Command(
            "List the datasets, or show one.",
            "--data-dir --page",
            {"name": _value("NAME", "Dataset to show: any name that --dataset accepts.", nargs="?")},
        ),
        "models": _Command(
            "List the models, or show one.",
            "--weights-dir",
            {
                "name": _value(
                    "NAME",
                    "Model to show: any that --model accepts, or a prefix: `open_clip:` and `timm:` list all models, "
                    "`transformers:` lists the cached models.",
                    nargs="?",
                )
            },
        ),
        "protocols": _Command(
            "List the protocols, or show one.",
            "",
            {"name": _value("NAME", "Protocol to show: a name or a TOML file.", nargs="?")},
        ),
        "audit": _Command(
            "Find equal images, near-duplicates, class imbalance and unreadable images in a dataset.",
            "--dataset --distance --top --classes --csv --offline --data-dir --cache-dir",
            changes={
                "--dataset": _value("NAME", f"Dataset to audit: {FORMS_OF_ONE}. Required.", action=_Once),
                "--top": {"help": "Number of groups of equal images and of near-duplicates to print. [20]"},
                "--classes": {"help": "Number of classes to print, the smallest first. [20]"},
                "--csv": _value("FILE.csv", "Also write all images of the groups of equal images to this file."),
                "--cache-dir": {"help": "Folder of cached digests. [PROBE_CACHE_DIR, or ~/.cache/probe/features]"},
            },
        ),
        "doctor": _Command(
            "Check what can be run on this machine, and how to get the rest.", "--data-dir --weights-dir --results-dir"
        ),
        "cache": _Command("List, explain, verify or remove cached features.", ""),
    },
}
CACHE_ACTIONS = {
    "ls": _Command("List the cached features.", "--cache-dir"),
    "explain": _Command("Explain a cache miss: which field of the key differs.", f"{IMAGES} {ENCODING}"),
    "verify": _Command("Compare all cached files with their digests.", "--cache-dir"),
    "gc": _Command("Remove damaged and unusable files, and the entries unused for longest.", "--max-size --cache-dir"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    It sets `command` to the name of a command, such as `cache ls`, and `parser` to the parser of that command.
    """
    listing = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<13}{command.help}" for name, command in group.items())])
        for title, group in COMMANDS.items()
    )
    found = _Parser(
        prog="probe",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=f"Evaluate CLIP models with linear probes.\n\n{listing}",
        epilog="`probe COMMAND --help` describes a command. Square brackets after an option hold its default.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    found.add_argument("-h", "--help", action="help", help="Print this help.")
    found.add_argument("--version", action=_Version, nargs=0, help="Print the version.")
    # The description lists the commands in groups, which argparse itself cannot do.
    commands = found.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="probe")
    for group in COMMANDS.values():
        for name, command in group.items():
            own = commands.add_parser(name, help=command.help, description=command.help, add_help=False)
            if name == "cache":
                own.add_argument("-h", "--help", action="help", help="Print this help.")
                actions = own.add_subparsers(required=True, metavar="ACTION")
                for action, inner in CACHE_ACTIONS.items():
                    child = actions.add_parser(action, help=inner.help, description=inner.help, add_help=False)
                    _add_options(child, f"{name} {action}", inner)
            else:
                _add_options(own, name, command)
    return found


def find_options(name: str) -> dict[str, dict[str, Any]]:
    """Return the options of a command: the name of each without dashes, and the arguments of `add_argument`."""
    command = next(group[name] for group in COMMANDS.values() if name in group)
    wanted = f"{command.options} {PRINTING}".split()
    return {
        flags.rpartition("--")[2]: {**settings, **command.changes.get(flags, {})}
        for options in OPTIONS.values()
        for flags, settings in options.items()
        if flags.replace(" ", "") in wanted
    }


def _add_options(parser: argparse.ArgumentParser, name: str, command: _Command) -> None:
    """Add the arguments and options of a command, grouped as in `OPTIONS`."""
    parser.set_defaults(command=name, parser=parser)
    for argument, settings in command.arguments.items():
        parser.add_argument(argument, **settings)
    wanted = set(f"{command.options} {PRINTING}".split())
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        choices = [names for names in EXCLUSIVE if len(wanted & options.keys() & {*names}) > 1]
        exclusive = {names: group.add_mutually_exclusive_group() for names in choices}
        for flags, settings in options.items():
            if flags.replace(" ", "") in wanted:
                place = next((own for names, own in exclusive.items() if flags in names), group)
                place.add_argument(*flags.split(", "), **{**settings, **command.changes.get(flags, {})})
                if "experiment" in command.arguments and settings.get("action") == "store_true":
                    _add_opposite(place, flags)


def _add_opposite(place: argparse._ActionsContainer, flags: str) -> None:
    """Add the option that turns off a flag, such as --no-offline, for a flag that an experiment file turns on."""
    name = flags.rpartition("--")[2]
    place.add_argument(
        f"--no-{name}",
        dest=name.replace("-", "_"),
        action="store_false",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def check_conflicts(args: argparse.Namespace) -> None:
    """Check that the options of a command can be used together.

    Raises:
        UsageError: two options cannot be used together, or an option requires another one.
    """
    options = vars(args).get
    if args.command == "run" and not args.dataset:
        raise UsageError("name a dataset with --dataset, or give an experiment file")
    if options("ray_address") is not None and args.executor != "ray":
        raise UsageError("--ray-address requires --executor ray; add --executor ray")
    if options("executor") == "ray" and ":" in args.device:
        raise UsageError(f"Ray chooses the GPU of each worker; give --device cuda instead of --device {args.device}")
    if options("ray_workers") is not None and not args.plan:
        raise UsageError("--ray-workers requires --plan; add --plan")
    if options("compile") and args.jit != "off":
        raise UsageError("a model cannot run in JIT mode and in compiled mode; use --compile with --jit off")
    if options("seed") is not None and args.val_fraction is None:
        raise UsageError("--seed requires --val-fraction; add --val-fraction 0.1")
    if options("with_logits") and options("predictions") is None:
        raise UsageError("--with-logits requires --predictions; add --predictions DIR")
    if options("shard") is not None and options("out") is not None:
        raise UsageError("--out needs the features of all images; remove --shard")
    if args.command == "leaderboard":
        _check_leaderboard(args)
    if options("format") == "parquet" and args.out is None:
        raise UsageError("Parquet is a binary format and cannot be printed; name a file with --out")
    if args.command == "tables":
        _check_tables(args)
    if args.command == "predict" and bool(args.images) == bool(args.dataset):
        raise UsageError("name images or folders to predict, or a dataset with --dataset, but not both")
    if options("page") and (args.json or args.name is not None):
        raise UsageError("--page prints the whole catalogue as Markdown; remove --json and the name")


def _check_tables(args: argparse.Namespace) -> None:
    if args.format is not None and (args.check or args.compare is not None):
        other = "--check" if args.check else "--compare"
        raise UsageError(f"--format prints the table of all runs; remove --format or {other}")
    if args.out is not None and args.format is None:
        raise UsageError("--out names the file of one table; add --format csv, md, latex or parquet")


def _check_leaderboard(args: argparse.Namespace) -> None:
    if args.calibration and (args.html or args.plots is not None):
        raise UsageError("the page and the plots always show the calibration; remove --calibration")
    if args.calibration and args.format == "latex":
        raise UsageError("LaTeX has no columns for the calibration; use --format csv, or remove --calibration")
    if args.plots is not None and args.out is not None:
        raise UsageError("--plots names the folder to write to; remove --out")
    if args.html and args.out is None and args.protocol is not None:
        raise UsageError("leaderboard.html is the page of all protocols; name another file with --out")
