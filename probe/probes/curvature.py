"""Approximate Hessians of the objective, to precondition with: from all rows at weights of zero, later from a sample.

The Hessian of k classes and d features has (k (d + 1))^2 numbers, far too many as a rule. What is kept of it are blocks
of classes that are often confused with one another, as large as their cost allows: of ten classes all, of a thousand a
few each. An estimate from a sample of the rows is enough, since L-BFGS mends the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probe.errors import FeaturesError
from probe.probes.objective import Objective, Rows

SAMPLE = 4096  # rows
SEED = 0
MAX_BLOCK = 8192  # unknowns of a block
MAX_NUMBERS = 1 << 28  # of all blocks, which take 1 GB; of very many classes each is alone, and they take what they do
MAX_PASSES = 250  # what making the blocks may cost, in evaluations of the objective
RIDGE = 1e-6  # of the mean diagonal: float32 factors need it


@dataclass(frozen=True)
class Preconditioner:
    """The inverse of a block-diagonal matrix.

    `blocks` are pairs of classes, int64 (g,), and a Cholesky factor (g (d + 1), g (d + 1)); a single pair with no
    classes has a factor (d + 1, d + 1) for every class alike. `scale` is of the unknowns, float64 (d + 1,).
    """

    blocks: Sequence[tuple[Tensor | None, Tensor]]
    scale: Tensor

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse times a gradient, float64 (d + 1, k)."""
        scaled = gradient / self.scale[:, None]
        solution = torch.empty_like(scaled)
        for classes, factor in self.blocks:
            if classes is None:
                return _solve(factor, scaled) / self.scale[:, None]
            solution[:, classes] = _solve(factor, scaled[:, classes].T.reshape(-1, 1)).reshape(len(classes), -1).T
        return solution / self.scale[:, None]


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    # One triangle at a time: `cholesky_solve` takes ten times as long for a single column.
    half = torch.linalg.solve_triangular(factor, right.to(factor.dtype), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).double()


def at_zero(objective: Objective, probe: int) -> Preconditioner:
    """From the Hessian at weights of zero, where all classes are equally likely and all rows count the same."""
    rows, width = objective.rows, objective.loss.width
    likely = 1 / max(width, 2)
    weight = likely if width > 1 else likely * (1 - likely)
    scale = _scale(rows)
    hessian = torch.eye(rows.num_features + 1, dtype=torch.float64, device=rows.device) * weight
    hessian[:-1, :-1] = weight * rows.covariance / (scale[:-1, None] * scale[:-1])
    return Preconditioner([(None, _factor(hessian, objective.penalties[probe], scale))], scale)


@dataclass(frozen=True)
class Curvature:
    """Blocks of the Hessian of the loss at `weights`, without the penalty; float32, of scaled unknowns."""

    weights: Tensor
    blocks: Sequence[tuple[Tensor, Tensor]]
    scale: Tensor

    def with_penalty(self, penalty: float) -> Preconditioner:
        """What to precondition with under a penalty."""
        return Preconditioner(
            [(classes, _factor(hessian, penalty, self.scale)) for classes, hessian in self.blocks], self.scale
        )


def passes(objective: Objective) -> int:
    """What `estimate` costs, in evaluations of the objective, by counting multiplications."""
    rows, group = objective.rows, group_size(objective)
    size, n = rows.num_features + 1, len(rows)
    return 1 + round(min(SAMPLE, n) * group * size / (4 * n) + group**2 * size**2 / (12 * n))


def group_size(objective: Objective) -> int:
    """Classes of a block."""
    rows, width = objective.rows, objective.loss.width
    size, n = rows.num_features + 1, len(rows)
    sample = min(SAMPLE, n)
    fits = [
        g
        for g in range(1, width + 1)
        if g * size <= MAX_BLOCK
        and width * g * size**2 <= MAX_NUMBERS
        and sample * g * size / (4 * n) + g**2 * size**2 / (12 * n) <= MAX_PASSES
    ]
    return max(fits, default=1)


def estimate(objective: Objective, probe: int, weights: Tensor) -> Curvature:
    """From a sample of the rows, the same each time.

    Args:
        objective: of the probes.
        probe: which of them.
        weights: float64 (d + 1, width).
    """
    rows, loss = objective.rows, objective.loss
    positions = np.arange(len(rows))
    if len(rows) > SAMPLE:  # at random, as rows may come in some order of their labels
        positions = np.sort(np.random.default_rng(SEED).choice(len(rows), SAMPLE, replace=False))
    x, scale = rows.take(positions), _scale(rows)
    # Centred and scaled before float32, which a large common offset would else leave little of.
    unknowns = (x - rows.mean) / scale[:-1]
    unknowns = torch.cat([unknowns, torch.ones_like(unknowns[:, :1])], dim=1).float()  # (m, d + 1)
    logits = unknowns @ (weights * scale[:, None]).float()
    probabilities = loss.probabilities(logits)  # (m, width)
    counts = loss.weights(probe, torch.from_numpy(positions).to(rows.device))
    share = torch.ones(len(x), device=x.device) if counts is None else counts.float()
    share /= max(float(share.sum()), 1.0)
    blocks = []
    for classes in _groups(probabilities, group_size(objective)):
        blocks.append((classes, _hessian(unknowns, probabilities[:, classes], share)))
    return Curvature(weights, blocks, scale)


def _scale(rows: Rows) -> Tensor:
    return torch.cat([rows.scale, rows.scale.new_ones(1)])


def _factor(hessian: Tensor, penalty: float, scale: Tensor) -> Tensor:
    """The Cholesky factor of a Hessian with the penalty, and with as much of a ridge as it takes."""
    penalties = penalty / scale**2
    penalties[-1] = 0  # the intercept has none
    diagonal = penalties.repeat(len(hessian) // len(scale)).to(hessian.dtype)
    # Where all probabilities are 0 or 1 in float32 there is no curvature to take a share of.
    ridge = RIDGE * float(hessian.diagonal().mean()) or 1.0
    while True:
        matrix = hessian.clone()
        matrix.diagonal().add_(diagonal + ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
        if not torch.isfinite(hessian).all():
            raise FeaturesError("the curvature of the loss is not finite; divide the features by their size")
        ridge *= 30


def _hessian(unknowns: Tensor, probabilities: Tensor, share: Tensor) -> Tensor:
    """Of some classes, (g (d + 1), g (d + 1)); a single class stands for itself against all others."""
    size, group = unknowns.shape[1], probabilities.shape[1]
    hessian = unknowns.new_empty(group * size, group * size)
    for a in range(group):
        weighted = unknowns * (probabilities[:, a] * share)[:, None]
        for b in range(a, group):
            factor = 1 - probabilities[:, b] if a == b else -probabilities[:, b]
            block = (weighted * factor[:, None]).T @ unknowns
            hessian[a * size : (a + 1) * size, b * size : (b + 1) * size] = block
            hessian[b * size : (b + 1) * size, a * size : (a + 1) * size] = block.T
    return hessian


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
