import ast
from pathlib import Path

import pytest

import probe


def test_every_exported_name_is_there():
    for name in probe.__all__:
        assert getattr(probe, name) is not None


def test_the_stub_is_the_list_of_names():
    """The stub is what type checkers see; each of its lines is understood, and nothing is exported that it lacks."""
    tree = ast.parse(Path(probe.__file__).with_suffix(".pyi").read_text())
    declared = {alias.asname for node in tree.body for alias in node.names}
    assert set(probe.__all__) == declared == set(dir(probe))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = probe.rnu
