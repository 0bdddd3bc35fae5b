"""Describe a protocol for a reader: what is fitted or compared, what is chosen, and where the rules come from."""

from __future__ import annotations

from probe.errors import listed
from probe.probes.protocols import get_protocol
from probe.specs import KNN, LOGISTIC, ZERO_SHOT, Protocol


def describe_protocol(name: str) -> dict[str, str]:
    """Return a description of each property of a protocol. Properties that do not apply are left out.

    Raises:
        UnknownNameError: there is no protocol of this name.
        ProtocolError: the TOML file is invalid.
    """
    protocol = get_protocol(name)
    properties = {
        "name": protocol.name,
        "title": protocol.title,
        "feature point": describe_features(protocol),
        **_RULES[protocol.method](protocol),
        "source": protocol.source,
    }
    return {key: value for key, value in properties.items() if value}


def _describe_fit(protocol: Protocol) -> dict[str, str]:
    return {
        "C": describe_grid(protocol),
        "C chosen on": _chosen_on(protocol),
        "images per class" if protocol.per_class else "images": images_a_class(protocol) if protocol.shots else "",
        "seeds": listed(range(protocol.num_seeds), most=16) if protocol.shots else "",
        "final fit on": _fitted_on(protocol),
        "solver": f"at most {protocol.max_iter} iterations, tol {protocol.tol:g}",
        "starts from": "the weights of the nearest fitted C" if protocol.warm_start else "",
    }


def _describe_neighbours(protocol: Protocol) -> dict[str, str]:
    temperature = protocol.temperature
    return {
        "k": listed(protocol.neighbours, most=16),
        "k chosen on": "the validation split" if len(protocol.neighbours) > 1 else "",
        "weight of a vote": f"exp(cosine similarity / {temperature:g})" if temperature else "1",
        "neighbours from": "train and validation images" if protocol.refit else "train images only",
    }


def _describe_zero_shot(_: Protocol) -> dict[str, str]:
    return {
        "logits": "cosine similarity of image and class, times the model's logit scale, plus its logit bias if any",
        "class": "mean of the normalised features of its prompts, normalised again",
        "prompts": "class names and templates of the dataset, or of --prompts; `probe datasets NAME` shows them",
    }


_RULES = {LOGISTIC: _describe_fit, KNN: _describe_neighbours, ZERO_SHOT: _describe_zero_shot}


def describe_features(protocol: Protocol) -> str:
    """Describe the features that a protocol compares or fits on.

    >>> describe_features(get_protocol("open-clip"))
    'projected, L2-normalised, standardised'
    """
    steps = (("L2-normalised", protocol.normalize), ("standardised", protocol.standardize))
    return ", ".join([protocol.feature_point, *(step for step, is_taken in steps if is_taken)])


def describe_grid(protocol: Protocol) -> str:
    """Describe the values of C and the order of the search.

    >>> describe_grid(get_protocol("clip-paper"))
    '97 values from 1e-06 to 1e+06, every 16th first, then around the best'
    """
    grid = protocol.grid
    scale = ", divided by the number of training images" if protocol.mean_loss else ""
    if len(grid) == 1:
        return f"{grid[0]:g}{scale}"
    step = protocol.coarse_step
    order = "all tried" if step == 1 else f"every {step}{'nd' if step == 2 else 'th'} first, then around the best"
    if protocol.bisections:
        order += f", then {protocol.bisections} bisections around the best"
    return f"{len(grid)} values from {grid[0]:g} to {grid[-1]:g}{scale}, {order}"


def images_a_class(protocol: Protocol) -> str:
    """Return the number of images of each class that are drawn from train: for the fit + for the choice of C.

    >>> images_a_class(get_protocol("few-shot-16-held-out"))
    '16 + 4'
    >>> images_a_class(get_protocol("vtab-1k"))
    '800 + 200 of all classes'
    """
    if protocol.method == ZERO_SHOT:
        return "none"
    if not protocol.shots:
        return "all"
    num = f"{protocol.shots} + {protocol.held_out}" if protocol.held_out else f"{protocol.shots}"
    return num if protocol.per_class else f"{num} of all classes"


def _fitted_on(protocol: Protocol) -> str:
    if protocol.shots:
        return "all drawn images" if protocol.refit else "the drawn images"
    return "train and validation images" if protocol.refit else "train images only"


def _chosen_on(protocol: Protocol) -> str:
    if len(protocol.grid) == 1:
        return ""
    if protocol.held_out:
        owner = "each class" if protocol.per_class else "all classes"
        return f"{protocol.held_out} more {'image' if protocol.held_out == 1 else 'images'} of {owner} from train"
    return "the validation split"
