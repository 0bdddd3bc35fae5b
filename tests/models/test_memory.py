"""The batch size follows from the memory of the device."""

import subprocess
import sys

import pytest
import torch

from probe.grid import plan
from probe.models import get_model, memory
from probe.models.memory import DeviceMemory, activation_bytes, find_batch_size, measure_activations
from probe.models.sizes import find_sizes

GB = 1 << 30


def test_plenty_of_memory_gives_the_usual_batch(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: DeviceMemory(1 << 40, 1 << 40))
    for name in ("ViT-B/32", "RN50x64", "ViT-L/14@336px", "tiny"):
        assert find_batch_size("cpu", get_model(name).architecture) == 64
        assert find_batch_size("cuda", get_model(name).architecture) == 256
    assert find_batch_size("cpu", None) == 64


def test_little_memory_halves_it(monkeypatch):
    architecture = get_model("RN50x64").architecture
    found = []
    for size in (64, 16, 4, 1):
        monkeypatch.setattr(memory, "device_memory", lambda device, size=size: DeviceMemory(size * GB, 0))
        found.append(find_batch_size("cpu", architecture))
        assert found[-1] * activation_bytes(architecture) <= size * GB / 4 or found[-1] == 1
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] >= 1


def test_a_batch_size_that_is_given_is_taken():
    for given, expected in ((5, 5), (None, find_batch_size("cpu", get_model("tiny").architecture))):
        (spec,) = plan(["digits"], ["tiny"], device="cpu", batch_size=given)
        assert spec.batch_size == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["random:ViT-B/32", "random:RN50", "random:timm:resnet18", "random:timm:deit_tiny_patch16_224"]
)
def test_activations_need_no_more_memory_than_the_bound(model):
    """The growth of a process that encodes 96 images is measured. Fewer would fit into memory that it has freed."""
    script = f"""
import resource, torch
from probe.models.loading import load_encoder
encoder = load_encoder({model!r}, device="cpu")
pixels = torch.zeros(96, 3, 224, 224, dtype=torch.uint8)
encoder.encode(pixels[:1])
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
encoder.encode(pixels)
print((peak() - before) * 1024)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can reset the peak memory of a process")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 96 * find_sizes(get_model(model.removeprefix("random:"))).activation_bytes


def test_only_what_exists_at_one_time_counts_as_activations():
    """Each result of 4,000 bytes is freed when the next exists. Views, results in place and parameters do not count."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    for device in ("cpu", "meta"):
        images = torch.zeros(1000, device=device)
        own = weight.to(device)
        assert measure_activations(lambda x: (x + 1).mul(2).view(10, 100).relu_() + 3, images) == 3 * 4_000
        assert measure_activations(lambda x, own=own: x * own.view(-1), images) == 2 * 4_000
