import ast
import importlib.metadata
from pathlib import Path

import pytest

import probe


def test_every_exported_name_exists():
    for name in probe.__all__:
        assert getattr(probe, name) is not None


def test_the_stub_lists_the_exported_names():
    """Type checkers read the stub. The package understands each of its lines and exports no other name."""
    tree = ast.parse(Path(probe.__file__).with_suffix(".pyi").read_text())
    declared = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(probe.__all__) == declared == set(dir(probe))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = probe.rnu


def test_the_version_is_that_of_the_distribution():
    assert probe.__version__ == importlib.metadata.version("clip-linear-probe")
