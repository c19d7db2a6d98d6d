from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcdeq.solvers import Anderson, Implicit, Picard, Solution, Unrolled, equilibrium

SOLVERS = [Picard(iterations=400, tolerance=1e-13), Anderson(iterations=80, tolerance=1e-13)]


class Contraction:
    """z -> tanh(z A^T) / 2 + c, one block a row."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        self.matrix, self.offset = matrix, offset

    def __call__(self, state: Tensor) -> Tensor:
        return torch.tanh(state @ self.matrix.T) / 2 + self.offset

    def observe(self, state: Tensor) -> Tensor:
        return state


class Linear(Contraction):
    """z -> z A^T + c."""

    def __call__(self, state: Tensor) -> Tensor:
        return state @ self.matrix.T + self.offset


def problem(blocks: int = 4, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator) / 5
    return matrix, torch.randn(blocks, size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
def test_the_solution_of_a_linear_map_is_exact(solver: Picard | Anderson) -> None:
    matrix, offset = problem()
    solution = solver.solve(Linear(matrix, offset), torch.zeros_like(offset))
    exact = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrix, offset.T).T
    torch.testing.assert_close(solution.state, exact, rtol=1e-10, atol=1e-11)
    assert solution.converged.all()


def test_anderson_needs_fewer_iterations_than_picard_where_the_map_hardly_contracts() -> None:
    matrix, offset = problem()
    matrix = matrix + matrix.T
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2) * 0.98
    picard, anderson = (
        kind(iterations=3000, tolerance=1e-8).solve(Linear(matrix, offset), torch.zeros_like(offset))
        for kind in (Picard, Anderson)
    )
    assert picard.converged.all()
    assert anderson.converged.all()
    assert anderson.iterations.max() * 3 < picard.iterations.min()


@pytest.mark.parametrize("adjoint", [Unrolled(), "implicit"], ids=["unrolled", "implicit"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
def test_gradients_pass_gradcheck(solver: Picard | Anderson, adjoint: Unrolled | str) -> None:
    chosen = Implicit(solver=solver) if isinstance(adjoint, str) else adjoint
    matrix, offset = (t.requires_grad_() for t in problem())

    def fixed_point(matrix: Tensor, offset: Tensor) -> Tensor:
        return equilibrium(Contraction(matrix, offset), torch.zeros_like(offset), solver, chosen).state

    assert torch.autograd.gradcheck(fixed_point, (matrix, offset), rtol=1e-5, atol=1e-7)


def test_the_implicit_gradient_of_a_linear_map_is_the_analytic_one_and_reports_its_solve() -> None:
    matrix, offset = problem()
    offset.requires_grad_()
    seen: list[Solution] = []
    solver = Anderson(iterations=60, tolerance=1e-13)
    solution = equilibrium(
        Linear(matrix, offset), torch.zeros_like(offset), solver, Implicit(solver=solver), seen.append
    )
    solution.state.sum().backward()
    exact = torch.linalg.solve(
        (torch.eye(6, dtype=torch.float64) - matrix).T, torch.ones(6, dtype=torch.float64)
    ).expand(4, 6)
    torch.testing.assert_close(offset.grad, exact, rtol=1e-10, atol=1e-11)
    assert len(seen) == 1
    assert seen[0].converged.all()


@pytest.mark.parametrize("kind", [Picard, Anderson])
def test_a_block_does_not_depend_on_its_batch_mates(kind: type[Picard] | type[Anderson]) -> None:
    _, offset = problem(blocks=6)
    gains = torch.tensor([0.1, 0.9, 0.5, 0.99, 0.0, 0.7], dtype=torch.float64)

    def solve(rows: slice) -> Solution:
        class Scaled:
            def __call__(self, state: Tensor) -> Tensor:
                return gains[rows, None] * state + offset[rows]

            def observe(self, state: Tensor) -> Tensor:
                return state

        return kind(iterations=50, tolerance=1e-6).solve(Scaled(), torch.zeros_like(offset[rows]))

    together = solve(slice(0, 6))
    assert len(together.iterations.unique()) > 2
    for i in range(6):
        alone = solve(slice(i, i + 1))
        assert torch.equal(alone.state[0], together.state[i])
        assert alone.iterations[0] == together.iterations[i]


@pytest.mark.parametrize("kind", [Picard, Anderson])
def test_a_block_that_becomes_non_finite_is_reported_and_harms_no_other(
    kind: type[Picard] | type[Anderson],
) -> None:
    class Breaking:
        def __call__(self, state: Tensor) -> Tensor:
            return torch.stack([state[0] / 2 + 1, torch.full_like(state[1], torch.nan)])

        def observe(self, state: Tensor) -> Tensor:
            return state

    solution = kind(iterations=60, tolerance=1e-6).solve(Breaking(), torch.zeros(2, 3))
    assert solution.converged.tolist() == [True, False]
    torch.testing.assert_close(solution.state[0], torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(solution.state[1]).all()


def test_anderson_is_safe_at_the_fixed_point_itself() -> None:
    matrix, offset = problem()
    at = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrix, offset.T).T
    solution = Anderson(iterations=10, tolerance=0).solve(Linear(matrix, offset), at)
    torch.testing.assert_close(solution.state, at)
    zeros = Anderson(iterations=10, tolerance=0).solve(Linear(matrix, offset * 0), at * 0)
    assert torch.equal(zeros.state, at * 0)


def test_memory_of_the_implicit_adjoint_does_not_grow_with_the_iterations() -> None:
    """The graph holds one application of the map, however many were made."""
    matrix, offset = problem()
    matrix.requires_grad_()

    def nodes(iterations: int) -> int:
        solver = Picard(iterations=iterations, tolerance=0)
        solution = equilibrium(
            Contraction(matrix, offset), torch.zeros_like(offset), solver, Implicit(solver=solver)
        )
        seen, todo = set(), [solution.state.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(3) == nodes(40)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Picard(iterations=0), "iterations must be at least 1"),
        (lambda: Picard(tolerance=-1.0), "tolerance must be >= 0"),
        (lambda: Picard(damping=0.0), "damping must be in"),
        (lambda: Anderson(history=0), "history must be at least 1"),
        (lambda: Anderson(beta=2.0), "beta must be in"),
        (lambda: Anderson(regularisation=0.0), "regularisation must be positive"),
    ],
)
def test_wrong_settings_name_the_rule(make: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()  # type: ignore[operator]
