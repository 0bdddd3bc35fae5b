"""Penalised logistic losses of several probes on the same features, with values and gradients.

The rows are read in blocks, and each block serves all probes. So the features are read once per evaluation, and the
matrix of all logits is never stored. Products are in the dtype of the features, usually float32. Sums over blocks are
in float64.

The unknowns are the weights of whitened features: principal components of the centred features, divided by their
standard deviations. In this basis, the mean and the correlations of the features do not affect the conditioning. If
there are fewer images than features, only the components that the images span are used, because the weights of all
other components are 0 at the optimum. The intercept absorbs the mean, because it is not penalised. A copy of the
whitened features is stored if it has at most `COPY_BYTES`, or fits into the memory of a GPU. The copy also avoids most
of the cancellation in float32 products.

This module does not minimise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from probe.errors import FeaturesError
from probe.models.memory import device_memory
from probe.probes.solvers.block_threads import BlockThreads, Work, sum_results

BLOCK_BYTES = 1 << 22  # size of a block of features or of its logits: about a thread's share of a processor's cache
MIN_ROWS, MAX_ROWS = 256, 4096  # limits of the rows of a block on the CPU
CUDA_ROWS = 65_536  # largest number of rows of a block on a GPU, which needs larger blocks to be busy
# Largest copy of whitened features on the CPU; larger features are centred block by block in every pass.
COPY_BYTES = 1 << 32
# Largest shares of the free memory of a GPU for the features, and then for the copy of whitened features.
CUDA_SHARE, CUDA_COPY_SHARE = 0.3, 0.5
CANDIDATES = 1 << 16  # rows from which samples of rows are drawn
SEED = 0
# A component has outliers if the median of its square is less than this share of the mean of its square. The share is
# 0.45 for a normal distribution, 0.24 for a Laplace distribution and 0.2 for Student's t with 3 degrees of freedom.
OUTLIERS = 0.05
MEDIAN_ROWS = 4096  # largest number of rows of which the median is taken
# With fewer logits, products are faster if the logits of each class are contiguous; with more logits, if the logits of
# each image are.
FEW_LOGITS = 128


class Rows:
    """Features (n, d) in one or several arrays, read as blocks of tensors on a device.

    Args:
        arrays: float32 or float64 (n_i, d), C-contiguous. They may be memory-mapped.
        device: where products are computed. Features that do not fit on a GPU are moved there block by block.
        has_intercept: if False, the features are not centred, because no intercept can absorb their mean.
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], device: str | torch.device = "cpu", *, has_intercept: bool = True
    ) -> None:
        self.device, self.has_intercept = torch.device(device), has_intercept
        self.num_features = arrays[0].shape[1]
        self.sizes = [len(array) for array in arrays]
        with warnings.catch_warnings():
            # torch warns about read-only arrays, such as the arrays of the feature store. Nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        if self.device.type == "cuda" and _num_bytes(tensors) <= CUDA_SHARE * device_memory(str(self.device)).free:
            tensors = [tensor.to(self.device) for tensor in tensors]
        self.tensors = tensors
        self.threads = BlockThreads()

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(self.sizes)

    @property
    def num_components(self) -> int:
        """Number r of principal components: min(d, n - 1), or min(d, n) without an intercept, but at least 1."""
        return max(1, min(self.num_features, len(self) - self.has_intercept))

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the features."""
        return self.tensors[0].dtype

    def blocks(self, columns: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield the position of the first row of each block and the block (m, d).

        Args:
            columns: number of logits of each row. The more logits, the smaller the blocks.
        """
        size = block_rows(self.num_features, columns, self.device)
        first = 0
        for tensor in self.tensors:
            for start in range(0, len(tensor), size):
                yield first + start, tensor[start : start + size].to(self.device)
            first += len(tensor)

    def sum_blocks(self, work: Work, columns: int = 1) -> list[Tensor]:
        """Return the sums, in float64, of the tensors that a function returns for each block of `blocks`.

        On a CPU, `BlockThreads` processes several blocks at a time.
        """
        if self.device.type == "cpu":
            return self.threads.sum(work, list(self.blocks(columns)))
        return sum_results(work(first, block) for first, block in self.blocks(columns))

    def centred(self, columns: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks as `blocks` does, minus the mean of the features, in a dtype.

        Without this, a large mean would cause large rounding errors in float32 products.
        """
        for first, block in self.blocks(columns):
            yield first, self.centre(block).to(dtype)

    def centre(self, block: Tensor) -> Tensor:
        """Return a block minus the mean of the features, in float64."""
        return block.double() - self.mean

    @cached_property
    def whitened(self) -> Rows | None:
        """Return a copy of the whitened features in their own dtype, or None if it is too large.

        The limit is `COPY_BYTES` on the CPU, and a share of the free memory on a GPU.
        """
        is_cuda = self.device.type == "cuda"
        if _num_bytes(self.tensors) > (
            CUDA_COPY_SHARE * device_memory(str(self.device)).free if is_cuda else COPY_BYTES
        ):
            return None
        copy = Rows.__new__(Rows)
        copy.device, copy.num_features, copy.sizes = self.device, self.num_components, self.sizes
        copy.has_intercept, copy.threads = self.has_intercept, self.threads
        copy.tensors = [
            tensor.new_empty(len(tensor), self.num_components, device=self.device) for tensor in self.tensors
        ]
        matrix = self.basis.matrix[:-1, :-1].to(self.dtype)
        for source, target in zip(self.tensors, copy.tensors, strict=True):
            size = block_rows(self.num_features, 1, self.device)
            for start in range(0, len(source), size):
                block = self.centre(source[start : start + size].to(self.device)).to(self.dtype)
                torch.mm(block, matrix, out=target[start : start + size])
        return copy

    @property
    def is_whitened(self) -> bool:
        """True if the whitened features have been computed, and are not too large for a copy."""
        return vars(self).get("whitened") is not None

    @cached_property
    def candidates(self) -> tuple[np.ndarray, Tensor]:
        """Return positions int64 (m,) of the rows to draw samples from, and their whitened features (m, r).

        These are all rows, or `CANDIDATES` rows that are chosen with a fixed seed.
        """
        positions = np.arange(len(self))
        if len(self) > CANDIDATES:  # a random choice, because rows may be sorted by label
            positions = np.sort(np.random.default_rng(SEED).choice(len(self), CANDIDATES, replace=False))
        return positions, self.take(positions)

    def take(self, positions: np.ndarray) -> Tensor:
        """Return the whitened features (m, r) of the rows at ascending positions int64 (m,)."""
        tensors = (self.whitened or self).tensors
        if len(tensors) == 1 and len(positions) == len(self) and self.whitened is not None:
            return tensors[0]
        taken, first = [], 0
        for tensor in tensors:
            local = positions[(positions >= first) & (positions < first + len(tensor))] - first
            taken.append(tensor[torch.from_numpy(local).to(tensor.device)].to(self.device))
            first += len(tensor)
        rows = torch.cat(taken)
        if self.whitened is None:
            rows = self.centre(rows).to(rows.dtype) @ self.basis.matrix[:-1, :-1].to(rows.dtype)
        return rows

    @cached_property
    def mean(self) -> Tensor:
        """Return the mean of each feature, float64 (d,), which the intercept absorbs; zeros without an intercept."""
        total = torch.zeros(self.num_features, dtype=torch.float64, device=self.device)
        if not self.has_intercept:
            return total
        for _, block in self.blocks():
            total += block.sum(dim=0, dtype=torch.float64)
        return total / len(self)

    @cached_property
    def rounding(self) -> Tensor:
        """Return the largest rounding error of a gradient with respect to the weights, float64 (d + 1, 1).

        The unit is the machine epsilon of the dtype of the products. The error is 8 times the size of each feature,
        |mean| + standard deviation, and 8 for the intercept.
        """
        size = self.mean.abs() + self.covariance.diagonal().sqrt()
        return 8 * torch.cat([size, size.new_ones(1)])[:, None]

    @cached_property
    def covariance(self) -> Tensor:
        """Return the covariance of the features, float64 (d, d).

        Raises:
            FeaturesError: the squares of the features overflow.
        """
        total = torch.zeros(self.num_features, self.num_features, dtype=torch.float64, device=self.device)
        mean = self.mean.to(self.dtype)
        for _, block in self.blocks():
            centred = block - mean
            total += (centred.T @ centred).double()
        if not total.isfinite().all():
            raise FeaturesError(f"the squares of the features overflow {self.dtype}; scale the features down")
        return total / len(self)

    @cached_property
    def basis(self) -> Basis:
        """Return the basis of the whitened features: principal components, divided by their standard deviations."""
        if self.num_components == self.num_features:
            variance, vectors = torch.linalg.eigh(self.covariance)
        else:
            centred = torch.cat([block for _, block in self.centred(1, torch.float64)])
            _, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
            variance, vectors = sizes.square().flip(0) / len(self), rows.flip(0).T
            variance, vectors = variance[-self.num_components :], vectors[:, -self.num_components :]
        floor = max(0.0, float(variance[-1])) * torch.finfo(self.dtype).eps or 1.0  # a smaller variance is rounding
        length = (variance.clamp(min=0.0) + floor).sqrt()
        matrix = torch.block_diag(vectors / length, length.new_ones(1, 1))
        inverse = torch.block_diag(length[:, None] * vectors.T, length.new_ones(1, 1))
        return Basis(matrix, inverse, penalty=torch.cat([length**-2, length.new_zeros(1)]))

    def by_weights(self, gradient: Tensor) -> Tensor:
        """Convert a gradient by the unknowns, (r + 1, width), into one by the weights, (d + 1, width).

        The weights belong to the original features; the last row is the intercept.
        """
        gradient = self.basis.inverse.T @ gradient
        return torch.cat([gradient[:-1] + self.mean[:, None] * gradient[-1], gradient[-1:]])

    def weights_of(self, unknowns: Tensor) -> Tensor:
        """Convert unknowns, (r + 1, width), into weights of the original features, (d + 1, width).

        The last row of the weights is the intercept.
        """
        weights = self.basis.matrix @ unknowns
        return torch.cat([weights[:-1], weights[-1:] - self.mean @ weights[:-1]])

    def unknowns_of(self, weights: Tensor) -> Tensor:
        """Convert weights of the original features into unknowns. This is the inverse of `weights_of`.

        If there are fewer images than features, the part of the weights that no image depends on is left out.
        """
        intercept = weights[-1:] + self.mean @ weights[:-1]
        return self.basis.inverse @ torch.cat([weights[:-1], intercept])

    @cached_property
    def variance(self) -> Tensor:
        """Return the variance of the whitened features, and 1 for the intercept, float64 (r + 1,).

        A whitened feature has the variance 1 unless the variance of its principal component is only rounding error.
        """
        if self.whitened is None:
            matrix = self.basis.matrix[:-1, :-1]
            variance = ((self.covariance @ matrix) * matrix).sum(dim=0).clamp(min=0.0)
        else:
            variance = torch.zeros(self.num_components, dtype=torch.float64, device=self.device)
            for _, block in self.whitened.blocks():
                variance += block.square().sum(dim=0, dtype=torch.float64)
            variance /= len(self)
        return torch.cat([variance, variance.new_ones(1)])

    @cached_property
    def has_outliers(self) -> bool:
        """Return True if a few rows cause almost all variance of some principal component, see `OUTLIERS`."""
        variance = self.variance[:-1]
        _, rows = self.candidates
        typical = rows[:: -(-len(rows) // MEDIAN_ROWS)].square().median(dim=0).values
        return bool(((variance > 0.5) & (typical < OUTLIERS * variance)).any())  # below 0.5 it is rounding error


@dataclass(frozen=True)
class Basis:
    """Basis of the unknowns, in which the features are uncorrelated and have unit variance.

    Args:
        matrix: float64 (d + 1, r + 1). `matrix` @ unknowns are the weights of the centred features and the intercept.
        inverse: float64 (r + 1, d + 1), the inverse of `matrix`; if r < d, on the weights that `matrix` can give.
        penalty: float64 (r + 1,), factor of each squared unknown in ||W||^2. It is 0 for the intercept.
    """

    matrix: Tensor
    inverse: Tensor
    penalty: Tensor


def block_rows(num_features: int, columns: int, device: torch.device) -> int:
    """Return the number of rows of a block.

    On the CPU, neither the features nor the logits of a block take more than about `BLOCK_BYTES`.

    Args:
        num_features: number of features of a row.
        columns: number of logits of a row.
        device: where the block is processed.
    """
    if device.type == "cuda":
        return max(MIN_ROWS, min(CUDA_ROWS, (1 << 30) // (4 * columns)))
    return max(MIN_ROWS, min(MAX_ROWS, BLOCK_BYTES // (4 * max(num_features, columns))))


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of k logits for images with one label each, the same for all probes.

    Args:
        labels: int64 (n,) on the device, class indices in [0, k).
        num_classes: k, the number of classes and of logits of a probe.
        row_weights: float (n,), weight of each image, 0 or more. None weights all images equally.
    """

    labels: Tensor
    num_classes: int
    row_weights: Tensor | None = None

    @property
    def width(self) -> int:
        """Return the number of logits of a probe."""
        return self.num_classes

    @property
    def at_zero(self) -> float:
        """Return the mean loss at weights of zero."""
        return math.log(self.num_classes)

    def total_weight(self, probe: int) -> float:  # noqa: ARG002 - all probes have the same images
        """Return the sum of the weights of the images, which is their number without `row_weights`."""
        return len(self.labels) if self.row_weights is None else float(self.row_weights.sum(dtype=torch.float64))

    def without_features(self, probe: int) -> float:
        """Return the smallest mean loss for weights of zero: the entropy of the labels, in nats."""
        weights = None if self.row_weights is None else self.row_weights.double()
        shares = torch.bincount(self.labels, weights, minlength=self.num_classes).double() / self.total_weight(probe)
        return float(torch.special.entr(shares).sum())

    def residuals(self, logits: Tensor, first: int, probes: Sequence[int]) -> Tensor:
        """Replace logits in place by residuals, probability - label, and return the summed loss of each probe.

        Args:
            logits: (p * k, m), the logits of the p probes one below the other.
            first: position of the first image.
            probes: indices of the p probes.

        Returns:
            float64 (p,).
        """
        shaped, m = logits.unflatten(0, (len(probes), self.num_classes)), logits.shape[1]
        own = self.labels[first : first + m].expand(len(probes), 1, m)
        shaped -= shaped.amax(dim=1, keepdim=True)
        own_logits = shaped.gather(1, own)  # (p, 1, m)
        shaped.exp_()
        total = shaped.sum(dim=1, keepdim=True)
        shaped /= total
        shaped.scatter_add_(1, own, torch.full_like(total, -1.0))
        total.log_()
        if self.row_weights is not None:
            weights = self.row_weights[first : first + m].to(logits.dtype)
            for values in (own_logits, total, shaped):
                values *= weights
        return total.sum(dim=(1, 2), dtype=torch.float64) - own_logits.sum(dim=(1, 2), dtype=torch.float64)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (m, k) of logits (m, k)."""
        return logits.softmax(dim=1)

    def column(self, probe: int) -> None:
        """Return None: all probes have the same labels."""

    def weights(self, probe: int, positions: Tensor) -> Tensor | None:  # noqa: ARG002 - the same for all probes
        """Return the weights of some images, (m,), or None if all weights are equal."""
        return None if self.row_weights is None else self.row_weights[positions]


@dataclass(frozen=True)
class Logistic:
    """Binary cross-entropy of probes with one logit each, for the question of whether an image shows a class.

    Args:
        targets: (n, num_classes) on the device: 1, 0, or `ignored` if the image does not count for the class.
        columns: int64 (p,), the column of `targets` of each probe. Several probes may share a column.
        ignored: label of images that do not count.
        row_weights: float (n,), weight of each image, 0 or more. None weights all images equally.
    """

    targets: Tensor
    columns: Tensor
    ignored: int = -1
    row_weights: Tensor | None = None
    width: int = 1
    at_zero: float = math.log(2)

    def total_weight(self, probe: int) -> float:
        """Return the sum of the weights of the images that count, which is their number without `row_weights`."""
        return self._total(self.targets[:, self.columns[probe]] != self.ignored)

    def _total(self, chosen: Tensor) -> float:
        if self.row_weights is None:
            return int(chosen.sum())
        return float(self.row_weights[chosen].sum(dtype=torch.float64))

    def without_features(self, probe: int) -> float:
        """Return the smallest mean loss for weights of zero: the entropy of the labels that count, in nats."""
        share = self._total(self.targets[:, self.columns[probe]] == 1) / self.total_weight(probe)
        return float(torch.special.entr(torch.tensor([share, 1 - share], dtype=torch.float64)).sum())

    def residuals(self, logits: Tensor, first: int, probes: Sequence[int]) -> Tensor:
        """Replace logits in place by residuals, probability - label, and return the summed loss of each probe.

        Args:
            logits: (p, m), the logits of the p probes.
            first: position of the first image.
            probes: indices of the p probes.

        Returns:
            float64 (p,).
        """
        m = logits.shape[1]
        target = self.targets[first : first + m].T[self.columns[list(probes)]]
        counts: Tensor = target != self.ignored
        if self.row_weights is not None:
            counts = counts * self.row_weights[first : first + m].to(logits.dtype)
        target = target.to(logits.dtype)
        # `softplus` is linear above 20. Its error of 2e-9 is as large as the loss of separable classes.
        loss = -torch.nn.functional.logsigmoid(logits * (2 * target - 1))
        logits.sigmoid_().sub_(target).mul_(counts)
        return (loss * counts).sum(dim=1, dtype=torch.float64)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (m, 1) of logits (m, 1)."""
        return logits.sigmoid()

    def column(self, probe: int) -> int:
        """Return the column of the labels of a probe."""
        return int(self.columns[probe])

    def weights(self, probe: int, positions: Tensor) -> Tensor | None:
        """Return the weights of some images for a probe, (m,). Images that do not count have the weight 0."""
        counts = self.targets[positions, self.columns[probe]] != self.ignored
        return counts if self.row_weights is None else counts * self.row_weights[positions]


Loss = Softmax | Logistic


class Objective:
    """Objective of each probe: mean loss + ||W||^2 / (2 C n). The intercept is not penalised.

    This is scikit-learn's objective. If images have weights, the mean is weighted and n is the sum of the weights. An
    infinite C means no penalty. The objective is a function of the unknowns of each probe, float64 (r + 1, width), in
    the basis of the rows, see `Basis`. The last row of the unknowns is the intercept.

    Args:
        rows: the features.
        loss: the loss, which knows the labels.
        strengths: C of each probe, the inverse strength of its penalty.

    Raises:
        ValueError: no image counts for one of the probes.
    """

    def __init__(self, rows: Rows, loss: Loss, strengths: Sequence[float]) -> None:
        self.rows, self.loss = rows, loss
        self.total_weights = [loss.total_weight(probe) for probe in range(len(strengths))]
        if 0 in self.total_weights:
            raise ValueError(f"no image counts for probe {self.total_weights.index(0)}; remove this probe")
        self.penalties = [1 / (C * n) for C, n in zip(strengths, self.total_weights, strict=True)]
        self.num_passes = 0

    def zeros(self) -> Tensor:
        """Return unknowns of zero for one probe, float64 (r + 1, width)."""
        shape = (self.rows.num_components + 1, self.loss.width)
        return torch.zeros(shape, dtype=torch.float64, device=self.rows.device)

    def evaluate(
        self, unknowns: Sequence[Tensor], probes: Sequence[int], *, exact: bool = False
    ) -> list[tuple[float, Tensor]]:
        """Return the value and the gradient of some probes, each at its own unknowns.

        Args:
            unknowns: float64 (r + 1, width) for each probe.
            probes: indices of the probes.
            exact: if True, compute products in float64, which takes at least twice the time.

        Returns:
            For each probe the value, and the gradient float64 (r + 1, width) with respect to the unknowns.
        """
        self.num_passes += 1
        rows, basis = self.rows, self.rows.basis
        dtype = torch.float64 if exact else rows.dtype
        whitened = rows.whitened if dtype == rows.dtype else None
        joined = torch.cat(list(unknowns), dim=1)  # (r + 1, p * width)
        weights = joined if whitened is not None else basis.matrix @ joined
        columns = joined.shape[1]
        matrix, intercept = weights[:-1].to(dtype), weights[-1:].T.to(dtype)
        by_class = matrix.T.contiguous() if columns < FEW_LOGITS else None

        def evaluate_block(first: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if whitened is None:
                x = rows.centre(x).to(dtype)
            logits = (x @ matrix).T if by_class is None else by_class @ x.T  # (columns, m)
            logits += intercept
            losses = self.loss.residuals(logits, first, probes)
            return losses, logits @ x, logits.sum(dim=1, dtype=torch.float64)

        loss, by_features, by_intercept = (whitened or rows).sum_blocks(evaluate_block, columns)
        gradient = torch.cat([by_features.T, by_intercept[None]])
        if whitened is None:
            gradient = basis.matrix.T @ gradient
        if not rows.has_intercept:
            gradient[-1] = 0
        evaluations = []
        for total, summed, own, probe in zip(
            loss.tolist(), gradient.split(self.loss.width, dim=1), unknowns, probes, strict=True
        ):
            if self.loss.width > 1:  # the residuals of an image sum to zero; the rounding error of the sum would add up
                summed = summed - summed.mean(dim=1, keepdim=True)
            penalty = self.penalties[probe] * basis.penalty[:, None] * own
            value = total / self.total_weights[probe] + float((penalty * own).sum()) / 2
            evaluations.append((value, summed / self.total_weights[probe] + penalty))
        return evaluations
