"""Anderson acceleration (Walker and Ni, 2011, doi:10.1137/10078356X; section IV-B of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import (
    FixedPointMap,
    Progress,
    Solution,
    block_dot,
    check_iteration_settings,
    per_block,
    relative_residual,
)


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Settings of Anderson acceleration: the next iterate mixes the last ``history`` ones.

    The weights minimise the norm of the mixed residual; each block has its own.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["anderson"] = "anderson"
    iterations: int = 20
    """Most applications of the map."""
    tolerance: float = 1e-3
    """A block whose relative residual is at most this is finished; 0 runs all iterations."""
    history: int = 5
    """Iterates that are mixed; memory grows with it."""
    beta: float = 1.0
    """Share of f(z) against z in the mix, in (0, 1]."""
    regularisation: float = 1e-6
    """Added to the diagonal of the normal equations, relative to their trace: they are never singular."""

    def __post_init__(self) -> None:
        check_iteration_settings(self.iterations, self.tolerance)
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be in (0, 1], got {self.beta}")
        if not self.regularisation > 0:
            raise ValueError(f"regularisation must be positive, got {self.regularisation}")

    def solve(self, f: FixedPointMap, state: Tensor) -> Solution:
        """Iterate from ``state (block, ...)``. Differentiable, if gradients are enabled, by unrolling."""
        progress = Progress(state, self.tolerance)
        states: list[Tensor] = []
        images: list[Tensor] = []
        residuals: list[Tensor] = []
        products: dict[tuple[int, int], Tensor] = {}  # of residuals, by iteration: each is computed once
        for k in range(self.iterations):
            image = f(state)
            with torch.no_grad():
                taken = progress.update(relative_residual(f.observe(image), f.observe(state)))
            states, images, residuals = (
                [*kept, new][-self.history :]
                for kept, new in ((states, state), (images, image), (residuals, image - state))
            )
            recent = range(k + 1 - len(residuals), k + 1)
            products |= {(i, k): block_dot(r, residuals[-1]) for i, r in zip(recent, residuals, strict=True)}
            gram = torch.stack(
                [torch.stack([products[min(i, j), max(i, j)] for j in recent], 1) for i in recent], 1
            )
            weights = self._weights(gram.double()).to(state.dtype)
            state = torch.where(per_block(taken, state), self._mix(weights, states, images), state)
            if self.tolerance > 0 and progress.finished:
                break
        return progress.solution(state)

    def _mix(self, weights: Tensor, states: list[Tensor], images: list[Tensor]) -> Tensor:
        mixed = torch.zeros_like(images[-1])
        for weight, z, g in zip(weights.unbind(1), states, images, strict=True):
            mixed = torch.addcmul(
                mixed, per_block(weight, g), g if self.beta == 1 else torch.lerp(z, g, self.beta)
            )
        return mixed

    def _weights(self, gram: Tensor) -> Tensor:
        """(block, history) weights that sum to 1 and minimise w^T gram w; the last iterate alone where gram is 0 or not finite."""
        size = gram.shape[-1]
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        usable = torch.isfinite(gram).all(2).all(1) & (trace > 0)
        scaled = torch.where(
            usable[:, None, None], gram / trace.clamp_min(torch.finfo(gram.dtype).tiny)[:, None, None], 0.0
        )
        eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
        ones = torch.ones(gram.shape[0], size, dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(scaled + self.regularisation * eye, ones)
        weights = weights / weights.sum(1, keepdim=True)
        return torch.where(usable[:, None], weights, eye[-1])
