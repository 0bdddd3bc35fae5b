"""The command line: parse, call the library once, print. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 an error of ours, or a run that failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from probe.cli import arguments, boards, caching, catalogues, checks, running
from probe.errors import ProbeError, brief

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": running.run_command,
    "extract": running.extract_command,
    "fit": running.fit,
    "datasets": catalogues.datasets,
    "parity": checks.parity_command,
    "diff": checks.diff_command,
    "reproduce": checks.reproduce_command,
    "models": catalogues.models,
    "protocols": catalogues.protocols,
    "doctor": catalogues.doctor,
    "leaderboard": boards.leaderboard,
    "card": boards.card,
    "tables": boards.tables,
    "cache_ls": caching.cache_ls,
    "cache_explain": caching.cache_explain,
    "cache_verify": caching.cache_verify,
    "cache_gc": caching.cache_gc,
}


class _Formatter(logging.Formatter):
    """Formatter that shortens messages as `errors.brief` does. Tracebacks, which --verbose adds, are not shortened."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that `logging` calls
        return brief(record.message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = arguments.parser()
    args = parser.parse_args(argv)
    wrong = arguments.find_conflict(args)
    if wrong is not None:
        parser.error(wrong)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    level = logging.DEBUG if getattr(args, "verbose", False) else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler])
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
