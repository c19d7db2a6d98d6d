"""What every solver shares: the map it is given, the solution it returns, and how convergence is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


class Mixing(Protocol):
    """What a solver remembers of one solve, and how it makes the next iterate of it."""

    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        """Return the next iterate after ``state``, whose image is ``image``; ``change`` is what is observed of their difference."""
        ...

    def take(self, blocks: Tensor) -> None:
        """Keep what is remembered of some of the blocks only."""
        ...


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


def iterate(f: FixedPointMap, state: Tensor, iterations: int, tolerance: float, mixing: Mixing) -> Solution:
    """Iterate a map until every block has converged: the loop that all solvers share.

    A block that has converged, or has become non-finite, leaves the batch (on a GPU, where the shape of the batch must
    stay, it is frozen): so its result does not depend on its batch mates, and time follows difficulty.

    Parameters
    ----------
    f
        The map.
    state
        (block, ...) first iterate.
    iterations, tolerance
        Most applications of the map, and the relative residual at which a block is finished; 0 runs all iterations.
    mixing
        The solver's memory of this solve.
    """
    numbers = torch.arange(state.shape[0], device=state.device)
    best = state
    residual = torch.full(numbers.shape, torch.inf, device=state.device)
    count = torch.zeros_like(numbers)
    active = torch.ones_like(numbers, dtype=torch.bool)
    left: list[tuple[Tensor, ...]] = []
    for k in range(1, iterations + 1):
        image = f(state)
        observed = f.observe(image)
        change = observed - f.observe(state)
        with torch.no_grad():
            size = relative_size(change, observed).to(residual.dtype)
            finite = active & torch.isfinite(size)
            better = finite & (size < residual) if tolerance > 0 else finite
            residual = torch.where(better, size, residual)
            count = count + active
            active = finite & (size > tolerance)
        # On the CPU asking about blocks costs nothing, on a GPU it would wait for the answer.
        cpu = image.device.type == "cpu"
        improved = cpu and bool(better.all())
        best = image if improved else torch.where(per_block(better, image), image, best)
        if k == iterations or ((cpu or tolerance > 0) and not bool(active.any())):
            break
        state = mixing.step(state, image, change)
        if cpu and not bool(active.all()):
            stay, gone = active.nonzero()[:, 0], (~active).nonzero()[:, 0]
            left.append((numbers[gone], best[gone], residual[gone], count[gone]))
            state, numbers, best, residual, count, active = (
                x[stay] for x in (state, numbers, best, residual, count, active)
            )
            f = f.take(stay)
            mixing.take(stay)
    if left:
        parts = zip(*left, (numbers, best, residual, count), strict=True)
        numbers, best, residual, count = (torch.cat(part) for part in parts)
        order = numbers.argsort()
        best, residual, count = best[order], residual[order], count[order]
    return Solution(state=best, residual=residual, iterations=count, converged=residual <= tolerance)


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
