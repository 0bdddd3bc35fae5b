import json
from dataclasses import asdict

import pytest

from probe.datasets.catalog import CATALOG as DATASETS
from probe.models.catalog import CATALOG as MODELS
from probe.probes.protocols import CATALOG as PROTOCOLS
from probe.specs import RunSpec, digest, rebuild, slug


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_no_two_rows_share_a_file_name():
    """Records of different cells must not overwrite each other."""
    for rows in (DATASETS, MODELS):
        assert len({slug(row.name) for row in rows}) == len(rows)


def test_folders_of_one_name_have_different_file_names():
    first, second = slug("folder:/a/images", is_path=True), slug("folder:/b/images", is_path=True)
    assert first.startswith("folder-images-")
    assert first != second


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda row: row.name)
def test_a_specification_comes_back_from_json(dataset):
    """So that a record says all that it takes to run its cell again."""
    for model, protocol in zip(MODELS, [*PROTOCOLS, *PROTOCOLS], strict=False):
        spec = RunSpec(dataset, model, protocol, jit=True, device="cpu", precision="fp32", batch_size=64)
        assert rebuild(json.loads(json.dumps(asdict(spec)))) == spec
