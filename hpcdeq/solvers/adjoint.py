"""How gradients cross a fixed point: through every iteration, or through the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.solvers.anderson import Anderson
from hpcdeq.solvers.fixed_point import FixedPointMap, Solution
from hpcdeq.solvers.picard import Picard


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Backpropagate through every iteration of the solver (deep unrolling); memory grows with the iterations."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["unrolled"] = "unrolled"


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Solve u = J^T u + dL/dz at the fixed point (equations 24 to 26); memory does not grow with the iterations."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["implicit"] = "implicit"
    solver: Picard | Anderson = field(default_factory=Anderson)
    """Solver of the linear fixed point (25); the paper uses 20 iterations."""


Adjoint = Unrolled | Implicit


def equilibrium(
    f: FixedPointMap,
    state: Tensor,
    solver: Picard | Anderson,
    adjoint: Adjoint,
    on_backward: Callable[[Solution], None] | None = None,
) -> Solution:
    """Find a fixed point of ``f`` from ``state``, with gradients by the chosen adjoint.

    Parameters
    ----------
    f
        The map; the parameters it depends on get gradients.
    state
        (block, ...) first iterate.
    solver, adjoint
        How to find the fixed point, and how to differentiate it.
    on_backward
        Called with the solution of (25) when an implicit gradient has been computed.

    Returns
    -------
    Solution
        With the implicit adjoint and gradients enabled the state is f(z*), one more application of the map.
    """
    if not torch.is_grad_enabled() or isinstance(adjoint, Unrolled):
        return solver.solve(f, state)
    with torch.no_grad():
        solution = solver.solve(f, state)
    point = solution.state.detach().requires_grad_()
    with torch.enable_grad():
        image = f(point)
    state = _ImplicitGradient.apply(image, point, adjoint.solver, on_backward)
    return replace(solution, state=state)


class _LinearMap:
    """u -> J^T u + g, the map of (25)."""

    def __init__(self, image: Tensor, point: Tensor, gradient: Tensor) -> None:
        self.image, self.point, self.gradient = image, point, gradient

    def __call__(self, state: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self.image, self.point, state, retain_graph=True)
        return product + self.gradient

    def observe(self, state: Tensor) -> Tensor:
        return state


class _ImplicitGradient(torch.autograd.Function):
    """The identity, whose backward replaces the gradient g at z* by the solution of (25).

    Autograd then carries that on through the one application of f that made ``image``, to its parameters (26).
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        point: Tensor,
        solver: Picard | Anderson,
        on_backward: Callable[[Solution], None] | None,
    ) -> Tensor:
        # The graph of ``image`` is walked again in backward, so the tensor itself is kept, outside save_for_backward.
        ctx.problem = (image, point, solver, on_backward)
        return image.detach().view_as(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        image, point, solver, on_backward = ctx.problem
        (gradient,) = gradients
        with torch.no_grad():
            solution = solver.solve(_LinearMap(image, point, gradient), gradient)
        if on_backward is not None:
            on_backward(solution)
        return solution.state, None, None, None
