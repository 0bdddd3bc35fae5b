"""Freed memory stays with the process inside a block, and is returned to the system at its end."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import probe
from probe import heap
from probe.features.passes import extract_features
from probe.heap import is_adjustable, keep_freed_memory
from probe.models.loading import load_encoder
from probe.models.preprocess import Preprocess

MB = 1 << 20


def used() -> int:
    """Return the bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def use_and_free(size: int) -> None:
    torch.ones(size, dtype=torch.uint8)


def fail() -> None:
    use_and_free(256 * MB)
    raise ValueError("of the block")


needs_glibc = pytest.mark.skipif(not is_adjustable(), reason="the limits of the C library cannot be set here")


@needs_glibc
def test_memory_is_kept_inside_the_block_and_returned_after_it():
    before = used()
    use_and_free(256 * MB)
    assert used() < before + 64 * MB
    with keep_freed_memory():
        use_and_free(256 * MB)
        assert used() > before + 192 * MB
    assert used() < before + 64 * MB


@needs_glibc
def test_memory_is_returned_after_an_error():
    before = used()
    with pytest.raises(ValueError, match="of the block"), keep_freed_memory():
        fail()
    assert used() < before + 64 * MB


class OldLibrary:
    """Wrapper of the C library that rejects the limits that older versions of glibc reject."""

    def __init__(self, library):
        self.library, self.accepted = library, []

    def mallopt(self, parameter, value):
        is_threshold = parameter == heap._MMAP_THRESHOLD
        self.accepted.append(not (is_threshold and value > 32 * MB) and bool(self.library.mallopt(parameter, value)))

    def malloc_trim(self, pad):
        return self.library.malloc_trim(pad)


@needs_glibc
def test_older_versions_of_glibc_accept_the_limits(monkeypatch):
    library = OldLibrary(ctypes.CDLL(None))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    before = used()
    with keep_freed_memory():
        use_and_free(256 * MB)
        assert used() > before + 192 * MB
    assert used() < before + 64 * MB
    assert library.accepted
    assert all(library.accepted)


class Wasteful(nn.Module):
    """Encoder that needs much memory for a moment, and records what the process uses afterwards."""

    recorded: ClassVar[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        use_and_free(256 * MB)
        self.recorded.append(used())
        return images.flatten(1)[:, :3]


@needs_glibc
def test_extraction_keeps_memory_between_batches():
    encoder = load_encoder(probe.Encoder(Wasteful(), Preprocess(8), name="wasteful"), device="cpu")
    images = [(Image.new("RGB", (8, 8)), 0)] * 100
    extract_features(encoder, images)  # imports what it needs
    Wasteful.recorded.clear()
    before = used()
    extract_features(encoder, images)
    assert len(Wasteful.recorded) == 2
    assert min(Wasteful.recorded) > before + 192 * MB
    assert used() < before + 64 * MB


@pytest.mark.parametrize("variable", heap._VARIABLES)
def test_settings_of_the_user_are_not_changed(variable):
    program = "from probe.heap import is_adjustable; print(is_adjustable())"
    done = subprocess.run([sys.executable, "-c", program], env={variable: "0"}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_other_systems_have_nothing_to_set(monkeypatch, error):
    def confstr(name):
        raise error(name)

    monkeypatch.setattr("os.confstr", confstr)
    monkeypatch.setattr("ctypes.CDLL", None)
    assert not is_adjustable()
    with keep_freed_memory():
        pass
