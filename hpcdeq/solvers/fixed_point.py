"""What every solver shares: the map it is given, the solution it returns, and how convergence is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class FixedPointMap(Protocol):
    """A map z -> f(z) on a batch of independent blocks; the first axis of z is the block."""

    def __call__(self, state: Tensor) -> Tensor:
        """Apply the map once."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return what convergence is judged on: the denoised block D G, not its codes.

        The full map is only nonexpansive in G (the null space of D), so a residual of G stays near 2e-2 when D G is at 5e-5.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A fixed point, or how far from one each block was left. Not converging is a result, never an exception."""

    state: Tensor
    """(block, ...) last iterate that was finite."""
    residual: Tensor
    """(block,) ||D f(z) - D z|| / ||D f(z)|| at the last iteration of each block."""
    iterations: Tensor
    """(block,) applications of the map each block needed."""
    converged: Tensor
    """(block,) whether the residual is within the tolerance."""


def per_block(values: Tensor, like: Tensor) -> Tensor:
    """Shape (block,) values so that they broadcast over the states ``like``."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def block_dot(a: Tensor, b: Tensor) -> Tensor:
    """(block,) inner products of each block, summed in float32 or better.

    In two stages, as a sum to a single number is split over threads, and a block alone would get other bytes than in a batch.
    """
    products = a * b
    precise = torch.promote_types(products.dtype, torch.float32)
    if products.dim() > 2:
        products = products.sum(dim=tuple(range(2, products.dim())), dtype=precise)
    return products.sum(1, dtype=precise)


def relative_residual(observed_next: Tensor, observed: Tensor) -> Tensor:
    """(block,) relative change of the observed state."""
    change = observed_next - observed
    size = block_dot(observed_next, observed_next).sqrt()
    return block_dot(change, change).sqrt() / size.clamp_min(torch.finfo(size.dtype).tiny)


class Progress:
    """Which blocks are still being iterated, and how they stand.

    A block that has converged, or has become non-finite, is frozen: its result does not depend on its batch mates.
    """

    def __init__(self, state: Tensor, tolerance: float) -> None:
        blocks, device = state.shape[0], state.device
        self.tolerance = tolerance
        self.active = torch.ones(blocks, dtype=torch.bool, device=device)
        self.residual = torch.full((blocks,), torch.inf, device=device)
        self.iterations = torch.zeros(blocks, dtype=torch.int64, device=device)

    def update(self, residual: Tensor) -> Tensor:
        """Record one more iteration; return the (block,) mask of blocks whose new iterate is to be taken."""
        taken = self.active & torch.isfinite(residual)
        self.iterations = self.iterations + self.active
        self.residual = torch.where(self.active, residual.to(self.residual.dtype), self.residual)
        self.active = taken & (residual > self.tolerance)
        return taken

    @property
    def finished(self) -> bool:
        """Whether no block is left to iterate."""
        return not bool(self.active.any())

    def solution(self, state: Tensor) -> Solution:
        """Return the result with these states."""
        return Solution(
            state=state,
            residual=self.residual,
            iterations=self.iterations,
            converged=self.residual <= self.tolerance,
        )


def check_iteration_settings(iterations: int, tolerance: float) -> None:
    """Raise ValueError unless ``iterations >= 1`` and ``tolerance >= 0``."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0 (0 runs all iterations), got {tolerance}")
