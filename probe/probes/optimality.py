"""Measure how far a fit is from its optimum, whatever the scales of its features.

A gradient does not tell: its largest component belongs to the feature with the largest values, and a fit can bring that
one down while all others are as they were. Newton's method does: the decrement, half of g^T H^-1 g for the gradient g
and the Hessian H at the end of the fit, estimates how much lower the minimum is, and does not change when features are
scaled. This module only measures; it does not improve a fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.probes.objective import Objective

# Share of what a fit has achieved that it may still lack, see `is_negligible`. Logits are then off by about a
# thousandth of the usual distance between them, so that about one prediction in a thousand can change.
LIMIT = 1e-6
LEAST_WEIGHT = 1e-12  # of an image that the probe is certain of: it can be certain of all
ROUNDING = 1e-30  # decrement of a gradient that is only rounding: squares of float64's precision, with some room
MIN_STEPS, MAX_STEPS = 5, 20  # conjugate gradients; 5 to 10 find nearly all of the decrement
STEPS_SHARE = 4  # iterations of a fit for each step, which takes as long as two or three of them
SETTLED = 0.02  # share of the decrement that the last step added at most


@dataclass(frozen=True)
class Optimality:
    """How near a fit is to its optimum.

    Args:
        objective: mean loss plus penalty, in float64.
        gradient: float64 (d + 1, width), by the weights of the features as they are; the last row is the intercept's.
        suboptimality: estimate of how far the objective is above its minimum, from below.
        converged: True if that is negligible, see `is_negligible`.
    """

    objective: float
    gradient: Tensor
    suboptimality: float
    converged: bool


def is_negligible(suboptimality: float, *, objective: float, without_features: float, penalty: float) -> bool:
    """Return True if a fit is as good as its optimum: it lacks at most `LIMIT` of what it has achieved.

    What it has achieved is the smaller of two numbers: the objective, which is small where the classes are separable;
    and the gain over a probe without features, which is small where the features are tiny or the penalty is strong.

    Args:
        suboptimality: how far the objective is above its minimum.
        objective: at the end of the fit.
        without_features: minimum of the loss for weights of zero, where only the intercept is fitted.
        penalty: part of the objective. At an optimum the gain is at least as large, by convexity; where the gain is
            lost in the rounding of the objective, the penalty stands for it.
    """
    gain = max(without_features - objective, penalty)
    return suboptimality <= LIMIT * min(objective, gain) + ROUNDING


def measure(objective: Objective, probe: int, weights: Tensor, *, num_iter: int) -> Optimality:
    """Measure the end of a fit, in float64 but for the products with the Hessian.

    Args:
        objective: of one probe or several.
        probe: which of them.
        weights: float64 (d + 1, width), of the features as they are; the last row is the intercept.
        num_iter: iterations that the fit took; the measurement takes less time than they did.
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
        penalty: part of the value.
        gradient: float64 (d + 1, width), as in `Optimality`.
        moments: of the features.
    """

    value: float
    penalty: float
    gradient: Tensor
    moments: Moments


def evaluate(objective: Objective, probe: int, weights: Tensor) -> Evaluation:
    """Compute the objective and its gradient; arguments as in `measure`."""
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
    """Mean and standard deviation of the features, where uncertain images count more.

    The Hessian has the same weights. An outlier of which the probe is certain does not hide the others.
    """

    def __init__(self, num_features: int, width: int, device: torch.device) -> None:
        self.uncertainty = torch.zeros(width, dtype=torch.float64, device=device)
        self.sums, self.squares = (torch.zeros(num_features, dtype=torch.float64, device=device) for _ in range(2))
        self.total = 0.0
        self.shift: Tensor | None = None  # near the mean, so that squares do not cancel

    def add(self, x: Tensor, uncertainty: Tensor) -> None:
        """Count features float64 (m, d), of which the probe is so uncertain in each logit, (m, width)."""
        if self.shift is None:
            self.shift = x.mean(dim=0)
        centred, share = x - self.shift, uncertainty.sum(dim=1)
        self.uncertainty += uncertainty.sum(dim=0)
        self.total += float(share.sum())
        self.sums += share @ centred
        self.squares += share @ centred.square_()

    def standardise(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and the inverse of the standard deviation (d,), which is 0 for a constant feature."""
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
    """Half of g^T H^-1 g by conjugate gradients on standardised features, where it grows with every step."""
    gradient, (mean, inverse) = end.gradient, end.moments.standardise()
    n = objective.counts[probe]
    scaled = torch.cat([weights[:-1] / torch.where(inverse > 0, inverse, torch.inf)[:, None], weights[-1:]])
    scaled[-1] += mean @ weights[:-1]
    residual = torch.cat([(gradient[:-1] - mean[:, None] * gradient[-1]) * inverse[:, None], gradient[-1:]])
    penalty = objective.penalties[probe] * torch.cat([inverse.square(), inverse.new_zeros(1)])[:, None]
    diagonal = end.moments.uncertainty / n + penalty  # of the Hessian, as the features have a variance of 1

    def project(step: Tensor) -> Tensor:  # what moves all logits alike changes no probability
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
    """The Hessian of the summed loss times a direction, both for standardised features."""
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
