import ast
from pathlib import Path

import pytest

import probe


def test_every_exported_name_is_there():
    for name in probe.__all__:
        assert getattr(probe, name) is not None


def test_the_list_of_names_is_complete():
    """What type checkers see, what is exported and what is found on use are one list."""
    tree = ast.parse(Path(probe.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("probe")]
    declared = {alias.asname or alias.name for node in imports for alias in node.names}
    assert set(probe.__all__) == declared == set(probe._HOMES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = probe.rnu
