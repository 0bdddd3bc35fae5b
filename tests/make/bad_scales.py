"""Generated problems with badly scaled features, and their optima by Newton's method in float64.

Each problem has Gaussian classes with changed features (constants, outliers, columns of different sizes, copies, near
duplicates), few images or many classes. The same seeds give the same problems on every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax

from probe.features.arrays import Features

NUM_VAL, NUM_TEST = 1000, 2000
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # float64 (n, d) -> (n, d')


def _append(make: Change) -> Change:
    return lambda x, rng: np.hstack([x, make(x, rng)])


def _constant(*values: float) -> Change:
    return _append(lambda x, _: np.tile(values, (len(x), 1)))


def _exponential(mean: float, num: int = 1) -> Change:
    return _append(lambda x, rng: rng.exponential(mean, (len(x), num)))


def _noise(size: float) -> Change:
    return _append(lambda x, rng: size * rng.normal(size=(len(x), 1)))


def _scaled(first: float, last: float) -> Change:
    """Multiply the columns by powers of ten between two exponents."""
    return lambda x, _: x * np.logspace(first, last, x.shape[1])


def _offset(value: float) -> Change:
    return lambda x, _: x + value


def _outliers(factor: float, share: float) -> Change:
    return lambda x, rng: np.where(rng.random(x.shape) < share, factor * x, x)


def _one_outlier(value: float) -> Change:
    return lambda x, _: np.where((np.indices(x.shape) == 0).all(axis=0), value, x)


def _one_column(factor: float) -> Change:
    return lambda x, _: x * np.where(np.arange(x.shape[1]) == 0, factor, 1)


def _copies(num: int, noise: float = 0.0) -> Change:
    return lambda x, rng: np.hstack([x, *(x + noise * rng.normal(size=x.shape) for _ in range(num - 1))])


def _near_duplicates(distance: float) -> Change:
    """Replace half of the columns by two columns each: noise, and the noise plus the column times a distance.

    Only the small difference between the two columns contains information about the classes.
    """

    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(size=x[:, 1::2].shape)
        return np.hstack([x[:, ::2], noise + distance * x[:, 1::2], noise])

    return change


def _mixtures(noise: float = 0.0) -> Change:
    """Append linear combinations of the columns."""
    return _append(lambda x, rng: x @ _rotation(x.shape[1]) + noise * rng.normal(size=x.shape))


def _spectrum(power: float) -> Change:
    """Make correlated columns whose principal components shrink by a power."""
    return lambda x, _: x * np.arange(1, x.shape[1] + 1.0) ** -power @ _rotation(x.shape[1])


def _like_clip(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make correlated columns, a few with a large mean, and scale each row to length one."""
    x = _spectrum(1.0)(x, rng) + 3.0 * (np.arange(x.shape[1]) % 16 == 0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _heavy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x * rng.standard_cauchy((len(x), 1))


def _binary(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.hstack([x > 0, 1e3 * (rng.random((len(x), 4)) < 0.1)])


def _rotation(d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]


@dataclass(frozen=True)
class Problem:
    """Gaussian classes, and the change to their features."""

    change: Change = lambda x, _: x
    n: int = 300  # training images
    k: int = 4
    d: int = 16
    spread: float = 0.8  # of the means of the classes; the standard deviation within a class is 1
    shares: tuple[float, ...] | None = None  # of the classes among the images; None for equal shares


RARE = (0.9, 0.07, 0.02, 0.01)
PROBLEMS = {
    "plain": Problem(),
    "plain, 2 classes": Problem(k=2),
    "overlapping": Problem(spread=0.2),
    "separable": Problem(spread=4.0),
    "separable, 2 classes": Problem(k=2, spread=3.0),
    "fewer images than features": Problem(n=60, d=100),
    "constant 7": Problem(_constant(7.0)),
    "constant 1e3": Problem(_constant(1e3)),
    "constant 1e5": Problem(_constant(1e5)),
    "constant 1e5, 2 classes": Problem(_constant(1e5), k=2),
    "constant -1e6": Problem(_constant(-1e6)),
    "three constants": Problem(_constant(1e4, -3e2, 0.0)),
    "constant 1e4, 20 classes": Problem(_constant(1e4), k=20, n=500, d=12),
    "exponential 1e2": Problem(_exponential(1e2, 4)),
    "exponential 1e4": Problem(_exponential(1e4)),
    "exponential 1e4, 2 classes": Problem(_exponential(1e4), k=2),
    "exponential 1e6": Problem(_exponential(1e6)),
    "exponential 1e4, separable": Problem(_exponential(1e4), spread=4.0),
    "exponential 1e3, 15 classes": Problem(_exponential(1e3), k=15, n=500),
    "exponential 1e4, rare classes": Problem(_exponential(1e4), shares=RARE),
    "columns from 1e-3 to 1e3": Problem(_scaled(-3, 3)),
    "columns from 1e-3 to 1e3, 2 classes": Problem(_scaled(-3, 3), k=2),
    "columns from 1e-6 to 1e6": Problem(_scaled(-6, 6)),
    "columns from 1 to 1e4": Problem(_scaled(0, 4)),
    "columns from 1e-4 to 1": Problem(_scaled(-4, 0)),
    "one column of 1e4": Problem(_one_column(1e4)),
    "one column of 1e-4": Problem(_one_column(1e-4)),
    "noise of 1e3": Problem(_noise(1e3)),
    "noise of 1e5": Problem(_noise(1e5)),
    "offset 1e2": Problem(_offset(1e2)),
    "offset 1e4": Problem(_offset(1e4)),
    "offset 1e3, 2 classes": Problem(_offset(1e3), k=2),
    "outliers of 1e2": Problem(_outliers(1e2, 0.01)),
    "outliers of 1e4": Problem(_outliers(1e4, 0.002)),
    "outliers of 300, rare classes": Problem(_outliers(3e2, 0.01), shares=RARE),
    "one outlier of 1e4": Problem(_one_outlier(1e4)),
    "one outlier of 1e5, 2 classes": Problem(_one_outlier(1e5), k=2),
    "heavy tails": Problem(_heavy),
    "copies": Problem(_copies(3)),
    "near copies": Problem(_copies(2, 1e-3)),
    "collinear": Problem(_mixtures()),
    "nearly collinear": Problem(_mixtures(1e-3)),
    "decaying spectrum": Problem(_spectrum(2.0), d=32),
    "like CLIP": Problem(_like_clip, d=64, k=10, n=600),
    "tiny, 1e-3": Problem(lambda x, _: 1e-3 * x),
    "tiny, 1e-6": Problem(lambda x, _: 1e-6 * x),
    "large, 1e4": Problem(lambda x, _: 1e4 * x),
    "rare classes": Problem(shares=RARE),
    "few images, columns from 1e-3 to 1e3": Problem(_scaled(-3, 3), n=32, k=8, d=24),
    "zeros, ones and thousands": Problem(_binary),
    "near duplicates, 1e-2": Problem(_near_duplicates(1e-2)),
    "near duplicates, 1e-4": Problem(_near_duplicates(1e-4)),
    "near duplicates, 1e-4, 2 classes": Problem(_near_duplicates(1e-4), k=2),
    "near duplicates, 1e-6": Problem(_near_duplicates(1e-6)),
}


def make(name: str) -> dict[str, Features]:
    """Return `train`, `val` and `test` of a problem. Each split has an image of every class."""
    problem = PROBLEMS[name]
    seed = list(PROBLEMS).index(name)
    means = np.random.default_rng(seed).normal(size=(problem.k, problem.d)) * problem.spread
    splits = {}
    for draw, (split, n) in enumerate((("train", problem.n), ("val", NUM_VAL), ("test", NUM_TEST))):
        rng = np.random.default_rng([seed, draw])
        y = rng.choice(problem.k, n, p=problem.shares)
        y[: problem.k] = np.arange(problem.k)
        x = problem.change(means[y] + rng.normal(size=(n, problem.d)), rng)
        splits[split] = Features(x.astype(np.float32), y)
    return splits


@dataclass(frozen=True)
class Optimum:
    """Minimum of the objective, with the weights (width, d) and intercepts (width,) for the unscaled features."""

    objective: float
    coef: np.ndarray
    intercept: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the most likely class of each image."""
        return _logits(x.astype(np.float64), self.coef, self.intercept).argmax(axis=1)


def find_optimum(x: np.ndarray, y: np.ndarray, C: float) -> Optimum:
    """Minimise mean loss + ||W||^2 / (2 C n) by Newton's method with a line search, on standardised features.

    The penalty applies to the weights for the unscaled features. For two classes there is one row of weights.
    """
    x = x.astype(np.float64)
    n, k = len(x), int(y.max()) + 1
    width = 1 if k == 2 else k
    mean, scale = x.mean(axis=0), x.std(axis=0)
    is_constant = scale <= 1e-12 * np.abs(mean)
    scale[is_constant] = 1.0
    z = np.hstack([np.where(is_constant, 0.0, (x - mean) / scale), np.ones((n, 1))])
    penalty = np.append(1 / (C * n * scale**2), 0.0)
    own = np.eye(k)[y]
    weights = np.zeros((width, z.shape[1]))

    def value(weights):
        loss = -np.sum(log_softmax(_logits(z, weights), axis=1) * own) / n
        return loss + np.sum(penalty * weights**2) / 2

    for _ in range(200):
        chances = softmax(_logits(z, weights), axis=1)[:, -width:]
        gradient = (chances - own[:, -width:]).T @ z / n + penalty * weights
        hessian = np.empty((width, z.shape[1], width, z.shape[1]))
        for a in range(width):
            for b in range(width):
                hessian[a, :, b] = (z * (chances[:, a] * ((a == b) - chances[:, b]))[:, None]).T @ z / n
        hessian = hessian.reshape(weights.size, -1) + np.diag(np.tile(penalty, width))
        hessian[np.diag_indices(weights.size)] += 1e-15 * np.trace(hessian) / weights.size
        if width > 1:  # adding one number to all intercepts changes nothing
            alike = np.tile(np.arange(z.shape[1]) == z.shape[1] - 1, width)
            hessian += 0.1 * np.outer(alike, alike)
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(weights.shape)
        slope, length = np.sum(gradient * step), 1.0
        while value(weights - length * step) > value(weights) - 1e-4 * length * slope and length > 1e-10:
            length /= 2
        if length <= 1e-10:  # further descent is below the rounding errors
            break
        weights = weights - length * step
        if slope <= 1e-20 * value(weights):
            break
    coef = np.where(is_constant, 0.0, weights[:, :-1] / scale)
    return Optimum(value(weights), coef, weights[:, -1] - coef @ mean)


def _logits(x: np.ndarray, weights: np.ndarray, intercept: np.ndarray | float = 0.0) -> np.ndarray:
    logits = x @ weights.T + intercept
    return np.hstack([np.zeros_like(logits), logits]) if len(weights) == 1 else logits
