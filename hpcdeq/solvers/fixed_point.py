"""What every solver is given and returns: a map and a solution; and the norms by which convergence is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hpcdeq.solvers.replay import Replayable


class LinearMap(Protocol):
    """A linear map on a batch of independent blocks."""

    def __call__(self, state: Tensor) -> Tensor:
        """Apply the map."""
        ...

    def take(self, blocks: Tensor) -> LinearMap:
        """Return the map on some of its blocks, given by their numbers in the batch."""
        ...


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

    def take(self, blocks: Tensor) -> FixedPointMap:
        """Return the map on some of its blocks, given by their numbers in the batch."""
        ...

    def transpose_at(self, point: Tensor) -> LinearMap:
        """Return u -> J^T u, J the Jacobian at the state ``point``: by autograd, unless overridden."""
        return _TransposeByAutograd(self, point)


class ReplayableMap(FixedPointMap, Replayable):
    """A map whose solves a GPU can replay."""


def transpose_by_autograd(function: Callable[[Tensor], Tensor], point: Tensor) -> Callable[[Tensor], Tensor]:
    """Return u -> J^T u, J the Jacobian of a function at ``point``."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        image = function(point)

    def product(vector: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(image, point, vector, retain_graph=True)
        return found

    return product


class _TransposeByAutograd:
    def __init__(self, f: FixedPointMap, point: Tensor) -> None:
        self._f, self._point = f, point
        self._product = transpose_by_autograd(f, point)

    def __call__(self, state: Tensor) -> Tensor:
        return self._product(state)

    def take(self, blocks: Tensor) -> _TransposeByAutograd:
        return _TransposeByAutograd(self._f.take(blocks), self._point[blocks])


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A fixed point, or how far from one each block was left. Not converging is a result, never an exception."""

    state: Tensor
    """(block, ...) image f(z) of each block's best iterate z, the first of least residual; of the last one if tolerance is 0."""
    residual: Tensor
    """(block,) ||D f(z) - D z|| / ||D f(z)|| at that iterate; infinite if no iterate was finite."""
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


def relative_size(change: Tensor, of: Tensor) -> Tensor:
    """(block,) norm of a change relative to that of what has changed."""
    size = block_dot(of, of).sqrt()
    return block_dot(change, change).sqrt() / size.clamp_min(torch.finfo(size.dtype).tiny)


def check_iteration_settings(iterations: int, tolerance: float) -> None:
    """Raise ValueError unless ``iterations >= 1`` and ``tolerance >= 0``."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0 (0 runs all iterations), got {tolerance}")
