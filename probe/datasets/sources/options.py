"""Options after the `?` in the name of a dataset, such as `hf:ORG/NAME?config=plain`."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from probe.errors import DatasetError
from probe.stats.metrics import get_metric


def read_options(form: str, rest: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Divide `NAME?option=value&option=value`, written as in a URL, into the name and its options.

    Raises:
        DatasetError: an option is unknown, empty, or given twice.
        UnknownNameError: the option `metric` names no metric.
    """
    name, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in known:
            raise DatasetError(f"{form}:{rest} has the option {option!r}; the options are {', '.join(known)}")
        if not value or option in options:
            what = "twice" if option in options else "no value"
            raise DatasetError(f"{form}:{rest} gives {option} {what}; write {option}=VALUE once")
        options[option] = value
    get_metric(options.get("metric", "accuracy"))  # raises an error that lists the known metrics
    return name, options
