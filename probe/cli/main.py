"""The command line: parse, call the library once, print. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done, 1 an error, a failed run or a further test set without a score, 2 wrong usage (also unknown names,
missing files and prompts that cannot be used), 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from probe.cli import (
    arguments,
    auditing,
    boards,
    caching,
    catalogues,
    checks,
    experiments,
    fitting,
    predicting,
    running,
    showing,
    tracking,
)
from probe.errors import ProbeError, PromptsError, UnknownNameError, brief

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": running.run_command,
    "extract": running.extract_command,
    "fit": fitting.fit_command,
    "predict": predicting.predict_command,
    "parity": checks.parity_command,
    "show": showing.show_command,
    "tables": boards.tables,
    "leaderboard": boards.leaderboard,
    "diff": checks.diff_command,
    "errors": predicting.errors_command,
    "reproduce": checks.reproduce_command,
    "log": tracking.log_command,
    "card": boards.card,
    "datasets": catalogues.datasets,
    "models": catalogues.models,
    "protocols": catalogues.protocols,
    "audit": auditing.audit_command,
    "doctor": catalogues.doctor,
    "cache ls": caching.cache_ls,
    "cache explain": caching.cache_explain,
    "cache verify": caching.cache_verify,
    "cache gc": caching.cache_gc,
}


class _Formatter(logging.Formatter):
    """Formatter that shortens messages by `errors.brief`, but not the tracebacks that --verbose adds."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that `logging` calls
        return brief(record.message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = arguments.parser()
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("probe").setLevel(logging.DEBUG if args.verbose else logging.INFO)
    try:
        if vars(args).get("experiment") is not None:
            args = experiments.add_experiment(parser, sys.argv[1:] if argv is None else argv, args)
        arguments.check_conflicts(args)
        with _threads(args):
            code = COMMANDS[args.command](args)
        sys.stdout.flush()
    except arguments.UsageError as err:
        args.parser.exit(2, f"{args.parser.prog}: error: {brief(str(err))}\n")
    except ProbeError as err:
        print(f"probe: {err}", file=sys.stderr)
        # An unknown name is wrong usage, and so are missing files, and prompts that are refused before any run.
        return 2 if isinstance(err, UnknownNameError | FileNotFoundError | PromptsError) else 1
    except BrokenPipeError:  # the reader of stdout has exited, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("probe: interrupted; finished runs are saved, and the same command continues from there", file=sys.stderr)
        return 130
    return code


def _threads(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return a context that limits the threads to --threads, if the command has the option and it is given."""
    n = vars(args).get("threads")
    if n is None:
        return nullcontext()
    from probe.environment import threads  # imports torch

    return threads(n, blas=n)


def entry_point() -> None:
    """Run the command in `sys.argv`, and exit."""
    os.environ.setdefault("SCIPY_ARRAY_API", "1")  # SciPy reads it on import; fits on a GPU need it
    sys.exit(main())
