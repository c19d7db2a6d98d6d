from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from hpcdeq.solvers import (
    Adjoint,
    Anderson,
    Broyden,
    FixedPointMap,
    Implicit,
    JacobianFree,
    Phantom,
    Picard,
    Solution,
    Solver,
    Unrolled,
    equilibrium,
    jacobian_penalty,
    spectral_radius,
)

KINDS = [Picard, Anderson, Broyden]
SOLVERS = [
    Picard(iterations=400, tolerance=1e-13),
    Anderson(iterations=80, tolerance=1e-13),
    Broyden(iterations=80, tolerance=1e-13),
]


class Contraction(FixedPointMap):
    """z -> tanh(z A^T) / 2 + c, one block a row."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        self.matrix, self.offset = matrix, offset

    def __call__(self, state: Tensor) -> Tensor:
        return torch.tanh(state @ self.matrix.T) / 2 + self.offset

    def observe(self, state: Tensor) -> Tensor:
        return state

    def take(self, blocks: Tensor) -> Contraction:
        return type(self)(self.matrix, self.offset[blocks])


class Linear(Contraction):
    """z -> z A^T + c."""

    def __call__(self, state: Tensor) -> Tensor:
        return state @ self.matrix.T + self.offset


class Gains(FixedPointMap):
    """z -> gain z + offset, another gain for each block; it counts the blocks it is applied to."""

    def __init__(self, gain: Tensor, offset: Tensor, applied: list[int] | None = None) -> None:
        self.gain, self.offset, self.applied = gain, offset, [] if applied is None else applied

    def __call__(self, state: Tensor) -> Tensor:
        self.applied.append(len(state))
        return self.gain * state + self.offset

    def observe(self, state: Tensor) -> Tensor:
        return state

    def take(self, blocks: Tensor) -> Gains:
        return Gains(self.gain[blocks], self.offset[blocks], self.applied)


def problem(blocks: int = 4, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator) / 5
    return matrix, torch.randn(blocks, size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
def test_the_solution_of_a_linear_map_is_exact(solver: Solver) -> None:
    matrix, offset = problem()
    solution = solver.solve(Linear(matrix, offset), torch.zeros_like(offset))
    exact = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrix, offset.T).T
    torch.testing.assert_close(solution.state, exact, rtol=1e-10, atol=1e-11)
    assert solution.converged.all()


def test_anderson_and_broyden_need_fewer_iterations_than_picard_where_the_map_hardly_contracts() -> None:
    matrix, offset = problem()
    matrix = matrix + matrix.T
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2) * 0.98
    picard, anderson, broyden = (
        kind(iterations=3000, tolerance=1e-8).solve(Linear(matrix, offset), torch.zeros_like(offset))
        for kind in KINDS
    )
    for fast in (anderson, broyden):
        assert fast.converged.all()
        assert fast.iterations.max() * 3 < picard.iterations.min()
    assert picard.converged.all()


@pytest.mark.parametrize("adjoint", [Unrolled(), "implicit"], ids=["unrolled", "implicit"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
def test_gradients_pass_gradcheck(solver: Solver, adjoint: Unrolled | str) -> None:
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_does_not_depend_on_its_batch_mates(kind: type[Picard | Anderson | Broyden]) -> None:
    _, offset = problem(blocks=6)
    gains = torch.tensor([0.1, 0.9, 0.5, 0.99, 0.0, 0.7], dtype=torch.float64)

    def solve(rows: slice) -> Solution:
        f = Gains(gains[rows, None], offset[rows])
        return kind(iterations=50, tolerance=1e-6).solve(f, torch.zeros_like(offset[rows]))

    together = solve(slice(0, 6))
    assert len(together.iterations.unique()) > 1
    for i in range(6):
        alone = solve(slice(i, i + 1))
        assert torch.equal(alone.state[0], together.state[i])
        assert alone.iterations[0] == together.iterations[i]


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_becomes_non_finite_is_reported_and_harms_no_other(
    kind: type[Picard | Anderson | Broyden],
) -> None:
    breaking = Gains(torch.tensor([[0.5], [torch.nan]]), torch.ones(2, 3))
    solution = kind(iterations=60, tolerance=1e-6).solve(breaking, torch.zeros(2, 3))
    assert solution.converged.tolist() == [True, False]
    assert solution.residual[1] == torch.inf
    torch.testing.assert_close(solution.state[0], torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(solution.state[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_a_map_is_never_applied_to_no_blocks(
    kind: type[Picard | Anderson | Broyden], tolerance: float
) -> None:
    f = Gains(torch.full((2, 1), torch.nan), torch.ones(2, 3))
    solution = kind(iterations=5, tolerance=tolerance).solve(f, torch.zeros(2, 3))
    assert f.applied == [2], "nothing can come after it"
    assert solution.residual.tolist() == [torch.inf] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_converged_blocks_leave_the_batch(kind: type[Picard | Anderson | Broyden]) -> None:
    # Anderson and Broyden solve one linear equation in two or three steps: make it a nonlinear one.
    class Curved(Gains):
        def __call__(self, state: Tensor) -> Tensor:
            self.applied.append(len(state))
            return torch.sin(self.gain * state) + self.offset

        def take(self, blocks: Tensor) -> Curved:
            return Curved(self.gain[blocks], self.offset[blocks], self.applied)

    gains = torch.tensor([0.0, 0.05, 0.9, 0.3], dtype=torch.float64)[:, None]
    f = Curved(gains, torch.linspace(0.1, 1, 12, dtype=torch.float64).view(4, 3))
    solution = kind(iterations=200, tolerance=1e-9).solve(f, torch.zeros(4, 3, dtype=torch.float64))
    assert solution.converged.all()
    assert sum(f.applied) == solution.iterations.sum()
    assert f.applied[-1] < f.applied[0]
    torch.testing.assert_close(f.take(torch.arange(4))(solution.state), solution.state, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_never_converges_is_reported_and_its_output_is_its_best_iterate(
    kind: type[Picard | Anderson | Broyden],
) -> None:
    class Logistic(Gains):
        """z -> gain z (1 - z): chaotic at a gain of 3.9."""

        seen: ClassVar[list[tuple[float, Tensor]]] = []

        def __call__(self, state: Tensor) -> Tensor:
            image = self.gain * state * (1 - state)
            change = torch.linalg.vector_norm(image[-1] - state[-1]) / torch.linalg.vector_norm(image[-1])
            self.seen.append((float(change), image[-1].clone()))
            return image

        def take(self, blocks: Tensor) -> Logistic:
            return Logistic(self.gain[blocks], self.offset[blocks])

    start = torch.tensor([[0.2, 0.3, 0.4], [0.21, 0.33, 0.47]], dtype=torch.float64)
    gains = torch.tensor([[2.0], [3.9]], dtype=torch.float64)
    Logistic.seen = []
    solution = kind(iterations=7, tolerance=1e-12).solve(Logistic(gains, start), start)
    assert not solution.converged[1]
    finite = [item for item in Logistic.seen if item[0] == item[0]]
    least, image = min(finite, key=lambda item: item[0])
    assert solution.residual[1].item() == pytest.approx(least, rel=1e-6)
    assert torch.equal(solution.state[1], image)


@pytest.mark.parametrize("adjoint", [JacobianFree(), Phantom(steps=4, damping=0.7)], ids=lambda a: a.kind)
def test_the_approximate_gradients_of_a_linear_map_are_the_analytic_ones(adjoint: Adjoint) -> None:
    """Of z -> A z + c: the truncated series sum_i (damping (A^T - I) + I)^i damping g."""
    matrix, offset = problem()
    offset.requires_grad_()
    solution = equilibrium(Linear(matrix, offset), torch.zeros_like(offset), SOLVERS[1], adjoint)
    exact = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrix, offset.detach().T).T
    torch.testing.assert_close(solution.state.detach(), exact, rtol=1e-9, atol=1e-10)
    solution.state.sum().backward()
    steps, damping = (adjoint.steps, adjoint.damping) if isinstance(adjoint, Phantom) else (1, 1.0)
    pull = (1 - damping) * torch.eye(6, dtype=torch.float64) + damping * matrix.T
    vector = damping * torch.ones(6, dtype=torch.float64)
    expected = sum(torch.linalg.matrix_power(pull, i) @ vector for i in range(steps))
    torch.testing.assert_close(offset.grad, expected.expand(4, 6), rtol=1e-10, atol=1e-11)


def test_a_phantom_gradient_of_many_steps_is_the_implicit_one() -> None:
    gradients = []
    for adjoint in (Phantom(steps=300, damping=1.0), Implicit(solver=SOLVERS[0])):
        matrix, offset = (t.requires_grad_() for t in problem())
        solution = equilibrium(Contraction(matrix, offset), torch.zeros_like(offset), SOLVERS[0], adjoint)
        (solution.state**2).sum().backward()
        gradients.append((matrix.grad, offset.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)


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
        (lambda: Broyden(history=0), "history must be at least 1"),
        (lambda: Phantom(steps=0), "steps must be at least 1"),
        (lambda: Phantom(damping=0.0), "damping must be in"),
        (lambda: Anderson(regularisation=0.0), "regularisation must be positive"),
    ],
)
def test_wrong_settings_name_the_rule(make: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()  # type: ignore[operator]


def test_the_jacobian_penalty_is_unbiased_and_differentiable() -> None:
    matrix, offset = problem(2000)
    matrix.requires_grad_()
    probe = torch.randn(offset.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    penalty = jacobian_penalty(Linear(matrix, offset), offset, probe)
    assert penalty.item() == pytest.approx((matrix**2).sum().item() / len(matrix), rel=0.05)
    penalty.backward()
    torch.testing.assert_close(matrix.grad, 2 * matrix / len(matrix), rtol=0, atol=0.05)
    few = offset[:3].clone()

    def of(weights: Tensor) -> Tensor:
        return jacobian_penalty(Contraction(weights, few), few, probe[:3])

    assert torch.autograd.gradcheck(of, (matrix.detach().requires_grad_(),))


@pytest.mark.parametrize("complex_pair", [False, True])
def test_the_spectral_radius_is_that_of_the_jacobian(complex_pair: bool) -> None:
    if complex_pair:  # a rotation: single products swing if it is skewed
        rotation = torch.tensor([[0.0, -2.0], [0.5, 0.0]], dtype=torch.float64) * 0.8
        matrix = torch.block_diag(rotation, 0.3 * torch.eye(3, dtype=torch.float64))
    else:
        matrix = torch.diag(torch.tensor([0.2, 1.3, -0.4], dtype=torch.float64))
    offset = torch.ones(2, len(matrix), dtype=torch.float64)
    with torch.no_grad():  # as the training monitor calls it
        found = spectral_radius(Linear(matrix, offset), offset, 40)
    truth = torch.linalg.eigvals(matrix).abs().max().item()
    torch.testing.assert_close(found, torch.full_like(found, truth), rtol=1e-3, atol=0)
