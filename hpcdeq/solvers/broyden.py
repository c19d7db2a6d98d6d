"""Broyden's good method, of limited memory (Broyden, 1965, doi:10.1090/S0025-5718-1965-0198670-6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import (
    FixedPointMap,
    Solution,
    block_dot,
    check_iteration_settings,
    per_block,
)
from hpcdeq.solvers.iteration import TensorMixing, iterate
from hpcdeq.solvers.replay import Change

_SMALLEST = 1e-8  # of a denominator, relative to its factors: below it the update is left out


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Settings of Broyden's method: a root of g(z) = f(z) - z by quasi-Newton steps.

    The inverse Jacobian is minus the identity plus rank-one updates; each block has its own.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["broyden"] = "broyden"
    iterations: int = 20
    """Most applications of the map."""
    tolerance: float = 1e-3
    """A block whose relative residual is at most this is finished; 0 runs all iterations."""
    history: int = 10
    """Rank-one updates that are kept, two states each; the oldest are forgotten."""

    def __post_init__(self) -> None:
        check_iteration_settings(self.iterations, self.tolerance)
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")

    def solve(self, f: FixedPointMap, state: Tensor) -> Solution:
        """Iterate from ``state (block, ...)``. Differentiable, if gradients are enabled, by unrolling."""
        return iterate(f, state, self.iterations, self.tolerance, _InverseJacobian(self.history))


class _InverseJacobian(TensorMixing):
    """H = -I + sum_i u_i v_i^T, of each block."""

    def __init__(self, history: int) -> None:
        self.settings = self.history = history
        self.full_after = history + 1
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []
        self.last: list[Tensor] = []  # the last iterate and its g

    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        g = image - state
        if self.last:
            self._update(state - self.last[0], g - self.last[1])
        self.last = [state, g]
        return state - self._times(self.left, self.right, g)

    def replace(self, change: Change) -> None:
        for memory in (self.left, self.right, self.last):
            memory[:] = [change(x) for x in memory]

    def _update(self, step: Tensor, change: Tensor) -> None:
        """Make H map the change of g to the step: H += (step - H change) (step^T H) / (step^T H change)."""
        if len(self.left) == self.history:  # first, or H would not map this change to this step
            del self.left[0], self.right[0]
        row = self._times(self.right, self.left, step)
        scale = block_dot(row, change)
        size = (block_dot(row, row) * block_dot(change, change)).sqrt()
        usable = torch.isfinite(scale) & (scale.abs() > _SMALLEST * size)
        factor = torch.where(usable, 1 / torch.where(usable, scale, 1.0), 0.0)
        column = (step - self._times(self.left, self.right, change)) * per_block(factor, step).to(step.dtype)
        self.left.append(column)
        self.right.append(row)

    @staticmethod
    def _times(left: list[Tensor], right: list[Tensor], vector: Tensor) -> Tensor:
        """``(-I + sum left_i right_i^T) vector``."""
        product = -vector
        for u, v in zip(left, right, strict=True):
            product = torch.addcmul(product, per_block(block_dot(v, vector).to(u.dtype), u), u)
        return product
