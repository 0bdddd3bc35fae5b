"""Migration of records from earlier schemas to the newest, as plain values of JSON. Files are never rewritten.

Schema history. Fields that were added to a schema later have a default in `records.schema`:

1. The first schema. Added later: `license`, `preprocess` and `dtypes` in `encoder`.
2. `spec.dataset` has `sources` instead of `form` and `source`; `read`, and `folds` in `result`, are new. Added later:
   `extraction`, and `compiled` in `spec`.
3. `result` has `solver`, `tol`, `excess`, `interval`, `outcomes`, `same_images`, and `draws` with their `seed` and
   `indices`; points of its `sweep` have `gradient_ratio` and `objective`; `parity` has `p_value`. Added later: `sample`
   in `features`, `eager_score` in `parity`, `blas_threads` in `environment`, `preprocess_from` and `weights_key` in
   `encoder`, `suboptimality` in `result` and its `sweep`, `choice_converged` and `label_values` in `result`.
   `converged` follows `probes.solvers.optimality` in a record that has `suboptimality`, and else the gradient.
4. Few-shot draws have `draw_sha256`, a digest, instead of `indices` and `held_out`, the positions as text.
5. `spec.dataset`, its `sources` and `extraction` have `subsets` instead of `parts`, and skipped images in `read` have
   `subset` instead of `part`. Added later: `supplied` in `extraction`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probe.specs import digest

Json = dict[str, Any]


def migrate(fields: Json) -> Json:
    """Return a record of any schema as one of the newest schema.

    Damaged values are returned unchanged, because the decoder reports them with their path.
    """
    for version in range(fields["schema_version"], max(MIGRATIONS) + 1):
        fields = {**MIGRATIONS[version](fields), "schema_version": version + 1}
    return fields


def _from_1(fields: Json) -> Json:
    spec = fields.get("spec")
    dataset = spec.get("dataset") if isinstance(spec, dict) else None
    if not isinstance(dataset, dict) or "sources" in dataset or not isinstance(dataset.get("parts"), list):
        return fields
    parts = [part for part in dataset["parts"] if isinstance(part, dict)]
    source = {
        "form": dataset.get("form"),
        "location": dataset.get("source"),
        "parts": [(part.get("name"), part.get("arguments", ())) for part in parts],
        "files": dataset.get("files", ""),
    }
    return {**fields, "spec": {**fields["spec"], "dataset": {**dataset, "sources": [source]}}}


def _from_2(fields: Json) -> Json:
    return fields  # all new fields have a default


def _from_3(fields: Json) -> Json:
    result = fields.get("result")
    return {**fields, "result": _with_digests(result)} if isinstance(result, dict) else fields


def _with_digests(result: Json) -> Json:
    texts = [result.get(name) for name in ("indices", "held_out")]
    if isinstance(texts[0], str):
        result = {**result, "draw_sha256": draw_digest(texts[0], texts[1])}
    for name in ("draws", "folds"):
        if isinstance(result.get(name), list):
            parts = [_with_digests(part) if isinstance(part, dict) else part for part in result[name]]
            result = {**result, name: parts}
    return result


def _from_4(fields: Json) -> Json:
    spec, extraction = fields.get("spec"), fields.get("extraction")
    if isinstance(spec, dict) and isinstance(dataset := spec.get("dataset"), dict):
        dataset = _with_subsets(dataset)
        if isinstance(dataset.get("sources"), list):
            dataset = {**dataset, "sources": [_with_subsets(source) for source in dataset["sources"]]}
        fields = {**fields, "spec": {**spec, "dataset": dataset}}
    if isinstance(read := fields.get("read"), dict) and isinstance(read.get("skipped"), list):
        fields = {**fields, "read": {**read, "skipped": [_with_subset(image) for image in read["skipped"]]}}
    return {**fields, "extraction": _with_subsets(extraction)} if extraction is not None else fields


def _with_subset(image: Any) -> Any:
    if not isinstance(image, dict):
        return image
    return {("subset" if name == "part" else name): item for name, item in image.items()}


def _with_subsets(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {("subsets" if name == "parts" else name): item for name, item in value.items()}


def draw_digest(train: str, held_out: str | None) -> str:
    """Return the digest of a few-shot draw, given its positions in the training split as text with spaces."""
    return digest([train, held_out or ""])


MIGRATIONS: dict[int, Callable[[Json], Json]] = {1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4}
