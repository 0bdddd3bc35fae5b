"""Text features of the classes of a dataset, cached as image features are."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from probe import paths
from probe.datasets.prompts import Prompts, check_duplicates, complete, find_duplicates, get_prompts, list_classes
from probe.environment import library_versions, package_version
from probe.errors import FeaturesError, PromptsError, TextError, shorten
from probe.features.extraction import Session
from probe.features.text_store import ClassTexts, TextSpec, find_texts, store_texts
from probe.models.devices import hardware
from probe.models.memory import find_batch_size
from probe.models.text import TextEncoder
from probe.models.vocabulary import identify_vocabulary
from probe.progress import Progress
from probe.records.schema import PromptsRecord
from probe.specs import RunSpec, digest

logger = logging.getLogger(__name__)

TEXT_VERSION = 1  # raised with every change of the suite that changes the bytes of text features
MAX_PROMPT = 60  # characters of a prompt in a message
LIBRARIES = ("torch", "ftfy", "regex")  # libraries that can change text features; models of open_clip have more


@dataclass(frozen=True)
class Classifier:
    """Text features of the classes of a dataset under a model.

    Args:
        weights: float32 (k, embed_dim), rows of length 1. The row of a class is the mean of the normalised features of
            its prompts, normalised again.
        logit_scale: factor of the cosine similarities in the logits of the model.
        logit_bias: addend of the logits; 0 for models without one.
        prompts: the prompts, as a record describes them.
        seconds: wall time of loading the text tower and encoding the prompts, or of reading the cache.
    """

    weights: np.ndarray = field(repr=False)
    logit_scale: float
    logit_bias: float
    prompts: PromptsRecord
    seconds: float


def find_classifier(spec: RunSpec, session: Session) -> Classifier:
    """Return the text features of the classes of a zero-shot run: from the session, from the cache, or encoded now.

    Raises:
        PromptsError: a class has no name, or two classes have the same prompts and the settings do not permit it.
        TextError: a prompt is too long for the model; the message names the class.
        CheckpointError: the model has no text tower or no vocabulary.
        Exception: the weights, the vocabulary, the device or the cache folder cannot be used.
    """
    if spec not in session.classifiers:
        session.classifiers[spec] = _find_classifier(spec, session)
    return session.classifiers[spec]


def _find_classifier(spec: RunSpec, session: Session) -> Classifier:
    settings, root = session.settings, paths.cache_dir(session.settings.cache_dir)
    prompts = _complete_prompts(spec, session)
    started = time.perf_counter()
    wanted = _specify(spec, session, prompts)
    texts = find_texts(root, wanted)
    if texts is None:
        texts = encode_classes(session.load_text_encoder(spec), prompts, where=spec.dataset.name)
        store_texts(root, wanted, texts)
    seconds = time.perf_counter() - started
    if not settings.allow_duplicate_names:
        _check_tokens(texts, prompts, spec)
    names = {_name(prompts, label) for group in texts.same_tokens for label in group}
    record = PromptsRecord(
        templates=prompts.templates,
        templates_from=prompts.templates_from,
        text_version=TEXT_VERSION,
        class_names_from=prompts.class_names_from,
        class_names_sha256=digest(prompts.class_names),
        duplicates=tuple(sorted(names | set(find_duplicates(prompts)))),
        logit_scale=texts.logit_scale,
    )
    return Classifier(texts.weights, texts.logit_scale, texts.logit_bias, record, seconds)


def encode_classes(encoder: TextEncoder, prompts: Prompts, *, where: str) -> ClassTexts:
    """Encode the prompts of all classes.

    The features of the prompts of a class are normalised, averaged and normalised again.

    Args:
        encoder: a text tower.
        prompts: the prompts.
        where: name of the dataset, for messages.

    Raises:
        TextError: a prompt is too long; the message quotes it and names the class.
        FeaturesError: a feature is not finite.

    Source: openai/CLIP, notebook 'Prompt Engineering for ImageNet'.
    """
    ids = [_tokenize_class(encoder, prompts, label, where=where) for label in range(len(prompts.class_names))]
    # Equal prompts of classes are encoded once, because the batch can change the last bits of a feature.
    different, places = torch.unique(torch.cat(ids), dim=0, return_inverse=True)
    features = _encode(encoder, different, where=where)[places.numpy()]  # (k * templates, embed_dim)
    means = _normalize(features).reshape(len(ids), -1, features.shape[1]).mean(axis=1)
    weights = _normalize(means)
    if not np.isfinite(weights).all():
        label = int(np.argmin(np.isfinite(weights).all(axis=1)))
        raise FeaturesError(
            f"{where}: the text features of class {label}, {prompts.class_names[label]!r}, contain NaN or infinity, "
            "or are all 0; use --precision fp32 or another model"
        )
    labels: dict[bytes, list[int]] = {}
    for label, rows in enumerate(ids):
        labels.setdefault(rows.numpy().tobytes(), []).append(label)
    same = tuple(tuple(group) for group in labels.values() if len(group) > 1)
    return ClassTexts(weights, encoder.logit_scale, encoder.logit_bias, same)


def _complete_prompts(spec: RunSpec, session: Session) -> Prompts:
    where = spec.dataset.name
    dataset = session.open_dataset(spec.dataset)
    class_names = dataset.class_names
    num_classes = spec.dataset.num_classes or len(class_names)
    prompts = complete(get_prompts(spec.dataset), class_names, num_classes=num_classes, where=where)
    if not session.settings.allow_duplicate_names:
        check_duplicates(prompts, where=where)
    return prompts


def _specify(spec: RunSpec, session: Session, prompts: Prompts) -> TextSpec:
    """Return the specification of the cache entry of a run. The text tower is not loaded."""
    mode = "jit" if spec.jit else "eager"  # compiled mode compiles only the image tower
    key = {
        "weights": session.find_encoder(spec).weights,
        "vocabulary": identify_vocabulary(spec.model, offline=session.settings.offline),
        "prompts": prompts.sha256,
        "mode": mode,
        "precision": spec.precision,
        "device": spec.device.partition(":")[0],
        "hardware": hardware(spec.device),
        "batch_size": _batch_size(spec.device),
        "text_version": TEXT_VERSION,
        **{name: package_version(name) for name in LIBRARIES},
        **library_versions(spec.model.form),
    }
    return TextSpec(spec.dataset.name, spec.model.name, mode, spec.precision, key)


def _tokenize_class(encoder: TextEncoder, prompts: Prompts, label: int, *, where: str) -> torch.Tensor:
    """Return the token ids of the prompts of a class, (templates, context_length)."""
    name = prompts.class_names[label]
    texts = [template.replace("{}", name) for template in prompts.templates]
    try:
        return encoder.tokenize(texts)
    except TextError as err:
        too_long = next(text for text in texts if not _fits(encoder, text))
        raise TextError(
            f"{where}: the prompt {shorten(repr(too_long), MAX_PROMPT)} of class {label} is longer than the "
            f"{encoder.context_length} tokens that {encoder.name} can read; give a shorter name in class_names, or "
            "shorter templates"
        ) from err


def _fits(encoder: TextEncoder, text: str) -> bool:
    try:
        encoder.tokenize([text])
    except TextError:
        return False
    return True


def _encode(encoder: TextEncoder, ids: torch.Tensor, *, where: str) -> np.ndarray:
    """Encode token ids in batches, shortest texts first, because a batch takes as long as its longest text.

    Returns:
        float32 (n, embed_dim), in the order of `ids`.
    """
    order = (ids != 0).sum(dim=1).argsort(stable=True)
    features = np.empty((len(ids), encoder.embed_dim), dtype=np.float32)
    batch_size, started = _batch_size(str(encoder.execution.device)), time.perf_counter()
    progress = Progress(unit="text")
    try:
        progress.name(f"{where} / {encoder.name}, texts")
        progress.expect(len(ids))
        for start in range(0, len(ids), batch_size):
            batch = order[start : start + batch_size]
            features[batch.numpy()] = encoder.encode(ids[batch]).numpy()
            progress.advance(len(batch))
    finally:
        progress.close()
    seconds = time.perf_counter() - started
    logger.info("%s / %s: encoded %d texts in %.1f s", where, encoder.name, len(ids), seconds)
    return features


def _batch_size(device: str) -> int:
    return find_batch_size(device, None)


def _normalize(rows: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # `encode_classes` finds values that are not finite
        normalized: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalized


def _check_tokens(texts: ClassTexts, prompts: Prompts, spec: RunSpec) -> None:
    """Check that no two classes have the same prompts after tokenization, which can ignore punctuation.

    Raises:
        PromptsError: two classes have the same prompts.
    """
    for labels in texts.same_tokens:
        raise PromptsError(
            f"{spec.dataset.name}: the prompts of the classes {list_classes(prompts, labels)} have the same tokens for "
            f"{spec.model.name}; give different names in class_names, or permit equal names with "
            "--allow-duplicate-names"
        )


def _name(prompts: Prompts, label: int) -> str:
    """Return the name of a class as `find_duplicates` writes it."""
    return " ".join(prompts.class_names[label].lower().split())
