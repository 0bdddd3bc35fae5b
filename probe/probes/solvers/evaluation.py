"""Evaluate a fit in float64: its objective, its gradient, and whether a distance from the optimum is negligible.

The solver itself evaluates the objective in the dtype of the features, see `objective.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.probes.solvers.objective import MIN_ROWS, Objective

# Largest negligible suboptimality, relative to the objective or the gain, see `is_negligible`. At this limit, the error
# of logits is about a thousandth of their usual difference, so about one prediction in a thousand can change.
LIMIT = 1e-6
LEAST_WEIGHT = 1e-12  # smallest weight of an image in `Moments`; without it, all weights could be zero
ROUNDING = 1e-30  # decrement of a gradient that is only rounding error: square of float64's precision, with a margin


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

    See `measure_optimality` for the arguments.
    """
    rows, loss = objective.rows, objective.loss
    _, beginning = next(rows.blocks(loss.width))
    shift, by_class = beginning[:MIN_ROWS].double().mean(dim=0), weights[:-1].T.contiguous()

    def evaluate_block(first: int, block: Tensor) -> tuple[Tensor, ...]:
        x = block.double()
        logits = logits_of(x, by_class, weights[-1])
        probabilities = loss.probabilities(logits)
        uncertainty = (probabilities * (1 - probabilities) + LEAST_WEIGHT) * image_weights(
            objective, probe, first, len(x)
        )
        losses = loss.residuals(logits.T, first, [probe])  # logits become residuals
        by_features, by_intercept = logits.T @ x, logits.sum(dim=0)
        centred, share = x - shift, uncertainty.sum(dim=1)
        return losses, by_features, by_intercept, uncertainty.sum(dim=0), share @ centred, share @ centred.square_()

    losses, by_features, by_intercept, *sums = rows.sum_blocks(evaluate_block, loss.width)
    total, gradient = float(losses[0]), torch.cat([by_features.T, by_intercept[None]])
    penalty = objective.penalties[probe] * torch.cat([weights[:-1], torch.zeros_like(weights[-1:])])
    size = float((weights * penalty).sum()) / 2
    count = objective.total_weights[probe]
    base = objective.loss.without_features(probe)
    return Evaluation(total / count + size, size, gradient / count + penalty, base, Moments(shift, *sums))


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the features, weighted by the probe's uncertainty p (1 - p) about each image.

    The Hessian weights the images in the same way. So an outlier that the probe is certain about does not distort the
    scales for the other images.

    Args:
        shift: float64 (d,), near the mean of the features, to avoid cancellation in the squares.
        uncertainty: float64 (width,), sum of the weights p (1 - p) for each logit.
        sums: float64 (d,), weighted sum of the features minus `shift`.
        squares: float64 (d,), weighted sum of the squares of the features minus `shift`.
    """

    shift: Tensor
    uncertainty: Tensor
    sums: Tensor
    squares: Tensor

    def standardise(self) -> tuple[Tensor, Tensor]:
        """Return the mean (d,) and the inverse of the standard deviation (d,), which is 0 for a constant feature."""
        total = self.uncertainty.sum()
        mean = self.sums / total
        deviation = (self.squares / total - mean.square()).clamp(min=0).sqrt()
        is_constant = deviation <= 1e-15 * (self.shift.abs() + mean.abs())
        return self.shift + mean, torch.where(is_constant, 0, 1 / torch.where(is_constant, 1, deviation))


def logits_of(x: Tensor, by_class: Tensor, intercept: Tensor) -> Tensor:
    """Return the logits (m, width) of features (m, d) for weights by class, (width, d), and intercepts (width,).

    The logits of each class are contiguous, which makes products faster if there are few classes.
    """
    return (by_class @ x.T).add_(intercept[:, None]).T


def image_weights(objective: Objective, probe: int, first: int, num: int) -> Tensor | float:
    """Return the weight of each image for a probe, (num, 1); images that do not count have the weight 0."""
    positions = torch.arange(first, first + num, device=objective.rows.device)
    counts = objective.loss.weights(probe, positions)
    return 1.0 if counts is None else counts[:, None].double()
