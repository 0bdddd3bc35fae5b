"""Few-shot probes next to zero-shot: mean scores against the number of training images of each class.

Source: Radford et al. 2021, figure 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from probe.leaderboard.methods import ZERO_SHOT_NAME
from probe.leaderboard.sections import natural, sort_datasets
from probe.records.record import prompts_of, test_images, weights_of
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import Protocol, digest, identity_fields

SHOTS = (1, 2, 4, 8, 16)  # images of each class, as in the figure


@dataclass(frozen=True)
class FewShotCurve:
    """Mean scores of a model over the datasets of its chart, in [0, 1].

    Args:
        model: its name.
        scores: mean score for each number of `SHOTS`.
        zero_shot: mean score of `zero-shot`; None if a dataset has no zero-shot record.
    """

    model: str
    scores: tuple[float, ...]
    zero_shot: float | None


@dataclass(frozen=True)
class FewShotChart:
    """Curves of models that can be compared.

    Args:
        protocol: name of the few-shot protocols without the number of shots.
        feature_point: feature point of the probes.
        solver: solver of the probes.
        mode: `eager`, `jit` or `compiled`.
        precision: precision of the weights.
        rules: start of the digest of the other rules of the protocols, which tells protocols of one name apart.
        datasets: datasets of the means: those for which every model has a score for each number of shots, all on the
            same test images. Each model with zero-shot records also has a zero-shot score, with the same prompts as the
            other models and the same weights as its probes.
        curves: sorted by model.
    """

    protocol: str
    feature_point: str
    solver: str
    mode: str
    precision: str
    rules: str
    datasets: tuple[str, ...]
    curves: tuple[FewShotCurve, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Protocol, feature point, solver, mode, precision and rules."""
        return self.protocol, self.feature_point, self.solver, self.mode, self.precision, self.rules

    @property
    def title(self) -> str:
        """Everything that the chart is limited to."""
        return f"{self.protocol}, {self.feature_point} features, {self.solver}, {self.mode}, {self.precision}"


def few_shot_charts(records: Iterable[RunRecord]) -> list[FewShotChart]:
    """Return the charts of records of different runs, sorted; none without a dataset that has every number of shots."""
    done = [record for record in records if isinstance(record, DoneRecord)]
    groups: dict[tuple[str, ...], list[DoneRecord]] = {}
    for record in done:
        if record.spec.protocol.shots in SHOTS and record.spec.protocol.per_class:
            groups.setdefault(chart_key(record), []).append(record)
    charts = []
    for key in sorted(groups, key=lambda key: [natural(part) for part in key]):
        texts = [r for r in done if r.protocol == ZERO_SHOT_NAME and (r.mode, r.precision) == key[3:5]]
        chart = _chart(key, groups[key], {(record.model, record.dataset): record for record in texts})
        if chart is not None:
            charts.append(chart)
    return charts


def chart_key(record: RunRecord) -> tuple[str, ...]:
    """Return what the few-shot records of a chart have in common, see `FewShotChart.key`."""
    protocol = record.spec.protocol
    name = re.sub(rf"-?\b{protocol.shots}\b", "", protocol.name, count=1)
    return name, protocol.feature_point, record.solver, record.mode, record.precision, _digest_rules(protocol)


@cache
def _digest_rules(protocol: Protocol) -> str:
    rules = {key: value for key, value in identity_fields(protocol).items() if key not in ("name", "shots", "held_out")}
    return digest(rules)[:8]


def _chart(
    key: tuple[str, ...], records: Sequence[DoneRecord], texts: Mapping[tuple[str, str], DoneRecord]
) -> FewShotChart | None:
    """Return a chart; None if no dataset has every number of shots for every model. `texts` are zero-shot records."""
    by_run: dict[tuple[str, str], dict[int, DoneRecord]] = {}
    for record in records:
        by_run.setdefault((record.model, record.dataset), {})[record.spec.protocol.shots] = record
    probes = {run: [own[shots] for shots in SHOTS] for run, own in by_run.items() if len(own) == len(SHOTS)}
    texts = {run: texts[run] for run, own in probes.items() if run in texts and len(weights_of([*own, texts[run]])) < 2}
    models = sorted({model for model, _ in probes}, key=natural)
    datasets = [
        name
        for name in sort_datasets({name for _, name in probes})
        if all((model, name) in probes for model in models)
        and _have_same_images([record for model in models for record in probes[model, name]])
    ]
    # A model without any zero-shot score, such as one without a text tower, does not take the level from the others.
    with_text = [model for model in models if any((model, name) in texts for name in datasets)]
    common = [
        name
        for name in datasets
        if with_text
        and all((model, name) in texts for model in with_text)
        and len({prompts_of(texts[model, name]) for model in with_text}) == 1
        and _have_same_images([*probes[models[0], name], *(texts[model, name] for model in with_text)])
    ]
    datasets = common or datasets
    if not datasets:
        return None
    curves = []
    for model in models:
        scores = [_mean([probes[model, name][i] for name in datasets]) for i in range(len(SHOTS))]
        level = _mean([texts[model, name] for name in common]) if common and model in with_text else None
        curves.append(FewShotCurve(model, tuple(scores), level))
    name, feature_point, solver, mode, precision, rules = key
    return FewShotChart(
        name, feature_point, solver, mode, precision, rules, datasets=tuple(datasets), curves=tuple(curves)
    )


def _have_same_images(records: Sequence[DoneRecord]) -> bool:
    return len({(test_images(record), record.spec.dataset.metric) for record in records}) == 1


def _mean(records: Sequence[DoneRecord]) -> float:
    return sum(record.result.score for record in records) / len(records)
