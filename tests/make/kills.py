"""Commands that are killed at random moments, in processes forked from one that has imported the libraries.

A moment is the n-th time that the process opens, renames or removes a file in a folder, and the process then sends
SIGKILL to itself. So moments need no clock, are the same in every run of a test, and are where data could be lost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from make.colours import write_colours
from tqdm import tqdm

from probe.records.record import read_records

# The imports that take `python -m probe run` the most time before the first image. Missing modules are skipped.
PRELOADED = ["probe.runner", "probe.cli.main", "sklearn.linear_model"]
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
KILLED = -int(signal.SIGKILL)

PROTOCOL = """name = "quick-{i}"
title = "one value of C"
feature_point = "projected"
grid = [{C}]
coarse_step = 1
max_iter = 20
tol = 1e-3
source = "this test"
"""


def run_command(
    arguments: Sequence[str], output: Path, *, watched: Path, moment: int = 0, with_group: bool = False
) -> int:
    """Run a command, and return its exit status, which is `KILLED` if it had not ended by the moment.

    Args:
        arguments: of `python -m probe`.
        output: file for what the command prints.
        watched: folder whose files are counted.
        moment: number of the event at which the process is killed; 0 for never.
        with_group: also kill the processes that the command started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=_run, args=(list(arguments), str(output), str(watched), moment, with_group, dict(os.environ))
    )
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _run(
    arguments: list[str], output: str, watched: str, moment: int, with_group: bool, environment: dict[str, str]
) -> None:
    os.environ.clear()  # the environment of the test that forked first
    os.environ.update(environment)
    os.setsid()
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore, which a killed process would leave behind
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    seen = 0

    def count(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(values[0]).startswith(watched):
            seen += 1
            if seen == moment:
                (os.killpg if with_group else os.kill)(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    from probe.cli.main import main

    sys.exit(main(arguments))


def quick_grid(folder: Path) -> list[str]:
    """Return the command of 20 quick runs: two models and ten protocols on some images; it writes to `work/`."""
    command = ["run", "--dataset", write_colours(folder), "--device", "cpu", "--offline"]
    command += ["--model", "tiny", "--model", "random:tiny"]
    command += ["--results-dir", str(folder / "work/results"), "--cache-dir", str(folder / "work/cache")]
    for i in range(10):
        path = folder / f"quick-{i}.toml"
        path.write_text(PROTOCOL.format(i=i, C=0.01 * (i + 1)), encoding="utf-8")
        command += ["--protocol", str(path)]
    return command


class Records:
    """The files of records in a results folder, none of which may be written again."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self.seen: dict[str, tuple[int, bytes]] = {}

    def look(self) -> None:
        """Compare the records with those seen before."""
        paths = (self._results / "records").rglob("*.json")
        now = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}
        assert self.seen.items() <= now.items()
        self.seen = now


def kill_and_repeat(
    folder: Path,
    draw_moment: Callable[[int], int],
    *,
    num_kills: int,
    options: Sequence[str] = (),
    with_group: bool = False,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Kill the command of `quick_grid` several times, then let it end, and check that each run was done once.

    Args:
        folder: an empty folder.
        draw_moment: function that returns the moment of the next kill, from the number of records so far.
        num_kills: number of kills.
        options: further options of the command.
        with_group: also kill the processes that the command started.
        wait: function that waits until these processes have ended.
    """
    command, output, work = [*quick_grid(folder), *options], folder / "output", folder / "work"
    records = Records(work / "results")
    for _ in range(num_kills):
        moment = draw_moment(len(records.seen))
        assert run_command(command, output, watched=work, moment=moment, with_group=with_group) == KILLED
        wait()
        records.look()
    num_before = len(records.seen)
    assert 0 < num_before < 20
    output.unlink()
    assert run_command(command, output, watched=work) == 0
    records.look()
    assert len(records.seen) == len(read_records(work / "results")) == 20
    assert f"skipped {num_before} of 20 runs" in output.read_text()
    assert output.read_text().count("| colours") == 20
