import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from probe.cli.main import main
from probe.environment import blas_threads, threads, torch_threads

RUN = ["run", "--dataset", "digits", "--model", "tiny", "--protocol", "readme", "--device", "cpu"]


@pytest.mark.slow
def test_run_prints_a_table_and_writes_records(tmp_path, capsys):
    assert main([*RUN, "--jit", "both", "--results-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| digits  | tiny  | eager | readme" in out
    assert "largest feature difference" in out
    assert len(list((tmp_path / "records" / "digits").iterdir())) == 2


def test_an_address_of_ray_is_for_ray(capsys):
    for options, said in (
        (["--ray-address", "auto"], "add --executor ray"),
        (["--executor", "ray", "--ray-address", ""], "empty"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*RUN, *options])
        assert end.value.code == 2
        assert said in capsys.readouterr().err


def test_threads_are_those_of_torch_and_of_blas_and_only_while_it_runs(tmp_path, capsys):
    with threads(2, blas=2):
        before = torch_threads(), blas_threads()
        assert main([*RUN, "--json", "--threads", "1", "--results-dir", str(tmp_path)]) == 0
        assert (torch_threads(), blas_threads()) == before
    environment = json.loads(capsys.readouterr().out)[0]["environment"]
    assert (environment["torch_threads"], environment["blas_threads"]) == (1, 1)


@pytest.mark.slow
def test_a_terminal_shows_the_score_of_each_run_as_it_ends(tmp_path, capsys, monkeypatch):
    """A run that has a record already prints no such line. Without a terminal, no run prints one."""
    command = [*RUN, "--solver", "fast", "--results-dir", str(tmp_path)]
    assert main([*command, "--cache-dir", str(tmp_path / "cache")]) == 0  # extracts the features
    assert capsys.readouterr().err == ""
    assert main([*command, "--rerun"]) == 0
    assert capsys.readouterr().err == ""
    score = re.compile(r"digits / tiny / eager / readme: \d\d\.\d\d % \(\S+ to \S+\), \S+ s$", re.MULTILINE)
    (path,) = (tmp_path / "records" / "digits").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "2001-01-01T00:00:00+00:00"}))
    for options, lines in (([], 0), (["--rerun"], 1)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert main([*command, *options]) == 0
        assert len(score.findall(capsys.readouterr().err)) == lines


def test_a_protocol_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text('name = "own"\ngrid = [0.316]\n')
    assert main([*RUN[:-4], "--protocol", str(tmp_path / "mine.toml"), "--results-dir", str(tmp_path)]) == 0
    (path,) = (tmp_path / "records" / "digits").iterdir()
    assert path.name.startswith("tiny.eager.own.")
    assert json.loads(path.read_text())["spec"]["protocol"]["grid"] == [0.316]


@pytest.mark.slow
def test_a_group_of_protocols_stands_for_its_rows(tmp_path, capsys):
    y = np.repeat(np.arange(2), 20)
    x = np.eye(2, dtype=np.float32)[y]
    subsets = {f"{subset}_{kind}": a for subset in ("train", "val", "test") for kind, a in (("x", x), ("y", y))}
    np.savez(tmp_path / "features.npz", **subsets)
    assert main(["fit", str(tmp_path / "features.npz"), "--protocol", "few-shot", "--json"]) == 0
    found = [result["protocol"] for result in json.loads(capsys.readouterr().out)]
    assert found == ["few-shot-1", "few-shot-2", "few-shot-4", "few-shot-8", "few-shot-16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--dataset", "digit", "--model", "tiny"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["run", "--dataset", "digits", "--model", "tinny"], "unknown model 'tinny'; did you mean 'tiny'?"),
        ([*RUN, "--protocol", "readmee"], "unknown protocol 'readmee'; did you mean 'readme'?"),
        ([*RUN, "--protocol", "missing.toml"], "missing.toml does not exist; give the path of a protocol in TOML"),
        ([*RUN, "--model", "missing.pt"], "no checkpoint at "),
        ([*RUN, "--model", "."], "the folder "),
        (
            [*RUN, "--model", "supplied:X"],
            "supplied:X names supplied features, whose encoder is not known; fit them with",
        ),
        (["run", "--dataset", "folder:missing", "--model", "tiny"], "no folder at "),
        (["run", "--dataset", "folder:", "--model", "tiny"], "nothing follows the colon of 'folder:'; write one of "),
    ],
)
def test_a_wrong_name_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"probe: {message}")
    assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_device_that_this_machine_does_not_have_is_an_error(capsys):
    assert main([*RUN, "--device", "cuda:77"]) == 1
    assert capsys.readouterr().err.startswith("probe: device 'cuda:77' is not available on this machine")


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run"])
    assert "--dataset" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-3", "many"])
def test_a_batch_size_that_is_none_is_wrong_usage(size):
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--batch-size", size])


def test_a_failed_cell_is_named_and_exits_with_1(tmp_path, capsys):
    (tmp_path / "model.pt").write_text("<html>not found</html>")
    code = main([*RUN, "--model", str(tmp_path / "model.pt"), "--results-dir", str(tmp_path / "results")])
    captured = capsys.readouterr()
    assert code == 1
    assert "model.pt is not a checkpoint" in captured.err
    assert "Traceback" not in captured.err
    assert "| failed" in captured.out
    assert captured.out.count("| tiny") == 1  # the other run of the grid was done


@pytest.mark.parametrize("option", ["--results-dir", "--cache-dir"])
@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_place_of_a_folder_is_found_before_the_work(option, below, tmp_path, capsys, caplog):
    file = tmp_path / "file"
    file.write_text("a file")
    results = [] if option == "--results-dir" else ["--results-dir", str(tmp_path / "results")]
    assert main([*RUN, "--verbose", *results, option, str(file / below)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"probe: {file} is a file, not a folder; name a folder with {option} or PROBE_")
    assert "digits" not in caplog.text  # what a run logs when it begins
    assert not list((tmp_path / "results").rglob("*.json"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_keeps_what_was_written(tmp_path):
    """Ctrl-C during the second run gives exit code 130 and one sentence, and leaves the first record unchanged."""
    arguments = [*RUN, "--verbose", "--jit", "both", "--results-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "probe", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets background processes ignore SIGINT. If the tests run in the background, so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    err = []
    for line in process.stderr:
        err.append(line)
        if line.startswith("digits / tiny / jit / readme\n"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.stderr.close()
    text = "".join(err)
    assert "probe: interrupted" in text
    assert "Traceback" not in text
    assert [path.name for path in (tmp_path / "records" / "digits").iterdir()] == ["tiny.eager.readme.fp32.fast.json"]
    assert (tmp_path / "tables" / "tiny.eager.csv").is_file()


@pytest.mark.parametrize("arguments", [["tables"], ["tables", "--check"]])
def test_tables_of_nothing_are_an_error(arguments, tmp_path, capsys):
    """A misspelled folder in a CI job must not look like success."""
    assert main([*arguments, "--results-dir", str(tmp_path / "reslts")]) == 1
    assert "no records in" in capsys.readouterr().err


def test_listings_name_everything(capsys, tmp_path):
    assert main(["datasets"]) == 0
    assert "| fashion_mnist |" in capsys.readouterr().out
    assert main(["models", "open_clip:"]) == 0
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k" in capsys.readouterr().out.splitlines()
    (tmp_path / "RN50.pt").touch()
    assert main(["models", "--weights-dir", str(tmp_path)]) == 0
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert "ready" in rows["RN50"]
    assert "downloads on first use" in rows["ViT-L/14@336px"]
    for command, name in (("datasets", "mnist"), ("models", "RN50"), ("protocols", "readme")):
        assert main([command, "--json"]) == 0
        assert name in [row["name"] for row in json.loads(capsys.readouterr().out)]
        assert main([command, name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["name"] == name


def test_tables_are_rebuilt_and_checked(tmp_path, capsys):
    main([*RUN, "--results-dir", str(tmp_path)])
    table = tmp_path / "tables" / "tiny.eager.csv"
    before = table.read_text()
    table.write_text("edited by hand")
    assert main(["tables", "--check", "--results-dir", str(tmp_path)]) == 1
    assert "tiny.eager.csv differs from the records" in capsys.readouterr().err
    assert main(["tables", "--results-dir", str(tmp_path)]) == 0
    assert table.read_text() == before
    assert main(["tables", "--check", "--results-dir", str(tmp_path)]) == 0
    (tmp_path / "records" / "digits" / "damaged.json").write_text("{")
    capsys.readouterr()
    assert main(["tables", "--check", "--results-dir", str(tmp_path)]) == 1
    assert "damaged.json is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_extract_and_run_with_the_same_threads_share_features(tmp_path, capsys):
    """The number of threads is part of the cache key of features on a CPU. Tests use one thread by default."""
    options = ["--dataset", "digits", "--model", "tiny", "--device", "cpu", "--cache-dir", str(tmp_path / "cache")]
    assert main(["extract", *options, "--threads", "2"]) == 0
    assert main(["cache", "explain", *options]) == 1
    assert main(["cache", "explain", *options, "--threads", "2"]) == 0
    capsys.readouterr()
    run = ["run", *options, "--protocol", "readme", "--threads", "2", "--results-dir", str(tmp_path), "--json"]
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)[0]["extraction"]["from_cache"]
