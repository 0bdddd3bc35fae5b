"""Find the state dict of a model in the content of a training checkpoint, without containers and prefixes.

Training scripts save the weights in a container, such as `state_dict`, `model_state_dict` or `ema`, together with other
values. Wrappers of the model add prefixes to the names of the weights, such as `module.`, `_orig_mod.` or `model.`.
Containers and prefixes can be nested, and can have any name: a CLIP model is wherever `logit_scale` and an image tower
share a prefix. A model of another library is where all names of its weights share a prefix. This module reads no files.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

SCALE = "logit_scale"  # a parameter of every CLIP model, in OpenAI's, open_clip's and Hugging Face's naming
IMAGE_TOWERS = ("visual.", "vision_model.")
DISTRIBUTED = "module."  # prefix that DistributedDataParallel adds to every name
# Names that torch's wrappers insert. They can also wrap single layers: `torch.compile`, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
WHOLE = "."  # key of a model with neither container nor prefix
MAX_KEY = 200  # characters of a key, and of the name of a tensor; longer ones are skipped
MAX_DEPTH = 50  # containers inside each other; deeper ones are skipped


@dataclass(frozen=True)
class Candidate:
    """A model in the content of a training checkpoint.

    Args:
        key: containers and prefix, joined with dots, such as `state_dict.student`; `WHOLE` if there are none.
            A number follows if several models have the same key, such as `a.b#2`.
        state_dict: its tensors, without the prefix.
        unused: names of tensors in the same container that are not part of a model, such as a buffer of the loss.
    """

    key: str
    state_dict: Mapping[str, Tensor]
    unused: tuple[str, ...] = ()


def find_clips(content: object) -> list[Candidate]:
    """Return all CLIP models in nested mappings, lists and tuples, outermost first."""
    models: dict[str, Candidate] = {}
    for place, tensors in _find_tables(content):
        for model in _split_by_model(place, tensors):
            key, number = model.key, 1
            while key in models:  # such as {"a.b": model, "a": {"b": model}}
                number += 1
                key = f"{model.key}#{number}"
            models[key] = replace(model, key=key)
    return list(models.values())


def find_state_dicts(content: object, expected: Collection[str]) -> list[Candidate]:
    """Return all models in nested mappings, lists and tuples that have tensors with all expected names.

    Args:
        content: content of a training checkpoint.
        expected: names of the tensors of a model, without a prefix; at least one.
    """
    first = next(iter(expected))
    models = []
    for place, tensors in _find_tables(content):
        for prefix in [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]:
            if all(prefix + name in tensors for name in expected):
                key = ".".join([*place, *prefix.split(".")[:-1]]) or WHOLE
                own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                models.append(Candidate(key, own))
    return models


def largest_table(content: object) -> dict[str, Tensor]:
    """Return the mapping with the most tensors in `content`, or an empty mapping if there are no tensors."""
    return max((tensors for _, tensors in _find_tables(content)), key=len, default={})


def without_shared_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that all names share, so that an error about a missing weight gives its usual name."""
    prefix = ""
    for part in next(iter(tensors), "").split(".")[:-1]:
        longer = f"{prefix}{part}."
        if f"{part}." in IMAGE_TOWERS or not all(name.startswith(longer) for name in tensors):
            break
        prefix = longer
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _find_tables(content: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield each mapping that contains tensors by name, with the keys on the path to the mapping."""
    seen: set[int] = set()  # an object can be in several places of a pickle, or inside itself
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    while queue:
        place, value = queue.popleft()
        if id(value) in seen or not isinstance(value, Mapping | list | tuple):
            continue
        seen.add(id(value))
        # `value.items` is not safe: the attributes of an OrderedDict come from the file, and one can be called `items`.
        items: Iterable[tuple[object, object]] = (
            type(value).items(value) if isinstance(value, Mapping) else enumerate(value)
        )
        tensors: dict[str, Tensor] = {}
        for key, part in items:
            if not _is_short(key):
                continue
            if isinstance(part, Tensor) and isinstance(key, str):
                tensors[key] = part
            elif isinstance(part, Mapping | list | tuple) and len(place) < MAX_DEPTH:
                queue.append(((*place, str(key)), part))
        if tensors:
            yield place, _without_wrappers(tensors)


def _is_short(key: object) -> bool:
    """Return True for text and integers of at most `MAX_KEY` characters. Other keys are too long for a message."""
    if isinstance(key, str):
        return len(key) <= MAX_KEY
    # Python cannot format integers of more than 4,300 digits.
    return isinstance(key, int) and key.bit_length() <= MAX_KEY


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    while all(name.startswith(DISTRIBUTED) for name in renamed):
        renamed = {name.removeprefix(DISTRIBUTED): tensor for name, tensor in renamed.items()}
    return renamed if len(renamed) == len(tensors) else tensors


def _split_by_model(place: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """Group the tensors of one mapping by the prefixes of the CLIP models among them."""
    prefixes = [name.removesuffix(SCALE) for name in tensors if f".{name}".endswith(f".{SCALE}")]
    members: dict[str, dict[str, Tensor]] = {
        prefix: {}
        for prefix in prefixes
        if any(name.startswith(tuple(prefix + tower for tower in IMAGE_TOWERS)) for name in tensors)
    }
    unused = []
    for name, tensor in tensors.items():
        # The longest prefix, because a model can contain another model, such as a student that contains its teacher.
        prefix = max((prefix for prefix in members if name.startswith(prefix)), key=len, default=None)
        if prefix is None:
            unused.append(name)
        else:
            members[prefix][name.removeprefix(prefix)] = tensor
    return [
        Candidate(".".join([*place, *prefix.split(".")[:-1]]) or WHOLE, members[prefix], tuple(unused))
        for prefix in members
    ]
