"""Run everything that needs a GPU in one call of at most eight minutes, and write a page of the figures.

    python benchmarks/gpu.py --out build/gpu
    python benchmarks/gpu.py --out build/gpu --only solver-imagenet-1024    # this step alone, with all of the time
    python benchmarks/gpu.py --out build/trial --device cpu --quick         # the same with tiny sizes, without a GPU

Runs from a checkout, without a network, with torch 2.11 or newer; the package need not be installed. pytest,
clip-anytorch, open_clip_torch and Ray are used where they are installed.

Each step of `gpu_steps.py` is a process of its own with a time limit, and does not need the other steps. The processes
are forked from one that has imported the libraries: importing them in each step would take a minute of the eight.

- OUT/STEP.jsonl has the figures of a step, each from the moment at which it is known. OUT/STEP.txt has its output.
- OUT/gpu-NAME.md, with the name of the GPU, is the page for `results/speed/`. It is written after every step. It has
  the figures of all steps in OUT, also of earlier calls, and the end of the output of steps that failed. A call without
  `--only` begins a new page.

The exit code is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 7.8  # of all steps together; starting and ending take the rest of eight minutes
LEAST_SECONDS = 10  # a step with less time is not started
DONE = "done"
TAIL = 1500  # characters of the output of a step that failed
# Seconds of each step, in the order in which the steps run. Together they are more than `MINUTES`, but few steps need
# all of their time. A second call with `--only` runs those that were left.
LIMITS = {
    "machine": 30,
    "solver-paper": 40,
    "solver-imagenet-768": 210,
    "tests": 120,
    "extraction-ViT-B-32": 50,
    "solver-equal": 40,
    "ray": 45,
    "plan": 35,
    "extraction-ViT-L-14": 60,
    "extraction-RN50": 40,
    "solver-imagenet-1024": 300,
}
# With tiny sizes, these steps would repeat others. All others get the same time, because a busy processor is slow.
REPEATED = ("extraction-ViT-L-14", "extraction-RN50", "solver-imagenet-1024")
QUICK_SECONDS = 300


def main() -> int:
    """Run the steps, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures and the page")
    parser.add_argument("--device", default="cuda", help="device of all steps [cuda]")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to try the script itself")
    parser.add_argument("--only", action="append", choices=LIMITS, help="run this step, repeatable [all]")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for all steps [{MINUTES}]")
    args = parser.parse_args()
    # For the processes of the steps. SciPy reads the first on import; scikit-learn needs it to compute on a GPU.
    os.environ["SCIPY_ARRAY_API"] = "1"
    search = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = args.only or [step for step in LIMITS if not (args.quick and step in REPEATED)]
    if "machine" not in steps:
        steps.insert(0, "machine")  # the page needs its figures
    if not args.only:
        for step in LIMITS:
            (out / f"{step}.jsonl").unlink(missing_ok=True)
    until = time.monotonic() + 60 * args.minutes
    failed = False
    for step in steps:
        left = until - time.monotonic()
        limit = min(left, QUICK_SECONDS if args.quick else left if args.only else LIMITS[step])
        outcome = run(step, out, device=args.device, quick=args.quick, limit=limit)
        failed |= outcome != DONE
        print(f"{step}: {outcome}", flush=True)
        path = write_page(out, is_trial=args.quick or args.device == "cpu")
    print(path)
    return 1 if failed else 0


def run(step: str, out: Path, *, device: str, quick: bool, limit: float) -> str:
    """Run a step in a process, and end the process and its children after `limit` seconds.

    The outcome is added to the figures of the step, and returned.
    """
    figures, output = out / f"{step}.jsonl", out / f"{step}.txt"
    for path in (figures, output):
        path.unlink(missing_ok=True)
    started = time.monotonic()
    if limit < LEAST_SECONDS:
        outcome = "no time was left"
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["gpu_steps"])
        process = context.Process(target=in_process, args=(step, str(figures), str(output), device, quick))
        process.start()
        process.join(limit)
        outcome = DONE if process.exitcode == 0 else f"exit code {process.exitcode}"
        if process.exitcode is None:
            outcome = f"did not end in {limit:.0f} s"
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)  # the step and the processes that it started
            process.join()
        elif outcome == DONE and not figures.exists():
            outcome = "wrote no figures"
    said = output.read_text(encoding="utf-8", errors="replace").strip()[-TAIL:] if output.exists() else ""
    ending = {"outcome": outcome, "seconds": round(time.monotonic() - started), "said": said}
    with figures.open("a", encoding="utf-8") as file:  # on a new line, because a killed step may have left half of one
        file.write(f"\n{json.dumps(ending)}\n")
    return outcome


def in_process(step: str, figures: str, output: str, device: str, quick: bool) -> None:
    """Run a step in this process, which leads a group of processes; its output goes to a file."""
    os.setsid()
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(ROOT)
    from gpu_step import Step
    from gpu_steps import STEPS

    STEPS[step](Step(device, quick, Path(figures)))


def write_page(out: Path, *, is_trial: bool) -> Path:
    """Write the page of all figures in the folder, and return its path."""
    found = {step: figures for step in LIMITS if (figures := read_figures(out / f"{step}.jsonl"))}
    machine = next((line["row"] for line in found.get("machine", []) if "row" in line), {"device": "unknown"})
    name = str(machine["device"])
    endings = {step: line for step, lines in found.items() for line in lines if "outcome" in line}
    table = [(step, f"{ending['seconds']}", ending["outcome"]) for step, ending in endings.items()]
    lines = [f"# On a GPU: {name}\n", "Made by `python benchmarks/gpu.py`.", *([TRIAL] if is_trial else []), ""]
    lines.append(markdown_table(("step", "seconds", "outcome"), table))
    for step, figures in found.items():
        lines += [f"## {step}\n", *sections(figures)]
        if endings.get(step, {"outcome": DONE})["outcome"] != DONE:
            lines += [f"{endings[step]['outcome']}; the end of the output:\n\n```text\n{endings[step]['said']}\n```\n"]
    path = out / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


TRIAL = "\nThis is a trial of the script itself, with tiny sizes or without a GPU: the figures say nothing."


def read_figures(path: Path) -> list[dict[str, Any]]:
    """Return the lines that a step has written. The last line of a step that was killed can be incomplete."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def sections(figures: list[dict[str, Any]]) -> list[str]:
    """Return the tables of a step, rows of one title in one table, and then its notes."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for line in figures:
        if "row" in line:
            tables.setdefault(line["table"], []).append(line["row"])
    lines = []
    for title, rows in tables.items():
        header = tuple(dict.fromkeys(name for row in rows for name in row))
        cells = [[cell(name, row.get(name, "")) for name in header] for row in rows]
        lines += [f"{title}\n", markdown_table(header, cells)]
    return lines + [f"{line['note']}\n" for line in figures if "note" in line]


def cell(name: str, value: Any) -> str:
    """Return a figure as text: integers with separators, other numbers with four digits, objectives with nine."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if name == "objective":
        return f"{value:.9g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown_table(header: Any, rows: Any) -> str:
    """Return a table in Markdown."""
    lines = [header, ["-" * max(3, len(name)) for name in header], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
