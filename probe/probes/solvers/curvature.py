"""Approximate Hessians of the objective, to precondition with: of all rows at weights of zero, later of some of them.

The Hessian of k classes and d features has (k (d + 1))^2 numbers, far too many as a rule. What is kept of it are blocks
of classes that are often confused with one another, as large as their cost allows: of ten classes all, of a thousand a
few each.

Of an image with probabilities p and features x it is the sum over pairs of classes of p_a p_b (e_a - e_b)(e_a - e_b)^T
times x x^T. Most pairs of most images count next to nothing, so that few rows say nearly all: each pair draws its own,
likelier those that count more, and what is drawn stands for what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from scipy.linalg.lapack import spotrf
from torch import Tensor

from probe.errors import FeaturesError
from probe.probes.solvers.objective import SEED, Objective

SAMPLE = 4096  # rows for each pair of classes, on average
MAX_GROUP = 16  # classes of a block
MAX_BLOCK = 8192  # unknowns of a block
MAX_NUMBERS = 1 << 28  # of all blocks, which take 1 GB; of very many classes each is alone, and they take what they do
MAX_PASSES = 250  # what making the blocks may cost, in evaluations of the objective
NARROW = 50  # logits that an evaluation could have more without taking twice the time: its products are narrow
RIDGE = 1e-7  # of the mean diagonal: float32 factors need it


class Preconditioner(Protocol):
    """The inverse of an approximate Hessian."""

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse times a gradient, both float64 (d + 1, width)."""


@dataclass(frozen=True)
class Diagonal:
    """The inverse of a diagonal matrix, the same for all classes: float64 (d + 1,)."""

    diagonal: Tensor

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse times a gradient."""
        return gradient / self.diagonal[:, None]


@dataclass(frozen=True)
class HessianBlock:
    """Some classes and their part of a Hessian, or of its Cholesky factor.

    Args:
        classes: int64 (g,).
        mix: float32 (g, r) with orthonormal columns; unknowns of the classes are its product with those of the matrix.
        matrix: float32 (r (d + 1), r (d + 1)), all features of the first of the r, then all of the second, ...
    """

    classes: Tensor
    mix: Tensor
    matrix: Tensor


@dataclass(frozen=True)
class Blocks:
    """The inverse of a matrix of blocks, given by their Cholesky factors."""

    factors: Sequence[HessianBlock]

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse times a gradient."""
        solution = torch.empty_like(gradient)
        for block in self.factors:
            mixed = (gradient[:, block.classes].float() @ block.mix).T  # (r, d + 1)
            # One triangle at a time: `cholesky_solve` takes ten times as long for a single column.
            half = torch.linalg.solve_triangular(block.matrix, mixed.reshape(-1, 1), upper=False)
            solved = torch.linalg.solve_triangular(block.matrix.mT, half, upper=True)
            solution[:, block.classes] = (block.mix @ solved.reshape(mixed.shape)).T.double()
        return solution


def at_zero(objective: Objective, probe: int) -> Preconditioner:
    """From the Hessian at weights of zero, where all classes are equally likely and all rows count the same."""
    rows, width = objective.rows, objective.loss.width
    likely = 1 / max(width, 2)
    weight = likely if width > 1 else likely * (1 - likely)
    diagonal = weight * rows.variance + objective.penalties[probe] * rows.basis.penalty
    if objective.penalties[probe] == 0:  # without a penalty, features that do not vary have no curvature
        diagonal = diagonal.clamp(min=torch.finfo(rows.dtype).eps * float(diagonal.max()))
    return Diagonal(diagonal)


def at(objective: Objective, probe: int, unknowns: Tensor) -> Preconditioner:
    """From an estimate of the Hessian at some unknowns, float64 (d + 1, width)."""
    penalty = (objective.penalties[probe] * objective.rows.basis.penalty).float()
    blocks = estimate_hessian(objective, probe, unknowns)
    if not objective.rows.has_intercept:
        blocks = [_without_intercept(block, len(penalty)) for block in blocks]
    return Blocks([replace(block, matrix=_factor(block.matrix, penalty)) for block in blocks])


def _without_intercept(block: HessianBlock, size: int) -> HessianBlock:
    """Return a block in which the intercepts are decoupled from the weights, so that they stay at zero."""
    matrix = block.matrix.clone()
    last = slice(size - 1, None, size)
    curvature = matrix.diagonal()[last].clone()
    matrix[last] = 0
    matrix[:, last] = 0
    matrix.diagonal()[last] = curvature
    return replace(block, matrix=matrix)


def passes(objective: Objective) -> int:
    """What `at` costs, in evaluations of the objective, by counting multiplications."""
    return 1 + round(_passes(objective, group_size(objective)))


def _passes(objective: Objective, group: int) -> float:
    size, n, width = objective.rows.num_features + 1, len(objective.rows), objective.loss.width
    products = min(SAMPLE, n) * group * size / (4 * n) + group**2 * size**2 / (12 * n)
    return products * width / (width + NARROW)


def group_size(objective: Objective) -> int:
    """Classes of a block."""
    size, width = objective.rows.num_features + 1, objective.loss.width
    fits = [
        g
        for g in range(1, min(width, MAX_GROUP) + 1)
        if g * size <= MAX_BLOCK and width * g * size**2 <= MAX_NUMBERS and _passes(objective, g) <= MAX_PASSES
    ]
    return max(fits, default=1)


def max_numbers(num_features: int, width: int) -> int:
    """Floats that all blocks of a probe can have."""
    size = num_features + 1
    return width * size * max(size, min(width * size, MAX_BLOCK, MAX_NUMBERS // (width * size)))


def estimate_hessian(objective: Objective, probe: int, unknowns: Tensor) -> list[HessianBlock]:
    """Blocks of the Hessian of the loss, without the penalty, from some rows, the same each time.

    Args:
        objective: of the probes.
        probe: which of them.
        unknowns: float64 (d + 1, width).
    """
    rows, loss = objective.rows, objective.loss
    positions, features = rows.candidates
    features = features.float()  # (m, d)
    logits = features @ unknowns[:-1].float() + unknowns[-1].float()
    probabilities = loss.probabilities(logits)  # (m, width)
    counts = loss.weights(probe, torch.from_numpy(positions).to(rows.device))
    share = torch.ones(len(features), device=rows.device) if counts is None else counts.float()
    share /= max(float(share.sum()), 1.0)
    return [
        _block(features, probabilities, share, classes) for classes in _groups(probabilities, group_size(objective))
    ]


def _block(features: Tensor, probabilities: Tensor, share: Tensor, classes: Tensor) -> HessianBlock:
    """The Hessian of some classes, from features float32 (m, d) that each count for a `share` (m,)."""
    own = probabilities[:, classes]
    num = len(classes)
    mix = torch.eye(num, device=features.device)
    if num == probabilities.shape[1] > 1:  # what moves all classes alike changes no probability
        mix = torch.linalg.eigh(mix - 1 / num).eigenvectors[:, 1:]
        weights, sides = [], []
    else:  # each class also against all that are not in the block
        weights, sides = [own[:, a] * (1 - own.sum(dim=1)).clamp(min=0) for a in range(num)], [*mix]
    for a, b in combinations(range(num), 2):
        weights.append(own[:, a] * own[:, b])
        sides.append(mix[a] - mix[b])
    drawn = _draw(torch.stack(weights) * share)
    products = torch.stack([_product(features, weight) for weight in drawn])
    side = torch.stack(sides)  # (pairs, r)
    outer = (side[:, :, None] * side[:, None, :]).flatten(1)  # (pairs, r * r)
    size, r = features.shape[1] + 1, mix.shape[1]
    matrix = (outer.T @ products.flatten(1)).reshape(r, r, size, size)
    return HessianBlock(classes, mix, matrix.transpose(1, 2).reshape(r * size, r * size))


def _draw(weights: Tensor) -> Tensor:
    """Of what rows count for each pair of classes, (pairs, m), as much as there is time for; the rest is zero.

    What counts less than a threshold stays with a probability, and then counts as much as that.
    """
    if weights.shape[1] <= SAMPLE:
        return weights
    threshold = float(weights.sum(dtype=torch.float64)) / (SAMPLE * len(weights))
    generator = torch.Generator().manual_seed(SEED)
    chance = torch.rand(weights.shape, generator=generator).to(weights.device)
    return torch.where(chance * threshold < weights, weights.clamp(min=threshold), torch.zeros_like(weights))


def _product(features: Tensor, weight: Tensor) -> Tensor:
    """The sum of x x^T times the weight of each row, where the last feature, that of the intercept, is 1."""
    (used,) = weight.nonzero(as_tuple=True)
    root = weight[used].sqrt()[:, None]
    weighted = torch.cat([features[used] * root, root], dim=1)
    return weighted.T @ weighted


def _factor(hessian: Tensor, penalty: Tensor) -> Tensor:
    """The Cholesky factor of a Hessian with the penalty (d + 1,), and with as much of a ridge as it takes."""
    diagonal = penalty.repeat(len(hessian) // len(penalty))
    # Where all probabilities are 0 or 1 in float32 there is no curvature to take a share of.
    ridge = RIDGE * float(hessian.diagonal().mean()) or 1.0
    while True:
        matrix = hessian.clone()
        matrix.diagonal().add_(diagonal + ridge)
        if matrix.device.type == "cpu":  # takes half the time of torch's; SciPy's order of axes is the other one
            factor, failed = spotrf(matrix.numpy().T, lower=False, overwrite_a=True)
            factor = torch.from_numpy(factor.T)
        else:
            factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
        if not torch.isfinite(hessian).all():
            raise FeaturesError("the curvature of the loss is not finite; divide the features by their size")
        ridge *= 30


def _groups(probabilities: Tensor, size: int) -> list[Tensor]:
    """Classes (g,) in groups of `size`, each of classes that are likely at once."""
    if size == 1:
        return list(torch.arange(probabilities.shape[1], device=probabilities.device)[:, None])
    together = (probabilities.T @ probabilities).fill_diagonal_(-1.0).cpu().numpy()
    left = list(range(len(together)))
    groups = []
    while left:
        group = [left[int(np.argmax(together[np.ix_(left, left)].max(axis=1)))]]
        left.remove(group[0])
        while left and len(group) < size:
            nearest = left[int(np.argmax(together[np.ix_(group, left)].sum(axis=0)))]
            group.append(nearest)
            left.remove(nearest)
        groups.append(torch.tensor(sorted(group), device=probabilities.device))
    return groups
