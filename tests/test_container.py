"""The container file and the locked versions, as far as they can be checked without building an image."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# MLflow and Trackio need older versions of pyarrow and pillow than the tests ran with.
TRACKERS = ("wandb", "mlflow", "trackio")
GPU_LIBRARIES = ("cuda", "nvidia", "triton")


def _dockerfile():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()


def _locked():
    """Return the locked requirements by name; a package can have a version for each version of Python."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name, []).append(requirement)
    return found


EXTRAS = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name not in TRACKERS}


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)])
def test_every_dependency_is_locked_in_a_permitted_version(text):
    wanted = Requirement(text)
    for locked in _locked()[canonicalize_name(wanted.name)]:
        (version,) = (spec.version for spec in locked.specifier)
        assert version in wanted.specifier, f"{locked}; write requirements.lock again"


def test_the_command_in_the_lock_names_the_extras():
    command = re.sub(r"\\\n#", " ", (ROOT / "requirements.lock").read_text(encoding="utf-8").partition("\n\n")[0])
    assert re.findall(r"--extra (\S+)", command) == list(EXTRAS)


def test_the_image_copies_files_that_exist_and_that_the_context_has():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in _dockerfile() if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in kept


def test_the_python_of_the_image_is_supported():
    (version,) = re.findall(r"^FROM python:(\S+)-slim$", "\n".join(_dockerfile()), re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")


def test_the_image_for_the_cpu_has_no_libraries_for_gpus():
    (pattern,) = re.findall(r"grep -Ev '(.*?)' requirements.lock", "\n".join(_dockerfile()))
    done = subprocess.run(
        ["grep", "-Ev", pattern, "requirements.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    left = {Requirement(line).name for line in done.stdout.splitlines() if line and not line.lstrip().startswith("#")}
    assert _locked().keys() - left == {name for name in _locked() if name.startswith(GPU_LIBRARIES)}
    assert {"torch", "torchvision", "scikit-learn"} <= left
