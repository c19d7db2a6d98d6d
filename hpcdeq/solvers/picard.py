"""Picard iteration: z <- f(z), damped if asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import (
    FixedPointMap,
    Progress,
    Solution,
    check_iteration_settings,
    per_block,
    relative_residual,
)


@dataclass(frozen=True, kw_only=True)
class Picard:
    """Settings of the Picard iteration z <- (1 - damping) z + damping f(z)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["picard"] = "picard"
    iterations: int = 20
    """Most applications of the map."""
    tolerance: float = 1e-3
    """A block whose relative residual is at most this is finished; 0 runs all iterations."""
    damping: float = 1.0
    """In (0, 1]; 1 is the plain iteration."""

    def __post_init__(self) -> None:
        check_iteration_settings(self.iterations, self.tolerance)
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")

    def solve(self, f: FixedPointMap, state: Tensor) -> Solution:
        """Iterate from ``state (block, ...)``. Differentiable, if gradients are enabled, by unrolling."""
        progress = Progress(state, self.tolerance)
        for _ in range(self.iterations):
            image = f(state)
            with torch.no_grad():
                taken = progress.update(relative_residual(f.observe(image), f.observe(state)))
            step = image if self.damping == 1 else torch.lerp(state, image, self.damping)
            state = torch.where(per_block(taken, state), step, state)
            if self.tolerance > 0 and progress.finished:
                break
        return progress.solution(state)
