"""Measure how far a fit is from its optimum, independently of the scales of its features.

The size of the gradient does not show this: its largest component belongs to the feature with the largest values, and a
fit can reduce this component while all others stay as they were. Newton's decrement shows it: half of g^T H^-1 g, for
the gradient g and the Hessian H at the end of the fit, estimates how much lower the minimum is. It does not change when
features are scaled. This module only measures; it does not improve a fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.probes.objective import Objective

# Largest allowed suboptimality, as a share of what the fit has achieved, see `is_negligible`. At this limit, logits are
# off by about a thousandth of their usual distance, so about one prediction in a thousand can change.
LIMIT = 1e-6
LEAST_WEIGHT = 1e-12  # of an image that the probe is certain of; without it, all weights could be zero
ROUNDING = 1e-30  # decrement of a gradient that is only rounding: the square of float64's precision, with a margin
MIN_STEPS, MAX_STEPS = 5, 20  # conjugate gradients; 5 to 10 find nearly all of the decrement
STEPS_SHARE = 4  # iterations of a fit per step; a step takes as long as two or three iterations
SETTLED = 0.02  # stop when a step adds at most this share of the decrement


@dataclass(frozen=True)
class Optimality:
    """Distance of a fit from its optimum.

    Args:
        objective: mean loss plus penalty, in float64.
        gradient: float64 (d + 1, width), for the weights of the unscaled features; the last row is the intercept's.
        suboptimality: estimate, from below, of how far the objective is above its minimum.
        converged: True if `suboptimality` is negligible, see `is_negligible`.
    """

    objective: float
    gradient: Tensor
    suboptimality: float
    converged: bool


def is_negligible(suboptimality: float, *, objective: float, without_features: float, penalty: float) -> bool:
    """Return True if a fit is as good as its optimum: `suboptimality` is at most `LIMIT` of what the fit has achieved.

    The achievement of a fit is the smaller of two numbers: the objective, which is small if the classes are separable,
    and the gain over a probe without features, which is small if the features are tiny or the penalty is strong.

    Args:
        suboptimality: how far the objective is above its minimum.
        objective: the objective at the end of the fit.
        without_features: minimum of the loss for weights of zero, with only the intercept fitted.
        penalty: the penalty term of the objective. At an optimum, the gain is at least as large as the penalty, by
            convexity. If the gain is lost in the rounding of the objective, the penalty replaces it.
    """
    gain = max(without_features - objective, penalty)
    return suboptimality <= LIMIT * min(objective, gain) + ROUNDING


def measure(objective: Objective, probe: int, weights: Tensor, *, num_iter: int) -> Optimality:
    """Measure the end of a fit. Only the products with the Hessian are not in float64.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        num_iter: iterations of the fit, which limit the time of the measurement to less than the time of the fit.
    """
    end = evaluate(objective, probe, weights)
    suboptimality = _decrement(objective, probe, weights, end, num_iter=num_iter)
    base = objective.loss.without_features(probe)
    found = is_negligible(suboptimality, objective=end.value, without_features=base, penalty=end.penalty)
    return Optimality(end.value, end.gradient, suboptimality, found)


@dataclass(frozen=True)
class Evaluation:
    """The objective at some weights, in float64.

    Args:
        value: mean loss plus penalty.
        penalty: the penalty term of the value.
        gradient: float64 (d + 1, width), as in `Optimality`.
        moments: mean and standard deviation of the features.
    """

    value: float
    penalty: float
    gradient: Tensor
    moments: Moments


def evaluate(objective: Objective, probe: int, weights: Tensor) -> Evaluation:
    """Compute the objective and its gradient. The arguments are those of `measure`."""
    rows, loss = objective.rows, objective.loss
    total, gradient = 0.0, torch.zeros_like(weights)
    moments = Moments(rows.num_features, loss.width, rows.device)
    for first, block in rows.blocks(loss.width):
        x = block.double()
        logits = x @ weights[:-1] + weights[-1]
        probabilities = loss.probabilities(logits)
        moments.add(x, (probabilities * (1 - probabilities) + LEAST_WEIGHT) * _counts(objective, probe, first, len(x)))
        total += float(loss.residuals(logits, first, [probe])[0])  # logits become residuals
        gradient[:-1] += x.T @ logits
        gradient[-1] += logits.sum(dim=0)
    penalty = objective.penalties[probe] * torch.cat([weights[:-1], torch.zeros_like(weights[-1:])])
    size = float((weights * penalty).sum()) / 2
    count = objective.counts[probe]
    return Evaluation(total / count + size, size, gradient / count + penalty, moments)


class Moments:
    """Mean and standard deviation of the features, weighted by the probe's uncertainty about each image.

    The Hessian has the same weights. So an outlier that the probe is certain of does not hide the other images.
    """

    def __init__(self, num_features: int, width: int, device: torch.device) -> None:
        self.uncertainty = torch.zeros(width, dtype=torch.float64, device=device)
        self.sums, self.squares = (torch.zeros(num_features, dtype=torch.float64, device=device) for _ in range(2))
        self.total = 0.0
        self.shift: Tensor | None = None  # near the mean, to avoid cancellation in the squares

    def add(self, x: Tensor, uncertainty: Tensor) -> None:
        """Add features, float64 (m, d), with the probe's uncertainty about each image and logit, (m, width)."""
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


def _counts(objective: Objective, probe: int, first: int, num: int) -> Tensor | float:
    """Return 1 for each image that counts for a probe and 0 for the others, (num, 1)."""
    positions = torch.arange(first, first + num, device=objective.rows.device)
    counts = objective.loss.weights(probe, positions)
    return 1.0 if counts is None else counts[:, None].double()


def _decrement(objective: Objective, probe: int, weights: Tensor, end: Evaluation, *, num_iter: int) -> float:
    """Return half of g^T H^-1 g by conjugate gradients on standardised features. It grows with every step."""
    gradient, (mean, inverse) = end.gradient, end.moments.standardise()
    n = objective.counts[probe]
    scaled = torch.cat([weights[:-1] / torch.where(inverse > 0, inverse, torch.inf)[:, None], weights[-1:]])
    scaled[-1] += mean @ weights[:-1]
    residual = torch.cat([(gradient[:-1] - mean[:, None] * gradient[-1]) * inverse[:, None], gradient[-1:]])
    penalty = objective.penalties[probe] * torch.cat([inverse.square(), inverse.new_zeros(1)])[:, None]
    diagonal = end.moments.uncertainty / n + penalty  # diagonal of the Hessian, because features have a variance of 1

    def project(step: Tensor) -> Tensor:  # moving all logits equally changes no probability
        return step - step.mean(dim=1, keepdim=True) if objective.loss.width > 1 else step

    residual = project(residual)
    solution, direction, last = torch.zeros_like(residual), torch.zeros_like(residual), 1.0
    start, found = residual, 0.0
    for step in range(max(MIN_STEPS, min(MAX_STEPS, num_iter // STEPS_SHARE))):
        conditioned = project(residual / diagonal)
        size = float((residual * conditioned).sum())
        if not size > 0:
            break
        direction = conditioned + (size / last if step else 0.0) * direction
        product = _product(objective, probe, scaled, direction, (mean, inverse)) / n + penalty * direction
        curvature = float((direction * product).sum())
        if not curvature > 0:
            break
        solution = solution + size / curvature * direction
        residual, last = residual - size / curvature * project(product), size
        before, found = found, float((start * solution).sum()) / 2
        if step >= 2 and found - before <= SETTLED * found:
            break
    return found


def _product(
    objective: Objective, probe: int, scaled: Tensor, direction: Tensor, standard: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the Hessian of the summed loss times a direction, both for standardised features."""
    rows, loss = objective.rows, objective.loss
    mean, inverse = standard
    weights, step = scaled.to(rows.dtype), direction.to(rows.dtype)
    product = torch.zeros_like(direction)
    for first, block in rows.blocks(loss.width):
        x = ((block.double() - mean) * inverse).to(rows.dtype)
        probabilities = loss.probabilities(x @ weights[:-1] + weights[-1])
        change = x @ step[:-1] + step[-1]
        if loss.width > 1:
            change -= (probabilities * change).sum(dim=1, keepdim=True)
        else:
            change *= 1 - probabilities
        change *= probabilities
        change *= _counts(objective, probe, first, len(x))
        product[:-1] += (x.T @ change).double()
        product[-1] += change.sum(dim=0, dtype=torch.float64)
    return product
