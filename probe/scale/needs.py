"""Memory and disk that a unit of a grid needs, from the sizes of its model and dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

from probe.errors import ProbeError
from probe.features.arrays import chunk_size
from probe.models.sizes import ModelSizes, find_sizes
from probe.probes.costs import memory_needed
from probe.probes.neighbours import BANK_BYTES, PRODUCT_BYTES
from probe.probes.shots import count_drawn
from probe.scale.units import Unit
from probe.specs import KNN, ZERO_SHOT, ModelSpec, RunSpec

logger = logging.getLogger(__name__)

PROCESS_BYTES = 1_000_000_000  # a process with its libraries; `results/speed/store.md` measured 993 MB with `tiny`
FLOAT = 4  # bytes of a float32
SCORE = 8  # bytes of a float64
NEIGHBOUR_ARRAYS = 4  # positions and similarities of the neighbours, their votes, and the cells of the votes
LOADED_COPIES = 2  # of the weights while a model is loaded: the tensors of the file, and the parameters of the model
CHUNKS_WAITING = 2  # chunks of uint8 pixels in memory: one is being read, one is being encoded


@dataclass(frozen=True)
class Memory:
    """Memory of a unit, in bytes, on the host and on the GPU; 0 if the sizes of the model are not known."""

    host: int
    gpu: int


@lru_cache(maxsize=256)
def known_sizes(model: ModelSpec) -> ModelSizes | None:
    """Return the sizes of a model; None if they are not known, such as for a module that runs only on a GPU.

    An error of one model does not end a plan or a grid. The runs of such a model are recorded as failed.
    """
    try:
        return find_sizes(model)
    except ProbeError as err:
        logger.warning("the sizes of %s are not known: %s", model.name, err)
        return None


def memory_of(unit: Unit) -> Memory:
    """Return the memory that a worker needs for a unit, including the process with its libraries."""
    spec = unit.specs[0]
    model, on_gpu = spec.model, spec.device.startswith("cuda")
    sizes = known_sizes(model)
    if sizes is None or sizes.profile is None:
        return Memory(0, 0)
    if unit.shard is not None:
        weights = (len(unit.specs) + LOADED_COPIES - 1) * FLOAT * sizes.profile.parameters
        height, width = sizes.shape
        pixels = CHUNKS_WAITING * chunk_size(spec.batch_size) * 3 * height * width
        batch = spec.batch_size * sizes.activation_bytes
        return Memory(
            PROCESS_BYTES + weights + pixels + (0 if on_gpu else batch),
            len(unit.specs) * FLOAT * sizes.profile.parameters + batch if on_gpu else 0,
        )
    n, d, k = fit_shape(spec)
    # Features are memory-mapped, so they need no memory of their own on the host.
    scores = 2 * SCORE * num_scored(spec) * k  # and a copy, because some metrics sort them
    if spec.protocol.method == ZERO_SHOT:
        weights = FLOAT * sizes.profile.parameters
        return Memory(PROCESS_BYTES + LOADED_COPIES * weights + scores, weights if on_gpu else 0)
    if spec.protocol.method == KNN:
        found = NEIGHBOUR_ARRAYS * SCORE * num_scored(spec) * max(spec.protocol.neighbours)
        # The blocks are converted to float64 on the host, and multiplied in float32 on the device.
        queries = num_scored(spec) * d
        blocks = BANK_BYTES + PRODUCT_BYTES + FLOAT * queries
        host = PROCESS_BYTES + scores + found + 2 * BANK_BYTES + FLOAT * queries
        return Memory(host, blocks + found) if on_gpu else Memory(host + blocks, 0)
    needed = memory_needed(spec.solver, n=n, d=d, k=k, num_parts=2) if n and k else 0
    if on_gpu:  # the features are copied to the GPU
        return Memory(PROCESS_BYTES, FLOAT * n * d + needed)
    return Memory(PROCESS_BYTES + needed, 0)


def feature_bytes(spec: RunSpec) -> int | None:
    """Return the size of the features that a run needs, in bytes; None if sizes are not known."""
    images, sizes = spec.num_images, known_sizes(spec.model)
    if sizes is None or not images:
        return None
    return images * (FLOAT * (sizes.embed_dim + sizes.pre_projection_dim) + 8)


def fit_shape(spec: RunSpec) -> tuple[int, int, int]:
    """Return the numbers of images, features and classes of a run's final fit; 0 for a number that is not known."""
    dataset, widths, k = spec.dataset, known_sizes(spec.model), spec.dataset.num_classes or 0
    d = 0
    if widths is not None:
        d = widths.embed_dim if spec.protocol.feature_point == "projected" else widths.pre_projection_dim
    if spec.protocol.shots:
        return count_drawn(spec.protocol, k), d, k
    if dataset.fold_sizes:
        return dataset.fold_sizes[0][0], d, k
    if dataset.split_sizes and {"train", "val"} <= dict(dataset.split_sizes).keys():
        return sum(size for name, size in dataset.split_sizes if name != "test"), d, k
    sizes = {subset.name: subset.size or 0 for subset in dataset.subsets}
    n = sum(size for name, size in sizes.items() if name != "test")
    return n if "test" in sizes else round(n * (1 - dataset.test_fraction)), d, k


def num_scored(spec: RunSpec) -> int:
    """Return the number of images of the largest split that a run scores at a time; 0 if it is not known."""
    dataset, sizes = spec.dataset, {subset.name: subset.size or 0 for subset in spec.dataset.subsets}
    largest = next((size for name, size in dataset.split_sizes if name == "test"), 0)
    if dataset.fold_sizes:
        largest = max(size for _, size in dataset.fold_sizes)
    largest = largest or sizes.get("test") or round(sizes.get("all", 0) * dataset.test_fraction)
    if len(spec.protocol.neighbours) > 1:  # k is chosen on the validation split
        largest = max(largest, sizes.get("val") or round(fit_shape(spec)[0] * dataset.val_fraction))
    return largest
