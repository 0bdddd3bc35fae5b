"""Folders: given folders are used, defaults are computed only if needed, and a missing home folder gives an error."""

import pytest

from probe import paths
from probe.cli.main import main
from probe.datasets.opening import open_split
from probe.errors import FolderError
from probe.hub import check_home

FOLDERS = {"data": paths.data_dir, "weights": paths.weights_dir, "cache": paths.cache_dir}


@pytest.fixture
def no_home(monkeypatch):
    """Simulate a container whose user id has no account and no home folder."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in ("HOME", "USERPROFILE", *(f"PROBE_{name.upper()}_DIR" for name in FOLDERS)):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_given_folder_needs_no_home_folder(name, no_home, tmp_path, monkeypatch):
    assert FOLDERS[name](tmp_path) == tmp_path
    assert FOLDERS[name]("relative") == paths.Path("relative")
    monkeypatch.setenv(f"PROBE_{name.upper()}_DIR", str(tmp_path))
    assert FOLDERS[name]() == tmp_path


@pytest.mark.parametrize("name", FOLDERS)
def test_the_error_without_a_home_folder_names_the_option(name, no_home, monkeypatch):
    monkeypatch.setenv("PROBE_RESULTS_DIR", "")
    with pytest.raises(FolderError, match=rf"no home folder for ~/.cache/.*--{name}-dir or PROBE_{name.upper()}_DIR"):
        FOLDERS[name]()
    assert paths.results_dir() == paths.Path("results")


def test_the_default_is_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("PROBE_DATA_DIR", raising=False)
    assert paths.data_dir() == tmp_path / ".cache" / "probe" / "data"


def test_embedded_datasets_and_absolute_paths_need_no_data_folder(no_home, image_folder):
    assert len(open_split("digits", "test", offline=True)) == 359
    folder = image_folder({"train/red": 10, "train/blue": 10, "test/red": 1, "test/blue": 1})
    assert len(open_split(f"folder:{folder}", "test", offline=True)) == 2
    with pytest.raises(FolderError, match="--data-dir"):
        open_split("cifar10", "test", offline=True)


@pytest.mark.parametrize("path", ["~/x", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("form", ["csv:{}", "folder:{}", "hf:{}", "wds:{}", "{}.toml"])
def test_a_dataset_without_a_home_folder_gives_an_error(path, form, no_home, capsys):
    assert main(["run", "--dataset", form.format(path), "--model", "tiny"]) == (1 if path == "~/x" else 2)
    message = capsys.readouterr().err
    assert path.partition("/")[0] in message
    assert "Traceback" not in message
    assert "Could not determine" not in message


def test_a_name_may_begin_with_a_tilde():
    assert paths.expand_home("~nobody-of-this-name/x") == paths.Path("~nobody-of-this-name/x")


def test_no_folder_named_tilde_is_made_for_the_hub():
    with pytest.raises(FolderError, match="HF_HOME"):
        check_home("~/.cache/huggingface/hub")
    check_home("/cache/huggingface/hub")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_is_not_a_folder(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FolderError, match=rf"file is a file, not a folder; .*--{name}-dir or PROBE_{name.upper()}"):
            FOLDERS[name](path)
    monkeypatch.setenv(f"PROBE_{name.upper()}_DIR", str(tmp_path / "file"))
    with pytest.raises(FolderError, match="is a file, not a folder"):
        FOLDERS[name]()
