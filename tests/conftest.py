"""Small data made by generators: checkpoints in the form of the published ones, folders of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - loads SciPy's OpenBLAS, which is limited below
import torch
from PIL import Image
from threadpoolctl import ThreadpoolController

from probe.models.clip import CLIP, Bottleneck
from probe.models.openai import save_archive
from probe.specs import Architecture

SMALL_VIT = Architecture(  # as wide as `tiny`, because weights alone are refused if their widths are unknown
    embed_dim=48,
    image_resolution=32,
    vision_layers=2,
    vision_width=192,
    vision_patch_size=16,
    context_length=12,
    vocab_size=100,
    transformer_width=128,
    transformer_layers=2,
)
SMALL_RESNET = Architecture(
    embed_dim=40,
    image_resolution=64,
    vision_layers=(1, 2, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    context_length=12,
    vocab_size=100,
    transformer_width=64,
    transformer_layers=2,
)


def random_clip(architecture: Architecture, seed: int = 0) -> CLIP:
    """A CLIP model with random weights in which no part is idle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(architecture)
        for module in model.modules():
            if isinstance(module, Bottleneck):  # starts at zero, which would hide the residual branch
                torch.nn.init.ones_(module.bn3.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random inputs at every run, in any order of tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Restore the level of the logger, which the command line sets, so that no test depends on the order of tests."""
    logger = logging.getLogger("probe")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves features in the user's folder, or finds some there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE_DIR", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(scope="session", params=[SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive as OpenAI publishes them, with random weights."""
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    save_archive(random_clip(request.param), path)
    return path


def write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(path.as_posix().encode())).integers(-20, 20, size=(size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[[Mapping[str, int]], Path]:
    """Make a folder of images: `{"train/red": 5}` gives five reddish images in train/red."""
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
def _one_thread_for_small_products():
    """Two copies of OpenBLAS, SciPy's and NumPy's, spin against each other; see `probes.scikit_learn`."""
    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        yield
