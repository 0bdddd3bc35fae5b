"""One list says which libraries matter, for records, for the keys of caches and for workers."""

from dataclasses import asdict

from probe.environment import LIBRARIES, describe, library_versions
from probe.scale.worker import versions


def test_records_name_every_library_that_can_change_a_result():
    """This includes open_clip and timm, which compute the features of some models."""
    assert {"probe", "torch", "scikit-learn", "open_clip_torch", "timm", "av"} <= set(describe("cpu").packages)
    assert set(LIBRARIES) <= set(describe("cpu").packages)


def test_workers_compare_the_versions_that_records_name():
    assert library_versions().items() <= versions().items()


def test_libraries_are_found_by_their_use():
    assert set(library_versions("fits")) == {"scikit-learn", "scipy", "numpy", "torch"}
    assert set(library_versions("features", "openai", "torchvision")) == {"torch", "torchvision", "pillow"}
    assert {"open_clip_torch", "timm", "av"} <= set(library_versions("features", "open_clip", "ucf101"))


def test_everything_that_this_machine_has_is_described():
    found = describe("cpu")
    missing = {name for name, value in asdict(found).items() if value is None}
    assert missing <= {"probe", "accelerator", "git_commit", "git_dirty"}
