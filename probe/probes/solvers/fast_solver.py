"""The solver `fast`, which fits several values of C, and all classes of multi-label data, in the same passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from probe.environment import threads
from probe.probes.contest import STEPS, Contest
from probe.probes.fits import Fit, Solver, Tick, count_start, for_classes, join_classes
from probe.probes.solvers.curvature import Estimates, max_numbers
from probe.probes.solvers.fast import TOL, Solution, Start, coefficients, loss_of, solve
from probe.probes.solvers.lbfgs import Limits
from probe.probes.solvers.objective import Logistic, Loss, Objective, Rows
from probe.probes.solvers.optimality import finish
from probe.stats.metrics import IGNORED

# Limit on the steps of a fit for the choice of C: `CHOOSING_ITERATIONS`, or as many as take `CHOOSING_COST`
# operations, whichever is larger. A fit that needs more has a C so large that the penalty is almost without
# effect. It is recorded as not converged.
CHOOSING_ITERATIONS = 100
CHOOSING_COST = 3e10
# If an evaluation takes at most `EXACT_COST` operations, all products are in float64, which then cost little. In
# float32, a fit with a large C can end before its optimum, and its validation score would depend on rounding. If an
# evaluation takes at most `SERIAL_COST` operations, one thread is quicker than several.
EXACT_COST, SERIAL_COST = 2e8, 2e7
MAX_BATCH = 8  # values of C that are fitted together; more save little time
BATCH_BYTES = 1 << 31  # memory of the Hessian blocks and Cholesky factors of a batch


def batch_size(num_components: int, width: int, num_probes: int = 1) -> int:
    """Return the number of values of C whose Hessian blocks fit in `BATCH_BYTES`, from 1 to `MAX_BATCH`."""
    return max(1, min(MAX_BATCH, BATCH_BYTES // (8 * max_numbers(num_components, width) * num_probes)))


class Fast(Solver):
    """Solver of `probe.probes.solvers.fast`. It fits all classes of multi-label data together."""

    name = "fast"

    def prepare(self) -> None:
        """Create the rows and the loss of all fits."""
        device = torch.device(self.device)
        if self.y.ndim == 2:
            targets = torch.from_numpy(np.ascontiguousarray(self.y[:, self.classes])).to(device)
            columns = torch.arange(len(self.classes), device=device)
            self.loss: Loss = Logistic(targets, columns, ignored=IGNORED)
        else:
            self.loss = loss_of(np.searchsorted(self.classes, self.y), len(self.classes), device)
        # Multiplications and additions of one evaluation of a fit.
        n, d = len(self.y), self.arrays[0].shape[1]
        self.cost = 4 * n * min(n, d) * self.loss.width * self._num_probes
        is_small = self.cost <= EXACT_COST
        self.estimates = Estimates()
        self.rows = Rows([array.astype(np.float64) for array in self.arrays] if is_small else self.arrays, device)

    @property
    def batch(self) -> int:
        """Return how many values of C to fit together."""
        return batch_size(self.rows.num_components, self.loss.width, self._num_probes)

    @property
    def _num_probes(self) -> int:
        return len(self.classes) if self.y.ndim == 2 else 1

    def fit_all(
        self,
        strengths: Sequence[float],
        starts: Sequence[Fit | None],
        *,
        is_final: bool,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
        contest: Contest | None = None,
    ) -> None:
        """Fit all values of C together, so that each pass over the features serves all of them.

        Fits for the choice of C may have a lower limit of iterations, see `CHOOSING_ITERATIONS`. On large datasets
        without outliers, their convergence is measured with products in float32.
        """
        num = self._num_probes
        loss = self.loss
        if isinstance(loss, Logistic):  # one probe for each class and C
            loss = Logistic(loss.targets, loss.columns.repeat(len(strengths)), loss.ignored)
        objective = Objective(self.rows, loss, [C for C in strengths for _ in range(num)])
        # Values of C that start from the same fit share its starting points, and so an estimate of the curvature there.
        shared = {id(start): [self._starting_point(objective, k, start) for k in range(num)] for start in starts}
        points = [point for start in starts for point in shared[id(start)]]
        finished: dict[int, dict[int, Fit]] = {i: {} for i in range(len(strengths))}

        def add(probe: int, solution: Solution) -> None:
            i, k = divmod(probe, num)
            finished[i][k] = self._as_fit(strengths[i], self._finish(solution, objective, probe, is_final=is_final))
            if len(finished[i]) == num:
                fits = [finished[i][k] for k in range(num)]
                fit = join_classes(strengths[i], fits, self.classes) if self.y.ndim == 2 else fits[0]
                done(count_start(fit, starts[i]))

        def goes_on(probe: int, unknowns: Tensor, value: float, num_steps: int) -> bool:
            if contest is None or num_steps % STEPS:
                return True
            coef, intercept = coefficients(self.rows, unknowns)
            return contest.can_win(strengths[probe], coef, intercept, classes=self.classes, objective=value)

        max_iter = self.max_iter if is_final else min(self.max_iter, self._choosing_iterations())
        limits = Limits(TOL, max_iter, ends_exact=is_final or self.cost <= EXACT_COST)
        with threads(1, blas=1) if self.cost <= SERIAL_COST and self.device == "cpu" else nullcontext():
            solve(
                objective,
                limits,
                starts=points,
                estimates=self.estimates,
                goes_on=goes_on if self.y.ndim == 1 else None,
                tick=tick,
                done=add,
            )

    def _choosing_iterations(self) -> int:
        return max(CHOOSING_ITERATIONS, int(CHOOSING_COST / self.cost))

    def _finish(self, solution: Solution, objective: Objective, probe: int, *, is_final: bool) -> Solution:
        """Measure the convergence of a fit independently of the solver, and continue a final fit that did not converge.

        Fits for the choice of C are measured only if the features have outliers, which can make the solver's own
        estimate very wrong.
        """
        if solution.ended_early or not (is_final or self.rows.has_outliers):
            return solution
        minimum, weights = solution.minimum, self.rows.weights_of(solution.minimum.unknowns)
        max_steps = self.max_iter - minimum.n_iter if is_final else 0
        end = finish(objective, probe, weights, num_iter=minimum.n_iter, max_steps=max_steps)
        measured = end.optimality
        solution = replace(solution, suboptimality=measured.suboptimality, is_optimal=measured.converged)
        if end.num_steps == 0:
            return solution
        norm = float(measured.gradient.abs().max())
        return replace(
            solution,
            minimum=replace(
                minimum,
                unknowns=self.rows.unknowns_of(end.weights),
                objective=measured.objective,
                n_iter=minimum.n_iter + end.num_steps,
            ),
            gradient_norm=norm,
            gradient_ratio=solution.gradient_ratio * norm / solution.gradient_norm,
            excess=float(measured.gradient.square().sum()) / (2 * objective.penalties[probe]),
        )

    def _as_fit(self, C: float, solution: Solution) -> Fit:  # noqa: N803 - the field's name
        coef, intercept = coefficients(self.rows, solution.minimum.unknowns)
        return Fit(
            C=C,
            coef=coef,
            intercept=intercept,
            classes=self.classes,
            is_multi_label=False,
            n_iter=solution.minimum.n_iter,
            converged=solution.is_optimal,
            suboptimality=solution.suboptimality,
            gradient_norm=solution.gradient_norm,
            gradient_ratio=solution.gradient_ratio,
            objective=solution.minimum.objective,
            excess=solution.excess,
            tol=TOL,
            needs_curvature=solution.needs_curvature,
            ended_early=solution.ended_early,
        )

    def _starting_point(self, objective: Objective, k: int, fit: Fit | None) -> Start:
        """Return the weights of a fit, or of its k-th class for multi-label data; weights of zero without a fit."""
        if fit is None:
            return Start(objective.zeros())
        fit = for_classes(fit, self.classes)
        rows = slice(k, k + 1) if fit.is_multi_label else slice(None)
        coef, intercept = (torch.from_numpy(a[rows]).double().to(self.rows.device) for a in (fit.coef, fit.intercept))
        unknowns = self.rows.unknowns_of(torch.cat([coef.T, intercept[None]]))
        return Start(unknowns, fit.needs_curvature)
