"""Names and terms in tables: short labels for local files, and the legend of every mark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.errors import printable
from probe.specs import KNN, LOGISTIC, NO_SOLVER, SUPPLIED, ZERO_SHOT

if TYPE_CHECKING:
    from probe.records.schema import RunRecord

NO_RECORD = "—"  # in a table, a run without a record, or a value that its run does not have

# The values of a filter -> the same in plain words.
MODE_LABELS = {
    "eager": "eager (plain PyTorch)",
    "jit": "jit (TorchScript)",
    "compiled": "compiled (torch.compile)",
    SUPPLIED: "supplied (features from a file)",
}
PRECISION_LABELS = {"fp32": "fp32 (32-bit floats)", "fp16": "fp16 (16-bit floats)", "bf16": "bf16 (bfloat16)"}
SOLVER_LABELS = {
    "fast": "fast (to the optimum)",
    "sklearn": "sklearn (its L-BFGS)",
    NO_SOLVER: "none (nothing is fitted)",
}
POINT_LABELS = {"projected": "projected features", "pre_projection": "features before the projection"}


@dataclass(frozen=True)
class MethodNames:
    """Names of a method of `specs.METHODS`.

    Args:
        title: in a sentence about its scores.
        task: name of its task in a model card.
    """

    title: str
    task: str


METHOD_NAMES = {
    LOGISTIC: MethodNames("linear probes", "Linear probe of image features"),
    KNN: MethodNames("k-nearest neighbours", "Nearest neighbours of image features"),
    ZERO_SHOT: MethodNames("zero-shot classification", "Zero-shot classification"),
}

LEGEND = (
    (
        "90.00 ±1.50",
        "Score in percent, and half the width of its 95 % confidence interval: the uncertainty from the sampling of "
        "test images, or of few-shot protocols from the draws of training images. Early records have none.",
    ),
    ("bold", "Highest score of the dataset in this table."),
    (
        "bold and =",
        "Tied with the highest score: a paired test on the same images finds no better model (p < 0.05).",
    ),
    (
        "rank",
        "One more than the number of models whose mean is higher by more than chance (p < 0.05); = if it is shared.",
    ),
    (
        "mean of n",
        "Mean over the n datasets for which all models of the table have scores, on the same test images. Models whose "
        "runs all failed do not count.",
    ),
    ("*", "The final fit stopped before it converged; its record says how near it came."),
    ("~", "C was chosen among fits of which some did not converge."),
    ("+", "Some images were missing or could not be read; the record says how many, or which."),
    (
        "#",
        "Scored on other test images, by another metric or with other prompts than most of its column; not in the "
        "mean.",
    ),
    ("failed", "The run ended with an error; its record has the message."),
    (NO_RECORD, "No record of this run."),
    (
        "protocol",
        "The rules by which frozen features are scored, most often by a logistic regression. A table compares models "
        "under one protocol.",
    ),
    (
        "mode",
        "How the model runs: eager is plain PyTorch, jit is TorchScript, compiled is torch.compile. All three should "
        "give nearly the same features.",
    ),
    ("precision", "Number format of the model's weights; features are always stored as 32-bit floats."),
    (
        "solver",
        "Algorithm that fits the regression: sklearn is scikit-learn's L-BFGS, fast minimizes the same loss to its "
        "optimum.",
    ),
    (
        "features",
        "Where features are taken: projected is what encode_image returns, pre_projection is the input of its last "
        "linear layer.",
    ),
)


# Only in tables that have records of the protocol or mode.
OWN_LEGEND = (
    (
        "zero-shot",
        "Images are compared with texts of the class names; no training image is used. Records have the prompts.",
    ),
    (
        "knn",
        "The most similar training and validation images vote, weighted by their similarity; k is chosen on the "
        "validation split.",
    ),
    ("knn-5", "The 5 most similar training and validation images have one vote each."),
    (
        SUPPLIED,
        "The features came from a file that another program made. The suite ran no encoder, and the user stated the "
        "names of models and datasets.",
    ),
)


def legend(protocols: Iterable[str], modes: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """Return the terms of tables of some protocols and modes, and their explanations."""
    names = {*protocols, *modes}
    return (*LEGEND, *(entry for entry in OWN_LEGEND if entry[0] in names))


def solver_text(solver: str) -> str:
    """Return the name of a solver to read; `—` for runs that fit nothing."""
    return NO_RECORD if solver_value(solver) is None else solver


def solver_value(solver: str) -> str | None:
    """Return the name of a solver for programs; None for runs that fit nothing."""
    return None if solver == NO_SOLVER else solver


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "model"), count(2, "model")
    ('1 model', '2 models')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def scope(records: Sequence[RunRecord]) -> str:
    """Return the numbers of runs that have a score, of their models and datasets, and of runs that failed."""
    done = [record for record in records if record.result is not None]
    models, datasets = {record.model for record in done}, {record.dataset for record in done}
    failed = f" ({count(len(records) - len(done), 'more run')} failed)" if len(done) < len(records) else ""
    return f"{count(len(done), 'run')} of {count(len(models), 'model')} on {count(len(datasets), 'dataset')}{failed}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a label for each name. The label of a path is as many of its last parts as distinguish it.

    >>> list(short_names(["cifar10", "folder:/data/moths"]).values())
    ['cifar10', 'moths']
    >>> list(short_names(["folder:/a/moths", "folder:/b/moths/", "hf:org/moths"]).values())
    ['a/moths', 'b/moths', 'hf:org/moths']
    """
    names, depth = list(dict.fromkeys(names)), 1
    labels: dict[str, str] = {}
    while pending := [name for name in names if name not in labels]:
        tried = {name: _last_parts(name, depth) for name in pending}
        taken = [*labels.values(), *tried.values()]
        for name, label in tried.items():
            if label == name or taken.count(label) == 1:
                labels[name] = label
        depth += 1
    return {name: printable(labels[name]) for name in names}


def _last_parts(name: str, depth: int) -> str:
    """Return the last parts of a path; any other name, or a path with fewer parts, is returned as it is."""
    found = re.fullmatch(r"(?:(?:folder|csv):|(?:\w+:)?(?=[/~.\\]|[A-Za-z]:\\))(.+)", name, re.DOTALL)
    parts = [part for part in re.split(r"[/\\]", found[1]) if part] if found else []
    return "/".join(parts[-depth:]) if depth <= len(parts) else name
