"""Precisions of models for which the user names none."""

import pytest

from probe.models.devices import default_precision
from probe.models.families import FAMILIES


@pytest.mark.parametrize("form", ["url", "hf", "file", "random", "open_clip", ""])
def test_clip_models_run_in_fp16_on_cuda(form):
    assert default_precision("cuda", form) == "fp16"
    assert default_precision("cpu", form) == "fp32"


def test_models_of_every_other_family_run_in_fp32(monkeypatch):
    """A family that is added runs in fp32, too, because its models can overflow in fp16."""
    monkeypatch.setitem(FAMILIES, "later", ("probe.models.later_family", "LaterFamily"))
    assert {form for form in FAMILIES if default_precision("cuda", form) == "fp16"} == {"open_clip"}
