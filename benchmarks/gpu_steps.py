"""The steps of `gpu.py` by name. Those about the machine, tests, Ray and plans are in this file.

A step is a function that writes each row of its tables to a file as soon as it has the row. `gpu.py` runs each step in
a process of its own.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from gpu_extraction import extraction
from gpu_solvers import protocol, solver_equal
from gpu_step import Step
from photos import write_photos

from probe.cli.main import main as run_command
from probe.environment import describe, package_version
from probe.grid import plan
from probe.records.record import read_records
from probe.records.schema import DoneRecord, FailedRecord, RunRecord
from probe.runner import run_grid
from probe.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "scikit-learn", "scipy", "numpy", "open_clip_torch", "clip-anytorch", "ray")


def machine(step: Step) -> None:
    """Write the name of the device, its driver, and the versions of libraries."""
    about = describe(step.device)
    row = {"device": about.accelerator or f"{about.cpu}, no GPU", "GPUs": torch.cuda.device_count()}
    if step.is_cuda:
        row |= {
            "GPU memory, GB": torch.cuda.get_device_properties(step.device).total_memory / 1e9,
            "driver": driver_version(),
            "CUDA": torch.version.cuda,
        }
    row |= {"CPU": about.cpu, "CPUs": about.cpu_count, "Python": about.python, "commit": (about.git_commit or "")[:9]}
    step.add("Machine", **row)
    step.add("Versions", **{name: package_version(name) or "missing" for name in LIBRARIES})
    flags = {"in products": torch.backends.cuda.matmul.allow_tf32, "in convolutions": torch.backends.cudnn.allow_tf32}
    step.add("TF32, as torch sets it", **flags)


def driver_version() -> str:
    """Return the version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def tests(step: Step) -> None:
    """Run the tests that are marked gpu, and write the distances that they measure.

    Warnings are not errors, because the machine with the GPU can have other versions of libraries.
    """
    from xml.etree import ElementTree

    report = step.file.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--device", step.device, "--junit-xml", str(report)]
    settings = ("addopts=--import-mode=importlib", "required_plugins=", "filterwarnings=default", "junit_family=xunit1")
    command += [option for setting in settings for option in ("-o", setting)]
    started = time.perf_counter()
    code = subprocess.run([*command, "-p", "no:cacheprovider", "tests"], cwd=ROOT, check=False).returncode
    if not report.exists():
        raise SystemExit(f"pytest wrote no report, exit code {code}; is pytest installed?")
    suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    step.add("Tests marked `gpu`", **counts, seconds=time.perf_counter() - started)
    for case in suite.iter("testcase"):
        figures = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
        if figures:
            step.add("Features on the device and in fp32 on the CPU; random weights, images of noise", **figures)
        if case.find("failure") is not None or case.find("error") is not None:
            step.note(f"failed: {case.attrib['classname']}.{case.attrib['name']}")
    if code:
        raise SystemExit(code)


def on_ray(step: Step) -> None:
    """Run a grid on Ray, whose workers have a GPU as a resource, and in one process, and compare the features."""
    if package_version("ray") is None:
        step.note("Ray is not installed, so nothing was measured.")
        return
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        write_photos(images, 60 if step.quick else 2000, (64, 48))
        digests = {}
        for executor in ("serial", "ray"):
            results = Path(folder, executor)
            command = ["--dataset", f"folder:{images}", "--model", "tiny", "--jit", "both", "--protocol", "readme"]
            command += ["--solver", "fast", "--executor", executor, "--device", step.device, "--offline"]
            started = time.perf_counter()
            probe("run", *command, "--results-dir", str(results), "--cache-dir", str(results / "cache"))
            seconds = time.perf_counter() - started
            records = read_records(results)
            digests[executor] = [record.features for record in records]
            for record in map(completed, records):
                step.add(
                    "The same grid in one process and on Ray",
                    executor=executor,
                    mode=record.mode,
                    device=record.environment.accelerator or record.environment.cpu,
                    features="the same bytes" if digests[executor] == digests["serial"] else "other bytes",
                    **{"score, %": 100 * record.result.score},
                    **{f"{name}, s": value for name, value in record.seconds.items()},
                    **{"whole command, s": seconds},
                )


def probe(*command: str) -> str:
    """Return what `python -m probe` prints to standard output."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = run_command(list(command))
    if code:
        raise SystemExit(f"python -m probe {' '.join(command)} ended with exit code {code}:\n{printed.getvalue()}")
    return printed.getvalue()


def compare_plan(step: Step) -> None:
    """Plan a run with the rates of a smaller run on this device, and compare the plan with the run."""
    model = "tiny" if step.quick else "random:ViT-B/32"
    few, more = (40, 160) if step.quick else (1024, 6144)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(results_dir=f"{folder}/results", cache_dir=f"{folder}/cache", offline=True)
        for n in (few, more):
            write_photos(Path(folder, str(n)), n, (64, 48) if step.quick else (640, 480))
        plan_it = partial(plan, models=[model], protocols=["readme"], device=step.device, solver="fast")
        (record,) = map(completed, run_grid(plan_it([f"folder:{folder}/{few}"]), settings))
        command = ["--dataset", f"folder:{folder}/{more}", "--model", model, "--protocol", "readme", "--plan"]
        command += ["--solver", "fast", "--device", step.device, "--results-dir", f"{folder}/results", "--json"]
        (planned,) = json.loads(probe("run", *command))["models"]
        (record,) = map(completed, run_grid(plan_it([f"folder:{folder}/{more}"]), settings))
        for name, stage in (("extraction", "extract"), ("fits", "fit")):
            seconds, took = planned[f"{stage}_seconds"], record.seconds[stage]
            step.add(
                f"A plan for {more:,} photos with {model}, by the rates of {few:,}, and the run",
                **{"stage": name, "planned, s": seconds, "took, s": took, "planned / took": seconds / max(took, 1e-9)},
            )


def completed(record: RunRecord) -> DoneRecord:
    """Return the record of a run that has a score, and end the step if the run failed."""
    if isinstance(record, FailedRecord):
        raise SystemExit(f"{record.error.type}: {record.error.message}")
    return record


STEPS: dict[str, Callable[[Step], None]] = {
    "machine": machine,
    "tests": tests,
    "extraction-ViT-B-32": partial(extraction, model="ViT-B/32", n=6144),
    "extraction-RN50": partial(extraction, model="RN50", n=4096),
    "extraction-ViT-L-14": partial(extraction, model="ViT-L/14", n=2048),
    "solver-paper": partial(protocol, n=60_000, d=512, k=10, num_test=10_000, rounds=2),
    "solver-imagenet-768": partial(protocol, n=1_281_167, d=768, k=1000, num_test=50_000),
    "solver-imagenet-1024": partial(protocol, n=1_281_167, d=1024, k=1000, num_test=50_000),
    "solver-equal": solver_equal,
    "ray": on_ray,
    "plan": compare_plan,
}
