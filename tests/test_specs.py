import json
from dataclasses import asdict, replace
from pathlib import PureWindowsPath

import pytest

from probe.datasets.catalog import CATALOG as DATASETS
from probe.decoder import decode
from probe.models.catalog import CATALOG as MODELS
from probe.probes.protocols import CATALOG as PROTOCOLS
from probe.specs import LONGEST_SLUG, RunSpec, digest, identity, slug, unique_slug


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def _run_spec(**changes):
    return replace(RunSpec(DATASETS[0], MODELS[0], PROTOCOLS[0], False, "cpu", "fp32", 64), **changes)


def test_descriptions_are_not_part_of_the_identity_of_a_run():
    """A corrected typo in a note must not repeat any run."""
    source = replace(DATASETS[0].sources[0], files="another description", downloads=(("https://mirror.org", ""),))
    dataset = replace(DATASETS[0], title="X", notes="X", homepage="X", license="X", numbers_from="X", sources=(source,))
    before = _run_spec(dataset=replace(DATASETS[0], sources=DATASETS[0].sources[:1]))
    mended = _run_spec(
        dataset=dataset,
        model=replace(MODELS[0], license="X", profile=None),
        protocol=replace(PROTOCOLS[0], title="X", source="X"),
    )
    assert mended != before
    assert identity(mended) == identity(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": replace(DATASETS[0], val_fraction=0.3)},
        {"model": replace(MODELS[0], sha256="00")},
        {"protocol": replace(PROTOCOLS[0], tol=1e-3)},
        {"jit": True},
        {"precision": "fp16"},
        {"batch_size": 1},
        {"solver": "sklearn"},
    ],
)
def test_fields_that_change_a_result_are_part_of_the_identity_of_a_run(changes):
    assert identity(_run_spec(**changes)) != identity(_run_spec())


def test_a_round_trip_through_json_does_not_change_the_identity():
    for row in (*DATASETS, *MODELS, *PROTOCOLS):
        spec = _run_spec(**{"dataset" if row in DATASETS else "model" if row in MODELS else "protocol": row})
        assert identity(decode(json.loads(json.dumps(asdict(spec))), RunSpec)) == identity(spec)


def test_no_two_entries_share_a_file_name():
    """Records of different runs must not overwrite each other."""
    for rows in (DATASETS, MODELS):
        assert len({slug(row.name) for row in rows}) == len(rows)


def test_file_names_of_catalogue_names_do_not_change():
    """Published records have these file names."""
    for rows in (DATASETS, PROTOCOLS):
        assert all(unique_slug(row.name) == row.name for row in rows)


# The names of each line have equal slugs, or are equal on file systems that ignore case.
LIKE_NAMES = [
    ("open_clip:ViT-S-32-alt/модель/epoch_1.pt", "open_clip:ViT-S-32-alt/数据/epoch_1.pt"),
    ("hf:a-b/c", "hf:a/b-c", "hf-a-b-c", "hf:a/b/c", "hf:a//b//c", "hf:a--b-c"),
    ("my model", "my-model", "my--model", "-my-model", "my-model-", ".my-model", "my-model.", " my-model", "my\tmodel"),
    ("MyModel", "mymodel", "MYMODEL", "mymodel\n"),
    ("caf\xe9", "cafe\u0301", "caf\udce9", "caf", "caf?", "caf$"),
    ("CON", "con", "aux.txt", "aux", "nul.a.b", "COM1", "com1", "NUL"),
    ("", " ", ".", "..", "...", "/", "\\", "\0", "-", "_"),
    ("x" * 300, "x" * 301, "x" * 100, "x" * 101, "x" * 99 + ".", "x" * 99 + "-"),
    ("a.eager", "a", "eager.a", "a.b", "a-b"),
    ("ViT-B/32", "ViT-B-32", "vit-b-32", "VIT-B/32", "ViT-B//32", "random:ViT-B/32", "random-ViT-B-32"),
]


@pytest.mark.parametrize("names", LIKE_NAMES, ids=lambda names: ascii(names[0])[:20])
def test_no_two_names_share_a_file_name(names):
    catalog = [name for row in MODELS for name in (row.name, f"random:{row.name}")]
    files = [unique_slug(name, catalog=catalog) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    for file in files:
        assert 0 < len(file.encode()) <= LONGEST_SLUG + 9
        assert file[0] not in ".-"
        assert not set(file) & set('/\\:*?"<>| \0')
        assert not PureWindowsPath(f"{file}.json").is_reserved()


def test_folders_with_the_same_name_have_different_file_names():
    first, second = slug("folder:/a/images", is_path=True), slug("folder:/b/images", is_path=True)
    assert first.startswith("folder-images-")
    assert first != second


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda row: row.name)
def test_a_specification_is_restored_from_json(dataset):
    """A record contains everything that is needed to repeat its run."""
    for model, protocol in zip(MODELS, [*PROTOCOLS, *PROTOCOLS], strict=False):
        spec = RunSpec(dataset, model, protocol, jit=True, device="cpu", precision="fp32", batch_size=64)
        assert decode(json.loads(json.dumps(asdict(spec))), RunSpec) == spec
