"""Fixtures of all tests: isolation from the user's folders, small model archives and folders of images.

Fixtures import torch and SciPy, because the process of pytest-xdist that runs no tests reads this file too.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with the device of the tests that are marked gpu."""
    parser.addoption(
        "--device", default="cuda", help="Device of the tests that are marked gpu. `cpu` runs them without a GPU."
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Return the device of the tests that are marked gpu; skip the test if there is no such device."""
    import torch

    name = str(request.config.getoption("--device"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU; --device cpu runs the tests that are marked gpu on the CPU")
    return name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests of Ray, of the page and of the GPU each in one process of pytest-xdist.

    Each test of Ray starts a cluster on this machine. Tests of the page share one browser, and a GPU has one memory.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for marker in ("ray", "browser", "gpu"):
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.xdist_group(marker))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape undecodable names of files in captured output, because pytest-xdist sends reports as UTF-8."""
    return _escape((yield))


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", errors="backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {name: _escape(item) for name, item in value.items()}
    return type(value)(map(_escape, value)) if isinstance(value, list | tuple) else value


def pytest_collection_finish() -> None:
    """Exclude libraries and tests from garbage collection, because the package calls the collector often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch, so that random inputs do not depend on the order of tests."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Set the log level back, because the command line changes it, also in fixtures of modules."""
    logger = logging.getLogger("probe")
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use an empty cache folder instead of the user's; the processes of pytest-xdist share the work on its features."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session", params=["vit", "resnet"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a TorchScript archive in the format that OpenAI publishes, with random weights."""
    from make.clips import SMALL_RESNET, SMALL_VIT, random_clip

    from probe.models.openai import save_archive

    path = tmp_path_factory.mktemp("archive") / "model.pt"
    save_archive(random_clip({"vit": SMALL_VIT, "resnet": SMALL_RESNET}[request.param]), path)
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[[Mapping[str, int]], Path]:
    """Return a function that makes a folder of images. `{"train/red": 5}` gives five reddish images in train/red."""
    from make.images import write_image

    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}

    def make(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "images"
        root.mkdir()
        for folder, count in counts.items():
            for i in range(count):
                write_image(root / folder / f"{i:03}.png", colours.get(Path(folder).name, (90, 90, 90)))
        return root

    return make


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Use one thread in this process and its child processes, because several threads are slower on small inputs."""
    import scipy.linalg  # noqa: F401 - loads SciPy's OpenBLAS, which is limited below
    import torch
    from threadpoolctl import ThreadpoolController

    torch.set_num_threads(1)
    # The waiting threads of SciPy's and NumPy's OpenBLAS compete for the cores, see `probes.solvers.scikit_learn`.
    openblas = ThreadpoolController().select(internal_api="openblas")
    with openblas.limit(limits=1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
