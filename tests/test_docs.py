"""Promises of docs/: generated pages are up to date, commands print what is shown, every option and name exists."""

import re
import tomllib
from pathlib import Path

import consoles
import pytest
import reference
import write_docs
from packaging.version import Version

import probe

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
FRAGMENTS = ROOT / "changelog.d"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Return the folder for the sessions of all pages, which share a cache of features."""
    return tmp_path_factory.mktemp("sessions")


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_pages_are_up_to_date(name):
    """`python tools/docs/write_docs.py --no-commands` writes these pages."""
    assert reference.PAGES[name]() == (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", write_docs.pages_with_parts(), ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert write_docs.fill_parts(text) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", consoles.pages())
def test_commands_print_what_the_page_shows(name, sessions):
    """`python tools/docs/write_docs.py` puts the output of the commands into the pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert consoles.differences(text, consoles.run_page(text, consoles.make_folder(name, sessions))) == []


def test_modules_that_a_page_names_exist():
    for path in [ROOT / "CONTRIBUTING.md", *(path for path in PAGES if path.name != "changelog.md")]:
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or (ROOT / "probe" / name).exists(), (path.name, name)


def test_the_comparison_of_pages_finds_what_differs():
    assert consoles.differences("0.9916\n", "0.9888\n") == []
    assert len(consoles.differences("0.9916\n", "0.4100\n")) == 1
    assert consoles.differences("| tiny | 99.16 ~ | 1e+06 |\n", "| tiny | 98.05 ~ | 0.042 |\n") == []
    shown = "| digits | 99.16 | 139 | 3.3e-06 |\nverdict: identical\n"
    assert consoles.differences(shown, "| digits  | 98.88 | 120 | 2.1e-06 |\nverdict: identical\n") == []
    for now in (shown.replace("99.16", "95.00"), shown.replace("3.3e-06", "3.3e-03"), shown.replace("ident", "not ")):
        assert len(consoles.differences(shown, now)) == 1
    assert consoles.differences(shown, f"{shown}more\n") == ["2 lines, now 3"]


def test_a_failing_command_is_an_error(tmp_path):
    with pytest.raises(consoles.CommandError, match="exit code 3"):
        consoles.run_page("```console\n$ exit 3\n```\n", consoles.make_folder("page", tmp_path))


def test_blocks_are_run_in_order_in_one_folder(tmp_path):
    page = '```python title="a.py"\nprint(6 * 7)\n```\n\n```console\n$ python a.py\n```\n\n```bash\nfalse\n```\n'
    shown = consoles.run_page(page, consoles.make_folder("page", tmp_path))
    assert "$ python a.py\n42\n```" in shown


def test_every_option_that_a_page_shows_exists():
    """A renamed option must not remain in the documentation."""
    commands = {name: command for name, command, _ in reference.commands()}
    known = {name: {o for action in found._actions for o in action.option_strings} for name, found in commands.items()}
    for path in [ROOT / "README.md", *PAGES]:
        text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
        for line in re.findall(rf"(?<=probe )(?:{'|'.join(known)})\b[^`|\n]*", text):
            name = next(name for name in known if line.startswith(name))
            used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
            assert used <= known[name], (path.name, line)


def test_the_python_reference_has_every_public_name():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: probe\.(\w+)$", text, re.MULTILINE)) == set(probe.__all__)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"[\w-]+\.md", navigation)) == [path.name for path in PAGES]


def test_the_glossary_defines_the_words_of_tables_and_help():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = set(re.findall(r"^\*\*(.+)\*\*$", text, re.MULTILINE))
    assert {"run", "record", "split", "subset", "chunk", "protocol", "encoder", "cell"} <= words


def test_fragments_of_the_changelog_have_a_kind_that_is_known():
    """An example is `changelog.d/ray-workers.added.md`. towncrier leaves out or refuses other names."""
    kinds = {kind["directory"] for kind in _project()["tool"]["towncrier"]["type"]}
    for path in FRAGMENTS.glob("*.md"):
        assert path.name.split(".")[-2] in kinds, f"{path.name}: the kind must be one of {sorted(kinds)}"


def test_the_version_is_the_same_everywhere():
    version = _project()["project"]["version"]
    assert str(Version(version)) == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
