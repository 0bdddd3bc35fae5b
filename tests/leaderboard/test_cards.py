import pytest
from huggingface_hub import ModelCard
from make.records import RECORDS, changed, make_failure, make_record

from probe.cli.main import main
from probe.errors import ResultsError
from probe.leaderboard.cards import METRIC_TITLES, model_index
from probe.records.record import write_record
from probe.records.schema import EncoderRecord
from probe.stats.metrics import METRICS


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


def test_a_card_of_local_files_has_no_paths():
    """A card is published, and the folders of a machine are nobody's business."""
    record = make_record("folder:/home/me/moths", "/home/me/models/mine.pt")
    text = model_index([changed(record, "spec.dataset.title", "images in /home/me/moths")])
    assert "- name: mine.pt" in text
    assert "name: moths" in text
    assert "/home" not in text


def test_every_metric_has_a_name_for_people():
    assert METRIC_TITLES.keys() == METRICS.keys()


def test_a_card_is_of_one_model_with_scores():
    with pytest.raises(ResultsError, match="describes one model"):
        model_index(RECORDS)
    with pytest.raises(ResultsError, match="has no score"):
        model_index([make_failure()])


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
