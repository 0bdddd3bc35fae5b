"""The solver `fast` at several values of C, and for all classes of several labels, in one pass over the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probe.probes.fits import Fit, Solver, Tick, count_start, for_classes, join_classes
from probe.probes.solvers.curvature import max_numbers
from probe.probes.solvers.fast import TOL, Solution, Start, coefficients, loss_of, solve
from probe.probes.solvers.objective import Logistic, Objective, Rows
from probe.probes.solvers.optimality import finish
from probe.stats.metrics import IGNORED

# Steps of the fast solver for a C that is one of many, and the multiplications that they may take before so few are
# enough. Fits that need more are of a C so large that the penalty hardly counts, and say that they did not converge.
CHOOSING_ITERATIONS = 100
CHOOSING_COST = 3e10
MAX_BATCH = 8  # values of C side by side; more have little to gain
BATCH_BYTES = 1 << 31  # of the curvatures of a batch and their factors


def batch_size(num_features: int, width: int, num_probes: int = 1) -> int:
    """Values of C whose curvatures have room side by side, 1 to `MAX_BATCH`."""
    return max(1, min(MAX_BATCH, BATCH_BYTES // (8 * max_numbers(num_features, width) * num_probes)))


class Fast(Solver):
    """`probe.probes.solvers.fast`, which reads the features in blocks, and all classes of several labels at once."""

    name = "fast"

    def prepare(self) -> None:
        """Lay out the labels for the loss."""
        self.rows = Rows(self.parts, self.device)
        if self.y.ndim == 2:
            targets = torch.from_numpy(np.ascontiguousarray(self.y[:, self.classes])).to(self.rows.device)
            columns = torch.arange(len(self.classes), device=self.rows.device)
            self.loss: Any = Logistic(targets, columns, ignored=IGNORED)
        else:
            self.loss = loss_of(np.searchsorted(self.classes, self.y), len(self.classes), self.rows.device)

    @property
    def batch(self) -> int:
        """As many as have room for their curvature."""
        return batch_size(self.rows.num_features, self.loss.width, self._num_probes)

    @property
    def _num_probes(self) -> int:
        return len(self.classes) if self.y.ndim == 2 else 1

    def fit_all(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        is_final: bool,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
    ) -> None:
        """Fit side by side, so that the features are read once for all; where a fit began is not seen in its optimum.

        To choose C, some iterations are enough, and what is said of the end has products in float32.
        """
        num = self._num_probes
        loss = self.loss
        if isinstance(loss, Logistic):  # the probes of all classes, once for each C
            loss = Logistic(loss.targets, loss.columns.repeat(len(strengths)), loss.ignored)
        objective = Objective(self.rows, loss, [C for C in strengths for _ in range(num)])
        starts = [self._start(objective, k, near) for near in nears for k in range(num)]
        ready: dict[int, dict[int, Fit]] = {i: {} for i in range(len(strengths))}

        def keep(probe: int, solution: Solution) -> None:
            i, k = divmod(probe, num)
            ready[i][k] = self._as_fit(strengths[i], self._finish(solution, objective, probe, is_final=is_final))
            if len(ready[i]) == num:
                fits = [ready[i][k] for k in range(num)]
                fit = join_classes(strengths[i], fits, self.classes) if self.y.ndim == 2 else fits[0]
                done(count_start(fit, nears[i]))

        solve(
            objective,
            starts=starts,
            tol=TOL,
            max_iter=self.max_iter if is_final else min(self.max_iter, self._choosing_iterations()),
            ends_exact=is_final,
            tick=tick,
            done=keep,
        )

    def _choosing_iterations(self) -> int:
        a_pass = 4 * len(self.rows) * self.rows.num_features * self.loss.width * self._num_probes
        return max(CHOOSING_ITERATIONS, int(CHOOSING_COST / a_pass))

    def _finish(self, solution: Solution, objective: Objective, probe: int, *, is_final: bool) -> Solution:
        """Measure the end of a fit independently of the solver, and continue a final fit that has not converged.

        Outliers can make the solver's own estimate very wrong. Without them, fits that choose C are not measured.
        """
        if not (is_final or self.rows.has_outliers):
            return solution
        minimum, weights = solution.minimum, self.rows.weights_of(solution.minimum.unknowns)
        max_steps = self.max_iter - minimum.n_iter if is_final else 0
        end = finish(objective, probe, weights, num_iter=minimum.n_iter, max_steps=max_steps)
        found = end.optimality
        solution = replace(solution, suboptimality=found.suboptimality, is_optimal=found.converged)
        if end.num_steps == 0:
            return solution
        norm = float(found.gradient.abs().max())
        return replace(
            solution,
            minimum=replace(
                minimum,
                unknowns=self.rows.unknowns_of(end.weights),
                objective=found.objective,
                n_iter=minimum.n_iter + end.num_steps,
            ),
            gradient_norm=norm,
            gradient_ratio=solution.gradient_ratio * norm / solution.gradient_norm,
            excess=float(found.gradient.square().sum()) / (2 * objective.penalties[probe]),
        )

    def _as_fit(self, C: float, solution: Solution) -> Fit:  # noqa: N803 - the field's name
        coef, intercept = coefficients(self.rows, solution)
        return Fit(
            C=C,
            coef=coef,
            intercept=intercept,
            classes=self.classes,
            several=False,
            n_iter=solution.minimum.n_iter,
            converged=solution.is_optimal,
            suboptimality=solution.suboptimality,
            gradient_norm=solution.gradient_norm,
            gradient_ratio=solution.gradient_ratio,
            objective=solution.minimum.objective,
            excess=solution.excess,
            tol=TOL,
            needs_curvature=solution.needs_curvature,
        )

    def _start(self, objective: Objective, k: int, near: Fit | None) -> Start:
        """At the weights of a fit."""
        if near is None:
            return Start(objective.zeros())
        near = for_classes(near, self.classes)
        rows = slice(k, k + 1) if near.several else slice(None)
        coef, intercept = (torch.from_numpy(a[rows]).double().to(self.rows.device) for a in (near.coef, near.intercept))
        unknowns = self.rows.unknowns_of(torch.cat([coef.T, intercept[None]]))
        return Start(unknowns, near.needs_curvature)
