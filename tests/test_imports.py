"""Heavy libraries stay in their layers, and light commands import no heavy library. import-linter checks the layers."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from make.records import precision_record, scored_record

from probe.records.record import write_record

PACKAGE = Path(__file__).parent.parent / "probe"
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "PIL", "numpy", "pandas", "datasets", "pyarrow", "av", "h5py"}


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("torch", {"models", "features", "probes", "environment.py"}),
        ("torchvision", {"datasets", "models"}),
        ("sklearn", {"probes", "datasets"}),
        ("transformers", {"models"}),
        *((library, {"datasets"}) for library in ("datasets", "av", "h5py")),
        *((library, {"leaderboard"}) for library in ("matplotlib", "pandas")),
        ("ray", {"scale"}),
        *((library, {"tracking"}) for library in ("wandb", "mlflow", "trackio")),
        ("jinja2", {"leaderboard"}),
        ("PIL", {"datasets", "models", "features"}),
    ],
)
def test_libraries_stay_in_their_layers(library, layers):
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0]
        used = {name.split(".")[0] for name in _imports(path)}
        assert layer in layers or library not in used, path


def test_only_one_module_calls_torchscript():
    """TorchScript is deprecated and warns. `loading.py` only names the type of an archive in a signature."""
    for path in PACKAGE.rglob("*.py"):
        calls = _calls(path)
        assert path.name == "openai.py" or not [call for call in calls if call.startswith("torch.jit")], path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = _calls(path)
        assert path.parent.name == "cli" or "print" not in calls, path


# Functions that every module of a kind has. `datasets.opening` calls the first two, in the module that reads a form of
# source. `datasets` calls the third, in the module that makes the row for a form of name.
INTERFACE = {"open_subset", "open_folds", "make_spec"}


def test_public_names_mean_one_thing():
    """No two public functions or classes in different modules have the same name."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in _parse(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    shared = {name: found for name, found in modules.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in INTERFACE} == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["datasets"],
        ["datasets", "cifar10"],
        ["models"],
        ["protocols"],
        ["protocols", "few-shot"],
        ["parity", "--help"],
    ],
)
def test_light_commands_import_no_heavy_library(arguments):
    """`python -m probe --help` and the commands that list things answer at once."""
    assert not HEAVY & _loaded(arguments)


@pytest.mark.parametrize("arguments", [["tables", "--check"], ["leaderboard"]])
def test_tables_of_records_need_only_numpy_and_special_functions(arguments):
    """`scipy.stats` has the same quantiles and tests as `scipy.special`, but takes a second to import."""
    loaded = _loaded_modules(arguments)
    assert HEAVY & {name.split(".")[0] for name in loaded} == {"numpy", "scipy"}
    assert "scipy.stats" not in loaded


def test_tables_with_zero_shot_beside_the_probe_need_no_more(tmp_path):
    """Ranks by average precision do not need more libraries either."""
    for record in (
        scored_record("tiny", 40),
        *(precision_record(name, seed) for seed, name in enumerate(("tiny", "RN50"))),
        *(scored_record("tiny", 60, protocol=name) for name in ("zero-shot", "knn")),
    ):
        write_record(record, tmp_path)
    loaded = _loaded_modules(["tables", "--results-dir", str(tmp_path)])
    assert (tmp_path / "methods.csv").is_file()
    assert HEAVY & {name.split(".")[0] for name in loaded} == {"numpy", "scipy"}
    assert "scipy.stats" not in loaded


@pytest.mark.slow
def test_a_run_by_fast_imports_neither_torchvision_nor_scikit_learn(tmp_path):
    """Each takes two seconds. Some datasets need torchvision, and the solver `sklearn` needs scikit-learn.

    Predictions in Parquet need pyarrow, but not pandas.
    """
    arguments = ["run", "--dataset", "digits", "--model", "tiny", "--protocol", "readme", "--solver", "fast"]
    arguments += ["--device", "cpu", "--results-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    arguments += ["--predictions", str(tmp_path / "predictions")]
    families = {"timm", "transformers", "open_clip"}
    assert not {"torchvision", "sklearn", "pandas", "sympy", *families} & _loaded(arguments)


def _loaded(arguments):
    return {name.split(".")[0] for name in _loaded_modules(arguments)}


def _loaded_modules(arguments):
    script = (
        "import json, sys\nfrom probe.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@functools.cache
def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _calls(path):
    return [ast.unparse(node.func) for node in ast.walk(_parse(path)) if isinstance(node, ast.Call)]


@functools.cache
def _imports(path):
    names = set()
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
