"""Heavy libraries stay in their layers, and light commands load nothing heavy; import-linter checks the layers."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "probe"
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "PIL", "numpy", "pandas", "datasets", "pyarrow", "av", "h5py"}


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("torch", {"models", "features", "probes", "environment.py"}),
        ("torchvision", {"datasets", "models"}),
        ("sklearn", {"probes", "datasets"}),
        *((library, {"datasets"}) for library in ("datasets", "av", "h5py")),
        ("matplotlib", {"leaderboard"}),
        ("ray", {"scale"}),
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
    """It is deprecated, and warns; `loading.py` names the type of an archive in a signature and calls nothing."""
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert path.name == "openai.py" or not [call for call in calls if call.startswith("torch.jit")], path


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert path.parent.name == "cli" or "print" not in calls, path


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
        "import json, sys\nfrom probe.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@functools.cache
def _imports(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
