"""Anderson acceleration (Walker and Ni, 2011, doi:10.1137/10078356X; section IV-B of the paper)."""

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
        return iterate(f, state, self.iterations, self.tolerance, _Mixing(self))


class _Mixing(TensorMixing):
    """The last images, what is observed of their changes, and the inner products of these.

    The weights come from the observed changes, D G and not G: convergence is judged on them, and in the full map they are
    sixteen times fewer numbers.
    """

    def __init__(self, settings: Anderson) -> None:
        self.settings: Anderson = settings
        self.full_after = settings.history
        self.targets: list[Tensor] = []  # z + beta (f(z) - z)
        self.changes: list[Tensor] = []
        self.gram: list[list[Tensor]] = []

    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        if len(self.targets) == self.settings.history:
            del self.targets[0], self.changes[0], self.gram[0]
            for row in self.gram:
                del row[0]
        beta = self.settings.beta
        self.targets.append(image if beta == 1 else torch.lerp(state, image, beta))
        self.changes.append(change)
        # Each product is computed once; the matrix is symmetric.
        newest = [block_dot(r, change) for r in self.changes]
        for row, product in zip(self.gram, newest, strict=False):
            row.append(product)
        self.gram.append(newest)
        gram = torch.stack([torch.stack(row, 1) for row in self.gram], 1)
        weights = self._weights(gram.double()).to(state.dtype)
        mixed = per_block(weights[:, 0], state) * self.targets[0]
        for weight, target in zip(weights.unbind(1)[1:], self.targets[1:], strict=True):
            mixed = torch.addcmul(mixed, per_block(weight, target), target)
        return mixed

    def replace(self, change: Change) -> None:
        for memory in (self.targets, self.changes, *self.gram):
            memory[:] = [change(x) for x in memory]

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
        weights = _solve(scaled + self.settings.regularisation * eye, ones)
        weights = weights / weights.sum(1, keepdim=True)
        return torch.where(usable[:, None], weights, eye[-1])


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix (block, n, n) x = right (block, n)``, positive definite, by Gauss and Jordan.

    Not by `torch.linalg`, which may wait for a GPU, and so could not be recorded; no matrix is singular, and all are small.
    """
    both = torch.cat([matrix, right[:, :, None]], dim=2)
    for k in range(matrix.shape[1]):
        pivot_row = both[:, k : k + 1] / both[:, k : k + 1, k : k + 1]
        both = both - both[:, :, k : k + 1] * pivot_row
        both[:, k] = pivot_row[:, 0]
    return both[:, :, -1]
