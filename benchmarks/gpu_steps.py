"""The steps of `gpu.py`: tests, extraction, fits, Ray and plans.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extraction import Ours, cosine
from photos import write_photos
from PIL import Image
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from solvers import watched
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from probe.cli.main import main as run_command
from probe.environment import describe, package_version
from probe.features.arrays import Features
from probe.features.encode import peak_memory
from probe.grid import plan
from probe.models import get_model
from probe.models.encoder import ImageEncoder
from probe.models.loading import load_encoder, read_weights
from probe.models.openai import save_archive
from probe.models.towers import CLIP
from probe.probes.fit import fit_probe
from probe.probes.fits import Fit
from probe.probes.protocols import get_protocol
from probe.probes.solvers.catalog import TAKES_TENSORS
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.objective import Objective, Rows
from probe.probes.solvers.optimality import evaluate
from probe.probes.solvers.scikit_learn import fit_on_device
from probe.records.record import read_records
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Architecture

ROOT = Path(__file__).resolve().parents[1]
PAPER = replace(get_protocol("clip-paper"), feature_point="projected")
README_BATCH = 100  # batch size of the loop in the reference's README
# Precision and mode of the encoders, the most interesting first, because a step may run out of time.
WAYS = (
    *(("fp16", "eager"), ("fp16", "jit"), ("bf16", "eager")),
    *(("fp16", "compiled"), ("bf16", "jit"), ("bf16", "compiled")),
)
LIBRARIES = ("torch", "torchvision", "scikit-learn", "scipy", "numpy", "open_clip_torch", "clip-anytorch", "ray")


@dataclass(frozen=True)
class Step:
    """Options of a step, and the file for its figures."""

    device: str
    quick: bool
    file: Path

    def add(self, table: str, **row: Any) -> None:
        """Write a row of a table."""
        self._write({"table": table, "row": row})

    def note(self, text: str) -> None:
        """Write a sentence below the tables."""
        self._write({"note": text})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=float) + "\n")
        print(line, flush=True)

    @property
    def is_cuda(self) -> bool:
        """Return True if the device is a GPU."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Wait until the device has done all work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def memory(self) -> dict[str, float]:
        """Return the peak memory in GB of the device and of this process, and reset the peak of the device."""
        found = {"host memory, GB": peak_memory().get("peak_memory_mb", 0.0) / 1e3}
        if self.is_cuda:
            found = {"device memory, GB": torch.cuda.max_memory_allocated(self.device) / 1e9, **found}
            torch.cuda.reset_peak_memory_stats(self.device)
        return found


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

    Warnings are no errors, because the versions of libraries are those of the machine with the GPU.
    """
    from xml.etree import ElementTree

    report = step.file.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--device", step.device, "--junit-xml", str(report)]
    command += [
        "-o",
        "addopts=--import-mode=importlib",
        "-o",
        "required_plugins=",
        "-o",
        "filterwarnings=default",
        "-o",
        "junit_family=xunit1",
    ]
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


@contextmanager
def archive(step: Step, model: str) -> Iterator[str]:
    """Write random weights of a model as an archive, which loads in less time than weights are drawn."""
    spec = get_model(f"random:{model}")
    assert spec.architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        save_archive(CLIP(spec.architecture).to(step.device), path)  # traced on the device: fp16 is slow on many CPUs
        yield str(path)


class InMemory(Dataset[tuple[Any, int]]):
    """Decoded images in memory, as often as needed; with a transform as torchvision's datasets have one."""

    name, is_thread_safe = "memory", True

    def __init__(self, images: list[Image.Image], n: int, transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.n, self.transform = images, n, transform

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.images[i % len(self.images)]
        return image if self.transform is None else self.transform(image), i % 2


def extraction(step: Step, model: str, n: int) -> None:
    """Measure images per second: inside the model, and of whole loops over files and over images in memory."""
    model = "tiny" if step.quick else model
    architecture = get_model(model).architecture
    assert architecture is not None
    n, few = (16, 8) if step.quick else (n, 512)  # images, and images of the slow loops
    with archive(step, model) as path, tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (64, 48) if step.quick else (640, 480))
        side = architecture.image_resolution
        paths = sorted(Path(folder).rglob("*.jpg"))[:16]
        decoded = [Image.open(file).convert("RGB").resize((side, side)) for file in paths]
        loops = dict(other_loops(step, path, architecture))
        compare_loops(step, path, Path(folder), decoded, loops, n=n, few=few)
        compare_towers(step, path, architecture, loops)


@dataclass(frozen=True)
class Loop:
    """The loop of the reference's README with a model and a transform."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    transform: Callable[[Image.Image], torch.Tensor]
    device: str
    dtype: torch.dtype

    def run(self, dataset: Dataset[Any]) -> np.ndarray:
        """Return the features of a dataset whose images are transformed."""
        with torch.no_grad():
            batches = DataLoader(dataset, batch_size=README_BATCH)
            found = [self.encode(images.to(self.device, self.dtype)) for images, _ in batches]
            return torch.cat(found).float().cpu().numpy()


def other_loops(step: Step, path: str, architecture: Architecture) -> Iterator[tuple[str, Loop]]:
    """Yield the reference's loop and open_clip's, with the same weights, if their packages are installed."""
    weights = read_weights(get_model(path)).state_dict
    dtype = torch.float16 if step.is_cuda else torch.float32
    try:
        from clip.clip import _transform
        from clip.model import build_model
    except ImportError as err:
        step.note(f"the reference was not measured, because clip-anytorch cannot be imported: {err}")
    else:
        theirs = build_model({name: tensor.clone() for name, tensor in weights.items()}).to(step.device)
        theirs = theirs if step.is_cuda else theirs.float()
        yield "reference", Loop(theirs.encode_image, _transform(architecture.image_resolution), step.device, dtype)
    try:
        import open_clip
    except ImportError as err:
        step.note(f"open_clip was not measured, because it cannot be imported: {err}")
        return
    vision = {
        "image_size": architecture.image_resolution,
        "layers": architecture.vision_layers,
        "width": architecture.vision_width,
        "patch_size": architecture.vision_patch_size,
        "head_width": architecture.vision_head_width,
    }
    text = {
        "context_length": architecture.context_length,
        "vocab_size": architecture.vocab_size,
        "width": architecture.transformer_width,
        "heads": architecture.transformer_heads,
        "layers": architecture.transformer_layers,
    }
    half = dtype if step.is_cuda else None  # as `open_clip.create_model` does for the precision fp16
    other = open_clip.CLIP(architecture.embed_dim, vision, text, quick_gelu=True, cast_dtype=half)
    other.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    other.eval().to(step.device)
    if half is not None:
        open_clip.model.convert_weights_to_lp(other, half)
    transform = open_clip.image_transform(architecture.image_resolution, is_train=False)
    yield "open_clip", Loop(other.encode_image, transform, step.device, dtype)


def compare_loops(
    step: Step, path: str, folder: Path, decoded: list[Image.Image], loops: dict[str, Loop], *, n: int, few: int
) -> None:
    """Measure the loops over JPEG files and over images in memory, from images to features in an array."""
    rates: dict[str, float] = {}
    features: dict[str, np.ndarray] = {}

    def add(name: str, source: str, num: int, run: Callable[[], np.ndarray], batch: int) -> None:
        started = time.perf_counter()
        found = run()
        rate = num / (time.perf_counter() - started)
        base, same = rates.setdefault(source, rate), features.setdefault(source, found)
        step.add(
            f"From images to features, fp16 on a GPU; {len(decoded)} distinct images",
            way=name,
            images=source,
            **{"number of images": num, "batch": batch, "images a second": rate, "times the first way": rate / base},
            **{"1 - smallest cosine with the first way": 1 - cosine(found[:few], same[:few])},
            **({"idle share of the device": run.about["device_idle"]} if isinstance(run, Ours) else {}),
        )

    sources = {"JPEG files": None, "memory": decoded}
    for name, loop in loops.items():
        for source, images in sources.items():
            if images is None:
                whole: Dataset[Any] = ImageFolder(folder, transform=loop.transform)
            else:
                whole = InMemory(images, n, loop.transform)
            loop.run(Subset(whole, range(min(few, README_BATCH))))  # to warm up
            add(name, source, few, partial(loop.run, Subset(whole, range(few))), README_BATCH)
    for numbers in ("auto", "bf16"):
        ours = Ours(path, folder, step.device, precision=numbers)
        files = ours.images
        for source, images in sources.items():
            ours.images = files if images is None else InMemory(images, n)  # type: ignore[assignment]
            ours()  # to warm up
            name = "probe" if numbers == "auto" else f"probe, {numbers}"
            add(name, source, n, ours, ours.cell.batch_size)


def compare_towers(step: Step, path: str, architecture: Architecture, loops: dict[str, Loop]) -> None:
    """Measure images per second inside the models, for pixels that are on the device."""
    batches = (1, 2) if step.quick else (256, 64, 1024)
    side = architecture.image_resolution

    def add(way: str, batch: int, run: Callable[[], object]) -> None:
        row = {"way": way, "batch": batch}
        try:
            row["images a second"] = batch / seconds_of(step, run, least=0 if step.quick else 0.5)
        except Exception as err:  # too little memory, or a mode that this GPU or torch does not support
            row["images a second"] = f"{type(err).__name__}: {str(err).splitlines()[0][:80]}"
        step.add("Inside the image tower, pixels on the device", **row, **step.memory())

    for name, loop in loops.items():
        for batch in batches:
            images = torch.zeros(batch, 3, side, side, dtype=loop.dtype, device=step.device)
            add(name, batch, torch.no_grad()(partial(loop.encode, images)))
    for numbers, mode in WAYS:
        if step.quick and mode == "compiled":
            continue  # compiling takes longer than all else
        options = {"jit": mode == "jit", "compiled": mode == "compiled"}
        for batch in batches:
            if mode == "compiled" or batch == batches[0]:  # a compiled encoder has one batch size
                encoder: ImageEncoder = load_encoder(path, device=step.device, precision=numbers, **options)
            # In memory, channels come last, as Pillow has them.
            pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=step.device).permute(0, 3, 1, 2)
            add(f"probe, {numbers}, {mode}", batch, partial(encoder.encode, pixels, wait=False))


def seconds_of(step: Step, run: Callable[[], object], *, least: float) -> float:
    """Return the seconds of a call, the mean over calls that take `least` seconds together, after three to warm up."""
    for _ in range(3):
        run()
    step.wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < least or calls < 3:
        run()
        calls += 1
        if calls % 4 == 0:
            step.wait()  # the program must not run far ahead of the device
    step.wait()
    return (time.perf_counter() - started) / calls


def made_up(n: int, d: int, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Return invented features float32 (n, d) and labels int64 (n,), made on the device.

    As in `solvers.py`, the features are around class means, and their scales decrease as those of CLIP's features do.
    The distance of the means is such that about three of four images can be classified.
    """
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    scales = (1 + torch.arange(d, device=device)) ** -0.7
    mixing = torch.linalg.qr(draw(d, d))[0]
    apart = 2 * norm.isf(0.25 / (k - 1))  # in standard deviations, by the union bound over the other classes
    means = apart / (2 * d) ** 0.5 * draw(k, d)
    offset = 0.1 * draw(d)
    y = torch.randint(k, (n,), generator=generator, device=device)
    x = np.empty((n, d), np.float32)
    for own, part in zip(y.split(1 << 16), np.array_split(x, range(1 << 16, n, 1 << 16)), strict=True):
        part[:] = (((means[own] + draw(len(own), d)) * scales) @ mixing + offset).cpu().numpy()
    return x, y.cpu().numpy()


@contextmanager
def watched_fits(step: Step, table: str) -> Iterator[list[float]]:
    """Write a row for every fit in the block as soon as it is done; yield a list of the seconds inside the solver."""
    original, started, spent = Fast.fit_all, time.perf_counter(), [0.0]

    def fit_all(self: Fast, *args: Any, is_final: bool, done: Callable[[Fit], None], **options: Any) -> None:
        def note(fit: Fit) -> None:
            step.add(
                table,
                C=fit.C,
                fit="final" if is_final else "sweep",
                **{
                    "done after, s": time.perf_counter() - started,
                    "iterations": fit.n_iter,
                    "objective": fit.objective,
                },
                **{"gradient ratio": fit.gradient_ratio, "converged": str(fit.converged)},
            )
            done(fit)

        since = time.perf_counter()
        original(self, *args, is_final=is_final, done=note, **options)
        spent[0] += time.perf_counter() - since

    Fast.fit_all = fit_all  # type: ignore[assignment]
    try:
        yield spent
    finally:
        Fast.fit_all = original  # type: ignore[method-assign]


def protocol(step: Step, n: int, d: int, k: int, *, num_test: int, rounds: int = 1) -> None:
    """Run the whole protocol `clip-paper`: a sweep over C, the final fit at a gradient of 1e-6, and the test score."""
    if step.quick:
        n, d, k, num_test, rounds = 800, 16, min(k, 20), 100, 1
    x, y = made_up(n + num_test, d, k, step.device)
    ends = [round(0.9 * n), n]  # a tenth is for validation
    train, val, test = map(Features, np.split(x, ends), np.split(y, ends))
    size = f"{n:,} x {d}, {k:,} classes"
    for _ in range(rounds):
        step.memory()  # resets the peak
        started = time.perf_counter()
        with watched_fits(step, f"Fits of the protocol, {size}") as spent:
            result = fit_probe(train=train, val=val, test=test, protocol=PAPER, solver="fast", device=step.device)
        step.add(
            f"The protocol clip-paper, {size}",
            seconds=time.perf_counter() - started,
            **{"of these in fits": spent[0], "values of C": len(result.sweep), "C": result.C},
            **{"score, %": 100 * result.score, "iterations of the final fit": result.n_iter},
            objective=result.objective,
            **{"gradient ratio": result.gradient_ratio, "converged": str(result.converged)},
            **{"fits of the sweep that converged": sum(point.converged for point in result.sweep)},
            **step.memory(),
        )


def solver_equal(step: Step) -> None:
    """Compare the solver with scikit-learn's array API and with torch's L-BFGS, each on the device."""
    n, d, k = (2000, 32, 10) if step.quick else (100_000, 768, 100)
    most = 100 if step.quick else 500  # iterations of the other solvers
    x, y = made_up(n, d, k, step.device)
    Fast([x[:2000]], y[:2000], max_iter=20, tol=1e-6, device=step.device).fit(1.0)  # to warm up
    for C in (1e-2, 1.0):  # noqa: N806 - the field's name
        began = time.perf_counter()
        with watched() as seen:
            fit = Fast([x], y, max_iter=1000, tol=1e-6, device=step.device).fit(C)
        ours = time.perf_counter() - began
        table = f"Solvers at equal objective, {n:,} x {d}, {k} classes, C = {C:g}"
        step.add(
            table,
            **{"solver": "fast", "seconds": ours, "iterations": fit.n_iter, "objective": fit.objective},
            **{"gradient ratio": fit.gradient_ratio},
        )
        objective = Objective(Rows([x], step.device), loss_of(y, k, torch.device(step.device)), [C])
        zeros = torch.zeros(d + 1, k, dtype=torch.float64, device=step.device)
        at_zero = float(evaluate(objective, 0, zeros).gradient.abs().max())
        others = {"torch.optim.LBFGS": torch_lbfgs, "scikit-learn, array API": array_api}
        for name, solve in others.items():
            if solve is array_api and not TAKES_TENSORS:
                step.note(f"scikit-learn {package_version('scikit-learn')} takes no tensors; 1.9 does")
                continue
            started = time.perf_counter()
            weights, iterations = solve(step, x, y, C, most)
            theirs = time.perf_counter() - started
            end = evaluate(objective, 0, weights.double())
            # Up to the rounding of float32. The last evaluation always counts, since its products are in float64.
            there = next((at - began for at, value in seen if value <= end.value * (1 + 1e-7)), ours)
            step.add(
                table,
                **{"solver": name, "seconds": theirs, "iterations": iterations, "objective": end.value},
                **{"gradient ratio": float(end.gradient.abs().max()) / at_zero},
                **{"fast, s to this objective": there, "times faster": theirs / there},
            )


def torch_lbfgs(
    step: Step,
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803 - the field's name
    most: int,
) -> tuple[torch.Tensor, int]:
    """Fit with torch's own L-BFGS, and return weights (d + 1, k) and the number of iterations."""
    features, labels = torch.from_numpy(x).to(step.device), torch.from_numpy(y).to(step.device)
    weights = torch.zeros(x.shape[1] + 1, int(y.max()) + 1, device=step.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=most,
        history_size=10,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(features @ weights[:-1] + weights[-1], labels)
        loss = loss + weights[:-1].square().sum() / (2 * C * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    step.wait()
    return weights.detach(), int(optimizer.state[weights]["n_iter"])


def array_api(
    step: Step,
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803 - the field's name
    most: int,
) -> tuple[torch.Tensor, int]:
    """Fit with scikit-learn on tensors, and return weights (d + 1, k) and the number of iterations."""
    # With its default tolerance, scikit-learn stops early, and the time would cover fewer iterations.
    estimator = LogisticRegression(C=C, max_iter=most, tol=1e-12)
    fit_on_device(estimator, x, y, step.device)
    weights = torch.from_numpy(np.vstack([estimator.coef_.T, estimator.intercept_])).to(step.device)
    return weights, int(np.max(estimator.n_iter_))


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
            for record in records:
                check(record)
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
        options = {"protocols": ["readme"], "device": step.device, "solver": "fast"}
        (record,) = run_grid(plan([f"folder:{folder}/{few}"], [model], **options), settings)
        check(record)
        command = ["--dataset", f"folder:{folder}/{more}", "--model", model, "--protocol", "readme", "--plan"]
        command += ["--solver", "fast", "--device", step.device, "--results-dir", f"{folder}/results", "--json"]
        (planned,) = json.loads(probe("run", *command))["models"]
        (record,) = run_grid(plan([f"folder:{folder}/{more}"], [model], **options), settings)
        check(record)
        for name, stage in (("extraction", "extract"), ("fits", "fit")):
            seconds, took = planned[f"{stage}_seconds"], record.seconds[stage]
            step.add(
                f"A plan for {more:,} photos with {model}, by the rates of {few:,}, and the run",
                **{"stage": name, "planned, s": seconds, "took, s": took, "planned / took": seconds / max(took, 1e-9)},
            )


def check(record: Any) -> None:
    """End the step if a run failed."""
    if record.error is not None:
        raise SystemExit(f"{record.error.type}: {record.error.message}")


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
