"""Picard iteration: z <- f(z), damped if asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import FixedPointMap, Solution, check_iteration_settings
from hpcdeq.solvers.iteration import TensorMixing, iterate
from hpcdeq.solvers.replay import Change


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
        return iterate(f, state, self.iterations, self.tolerance, _Damping(self.damping))


class _Damping(TensorMixing):
    def __init__(self, damping: float) -> None:
        self.settings = self.damping = damping
        self.full_after = 0

    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        return image if self.damping == 1 else torch.lerp(state, image, self.damping)

    def replace(self, change: Change) -> None:
        """Nothing is remembered."""
