import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from make.records import RECORDS, changed, make_failure, make_record

from probe.cli.main import main
from probe.datasets import get_dataset
from probe.errors import ResultsError
from probe.leaderboard.cards import METRIC_TITLES, eval_results, model_index
from probe.leaderboard.evaluation_logs import evaluation_log
from probe.records.record import read_record, write_record
from probe.records.schema import EncoderRecord
from probe.specs import Source
from probe.stats.metrics import METRICS

COMMITTED = Path(__file__).parents[2] / "results" / "records" / "fashion_mnist"
FORMATS = (model_index, eval_results, evaluation_log)


def test_the_hubs_own_reader_finds_every_score():
    records = [record for record in RECORDS if record.model == "ViT-B/32"]
    card = ModelCard(f"---\n{model_index(records)}---\nA model.\n")
    assert card.data.model_name == "ViT-B/32"
    found = {(r.dataset_type, r.metric_args["protocol"]): r for r in card.data.eval_results}
    assert {key: r.metric_value for key, r in found.items()} == {
        (record.dataset, record.protocol): pytest.approx(record.result.score) for record in records
    }
    digits = found["digits", "readme"]
    assert digits.metric_type == "accuracy"
    assert digits.metric_args["interval_95"] == pytest.approx([0.88, 0.91])
    assert digits.metric_args["mode"] == "eager"


@pytest.mark.parametrize("write", [model_index, evaluation_log])
def test_a_card_of_local_files_has_no_paths(write):
    """A card is published, so it must not show the folders of a machine."""
    record = make_record("folder:/home/me/moths", "/home/me/models/mine.pt")
    record = changed(changed(record, "spec.model.form", "file"), "spec.dataset.title", "images in /home/me/moths")
    text = write([record])
    assert "mine.pt" in text
    assert "moths" in text
    assert "/home" not in text


def test_every_metric_has_a_name_for_people():
    assert METRIC_TITLES.keys() == METRICS.keys()


@pytest.mark.parametrize("write", FORMATS)
def test_a_card_is_of_one_model_with_scores(write):
    with pytest.raises(ResultsError, match="describes one model"):
        write(RECORDS)
    with pytest.raises(ResultsError, match="has no score"):
        write([make_failure()])


def test_a_card_is_not_made_of_records_of_different_weights(tmp_path, capsys):
    """The checkpoint at a path was replaced between the two runs."""
    records = [make_record("digits"), make_record("cifar10", encoder=EncoderRecord(weights_sha256="cd" * 32))]
    with pytest.raises(ResultsError, match=r"2 different weights \(digits / readme has abab.*, cifar10 / .* has cdcd"):
        model_index(records)
    assert main(["card", *(str(write_record(record, tmp_path)) for record in records)]) == 1
    assert "records of tiny have 2 different weights" in capsys.readouterr().err


@pytest.mark.parametrize("digest", [None, ""])
def test_records_of_early_versions_without_a_digest_go_into_a_card(digest):
    old = make_record("cifar10", encoder=EncoderRecord(weights_sha256=digest))
    assert "cifar10" in model_index([make_record("digits"), old])


def test_the_command_prints_the_block(tmp_path, capsys):
    path = write_record(RECORDS[4], tmp_path)
    assert main(["card", str(path)]) == 0
    assert capsys.readouterr().out.startswith("model-index:\n- name: tiny\n")


def test_the_hubs_own_parser_reads_eval_results_of_the_committed_records():
    records = [read_record(path) for path in sorted(COMMITTED.glob("tiny.eager.*.json"))]
    entries = parse_eval_result_entries(yaml.safe_load(eval_results(records)))
    assert [entry.value for entry in entries] == [record.result.score for record in records]
    assert {(entry.dataset_id, entry.task_id) for entry in entries} == {("zalando-datasets/fashion_mnist", "default")}
    for entry, record in zip(entries, records, strict=True):
        assert entry.date == record.created
        assert f"protocol {record.protocol}, " in entry.notes
        assert entry.dataset_revision is None  # these images came from torchvision


def test_eval_results_name_the_repository_and_the_commit_of_the_images():
    record = changed(make_record("imagenet"), "spec.dataset", get_dataset("imagenet"))
    shards = Source("webdataset", "timm/imagenet-1k-wds")
    record = changed(changed(record, "read.source", shards), "read.revisions", {"train": "ab12", "val": "ab12"})
    for known, expected in (
        (record, ("ILSVRC/imagenet-1k", None)),
        (changed(record, "read.source", Source("huggingface", "org/mine")), ("org/mine", "ab12")),
        (changed(record, "read.source", Source("huggingface", "/home/me/files")), ("ILSVRC/imagenet-1k", None)),
        (changed(record, "spec.dataset.sources", ()), ("timm/imagenet-1k-wds", "ab12")),
    ):
        (entry,) = parse_eval_result_entries(yaml.safe_load(eval_results([known])))
        assert (entry.dataset_id, entry.dataset_revision) == expected


def test_eval_results_of_a_dataset_that_the_hub_does_not_have_are_an_error(tmp_path, capsys):
    path = write_record(make_record("folder:/home/me/moths"), tmp_path)
    assert main(["card", "--format", "eval-results", str(path)]) == 1
    assert "moths has no repository on the Hugging Face hub" in capsys.readouterr().err


def _check_log(text):
    """Check a document with the schema of the package every-eval-ever 0.3.0, and return the document."""
    schema = json.loads((Path(__file__).parent / "every_eval_ever" / "eval.schema.json").read_text())
    document = json.loads(text)
    jsonschema.validate(document, schema)
    assert document["schema_version"] == schema["version"]
    return document


def test_an_evaluation_log_of_the_committed_records_follows_the_schema():
    records = [read_record(path) for path in sorted(COMMITTED.glob("tiny.eager.*.json"))]
    document = _check_log(evaluation_log(records))
    assert document["model_info"]["id"] == "clip-linear-probe/tiny"
    assert document["retrieved_timestamp"].isdecimal()
    for found, record in zip(document["evaluation_results"], records, strict=True):
        assert found["score_details"]["score"] == record.result.score
        assert found["score_details"]["details"]["protocol"] == record.protocol
        interval = record.result.interval
        ends = found["score_details"]["uncertainty"].get("confidence_interval")
        assert (interval is None) == (ends is None)
        assert ends is None or (ends["lower"], ends["upper"]) == (interval.low, interval.high)
        assert found["source_data"]["hf_repo"] == "zalando-datasets/fashion_mnist"
    ids = [found["evaluation_result_id"] for found in document["evaluation_results"]]
    assert len(set(ids)) == len(records)


@pytest.mark.parametrize(
    ("form", "source", "name", "expected"),
    [
        ("hf", "org/name", "hf:org/name", "org/name"),
        ("transformers", "org/name?pool=cls", "transformers:org/name?pool=cls", "org/name"),
        ("transformers", "/a/mine", "transformers:/a/mine", "transformers/mine"),
        ("open_clip", "hf-hub:org/name", "open_clip:hf-hub:org/name", "org/name"),
        ("url", "https://example.org", "ViT-B/32", "openai/ViT-B-32"),
        ("random", "tiny", "random:tiny", "clip-linear-probe/random-tiny"),
        ("open_clip", "RN50/cc12m", "open_clip:RN50/cc12m", "open_clip/RN50-cc12m"),
        ("file", "/a/mine.pt", "/a/mine.pt", "mine.pt"),
    ],
)
def test_an_evaluation_log_names_the_model_without_its_folder(form, source, name, expected):
    record = make_record("digits", name)
    record = changed(changed(record, "spec.model.form", form), "spec.model.source", source)
    assert _check_log(evaluation_log([record]))["model_info"]["id"] == expected


@pytest.mark.parametrize(
    ("form", "source", "is_open"),
    [
        ("url", "https://example.org", True),
        ("embedded", "tiny", True),
        ("hf", "org/name", True),
        ("transformers", "org/name?pool=cls", True),
        ("open_clip", "hf-hub:org/name", True),
        ("open_clip", "RN50/cc12m", True),
        ("timm", "resnet18.a1_in1k", True),
        ("file", "/a/mine.pt", False),
        ("random", "tiny", False),
        ("supplied", "mine", False),
        ("module", "own.py:make", False),
        ("transformers", "/a/mine", False),
        ("open_clip", "RN50//a/mine.pt", False),
        ("open_clip", "RN50/C:\\a\\mine.pt", False),
        ("open_clip", "local-dir:/a/mine", False),
        ("timm", "resnet18//a/mine.pt", False),
        ("timm", "resnet18.a1_in1k//a/mine.pt?key=model", False),
    ],
)
def test_an_evaluation_log_calls_weights_open_only_if_they_are_published(form, source, is_open):
    record = changed(changed(make_record("digits"), "spec.model.form", form), "spec.model.source", source)
    details = _check_log(evaluation_log([record]))["model_info"]["additional_details"]
    assert details["model_availability"] == ("open_weights" if is_open else "unknown")


def test_random_weights_of_timm_are_not_called_open():
    record = changed(changed(make_record("digits"), "spec.model.form", "timm"), "spec.model.source", "resnet18.a1_in1k")
    details = _check_log(evaluation_log([changed(record, "spec.model.seed", 0)]))["model_info"]["additional_details"]
    assert details["model_availability"] == "unknown"


def test_an_evaluation_log_of_other_datasets_has_their_address_or_only_their_name():
    for dataset, expected in (("stl10", "url"), ("folder:/a/moths", "other")):
        record = make_record(dataset)
        if dataset == "stl10":
            record = changed(record, "spec.dataset", get_dataset(dataset))
        (found,) = _check_log(evaluation_log([record]))["evaluation_results"]
        assert found["source_data"]["source_type"] == expected


@pytest.mark.parametrize(
    ("name", "start"), [("model-index", "model-index:\n"), ("eval-results", "- dataset:\n"), ("every-eval-ever", "{\n")]
)
def test_the_command_prints_each_format(name, start, capsys):
    assert main(["card", "--format", name, str(COMMITTED / "tiny.eager.readme.fp32.fast.json")]) == 0
    assert capsys.readouterr().out.startswith(start)
