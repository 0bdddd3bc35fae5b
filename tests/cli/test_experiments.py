"""Experiment files: what `run` reads from them and writes to them."""

import json
import tomllib
from pathlib import Path

import pytest

from probe.cli import arguments, experiments
from probe.cli.grids import plan_runs
from probe.cli.main import main
from probe.records.record import read_records
from probe.specs import identity

ROOT = Path(__file__).parent.parent.parent


def _parse(*words):
    parser = arguments.parser()
    args = parser.parse_args(["run", *words])
    return experiments.add_experiment(parser, ["run", *words], args) if args.experiment else args


def _file(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_gives_the_runs_that_its_options_give(tmp_path):
    path = _file(
        tmp_path,
        """
        dataset = ["digits", "fashion_mnist"]
        model = "tiny"
        jit = "both"
        protocol = ["readme", "few-shot"]
        batch-size = 32
        offline = true
        """,
    )
    words = "--dataset digits --dataset fashion_mnist --model tiny --jit both --protocol readme --protocol few-shot"
    assert plan_runs(_parse(path)) == plan_runs(_parse(*words.split(), "--batch-size", "32"))
    assert _parse(path).offline


def test_options_override_the_file(tmp_path):
    path = _file(tmp_path, 'dataset = ["digits"]\nmodel = ["tiny", "RN50"]\nbatch-size = 32\njit = "on"\n')
    args = _parse(path, "--model", "random:tiny", "--batch-size", "16", "--jit", "off", "--strict")
    assert (args.dataset, args.model, args.batch_size, args.jit) == (["digits"], ["random:tiny"], 16, "off")
    assert args.strict


def test_options_turn_off_what_the_file_turns_on(tmp_path):
    path = _file(tmp_path, 'dataset = ["digits"]\noffline = true\nsave-heads = true\n')
    assert _parse(path).save_heads
    args = _parse(path, "--no-offline", "--no-save-heads")
    assert not args.offline
    assert not args.save_heads
    assert experiments.given_options(args).keys() == {"dataset", "model", "jit", "protocol", "solver"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset = [", "grid.toml is not valid TOML"),
        ('datasets = ["digits"]', "grid.toml: unknown key 'datasets'; did you mean 'dataset'"),
        ('dataset = "digits"\nbatch_size = 3', "unknown key 'batch_size'; did you mean 'batch-size'"),
        ('dataset = "digits"\nbatch-size = "many"', "grid.toml: batch-size: expected an integer >= 1, got 'many'"),
        ('dataset = "digits"\nbatch-size = 2.5', "grid.toml: batch-size: expected an integer >= 1, got '2.5'"),
        ('dataset = []\nmodel = ["tiny"]', "grid.toml: dataset: the list is empty; give a value, or remove the key"),
        ('dataset = "digits"\nmodel = []', "grid.toml: model: the list is empty; give a value, or remove the key"),
        ('dataset = ["digits", 3]', "grid.toml: dataset: expected a text, or a list of texts, got 3"),
        ('dataset = "digits"\ndata-dir = 3', "grid.toml: data-dir: expected a text, got 3"),
        ('dataset = "digits"\njit = "bothh"', "grid.toml: jit: unknown value 'bothh'; did you mean 'both'"),
        ('dataset = "digits"\njit = ["on"]', r"grid.toml: jit: expected a text, got \['on'\]"),
        ('dataset = "digits"\noffline = "yes"', "grid.toml: offline: expected true or false, got 'yes'"),
        ('dataset = "digits"\nplan = true', "grid.toml: plan belongs on the command line; remove it from the file"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, message):
    with pytest.raises(arguments.UsageError, match=message):
        _parse(_file(tmp_path, text))


def test_a_missing_file_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "nothing.toml"])
    assert (
        "nothing.toml does not exist; give the path of an experiment file, or use --dataset" in capsys.readouterr().err
    )


def test_a_command_without_a_dataset_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--model", "tiny"])
    assert "name a dataset with --dataset, or give an experiment file" in capsys.readouterr().err


WORDS = [
    "--dataset digits",
    "--dataset digits --model tiny --jit both --protocol readme --protocol knn",
    "--dataset folder:a\x7f\"b'\\ü --model x.pt --batch-size 16 --offline --solver sklearn --threads 2",
    "--dataset digits --also-test all --predictions out --with-logits --save-heads --executor ray --ray-address auto",
]


@pytest.mark.parametrize("words", WORDS)
def test_a_written_file_gives_the_same_options(tmp_path, words):
    args = _parse(*words.split())
    path = experiments.write_experiment(args, tmp_path)
    assert experiments.write_experiment(args, tmp_path) == path
    again = _parse(str(path))
    assert experiments.given_options(again) == experiments.given_options(args)
    # Options that choose the runs are written even if they have their defaults, because defaults may change.
    assert tomllib.loads(path.read_text(encoding="utf-8")).keys() >= {"dataset", "model", "jit", "protocol", "solver"}


def test_every_run_writes_the_file_that_repeats_it(tmp_path, capsys, caplog):
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    assert main(["run", "--dataset", "digits", "--model", "random:tiny", "--protocol", "zero-shot", *folders]) == 0
    (path,) = (tmp_path / "results" / experiments.FOLDER).iterdir()
    capsys.readouterr()
    assert main(["run", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    assert "skipped 1 of 1 runs: already recorded" in caplog.text
    assert [record["spec"]["protocol"]["name"] for record in json.loads(printed.out)] == ["zero-shot"]


def test_the_grid_of_the_paper_is_a_short_file():
    path = ROOT / "benchmarks" / "clip_paper.toml"
    runs = plan_runs(_parse(str(path)))
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30
    assert len(runs) == 27 * 9 * 2
    assert {run.model.form for run in runs} == {"url"}


def test_the_committed_files_give_the_specifications_of_the_committed_records():
    """Every record belongs to a run of an experiment file, and every run of these files has a record.

    Encoders of `benchmarks` need packages that are not installed with the tests.
    """
    files = [
        path for path in (ROOT / "results" / experiments.FOLDER).glob("*.toml") if "module:" not in path.read_text()
    ]
    planned = {identity(run) for path in files for run in plan_runs(_parse(str(path), "--device", "cpu"))}
    records = [record for record in read_records(ROOT / "results") if record.spec.model.form != "module"]
    assert planned == {identity(record.spec) for record in records}
