"""Records of earlier schemas, as they were published, are read as records of the newest schema."""

import json
from pathlib import Path

import numpy as np
import pytest
from make.records import make_record

from probe.probes.shots import Draw
from probe.records.migration import MIGRATIONS, migrate
from probe.records.record import decode_record, read_record, write_record
from probe.records.schema import SCHEMA_VERSION, SkippedImage
from probe.specs import Source

RECORDS = Path(__file__).parents[2] / "results" / "records"


def _plain(**changes):
    """Return a record in the types of JSON."""
    return {**json.loads(json.dumps(make_record().to_dict())), **changes}


def test_every_schema_has_one_migration():
    assert list(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_a_dataset_of_the_first_schema_has_one_source():
    plain = _plain(schema_version=1)
    dataset = plain["spec"]["dataset"]
    del dataset["sources"], dataset["subsets"]
    dataset |= {"form": "torchvision", "source": "MNIST", "files": "idx files"}
    dataset["parts"] = [{"name": "train", "size": 60_000, "arguments": [["train", True]]}]
    record = decode_record(migrate(plain))
    (source,) = record.spec.dataset.sources
    assert source == Source("torchvision", "MNIST", subsets=(("train", (("train", True),)),), files="idx files")
    assert record.schema_version == SCHEMA_VERSION


def test_a_published_record_of_the_second_schema_is_read():
    path = RECORDS / "fashion_mnist" / "tiny.eager.clip-paper.fp32.json"
    plain = json.loads(path.read_text())
    assert plain["schema_version"] == 2
    record = read_record(path)
    assert record.result.score == plain["result"]["score"]
    assert record.result.interval is None
    assert len(record.result.sweep) == len(plain["result"]["sweep"])


def test_parts_of_the_fourth_schema_become_subsets():
    plain = _plain(schema_version=4)
    expected = decode_record(_plain())
    assert expected.spec.dataset.subsets
    for holder in (plain["spec"]["dataset"], *plain["spec"]["dataset"]["sources"], plain["extraction"]):
        holder["parts"] = holder.pop("subsets")
    assert decode_record(migrate(plain)) == expected


def test_the_part_of_a_skipped_image_becomes_its_subset():
    plain = _plain(schema_version=4)
    plain["read"]["skipped"] = [{"part": "test", "id": "x.png", "message": "damaged"}]
    assert decode_record(migrate(plain)).read.skipped == (SkippedImage("test", "x.png", "damaged"),)


@pytest.mark.parametrize("name", ["few-shot-2", "few-shot-16"])
def test_drawn_images_become_the_digest_that_the_same_draw_has_today(name):
    path = RECORDS / "digits" / f"random-RN50.eager.{name}.fp32.fast.json"
    plain = json.loads(path.read_text())
    assert plain["schema_version"] == 3
    for draw, old in zip(read_record(path).result.draws, plain["result"]["draws"], strict=True):
        train, held_out = (np.array((old[key] or "").split(), np.int64) for key in ("indices", "held_out"))
        assert draw.draw_sha256 == Draw(train, held_out).compute_digest()
        assert draw.seed == old["seed"]


def test_files_of_earlier_schemas_are_not_rewritten(tmp_path):
    path = write_record(make_record(), tmp_path)
    path.write_text(json.dumps(_plain(schema_version=3)))
    before = path.read_bytes()
    assert read_record(path) == make_record()
    assert path.read_bytes() == before
