"""How gradients cross a fixed point: through every iteration, by the implicit function theorem, or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from hpcdeq.solvers.anderson import Anderson
from hpcdeq.solvers.broyden import Broyden
from hpcdeq.solvers.fixed_point import FixedPointMap, LinearMap, ReplayableMap, Solution
from hpcdeq.solvers.picard import Picard
from hpcdeq.solvers.replay import Change, Kind, Replayable
from hpcdeq.timing import part

Solver = Picard | Anderson | Broyden


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
    solver: Solver = field(default_factory=Anderson)
    """Solver of the linear fixed point (25); the paper uses 20 iterations."""


@dataclass(frozen=True, kw_only=True)
class JacobianFree:
    """Differentiate one application of the map at the fixed point: (25) with J = 0.

    A descent direction where the map contracts well, at the cost of one step (Fung et al., AAAI 2022, arXiv:2103.12803).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["jacobian_free"] = "jacobian_free"


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Differentiate a few damped iterations from the fixed point on.

    Between `JacobianFree` (one, undamped) and `Implicit` (infinitely many) (Geng et al., NeurIPS 2021, arXiv:2111.05177).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["phantom"] = "phantom"
    steps: int = 5
    """Iterations that are differentiated; memory grows with them."""
    damping: float = 0.8
    """In (0, 1]: z <- (1 - damping) z + damping f(z)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")


Adjoint = Unrolled | Implicit | JacobianFree | Phantom


def equilibrium(
    f: FixedPointMap,
    state: Tensor,
    solver: Solver,
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
        With gradients enabled the state is f(z*), one more application of the map, or several (`Phantom`); not so with
        the `Unrolled` adjoint.
    """
    if not torch.is_grad_enabled() or isinstance(adjoint, Unrolled):
        return solver.solve(f, state)
    with torch.no_grad():
        solution = solver.solve(f, state)
    point = solution.state
    if not isinstance(adjoint, Implicit):
        steps, damping = (1, 1.0) if isinstance(adjoint, JacobianFree) else (adjoint.steps, adjoint.damping)
        for _ in range(steps):
            image = f(point)
            point = image if damping == 1 else torch.lerp(point, image, damping)
        return replace(solution, state=point)
    state = _ImplicitGradient.apply(f(point), f, point, adjoint.solver, on_backward)
    return replace(solution, state=state)


class _AdjointMap(ReplayableMap):
    """u -> J^T u + g, the map of (25)."""

    def __init__(self, transpose: LinearMap, gradient: Tensor) -> None:
        self._transpose, self._gradient = transpose, gradient

    def __call__(self, state: Tensor) -> Tensor:
        return self._transpose(state) + self._gradient

    def observe(self, state: Tensor) -> Tensor:
        return state

    def take(self, blocks: Tensor) -> _AdjointMap:
        return _AdjointMap(self._transpose.take(blocks), self._gradient[blocks])

    def kind(self) -> Kind | None:
        return self._transpose.kind() if isinstance(self._transpose, Replayable) else None

    def replaced(self, change: Change) -> _AdjointMap:
        assert isinstance(self._transpose, Replayable), "it has a kind"
        transpose = cast(LinearMap, self._transpose.replaced(change))
        return _AdjointMap(transpose, change(self._gradient))


class _ImplicitGradient(torch.autograd.Function):
    """The identity, whose backward replaces the gradient g at z* by the solution of (25).

    Autograd then carries that on through the one application of f that made ``image``, to its parameters (26).
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        f: FixedPointMap,
        point: Tensor,
        solver: Solver,
        on_backward: Callable[[Solution], None] | None,
    ) -> Tensor:
        ctx.problem = (f, point, solver, on_backward)
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        f, point, solver, on_backward = ctx.problem
        (gradient,) = gradients
        if torch.is_grad_enabled():
            # What `create_graph` asks for. Of the solution of (25) there is no graph: the second derivative would lack it.
            raise RuntimeError(
                "an implicit gradient cannot be differentiated again: leave out create_graph=True, or take the `unrolled` adjoint"
            )
        with part("backward solve"):
            solution = solver.solve(_AdjointMap(f.transpose_at(point), gradient), gradient)
        if on_backward is not None:
            on_backward(solution)
        return solution.state, None, None, None, None
