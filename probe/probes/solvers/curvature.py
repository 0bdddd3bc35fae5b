"""Approximate Hessians of the objective, which precondition the minimisation.

In this module, d is the number of principal components, `Rows.num_components`.

At weights of zero the approximation is a diagonal, computed from all rows. Later it is a block-diagonal estimate from a
sample of rows.

The Hessian of k classes and d features has (k (d + 1))^2 entries, which are usually too many to store. The estimate has
one block for each group of classes that are often confused. Blocks are as large as their cost allows: ten classes share
one block, and of a thousand classes a few share each block.

For one image with probabilities p and features x, the Hessian of the loss is

    sum over pairs of classes a < b of  p_a p_b (e_a - e_b)(e_a - e_b)^T  (x)  x x^T,

where (x) is the Kronecker product and e_a is the a-th unit vector. For most images and most pairs, p_a p_b is almost 0,
so a few rows suffice. Each pair draws its own rows. Rows with a larger p_a p_b are drawn with a larger probability, and
the weights of the drawn rows are scaled so that the estimate is unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from scipy.linalg.lapack import spotrf
from torch import Tensor

from probe.errors import FeaturesError
from probe.probes.solvers.objective import SEED, Objective

SAMPLE = 2048  # average number of drawn rows for each pair of classes
MAX_GROUP = 16  # classes of a block
MAX_BLOCK = 8192  # unknowns of a block
# Entries of all blocks, 1 GB in float32. With very many classes each class has its own block, whatever the total size.
MAX_NUMBERS = 1 << 28
MAX_PASSES = 250  # largest cost of computing the blocks, in evaluations of the objective
# With few logits, matrix products are dominated by reading the features. An evaluation of k logits takes as long as
# k + `NARROW` logits would take in a wide product.
NARROW = 50
NEAR = 1.2  # largest difference of logits at which an estimate serves another point, see `Estimate.distance`
NEAR_PENALTY = 2.0  # largest ratio of two penalties that share the inverse of an estimate
ESTIMATES_BYTES = 1 << 29  # largest size of the stored estimates, unless a single one is larger
RIDGE = 1e-7  # added to the diagonal, relative to its mean, so that Cholesky factors in float32 exist


class Preconditioner(Protocol):
    """Inverse of an approximate Hessian."""

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse times a gradient, both float64 (d + 1, width)."""


@dataclass(frozen=True)
class Diagonal:
    """Inverse of a diagonal matrix, with the same diagonal float64 (d + 1,) for all classes."""

    diagonal: Tensor

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse times a gradient, both float64 (d + 1, width)."""
        return gradient / self.diagonal[:, None]


@dataclass(frozen=True)
class HessianBlock:
    """Block of a Hessian for a group of classes, or the Cholesky factor of such a block.

    Args:
        classes: int64 (g,), the classes of the group.
        mix: float32 (g, r) with orthonormal columns. The unknowns U of the classes, (g, d + 1), are `mix` @ V, where V,
            (r, d + 1), are the unknowns that `matrix` belongs to.
        matrix: float32 (r (d + 1), r (d + 1)) for the unknowns V in C order: all features of the first row, then all
            features of the second row, and so on.
    """

    classes: Tensor
    mix: Tensor
    matrix: Tensor


@dataclass(frozen=True)
class Blocks:
    """Inverse of a block-diagonal matrix, given by the lower Cholesky factors of its blocks."""

    factors: Sequence[HessianBlock]

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse times a gradient, both float64 (d + 1, width)."""
        solution = torch.empty_like(gradient)
        for block in self.factors:
            mixed = (gradient[:, block.classes].float() @ block.mix).T  # (r, d + 1)
            # Two triangular solves, because `cholesky_solve` takes ten times as long for a single column.
            half = torch.linalg.solve_triangular(block.matrix, mixed.reshape(-1, 1), upper=False)
            solved = torch.linalg.solve_triangular(block.matrix.mT, half, upper=True)
            solution[:, block.classes] = (block.mix @ solved.reshape(mixed.shape)).T.double()
        return solution


@dataclass(frozen=True)
class StackedBlocks:
    """Inverse of a block-diagonal matrix whose blocks have one size, for a GPU: one product serves all blocks.

    A thousand triangular solves, one for each block, would take far longer on a GPU than an evaluation.

    Args:
        classes: int64 (b, g), the classes of each group.
        mix: float32 (b, g, r), see `HessianBlock`.
        inverse: float32 (b, r (d + 1), r (d + 1)), the inverses of the lower Cholesky factors.
    """

    classes: Tensor
    mix: Tensor
    inverse: Tensor

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse times a gradient, both float64 (d + 1, width); zeros for classes of other stacks."""
        own = gradient.T[self.classes].float()  # (b, g, d + 1)
        mixed = self.mix.mT @ own  # (b, r, d + 1)
        solved = self.inverse.mT @ (self.inverse @ mixed.flatten(1)[:, :, None])
        solution = torch.zeros_like(gradient)
        solution[:, self.classes.flatten()] = (self.mix @ solved.reshape(mixed.shape)).flatten(0, 1).T.double()
        return solution


@dataclass(frozen=True)
class Stacks:
    """Inverse of a block-diagonal matrix: one `StackedBlocks` for each size of blocks."""

    stacks: Sequence[StackedBlocks]

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse times a gradient, both float64 (d + 1, width)."""
        return torch.stack([stack.solve(gradient) for stack in self.stacks]).sum(dim=0)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimate of the Hessian of the loss at some unknowns.

    Args:
        column: column of the labels that the loss is for, see `Logistic`; None for `Softmax`.
        unknowns: float64 (d + 1, width).
        blocks: the estimate, without the penalty.
        inverses: inverses of the estimate plus a penalty, by penalty.
    """

    column: int | None
    unknowns: Tensor
    blocks: Sequence[HessianBlock]
    inverses: dict[float, Preconditioner] = field(default_factory=dict)

    @property
    def block_bytes(self) -> int:
        """Return the size of the blocks, which is also the size of an inverse."""
        return sum(block.matrix.nbytes for block in self.blocks)

    @property
    def num_bytes(self) -> int:
        """Return the size of the blocks and of the inverses."""
        return (1 + len(self.inverses)) * self.block_bytes

    def invert(self, objective: Objective, probe: int) -> Preconditioner:
        """Return the inverse of the estimate plus the penalty of a probe, or plus a penalty that is nearly the same."""
        penalty = objective.penalties[probe]
        for known, inverse in self.inverses.items():
            if known <= penalty * NEAR_PENALTY and penalty <= known * NEAR_PENALTY:
                return inverse
        return self.inverses.setdefault(penalty, invert(objective, probe, self.blocks))

    def distance(self, unknowns: Tensor) -> float:
        """Return the approximate root mean square of the difference of the logits at other unknowns.

        The whitened features are uncorrelated and have unit variance.
        """
        return _distance(self.unknowns, unknowns)


class Estimates:
    """Recent estimates of the Hessian for the same rows and labels, which several fits can share.

    An estimate serves all points with similar logits, because the Hessian of the loss depends on the probabilities
    alone, and a preconditioner may be inexact.
    """

    def __init__(self) -> None:
        self._recent: list[Estimate] = []

    @property
    def num_bytes(self) -> int:
        """Return the size of the stored estimates and of their inverses."""
        return sum(one.num_bytes for one in self._recent)

    def find(self, objective: Objective, probe: int, unknowns: Tensor, *, used: Tensor | None = None) -> Estimate:
        """Return the nearest estimate within `NEAR` of some unknowns, or a new estimate if there is none.

        The stored estimates, including an inverse that the caller adds to the returned estimate, have at most
        `ESTIMATES_BYTES`, or consist of the returned estimate with this inverse.

        Args:
            objective: objective of one or several probes.
            probe: index of the probe.
            unknowns: float64 (d + 1, width).
            used: `unknowns` of an estimate that did not suffice. Only a nearer estimate is returned then.
        """
        column, limit = objective.loss.column(probe), NEAR
        if used is not None:
            limit = min(NEAR, _distance(used, unknowns))
        near = [one for one in self._recent if one.column == column and one.unknowns is not used]
        nearest = min(near, key=lambda one: one.distance(unknowns), default=None)
        if nearest is not None and nearest.distance(unknowns) <= limit:
            self._make_room(nearest.block_bytes, used=nearest)
            return nearest
        if self._recent:  # estimates have the same size
            self._make_room(2 * self._recent[-1].block_bytes)
        self._recent.append(Estimate(column, unknowns, estimate_hessian(objective, probe, unknowns)))
        return self._recent[-1]

    def _make_room(self, num_bytes: int, used: Estimate | None = None) -> None:
        """Free memory until `num_bytes` more are below the limit.

        The inverses of the oldest estimates are removed first, because they cost less than the estimates. Of `used`,
        only the inverses are removed.
        """
        others = [one for one in self._recent if one is not used]
        excess = self.num_bytes + num_bytes - ESTIMATES_BYTES
        for one in others:
            if excess > 0:
                excess -= one.num_bytes - one.block_bytes
                one.inverses.clear()
        for one in others:
            if excess > 0:
                excess -= one.num_bytes
                self._recent.remove(one)
        if used is not None and excess > 0:
            used.inverses.clear()


def _distance(unknowns: Tensor, other: Tensor) -> float:
    return float((unknowns - other).norm()) / unknowns.shape[1] ** 0.5


def at_zero(objective: Objective, probe: int) -> Preconditioner:
    """Return a preconditioner from the diagonal of the Hessian at weights of zero, where all probabilities are equal.

    The diagonal is w * variance + penalty. With one logit, w is p (1 - p) = 1/4. With k logits, w is 1/k: for changes
    of the logits that sum to zero, the Hessian is 1/k times the covariance of the features.
    """
    rows, width = objective.rows, objective.loss.width
    likely = 1 / max(width, 2)
    weight = likely if width > 1 else likely * (1 - likely)
    diagonal = weight * rows.variance + objective.penalties[probe] * rows.basis.penalty
    if objective.penalties[probe] == 0:  # without a penalty, constant features have no curvature
        diagonal = diagonal.clamp(min=torch.finfo(rows.dtype).eps * float(diagonal.max()))
    return Diagonal(diagonal)


def at(objective: Objective, probe: int, unknowns: Tensor) -> Preconditioner:
    """Return a preconditioner from an estimate of the Hessian at some unknowns, float64 (d + 1, width)."""
    return invert(objective, probe, estimate_hessian(objective, probe, unknowns))


def invert(objective: Objective, probe: int, blocks: Sequence[HessianBlock]) -> Preconditioner:
    """Return a preconditioner: the inverse of an estimated Hessian of the loss plus the penalty of a probe."""
    penalty = (objective.penalties[probe] * objective.rows.basis.penalty).float()
    if not objective.rows.has_intercept:
        blocks = [_without_intercept(block, len(penalty)) for block in blocks]
    if objective.rows.device.type == "cuda":
        return stack(blocks, penalty)
    return Blocks([replace(block, matrix=_factor(block.matrix, penalty)) for block in blocks])


def stack(blocks: Sequence[HessianBlock], penalty: Tensor) -> Stacks:
    """Return the inverse of blocks of a Hessian plus a penalty (d + 1,) plus a ridge."""
    by_size: dict[tuple[int, ...], list[HessianBlock]] = {}
    for block in blocks:
        by_size.setdefault(tuple(block.mix.shape), []).append(block)
    stacks = []
    for same in by_size.values():
        classes, mix, matrices = (
            torch.stack([getattr(block, name) for block in same]) for name in ("classes", "mix", "matrix")
        )
        factors = _factor_stack(matrices, penalty)
        identity = torch.eye(factors.shape[1], device=factors.device).expand_as(factors)
        stacks.append(StackedBlocks(classes, mix, torch.linalg.solve_triangular(factors, identity, upper=False)))
    return Stacks(stacks)


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
    """Return the cost of `at` in evaluations of the objective."""
    n, d, width = len(objective.rows), objective.rows.num_components, objective.loss.width
    return 1 + round(_passes(n, d, width, group_size(n, d, width)))


def multiplications(n: int, num_components: int, width: int) -> float:
    """Return the number of multiplications of `at` for n images and `width` logits."""
    return _multiplications(n, num_components, width, group_size(n, num_components, width))


def _multiplications(n: int, num_components: int, width: int, group: int) -> float:
    """Return the multiplications for the products of each pair of classes in a group, and for the Cholesky factors."""
    size = num_components + 1
    return width * (min(SAMPLE, n) * group * size**2 / 2 + group**2 * size**3 / 6)


def _passes(n: int, num_components: int, width: int, group: int) -> float:
    return _multiplications(n, num_components, width, group) / (2 * n * (num_components + 1) * (width + NARROW))


def group_size(n: int, num_components: int, width: int) -> int:
    """Return the largest number of classes of a block that all limits allow, for n images and `width` logits."""
    size = num_components + 1
    fits = [
        g
        for g in range(1, min(width, MAX_GROUP) + 1)
        if g * size <= MAX_BLOCK
        and width * g * size**2 <= MAX_NUMBERS
        and _passes(n, num_components, width, g) <= MAX_PASSES
    ]
    return max(fits, default=1)


def max_numbers(num_components: int, width: int) -> int:
    """Return the largest number of entries of all blocks of a probe with `width` logits."""
    size = num_components + 1
    return width * size * max(size, min(width * size, MAX_BLOCK, MAX_NUMBERS // (width * size)))


def estimate_hessian(objective: Objective, probe: int, unknowns: Tensor) -> list[HessianBlock]:
    """Estimate blocks of the Hessian of the loss, without the penalty, from a sample of rows.

    The rows are drawn with a fixed seed, so repeated calls give the same result.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        unknowns: float64 (d + 1, width), where the Hessian is estimated.
    """
    rows, loss = objective.rows, objective.loss
    positions, features = rows.candidates
    features = features.float()  # (m, d)
    logits = features @ unknowns[:-1].float() + unknowns[-1].float()
    probabilities = loss.probabilities(logits)  # (m, width)
    counts = loss.weights(probe, torch.from_numpy(positions).to(rows.device))
    share = torch.ones(len(features), device=rows.device) if counts is None else counts.float()
    share /= float(share.sum()) or 1.0  # if no row counts, all shares stay 0
    return [
        _block(features, probabilities, share, classes)
        for classes in _groups(probabilities, group_size(len(rows), rows.num_components, loss.width))
    ]


def _block(features: Tensor, probabilities: Tensor, share: Tensor, classes: Tensor) -> HessianBlock:
    """Estimate the block of a group of classes.

    Args:
        features: float32 (m, d).
        probabilities: float32 (m, width).
        share: float32 (m,), weight of each row in the mean loss; the weights sum to one.
        classes: int64 (g,).
    """
    own = probabilities[:, classes]
    num = len(classes)
    mix = torch.eye(num, device=features.device)
    if num == probabilities.shape[1] > 1:  # leave out the direction that moves all logits equally: no curvature
        mix = torch.linalg.eigh(mix - 1 / num).eigenvectors[:, 1:]
        weights, sides = [], []
    else:  # pairs of each class with all classes outside the block
        weights, sides = [own[:, a] * (1 - own.sum(dim=1)).clamp(min=0) for a in range(num)], [*mix]
    for a, b in combinations(range(num), 2):
        weights.append(own[:, a] * own[:, b])
        sides.append(mix[a] - mix[b])
    drawn = _draw(torch.stack(weights) * share)
    products = _weighted_grams(features, drawn)
    side = torch.stack(sides)  # (pairs, r)
    size, r = features.shape[1] + 1, mix.shape[1]
    first, second = torch.tril_indices(r, r, device=side.device)
    parts = (side[:, first] * side[:, second]).T @ products.flatten(1)  # of the lower triangle, which suffices
    matrix = features.new_empty(r, size, r, size)
    matrix[first, :, second] = matrix[second, :, first] = parts.unflatten(1, (size, size))
    return HessianBlock(classes, mix, matrix.reshape(r * size, r * size))


def _draw(weights: Tensor) -> Tensor:
    """Return a sparse, unbiased estimate of the weight of each row for each pair of classes, (pairs, m).

    Weights above a threshold t stay as they are. A smaller weight w becomes t with probability w / t, else 0. On
    average at most `SAMPLE` weights of a pair are not zero.
    """
    if weights.shape[1] <= SAMPLE:
        return weights
    threshold = float(weights.sum(dtype=torch.float64)) / (SAMPLE * len(weights))
    generator = torch.Generator(weights.device).manual_seed(SEED)
    chance = torch.rand(weights.shape, generator=generator, device=weights.device)
    return torch.where(chance * threshold < weights, weights.clamp(min=threshold), torch.zeros_like(weights))


def _weighted_grams(features: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over rows of weight * x x^T for each pair of classes, (pairs, d + 1, d + 1).

    Args:
        features: float32 (m, d). x is a row that ends with a 1 for the intercept.
        weights: float32 (pairs, m), most of them 0.
    """
    size = features.shape[1] + 1
    grams = features.new_empty(len(weights), size, size)
    for gram, weight in zip(grams, weights, strict=True):
        (used,) = weight.nonzero(as_tuple=True)
        weighted = features.new_ones(len(used), size)
        weighted[:, :-1] = features[used]
        weighted *= weight[used].sqrt()[:, None]
        torch.mm(weighted.T, weighted, out=gram)
    return grams


def _factor(hessian: Tensor, penalty: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a Hessian plus a penalty (d + 1,) plus a ridge.

    The ridge is increased until the factor exists.
    """
    diagonal = penalty.repeat(len(hessian) // len(penalty))
    # If all probabilities are 0 or 1 in float32, the Hessian is zero and the ridge is 1.
    ridge = RIDGE * float(hessian.diagonal().mean()) or 1.0
    while True:
        matrix = hessian.clone()
        matrix.diagonal().add_(diagonal + ridge)
        if matrix.device.type == "cpu":  # LAPACK takes half the time of torch; transposed because of its Fortran order
            factor, failed = spotrf(matrix.numpy().T, lower=False, overwrite_a=True)
            factor = torch.from_numpy(factor.T)
        else:
            factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
        _check_finite(hessian)
        ridge *= 30


def _factor_stack(matrices: Tensor, penalty: Tensor) -> Tensor:
    """Return the lower Cholesky factors of a stack of Hessians (b, s, s), as `_factor` does for one Hessian.

    The penalty and the ridges are added to the matrices in place, because a stack can take several GB.
    """
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.mean(dim=1)
    ridge = torch.where(ridge > 0, ridge, 1.0)
    diagonal += penalty.repeat(matrices.shape[1] // len(penalty)) + ridge[:, None]
    while True:
        factors, failed = torch.linalg.cholesky_ex(matrices)
        if not failed.any():
            return factors
        _check_finite(matrices)
        more = torch.where(failed > 0, 29 * ridge, 0.0)
        diagonal += more[:, None]
        ridge += more


def _check_finite(hessian: Tensor) -> None:
    if not torch.isfinite(hessian).all():
        raise FeaturesError(
            "the Hessian of the loss is not finite because the features are too large; scale the features down"
        )


def _groups(probabilities: Tensor, size: int) -> list[Tensor]:
    """Return groups of at most `size` classes, int64 (g,) each. Classes that are often confused share a group.

    Each group begins with the class that is confused most with another remaining class. Then the remaining class that
    is confused most with the group joins, until the group is full. The confusion of two classes is the sum of
    p_a p_b over images.
    """
    if size == 1:
        return list(torch.arange(probabilities.shape[1], device=probabilities.device)[:, None])
    confusion = (probabilities.T @ probabilities).fill_diagonal_(-1.0).cpu().numpy()
    remaining = list(range(len(confusion)))
    groups = []
    while remaining:
        group = [remaining[int(np.argmax(confusion[np.ix_(remaining, remaining)].max(axis=1)))]]
        remaining.remove(group[0])
        while remaining and len(group) < size:
            nearest = remaining[int(np.argmax(confusion[np.ix_(group, remaining)].sum(axis=0)))]
            group.append(nearest)
            remaining.remove(nearest)
        groups.append(torch.tensor(sorted(group), device=probabilities.device))
    return groups
