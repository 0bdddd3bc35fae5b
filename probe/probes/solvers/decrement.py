"""Bound Newton's decrement at the end of a fit: g^T H^-1 g / 2, for the gradient g and the Hessian H.

The decrement estimates the difference between the objective and its minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.errors import FeaturesError
from probe.probes.solvers import curvature
from probe.probes.solvers.evaluation import Evaluation, image_weights, logits_of
from probe.probes.solvers.objective import Objective, Rows

MIN_STEPS, MAX_STEPS = 5, 20  # steps of conjugate gradients; 5 to 10 find nearly all of the decrement
STEPS_SHARE = 4  # one step per this many iterations of the fit; a step takes as long as two or three iterations
# Conjugate gradients can stop when a step adds at most this share of the decrement. If the decrement is negligible, its
# order of magnitude is enough.
SETTLED, SETTLED_ROUGHLY = 0.02, 0.2
# If these steps do not show that a fit has converged, the whole Hessian is factored, provided that it has at most this
# many rows and takes at most this many multiplications. That takes a few seconds.
DENSE_SIZE = 2000
DENSE_COST = 3e10
REFINEMENTS = 3  # steps of iterative refinement, which correct for the ridge of the factor
UNDECIDED_STEPS = 100  # steps of conjugate gradients in float64, if it is still open whether a fit has converged
# With whitened features, an upper bound of the decrement must be negligible by this factor. Rounding errors of whitened
# features can hide a part of the decrement.
WHITENED_MARGIN = 10


@dataclass(frozen=True)
class Decrement:
    """Bounds of Newton's decrement g^T H^-1 g / 2.

    Args:
        lower: lower bound.
        upper: upper bound.
        step: -H^-1 g, or an approximation, float64 (d + 1, width), for the weights of the unscaled features.
    """

    lower: float
    upper: float
    step: Tensor


def bound_decrement(objective: Objective, probe: int, weights: Tensor, end: Evaluation, *, num_iter: int) -> Decrement:
    """Bound Newton's decrement by conjugate gradients or, if these do not suffice, by a factor of the Hessian.

    See `measure_optimality` for the arguments; `end` is the evaluation of the objective at the weights.
    """
    rows = objective.rows
    steps = max(MIN_STEPS, min(MAX_STEPS, num_iter // STEPS_SHARE))
    if rows.dtype == torch.float32 and (bounds := _certify(objective, probe, weights, end, max_steps=steps)):
        return bounds
    system = _standardise(objective, probe, weights, end)
    bounds = _iterate(system, end, max_steps=steps, dtype=rows.dtype)
    if end.is_negligible(bounds.upper):
        return bounds
    size = system.gradient.numel()
    if size <= DENSE_SIZE and size**2 * len(rows) <= DENSE_COST:
        return _solve(system)
    if end.is_negligible(bounds.lower):  # undecided
        return _iterate(system, end, max_steps=UNDECIDED_STEPS, dtype=torch.float64)
    return bounds


def _certify(objective: Objective, probe: int, weights: Tensor, end: Evaluation, *, max_steps: int) -> Decrement | None:
    """Bound the decrement with whitened features, or return None if this does not show convergence.

    Only whitened features that the solver has made are used. They need no scaling, so a step takes less time. They
    cannot show that a fit has not converged, because rounding errors and outliers affect them more than standardised
    features.
    """
    rows = objective.rows
    if not rows.is_whitened or rows.num_components < rows.num_features or rows.has_outliers:
        return None
    system = _whiten(objective, probe, weights, end)
    bounds = _iterate(system, end, max_steps=max_steps, dtype=rows.dtype, margin=WHITENED_MARGIN)
    if not end.is_negligible(WHITENED_MARGIN * bounds.upper) and end.is_negligible(bounds.lower):
        system = replace(system, precondition=curvature.at(objective, probe, system.weights).solve)
        bounds = _iterate(system, end, max_steps=MAX_STEPS, dtype=rows.dtype, margin=WHITENED_MARGIN)
    return bounds if end.is_negligible(WHITENED_MARGIN * bounds.upper) else None


@dataclass(frozen=True)
class _System:
    """Gradient g and Hessian H at the end of a fit, for the weights of scaled features.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        rows: features from which the scaled features are computed.
        scale: function that returns the scaled features (m, d) of a block of the rows, in float32 or float64.
        weights: float64 (d + 1, width); the last row is the intercept.
        gradient: float64 (d + 1, width), without the part that moves all logits equally.
        penalty: float64 (d + 1, 1), second derivative of the penalty; 0 for the intercept.
        diagonal: float64 (d + 1, width), approximate diagonal of H.
        in_weights: function that converts a step into one for the weights of the unscaled features.
        precondition: approximate inverse of H; None stands for the inverse of `diagonal`.
    """

    objective: Objective
    probe: int
    rows: Rows
    scale: Callable[[Tensor], Tensor]
    weights: Tensor
    gradient: Tensor
    penalty: Tensor
    diagonal: Tensor
    in_weights: Callable[[Tensor], Tensor]
    precondition: Callable[[Tensor], Tensor] | None = None

    @property
    def count(self) -> float:
        """Return the sum of the weights of the images."""
        return self.objective.total_weights[self.probe]

    def by_class(self, dtype: torch.dtype) -> Tensor:
        """Return the weights of the features for each class, (width, d), in a dtype."""
        return self.weights[:-1].T.to(dtype).contiguous()

    def bound(self, residual: Tensor) -> float:
        """Return an upper bound of r^T H^-1 r / 2 for a residual r. The bound uses that H is at least the penalty.

        The intercept has no penalty, so its own diagonal entry of H replaces the penalty. The same holds for constant
        features.
        """
        least = torch.where(self.penalty > 0, self.penalty, self.diagonal)
        return float((residual.square() / least).sum()) / 2

    def take(self, first: int, block: Tensor, by_class: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return the scaled features (m, d), probabilities (m, width) and image weights (m, 1) of a block.

        Args:
            first: position of the first row.
            block: rows (m, d).
            by_class: the weights, (width, d), whose dtype the features get.
        """
        x = self.scale(block).to(by_class.dtype)
        logits = logits_of(x, by_class, self.weights[-1].to(x.dtype))
        return x, self.objective.loss.probabilities(logits), image_weights(self.objective, self.probe, first, len(x))

    def product(self, direction: Tensor, dtype: torch.dtype) -> Tensor:
        """Return H times a direction, with products in a dtype."""
        width, by_class = self.objective.loss.width, self.by_class(dtype)
        step, intercept = direction[:-1].T.to(dtype).contiguous(), direction[-1].to(dtype)

        def multiply(first: int, block: Tensor) -> tuple[Tensor, Tensor]:
            x, probabilities, counts = self.take(first, block, by_class)
            change = logits_of(x, step, intercept)
            if width > 1:
                change -= (probabilities * change).sum(dim=1, keepdim=True)
            else:
                change *= 1 - probabilities
            change *= probabilities
            change *= counts
            return change.T @ x, change.sum(dim=0, dtype=torch.float64)

        by_features, by_intercept = self.rows.sum_blocks(multiply, width)
        return torch.cat([by_features.T, by_intercept[None]]) / self.count + self.penalty * direction

    def matrix(self) -> Tensor:
        """Return H, float64 (width * (d + 1), width * (d + 1)): all unknowns of the first logit, then of the second."""
        size, width = self.gradient.shape
        matrix, by_class = self.gradient.new_zeros(width, size, width, size), self.by_class(torch.float64)
        for first, block in self.rows.blocks(width):
            x, probabilities, counts = self.take(first, block, by_class)
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            for a in range(width):
                for b in range(a + 1):
                    weight = probabilities[:, a, None] * (float(a == b) - probabilities[:, b, None]) * counts
                    matrix[a, :, b] += x.T @ (x * weight)
        for a in range(width):
            matrix[a, :, a].diagonal().add_(self.count * self.penalty[:, 0])
            for b in range(a):
                matrix[b, :, a] = matrix[a, :, b]
        return matrix.reshape(width * size, width * size) / self.count


def _standardise(objective: Objective, probe: int, weights: Tensor, end: Evaluation) -> _System:
    """Return the system for features with a mean of 0 and a variance of 1, both weighted as in `Moments`."""
    mean, inverse = end.moments.standardise()

    def scale(block: Tensor) -> Tensor:
        return (block.double() - mean) * inverse

    def in_weights(step: Tensor) -> Tensor:
        unscaled = inverse[:, None] * step[:-1]
        return torch.cat([unscaled, step[-1:] - mean @ unscaled])

    scaled = torch.cat([weights[:-1] / torch.where(inverse > 0, inverse, torch.inf)[:, None], weights[-1:]])
    scaled[-1] += mean @ weights[:-1]
    gradient = end.gradient
    gradient = torch.cat([(gradient[:-1] - mean[:, None] * gradient[-1]) * inverse[:, None], gradient[-1:]])
    penalty = objective.penalties[probe] * torch.cat([inverse.square(), inverse.new_zeros(1)])[:, None]
    diagonal = end.moments.uncertainty / objective.total_weights[probe] + penalty
    rows = objective.rows
    return _System(objective, probe, rows, scale, scaled, _project(gradient), penalty, diagonal, in_weights)


def _whiten(objective: Objective, probe: int, weights: Tensor, end: Evaluation) -> _System:
    """Return the system for the whitened features, see `Rows.whitened`."""
    rows, gradient = objective.rows, end.gradient
    assert rows.whitened is not None
    centred = torch.cat([gradient[:-1] - rows.mean[:, None] * gradient[-1], gradient[-1:]])
    penalty = objective.penalties[probe] * rows.basis.penalty[:, None]
    unknowns, gradient = rows.unknowns_of(weights), rows.basis.matrix.T @ centred
    diagonal = end.moments.uncertainty / objective.total_weights[probe] * rows.variance[:, None] + penalty
    return _System(
        objective, probe, rows.whitened, _as_is, unknowns, _project(gradient), penalty, diagonal, rows.weights_of
    )


def _as_is(block: Tensor) -> Tensor:
    return block


def _project(step: Tensor) -> Tensor:
    """Subtract the mean over classes, because moving all logits equally does not change the probabilities."""
    return step - step.mean(dim=1, keepdim=True) if step.shape[1] > 1 else step


def _iterate(system: _System, end: Evaluation, *, max_steps: int, dtype: torch.dtype, margin: float = 1.0) -> Decrement:
    """Bound the decrement by conjugate gradients, which increase the lower bound with every step.

    The steps end early if the lower bound has settled, and both bounds or neither of them are negligible. The upper
    bound must be negligible by the factor `margin`.
    """
    residual = system.gradient
    solution, direction, last = torch.zeros_like(residual), torch.zeros_like(residual), 1.0
    lower, upper = 0.0, system.bound(residual)
    for step in range(max_steps):
        conditioned = _project(system.precondition(residual) if system.precondition else residual / system.diagonal)
        size = float((residual * conditioned).sum())
        if not size > 0:
            break
        direction = conditioned + (size / last if step else 0.0) * direction
        product = system.product(direction, dtype)
        along = float((direction * product).sum())  # curvature in this direction
        if not along > 0:
            break
        solution = solution + size / along * direction
        residual, last = residual - size / along * _project(product), size
        before, lower = lower, float((system.gradient * solution).sum()) / 2
        upper = lower + system.bound(residual)
        if margin > 1 and not end.is_negligible(lower):  # neither will the upper bound be
            break
        is_negligible = end.is_negligible(margin * upper)
        is_settled = step >= 2 and lower - before <= (SETTLED_ROUGHLY if is_negligible else SETTLED) * lower
        if is_settled and is_negligible == end.is_negligible(lower):
            break
    return Decrement(lower, upper, -system.in_weights(solution))


def _solve(system: _System) -> Decrement:
    """Bound the decrement by a Cholesky factor of the whole Hessian."""
    matrix, gradient = system.matrix(), system.gradient.T.reshape(-1, 1)
    size, width = system.gradient.shape
    typical = float(matrix.diagonal().mean())
    # H is singular for the weights of constant features and for moving all intercepts equally. The gradient is zero in
    # these directions, so adding curvature there makes the matrix regular and does not change the solution.
    regular = matrix + torch.diag(torch.where(matrix.diagonal() > 0, matrix.new_zeros(()), typical))
    if width > 1:
        regular[size - 1 :: size, size - 1 :: size] += typical
    if not regular.isfinite().all():
        raise FeaturesError("the curvature of the loss is not finite; divide the features by their size")
    ridge, identity = torch.finfo(torch.float64).eps * typical, torch.eye(len(regular)).to(regular)
    while True:
        factor, failed = torch.linalg.cholesky_ex(regular + ridge * identity)
        if not failed:
            break
        ridge *= 30
    solution = torch.zeros_like(gradient)
    for _ in range(REFINEMENTS):
        solution += torch.cholesky_solve(gradient - matrix @ solution, factor)
    product = matrix @ solution
    residual = _project((gradient - product).reshape(width, size).T)
    lower = float((solution * (gradient - product / 2)).sum())
    return Decrement(
        lower, lower + system.bound(residual), -system.in_weights(_project(solution.reshape(width, size).T))
    )
