"""The layers: imports go one way, and light commands load nothing heavy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "probe"
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "PIL", "numpy", "pandas", "datasets", "pyarrow", "av", "h5py"}
# What each layer may import; a module's layer is its first part.
BELOW = {
    "specs": set(),
    "errors": set(),
    "paths": {"errors"},
    "names": {"errors"},
    "fetch": {"sharing", "errors"},
    "metrics": {"names"},
    "outcomes": {"errors", "metrics"},
    "resampling": {"errors", "metrics", "outcomes"},
    "intervals": {"outcomes", "resampling"},
    "paired": {"errors", "outcomes", "resampling"},
    "environment": set(),
    "cgroups": set(),
    "sharing": set(),
    "preprocess": set(),
    "record_checks": {"errors", "outcomes"},
    "records": {"errors", "models", "record_checks", "sharing", "specs"},
    "deviations": {"outcomes", "resampling"},
    "ranking": {"errors", "outcomes", "paired", "records"},
    "mean_ranking": {"deviations", "errors", "intervals", "outcomes", "paired", "ranking", "records"},
    "modes": {"errors", "leaderboard", "paired", "ranking", "records", "tables"},
    "leaderboard": {"datasets", "errors", "mean_ranking", "ranking", "records", "specs", "tables"},
    "exports": {"errors", "leaderboard", "records", "tables"},
    "model_cards": {"errors", "records", "tables"},
    "report": {"datasets", "errors", "leaderboard", "modes", "published", "records", "specs", "tables"},
    "plots": {"errors", "leaderboard", "modes", "published", "records", "specs"},
    "derived": {"exports", "leaderboard", "modes", "records", "report", "tables"},
    "tables": {"errors", "ranking", "records", "specs"},
    "hub": {"errors", "fetch"},
    "ordering": set(),
    "datasets": {"sharing", "errors", "fetch", "hub", "metrics", "names", "ordering", "paths", "specs"},
    "models": {"cgroups", "errors", "fetch", "hub", "names", "paths", "preprocess", "specs"},
    "clip": {"models"},
    "features": {"errors", "models", "reading"},
    "probes": {
        *(
            "environment",
            "errors",
            "features",
            "intervals",
            "metrics",
            "models",
            "names",
            "ordering",
            "outcomes",
            "paths",
            "sharing",
            "specs",
        ),
    },
    "tiny": {"models", "preprocess", "specs"},
    "comparison": {
        *("datasets", "errors", "extraction", "features", "models", "outcomes", "paired", "probes", "ranking", "specs"),
    },
    "progress": {"errors"},
    "reading": {"cgroups", "errors", "preprocess"},
    "cache": {"sharing", "errors", "features", "fetch", "specs"},
    "pieces": {"sharing", "cache", "errors", "features", "fetch", "specs"},
    "inventory": {"sharing", "cache", "errors", "specs"},
    "files": {"errors", "features", "sharing", "specs"},
    "passes": {"datasets", "features", "models", "pieces", "progress"},
    "extraction": {
        *("cache", "datasets", "environment", "errors", "features", "models", "passes", "paths", "pieces"),
        *("preprocess", "progress", "specs"),
    },
    "published": {"names", "records", "tables"},
    "difference": {"errors", "paired", "ranking", "records"},
    "units": {"specs"},
    "estimates": {"features", "models", "probes", "records", "specs", "units"},
    "ray_worker": {
        *("cache", "environment", "errors", "estimates", "extraction", "models", "paths", "pieces", "preprocess"),
        *("progress", "records", "runner", "units"),
    },
    "ray_cluster": {"errors", "ray_worker", "units"},
    "ray_progress": {"units"},
    "ray_grid": {
        *("cache", "datasets", "derived", "environment", "errors", "estimates", "extraction", "paths", "pieces"),
        *("ray_cluster", "ray_progress", "ray_worker"),
        *("records", "runner", "sharing", "specs", "units"),
    },
    "verdicts": {"difference", "errors", "records"},
    "reproduction": {"environment", "errors", "extraction", "models", "records", "runner", "specs", "verdicts"},
    "doctor": {"datasets", "environment", "models", "paths"},
    "runner": {
        *(
            "comparison",
            "datasets",
            "environment",
            "errors",
            "extraction",
            "features",
            "models",
            "paired",
            "paths",
            "probes",
            "records",
        ),
        "cache",
        *("derived", "progress", "specs"),
    },
}


@pytest.mark.parametrize("layer", BELOW)
def test_layers_import_only_what_is_below(layer):
    files = list((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]
    for path in files:
        imported = {name.split(".")[1] for name in _imports(path) if name.startswith("probe.")}
        assert imported - {layer} <= BELOW[layer], path


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("torch", {"models", "features.py", "reading.py", "preprocess.py", "environment.py", "tiny", "probes"}),
        ("torchvision", {"datasets", "preprocess.py"}),
        ("sklearn", {"probes", "datasets"}),
        *((library, {"datasets"}) for library in ("datasets", "av", "h5py")),
        ("matplotlib", {"plots.py"}),
        ("ray", {"ray_cluster.py", "ray_worker.py"}),
        ("jinja2", {"report"}),
        ("PIL", {"datasets", "preprocess.py", "reading.py", "models", "tiny"}),  # the last three for a type
    ],
)
def test_libraries_stay_in_their_layers(library, layers):
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0]
        used = {name.split(".")[0] for name in _imports(path)}
        assert layer in layers or library not in used, path


def test_only_one_module_calls_torchscript():
    """It is deprecated, and warns; `loading.py` names the type of an archive in a signature and calls nothing."""
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert path.name == "openai.py" or not [call for call in calls if call.startswith("torch.jit")], path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert path.name == "cli.py" or path.parent.name == "commands" or "print" not in calls, path


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
def test_light_commands_load_nothing_heavy(arguments):
    """`python -m probe --help` answers at once; so do the listings."""
    assert not HEAVY & _loaded(arguments)


@pytest.mark.parametrize("arguments", [["tables", "--check"], ["leaderboard"]])
def test_what_is_made_from_records_needs_numpy_alone(arguments):
    """Which ranks are computed with."""
    assert HEAVY & _loaded(arguments) == {"numpy"}


def _loaded(arguments):
    script = (
        "import json, sys\nfrom probe.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
