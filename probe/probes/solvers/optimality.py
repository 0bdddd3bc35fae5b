"""Measure how far a fit is from its optimum, independently of the scales of its features.

The size of the gradient does not show this distance. Its largest component belongs to the feature with the largest
values, and a fit can reduce this component while all others stay as they were.

Newton's decrement shows the distance: g^T H^-1 g / 2, for the gradient g and the Hessian H at the end of the fit,
estimates the difference between the objective and its minimum. The decrement does not depend on the scales of the
features. It is computed by conjugate gradients. If features are nearly equal, a few steps of conjugate gradients can
underestimate the decrement. So a fit counts as converged only if an upper bound of the decrement is negligible.

The measurement also gives a step of Newton's method. With this step, `finish` continues a fit that stopped early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import FeaturesError
from probe.probes.solvers.objective import Objective

# Largest negligible suboptimality, relative to the objective or the gain, see `is_negligible`. At this limit, the error
# of logits is about a thousandth of their usual difference, so about one prediction in a thousand can change.
LIMIT = 1e-6
LEAST_WEIGHT = 1e-12  # smallest weight of an image in `Moments`; without it, all weights could be zero
ROUNDING = 1e-30  # decrement of a gradient that is only rounding error: square of float64's precision, with a margin
MIN_STEPS, MAX_STEPS = 5, 20  # steps of conjugate gradients; 5 to 10 find nearly all of the decrement
STEPS_SHARE = 4  # one step per this many iterations of the fit; a step takes as long as two or three iterations
SETTLED = 0.02  # conjugate gradients can stop when a step adds at most this share of the decrement
# If these steps do not show that a fit has converged, the whole Hessian is factored, provided that it has at most this
# many rows and takes at most this many multiplications. That takes a few seconds.
DENSE_SIZE = 2000
DENSE_COST = 3e10
REFINEMENTS = 3  # steps of iterative refinement, which correct for the ridge of the factor
MAX_NEWTON_STEPS = 50
MAX_HALVINGS, ARMIJO = 30, 1e-4  # of a line search: number of trials, and sufficient share of the expected decrease
UNDECIDED_STEPS = 100  # steps of conjugate gradients in float64, if it is still open whether a fit has converged


@dataclass(frozen=True)
class Optimality:
    """Distance of a fit from its optimum.

    Args:
        objective: mean loss plus penalty, in float64.
        gradient: float64 (d + 1, width), for the weights of the unscaled features; the last row is the intercept's.
        suboptimality: estimate of how far the objective is above its minimum: Newton's decrement, or a lower bound of
            it if the Hessian is large.
        converged: True if an upper bound of the decrement is negligible, see `is_negligible`.
        step: float64 (d + 1, width), step of Newton's method, or an approximation of this step.
    """

    objective: float
    gradient: Tensor
    suboptimality: float
    converged: bool
    step: Tensor


def is_negligible(suboptimality: float, *, objective: float, without_features: float, penalty: float) -> bool:
    """Return True if a fit is as good as its optimum.

    This is the case if `suboptimality` is at most `LIMIT` times the smaller of two numbers: the objective, which is
    small if the classes are separable, and the gain over a probe without features, which is small if the features are
    tiny or the penalty is strong.

    Args:
        suboptimality: how far the objective is above its minimum.
        objective: the objective at the end of the fit.
        without_features: minimum of the loss for weights of zero, with only the intercept fitted.
        penalty: the penalty term of the objective. At an optimum, the gain is at least as large as the penalty, by
            convexity. If the gain is lost in the rounding of the objective, the penalty replaces it.
    """
    gain = max(without_features - objective, penalty)
    return suboptimality <= LIMIT * min(objective, gain) + ROUNDING


def measure_optimality(objective: Objective, probe: int, weights: Tensor, *, num_iter: int) -> Optimality:
    """Measure how far a fit is from its optimum.

    The fit has converged if an upper bound of Newton's decrement g^T H^-1 g / 2 is negligible. Conjugate gradients give
    a lower bound. For their residual r, the upper bound is the lower bound plus an upper bound of r^T H^-1 r / 2, which
    holds because H is at least the penalty.

    The objective and the gradient are computed in float64. Products with H are first computed in the dtype of the
    features, and in float64 if this leaves open whether the fit has converged.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        num_iter: iterations of the fit, which limit the time of the measurement to less than the time of the fit.
    """
    end = evaluate(objective, probe, weights)
    system = _System(objective, probe, weights, end)
    bounds = _decrement(system, end, num_iter=num_iter)
    converged, step = end.is_negligible(bounds.upper), -system.in_weights(bounds.solution)
    return Optimality(end.value, end.gradient, bounds.lower, converged, step)


@dataclass(frozen=True)
class Finish:
    """End of a fit after `finish`.

    Args:
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        optimality: distance of the weights from the optimum.
        num_steps: number of steps of Newton's method.
    """

    weights: Tensor
    optimality: Optimality
    num_steps: int


def finish(objective: Objective, probe: int, weights: Tensor, *, num_iter: int, max_steps: int) -> Finish:
    """Measure the end of a fit and, if it has not converged, continue with Newton's method in float64.

    Outliers can hide from a solver with products in float32 that it is far from the optimum.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        num_iter: iterations of the fit so far, see `measure_optimality`.
        max_steps: limit on the steps of Newton's method.
    """
    optimality = measure_optimality(objective, probe, weights, num_iter=num_iter)
    num_steps = 0
    while not optimality.converged and num_steps < min(max_steps, MAX_NEWTON_STEPS):
        lower = _search(objective, probe, weights, optimality)
        if lower is None:
            break
        weights, num_steps = lower, num_steps + 1
        optimality = measure_optimality(objective, probe, weights, num_iter=num_iter)
    return Finish(weights, optimality, num_steps)


def _search(objective: Objective, probe: int, weights: Tensor, optimality: Optimality) -> Tensor | None:
    """Return weights with a lower objective in the direction of Newton's step, or None if there are none."""
    slope, length = float((optimality.gradient * optimality.step).sum()), 1.0
    for _ in range(MAX_HALVINGS):
        trial = weights + length * optimality.step
        if evaluate(objective, probe, trial).value < optimality.objective + ARMIJO * length * slope:
            return trial
        length /= 2
    return None


@dataclass(frozen=True)
class Evaluation:
    """Value and gradient of the objective at some weights, in float64.

    Args:
        value: mean loss plus penalty.
        penalty: the penalty term of the value.
        gradient: float64 (d + 1, width), as in `Optimality`.
        without_features: minimum of the loss for weights of zero, see `is_negligible`.
        moments: mean and standard deviation of the features.
    """

    value: float
    penalty: float
    gradient: Tensor
    without_features: float
    moments: Moments

    def is_negligible(self, suboptimality: float) -> bool:
        """Return True if the value is as good as its minimum, see `is_negligible`."""
        base, penalty = self.without_features, self.penalty
        return is_negligible(suboptimality, objective=self.value, without_features=base, penalty=penalty)


def evaluate(objective: Objective, probe: int, weights: Tensor) -> Evaluation:
    """Compute the objective and its gradient.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
    """
    rows, loss = objective.rows, objective.loss
    total, gradient = 0.0, torch.zeros_like(weights)
    moments = Moments(rows.num_features, loss.width, rows.device)
    for first, block in rows.blocks(loss.width):
        x = block.double()
        logits = x @ weights[:-1] + weights[-1]
        probabilities = loss.probabilities(logits)
        moments.add(
            x, (probabilities * (1 - probabilities) + LEAST_WEIGHT) * _image_weights(objective, probe, first, len(x))
        )
        total += float(loss.residuals(logits.T, first, [probe])[0])  # logits become residuals
        gradient[:-1] += x.T @ logits
        gradient[-1] += logits.sum(dim=0)
    penalty = objective.penalties[probe] * torch.cat([weights[:-1], torch.zeros_like(weights[-1:])])
    size = float((weights * penalty).sum()) / 2
    count = objective.total_weights[probe]
    base = objective.loss.without_features(probe)
    return Evaluation(total / count + size, size, gradient / count + penalty, base, moments)


class Moments:
    """Mean and standard deviation of the features, weighted by the probe's uncertainty p (1 - p) about each image.

    The Hessian weights the images in the same way. So an outlier that the probe is certain about does not distort the
    scales for the other images.
    """

    def __init__(self, num_features: int, width: int, device: torch.device) -> None:
        self.uncertainty = torch.zeros(width, dtype=torch.float64, device=device)
        self.sums, self.squares = (torch.zeros(num_features, dtype=torch.float64, device=device) for _ in range(2))
        self.total = 0.0
        self.shift: Tensor | None = None  # near the mean, to avoid cancellation in the squares

    def add(self, x: Tensor, uncertainty: Tensor) -> None:
        """Add features float64 (m, d) with weights p (1 - p) for each image and logit, (m, width)."""
        if self.shift is None:
            self.shift = x.mean(dim=0)
        centred, share = x - self.shift, uncertainty.sum(dim=1)
        self.uncertainty += uncertainty.sum(dim=0)
        self.total += float(share.sum())
        self.sums += share @ centred
        self.squares += share @ centred.square_()

    def standardise(self) -> tuple[Tensor, Tensor]:
        """Return the mean (d,) and the inverse of the standard deviation (d,), which is 0 for a constant feature."""
        assert self.shift is not None
        mean = self.sums / self.total
        deviation = (self.squares / self.total - mean.square()).clamp(min=0).sqrt()
        is_constant = deviation <= 1e-15 * (self.shift.abs() + mean.abs())
        return self.shift + mean, torch.where(is_constant, 0, 1 / torch.where(is_constant, 1, deviation))


def _image_weights(objective: Objective, probe: int, first: int, num: int) -> Tensor | float:
    """Return the weight of each image for a probe, (num, 1); images that do not count have the weight 0."""
    positions = torch.arange(first, first + num, device=objective.rows.device)
    counts = objective.loss.weights(probe, positions)
    return 1.0 if counts is None else counts[:, None].double()


@dataclass(frozen=True)
class _Decrement:
    """Bounds of Newton's decrement g^T H^-1 g / 2 for standardised features.

    Args:
        lower: lower bound.
        upper: upper bound.
        solution: H^-1 g, or an approximation, (d + 1, width).
    """

    lower: float
    upper: float
    solution: Tensor


def _decrement(system: _System, end: Evaluation, *, num_iter: int) -> _Decrement:
    """Bound Newton's decrement by conjugate gradients or, if these do not suffice, by a factor of the Hessian."""
    rows = system.objective.rows
    steps = max(MIN_STEPS, min(MAX_STEPS, num_iter // STEPS_SHARE))
    bounds = _iterate(system, end, max_steps=steps, dtype=rows.dtype)
    if end.is_negligible(bounds.upper):
        return bounds
    size = system.gradient.numel()
    if size <= DENSE_SIZE and size**2 * len(rows) <= DENSE_COST:
        return _solve(system)
    if end.is_negligible(bounds.lower):  # undecided
        return _iterate(system, end, max_steps=UNDECIDED_STEPS, dtype=torch.float64)
    return bounds


class _System:
    """Gradient g and Hessian H at the end of a fit, for weights of standardised features."""

    def __init__(self, objective: Objective, probe: int, weights: Tensor, end: Evaluation) -> None:
        self.objective, self.probe = objective, probe
        self.mean, self.inverse = end.moments.standardise()
        mean, inverse = self.mean, self.inverse
        gradient = end.gradient
        self.weights = torch.cat([weights[:-1] / torch.where(inverse > 0, inverse, torch.inf)[:, None], weights[-1:]])
        self.weights[-1] += mean @ weights[:-1]
        residual = torch.cat([(gradient[:-1] - mean[:, None] * gradient[-1]) * inverse[:, None], gradient[-1:]])
        self.gradient = self.project(residual)
        self.count = objective.total_weights[probe]
        self.penalty = objective.penalties[probe] * torch.cat([inverse.square(), inverse.new_zeros(1)])[:, None]
        # The diagonal of the Hessian, because features have a variance of 1.
        self.diagonal = end.moments.uncertainty / self.count + self.penalty

    def project(self, step: Tensor) -> Tensor:
        """Subtract the mean over classes, because moving all logits equally does not change the probabilities."""
        return step - step.mean(dim=1, keepdim=True) if self.objective.loss.width > 1 else step

    def in_weights(self, step: Tensor) -> Tensor:
        """Return a step for the weights of the unscaled features."""
        weights = self.inverse[:, None] * step[:-1]
        return torch.cat([weights, step[-1:] - self.mean @ weights])

    def bound(self, residual: Tensor) -> float:
        """Return an upper bound of r^T H^-1 r / 2 for a residual r. The bound uses that H is at least the penalty.

        The intercept has no penalty, so its own diagonal entry of H replaces the penalty. The same holds for constant
        features.
        """
        least = torch.where(self.penalty > 0, self.penalty, self.diagonal)
        return float((residual.square() / least).sum()) / 2

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor | float]]:
        """Yield blocks of standardised features (m, d), probabilities (m, width) and image weights (m, 1)."""
        rows, loss, weights = self.objective.rows, self.objective.loss, self.weights.to(dtype)
        for first, block in rows.blocks(loss.width):
            x = ((block.double() - self.mean) * self.inverse).to(dtype)
            counts = _image_weights(self.objective, self.probe, first, len(x))
            yield x, loss.probabilities(x @ weights[:-1] + weights[-1]), counts

    def product(self, direction: Tensor, dtype: torch.dtype) -> Tensor:
        """Return H times a direction, with products in a dtype."""
        step = direction.to(dtype)
        product = torch.zeros_like(direction)
        for x, probabilities, counts in self.blocks(dtype):
            change = x @ step[:-1] + step[-1]
            if self.objective.loss.width > 1:
                change -= (probabilities * change).sum(dim=1, keepdim=True)
            else:
                change *= 1 - probabilities
            change *= probabilities
            change *= counts
            product[:-1] += (x.T @ change).double()
            product[-1] += change.sum(dim=0, dtype=torch.float64)
        return product / self.count + self.penalty * direction

    def matrix(self) -> Tensor:
        """Return H, float64 (width * (d + 1), width * (d + 1)): all unknowns of the first logit, then of the second."""
        size, width = self.gradient.shape
        matrix = self.gradient.new_zeros(width, size, width, size)
        for x, probabilities, counts in self.blocks(torch.float64):
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


def _iterate(system: _System, end: Evaluation, *, max_steps: int, dtype: torch.dtype) -> _Decrement:
    """Bound the decrement by conjugate gradients, which increase the lower bound with every step.

    The steps end early if the lower bound has settled, and both bounds or neither of them are negligible.
    """
    residual = system.gradient
    solution, direction, last = torch.zeros_like(residual), torch.zeros_like(residual), 1.0
    lower, upper = 0.0, system.bound(residual)
    for step in range(max_steps):
        conditioned = system.project(residual / system.diagonal)
        size = float((residual * conditioned).sum())
        if not size > 0:
            break
        direction = conditioned + (size / last if step else 0.0) * direction
        product = system.product(direction, dtype)
        curvature = float((direction * product).sum())
        if not curvature > 0:
            break
        solution = solution + size / curvature * direction
        residual, last = residual - size / curvature * system.project(product), size
        before, lower = lower, float((system.gradient * solution).sum()) / 2
        upper = lower + system.bound(residual)
        is_settled = step >= 2 and lower - before <= SETTLED * lower
        if is_settled and end.is_negligible(upper) == end.is_negligible(lower):
            break
    return _Decrement(lower, upper, solution)


def _solve(system: _System) -> _Decrement:
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
    residual = system.project((gradient - product).reshape(width, size).T)
    lower = float((solution * (gradient - product / 2)).sum())
    return _Decrement(lower, lower + system.bound(residual), system.project(solution.reshape(width, size).T))
