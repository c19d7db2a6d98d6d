from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from typing import ClassVar

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
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
    transpose_by_autograd,
)
from hpcdeq.solvers.anderson import _Mixing
from hpcdeq.solvers.broyden import _InverseJacobian
from hpcdeq.solvers.fixed_point import LinearMap, block_dot
from hpcdeq.solvers.iteration import iterate
from hpcdeq.timing import measuring

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


def iterates(solver: Solver, f: FixedPointMap, state: Tensor) -> list[Tensor]:
    """The states that a solver applies the map to."""
    seen: list[Tensor] = []

    class Watched(FixedPointMap):
        def __call__(self, state: Tensor) -> Tensor:
            seen.append(state)
            return f(state)

        def observe(self, state: Tensor) -> Tensor:
            return f.observe(state)

        def take(self, blocks: Tensor) -> FixedPointMap:
            raise AssertionError("no block leaves: the tolerance is 0")

    solver.solve(Watched(), state)
    return seen


@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_picard_takes_damped_steps(damping: float) -> None:
    f = Gains(torch.tensor([[-1.5], [0.5]], dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64))
    start = torch.arange(6, dtype=torch.float64).view(2, 3)
    point = 1 / (1 - f.gain)
    for k, state in enumerate(iterates(Picard(iterations=6, tolerance=0, damping=damping), f, start)):
        torch.testing.assert_close(state, point + (1 - damping + damping * f.gain) ** k * (start - point))


@pytest.mark.parametrize(("history", "beta"), [(1, 1.0), (2, 1.0), (3, 0.6), (5, 1.0)])
def test_anderson_mixes_as_least_squares_over_the_last_iterates_do(history: int, beta: float) -> None:
    """Minimise |R w| over weights w that sum to 1, by the differences of the residuals R (Walker and Ni, 2011)."""
    matrix, offset = problem(2, 8)
    f, start = Contraction(matrix * 3, offset), torch.zeros_like(offset)
    settings = Anderson(iterations=9, tolerance=0, history=history, beta=beta, regularisation=1e-15)
    found = iterates(settings, f, start)
    for block in range(2):
        states, residuals = [start[block]], []
        for _ in found[1:]:
            residuals.append(f.take(torch.tensor([block]))(states[-1][None])[0] - states[-1])
            X, R = torch.stack(states[-history:], 1), torch.stack(residuals[-history:], 1)
            dX, dR = X.diff(dim=1), R.diff(dim=1)
            gamma = torch.linalg.lstsq(dR, R[:, -1:]).solution
            states.append((X[:, -1:] + beta * R[:, -1:] - (dX + beta * dR) @ gamma)[:, 0])
        torch.testing.assert_close(torch.stack(found)[:, block], torch.stack(states), rtol=1e-6, atol=1e-6)


def test_the_weights_of_anderson_are_those_of_the_regularised_normal_equations() -> None:
    """(gram / trace + regularisation I) w = (1, 1), scaled to a sum of 1."""
    gram = torch.tensor([[1.0, 0.5], [0.5, 3.0]], dtype=torch.float64) * torch.tensor([[[1.0]], [[1e6]]])
    found = _Mixing(Anderson(regularisation=0.1))._weights(gram)
    expected = torch.tensor([0.85 - 0.125, 0.35 - 0.125], dtype=torch.float64) / 0.95
    torch.testing.assert_close(found, expected.expand(2, 2), rtol=1e-12, atol=0)


def test_anderson_goes_on_from_the_last_iterate_where_residuals_are_0_or_not_finite() -> None:
    gram = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    gram[1] = 0
    gram[2, 0, 1] = gram[2, 1, 0] = torch.inf
    gram[3, 0, 0] = torch.nan
    mixing = _Mixing(Anderson())
    expected = torch.tensor([[1 / 3] * 3] + [[0.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(mixing._weights(gram), expected)
    zero = gram[1:2].clone().requires_grad_()
    mixing._weights(zero)[0, 0].backward()
    assert torch.equal(zero.grad, torch.zeros_like(zero)), "one such block must not spoil the gradient of all"


def test_broyden_is_the_good_method_with_a_dense_jacobian() -> None:
    """B += (dg - B dz) dz^T / |dz|^2, from B = -I (Broyden, 1965)."""
    matrix, offset = problem(2, 8)
    f, start = Contraction(matrix * 3, offset), torch.zeros_like(offset)
    found = iterates(Broyden(iterations=9, tolerance=0, history=8), f, start)
    for block in range(2):
        own = f.take(torch.tensor([block]))
        z, B = start[block], -torch.eye(8, dtype=torch.float64)
        g, states = own(z[None])[0] - z, [z]
        for _ in found[1:]:
            dz = -torch.linalg.solve(B, g)
            z = z + dz
            dg, g = own(z[None])[0] - z - g, own(z[None])[0] - z
            B = B + torch.outer(dg - B @ dz, dz) / dz.dot(dz)
            states.append(z)
        torch.testing.assert_close(torch.stack(found)[:, block], torch.stack(states), rtol=1e-9, atol=1e-9)


def test_broyden_keeps_the_newest_updates_and_the_last_step_is_always_known() -> None:
    matrix, offset = problem(2, 8)
    f, memory = Contraction(matrix * 3, offset), _InverseJacobian(3)
    state, updates = torch.zeros_like(offset), []
    for _ in range(7):
        image = f(state)
        before, state = memory.last, memory.step(state, image, image - state)
        if before:
            updates.append((memory.left[-1], memory.right[-1]))
            step, change = (now - then for now, then in zip(memory.last, before, strict=True))
            torch.testing.assert_close(memory._times(memory.left, memory.right, change), step)
    assert len(memory.left) == len(memory.right) == 3
    kept = zip(memory.left, memory.right, strict=True)
    assert all(left is u and right is v for (left, right), (u, v) in zip(kept, updates[-3:], strict=True))


@pytest.mark.parametrize("adjoint", [Unrolled(), "implicit"], ids=["unrolled", "implicit"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)
def test_gradients_pass_gradcheck(solver: Solver, adjoint: Unrolled | str) -> None:
    chosen = Implicit(solver=solver) if isinstance(adjoint, str) else adjoint
    matrix, offset = (t.requires_grad_() for t in problem(blocks=2, size=3))

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


@pytest.mark.parametrize("kind", KINDS)
def test_solvers_are_safe_at_the_fixed_point_itself(kind: type[Picard | Anderson | Broyden]) -> None:
    matrix, offset = problem()
    at = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrix, offset.T).T
    solution = kind(iterations=10, tolerance=0).solve(Linear(matrix, offset), at)
    torch.testing.assert_close(solution.state, at)
    zeros = kind(iterations=10, tolerance=0).solve(Linear(matrix, offset * 0), at * 0)
    assert torch.equal(zeros.state, at * 0)
    assert zeros.residual.tolist() == [0.0] * 4
    assert zeros.converged.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_is_the_same_whatever_the_unit_of_the_states(kind: type[Picard | Anderson | Broyden]) -> None:
    matrix, offset = problem()
    f, tiny, huge = (Linear(matrix, offset * unit) for unit in (1.0, 2.0**-60, 2.0**60))
    solver = kind(iterations=9, tolerance=0)
    expected = iterates(solver, f, torch.zeros_like(offset))
    for g, unit in ((tiny, 2.0**-60), (huge, 2.0**60)):
        found = iterates(solver, g, torch.zeros_like(offset))
        torch.testing.assert_close(torch.stack(found) / unit, torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_that_stay_the_same_break_no_solver(kind: type[Picard | Anderson | Broyden]) -> None:
    """z -> z + 1 has no fixed point: all residuals are equal, so that no mix of them is smaller, and no step changes g."""
    shift = Gains(torch.ones(1, 1), torch.ones(1, 3))
    settings = {"regularisation": 1e-12} if kind is Anderson else {}
    solution = kind(iterations=8, tolerance=1e-9, **settings).solve(shift, torch.zeros(1, 3))
    assert torch.isfinite(solution.state).all()
    assert solution.iterations.tolist() == [8]
    assert not solution.converged.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_states_keep_their_dtype(kind: type[Picard | Anderson | Broyden], dtype: torch.dtype) -> None:
    f = Gains(torch.tensor([[0.5], [-0.25]], dtype=dtype), torch.ones(2, 3, dtype=dtype))
    solution = kind(iterations=20, tolerance=0.01).solve(f, torch.zeros(2, 3, dtype=dtype))
    assert solution.state.dtype == dtype
    assert solution.residual.dtype == torch.float32
    torch.testing.assert_close(solution.state, 1 / (1 - f.gain).expand(2, 3), rtol=0.02, atol=0)
    assert spectral_radius(f, solution.state).tolist() == pytest.approx([0.5, 0.25], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_one_iteration_is_one_application(kind: type[Picard | Anderson | Broyden]) -> None:
    f = Gains(torch.full((2, 1), 0.5), torch.ones(2, 3))
    solution = kind(iterations=1, tolerance=1e-6).solve(f, torch.zeros(2, 3))
    assert f.applied == [2]
    assert torch.equal(solution.state, f.offset)


def test_without_a_tolerance_the_last_image_is_returned_not_the_best() -> None:
    """Deep unrolling is the same number of steps for every block, wherever they lead."""
    f = Gains(torch.tensor([[-2.0], [0.5]]), torch.ones(2, 3))
    state = start = torch.zeros(2, 3)
    for _ in range(6):
        state = f(state)
    last = Picard(iterations=6, tolerance=0).solve(f, start)
    assert torch.equal(last.state, state)
    assert last.iterations.tolist() == [6, 6]
    best = Picard(iterations=6, tolerance=1e-9).solve(f, start)
    assert best.residual[0] == 1.0, "|1 - 0| / |1|; later ones are 3 / 2"
    assert torch.equal(best.state[0], torch.ones(3))


def test_of_equally_good_iterates_the_first_is_returned() -> None:
    """A quarter turn changes every state by the square root of 2."""
    turn = Linear(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.zeros(1, 2))
    solution = Picard(iterations=3, tolerance=1e-9).solve(turn, torch.tensor([[1.0, 0.0]]))
    assert solution.state.tolist() == [[0.0, 1.0]]
    assert solution.iterations.tolist() == [3]


def test_a_residual_equal_to_the_tolerance_is_within_it() -> None:
    f = Gains(torch.zeros(2, 1), torch.ones(2, 4))
    solution = Picard(iterations=9, tolerance=0.5).solve(f, torch.tensor([[0.5], [0.0]]).expand(2, 4))
    assert solution.iterations.tolist() == [1, 2]
    assert solution.residual.tolist() == [0.5, 0.0]
    assert solution.converged.tolist() == [True, True]


def test_no_iterate_is_made_that_is_not_used() -> None:
    """In the graph of an unrolled solve it would stay in memory."""
    steps = []

    class Counting:
        def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
            steps.append(len(state))
            return image

        def take(self, blocks: Tensor) -> None: ...

    f = Gains(torch.zeros(2, 1), torch.ones(2, 3))
    iterate(f, torch.zeros(2, 3), 4, 0.1, Counting())
    assert steps == [2]
    steps.clear()
    iterate(Gains(torch.ones(2, 1), torch.ones(2, 3)), torch.zeros(2, 3), 4, 0.0, Counting())
    assert steps == [2] * 3


class Elsewhere(Tensor):
    """It says that it is on a GPU, and counts how often a value of it is waited for."""

    waits: ClassVar[int] = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    def __bool__(self) -> bool:
        Elsewhere.waits += 1
        return bool(self.as_subclass(Tensor))


class GainsElsewhere(Gains):
    def __call__(self, state: Tensor) -> Tensor:
        return super().__call__(state).as_subclass(Elsewhere)


def test_on_a_gpu_the_batch_keeps_its_shape_and_is_waited_for_only_if_that_can_end_the_solve() -> None:
    gain, offset = torch.tensor([[0.0], [0.5], [torch.nan]]), torch.ones(3, 2)
    solver, start = Picard(iterations=40, tolerance=1e-3), torch.zeros(3, 2)
    here, f = solver.solve(Gains(gain, offset), start), GainsElsewhere(gain, offset)
    Elsewhere.waits = 0
    there = solver.solve(f, start)
    assert f.applied == [3] * int(here.iterations.max())
    assert Elsewhere.waits == len(f.applied) < 40
    for name, value in vars(here).items():
        assert torch.equal(getattr(there, name).as_subclass(Tensor), value), name
    f, Elsewhere.waits = GainsElsewhere(gain, offset), 0
    Picard(iterations=4, tolerance=0).solve(f, start)
    assert f.applied == [3] * 4
    assert Elsewhere.waits == 0


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 2, 5, 4)])
def test_products_of_blocks_are_summed_in_32_bits_or_more(shape: tuple[int, ...]) -> None:
    a, b = torch.rand(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(block_dot(a, b), (a * b).flatten(1).sum(1), rtol=1e-14, atol=0)
    many = torch.ones(2, 7, *shape[1:-1], 999, dtype=torch.bfloat16)  # in bfloat16 256 + 1 is 256
    assert block_dot(many, many).tolist() == [float(many[0].numel())] * 2
    assert block_dot(many, many).dtype == torch.float32


class Applied(Linear):
    """It notes of every application whether a graph is made of it."""

    graphs: ClassVar[list[bool]] = []

    def __call__(self, state: Tensor) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        return super().__call__(state)


@pytest.mark.parametrize(
    ("adjoint", "differentiated"),
    [(Unrolled(), 5), (JacobianFree(), 1), (Phantom(steps=3), 3), (Phantom(steps=1), 1)],
    ids=lambda x: getattr(x, "kind", x),
)
def test_only_what_is_differentiated_makes_a_graph_and_nothing_if_nobody_asks(
    adjoint: Adjoint, differentiated: int
) -> None:
    matrix, offset = problem()
    solver = Picard(iterations=5, tolerance=0)
    f, start = Applied(matrix.requires_grad_(), offset), torch.zeros_like(offset)
    Applied.graphs = []
    solution = equilibrium(f, start, solver, adjoint)
    assert solution.state.requires_grad
    assert not solution.residual.requires_grad, "who keeps it would keep the graph"
    solve = 0 if isinstance(adjoint, Unrolled) else 5
    assert Applied.graphs == [False] * solve + [True] * differentiated
    Applied.graphs = []
    with torch.no_grad():
        solution = equilibrium(f, start, solver, adjoint)
    assert Applied.graphs == [False] * 5
    assert torch.equal(solution.state, solver.solve(f, start).state)


def test_the_implicit_adjoint_solves_forward_without_a_graph_and_names_its_backward_solve() -> None:
    matrix, offset = problem()
    f, solver = Applied(matrix.requires_grad_(), offset), Picard(iterations=5, tolerance=0)
    Applied.graphs = []
    with measuring() as clock:
        solution = equilibrium(f, torch.zeros_like(offset), solver, Implicit(solver=solver))
        assert Applied.graphs == [False] * 5 + [True]
        assert clock.seconds("backward solve") == []
        solution.state.sum().backward()
        assert len(clock.seconds("backward solve")) == 1


def test_an_implicit_gradient_refuses_to_be_differentiated_again() -> None:
    """How the solution of (25) depends on the parameters is not recorded: what came out would lack that, without a word."""
    matrix, offset = (t.requires_grad_() for t in problem())
    f, solver = Contraction(matrix, offset), SOLVERS[0]
    solution = equilibrium(f, torch.zeros_like(offset), solver, Implicit(solver=solver))
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*`unrolled` adjoint"):
        torch.autograd.grad(solution.state.sum(), matrix, create_graph=True)


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
        (lambda: Anderson(regularisation=0.0), "regularisation must be positive, got 0.0"),
        (
            lambda: Picard(tolerance=float("nan")),
            r"tolerance must be >= 0 \(0 runs all iterations\), got nan",
        ),
        (lambda: Picard(damping=1.5), r"damping must be in \(0, 1\], got 1.5"),
        (lambda: Anderson(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: Anderson(beta=0.0), r"beta must be in \(0, 1\], got 0.0"),
        (lambda: Broyden(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: Phantom(damping=1.5), r"damping must be in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_name_the_rule(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(ValueError, match="^" + rule):
        make()


def test_settings_of_a_config_are_chosen_by_their_kind_and_unknown_ones_refused() -> None:
    """Their defaults are what the guides and the recipe leave out: the paper solves by 20 iterations of Anderson."""
    paper = {"kind": "anderson", "iterations": 20, "tolerance": 1e-3, "history": 5, "beta": 1.0}
    expected = {
        Picard: {"kind": "picard", "iterations": 20, "tolerance": 1e-3, "damping": 1.0},
        Anderson: paper | {"regularisation": 1e-6},
        Broyden: {"kind": "broyden", "iterations": 20, "tolerance": 1e-3, "history": 10},
        Unrolled: {"kind": "unrolled"},
        Implicit: {"kind": "implicit", "solver": paper | {"regularisation": 1e-6}},
        JacobianFree: {"kind": "jacobian_free"},
        Phantom: {"kind": "phantom", "steps": 5, "damping": 0.8},
    }
    any_of: TypeAdapter[object] = TypeAdapter(Solver | Adjoint)
    for kind, settings in expected.items():
        assert asdict(kind()) == settings
        assert any_of.validate_python({"kind": settings["kind"]}) == kind()
        with pytest.raises(ValidationError, match="histori"):
            any_of.validate_python({"kind": settings["kind"], "histori": 3})


@pytest.mark.parametrize(
    "settings",
    [kind() for kind in (*KINDS, Unrolled, Implicit, JacobianFree, Phantom)]
    + [Solution(**dict.fromkeys(["state", "residual", "iterations", "converged"], torch.zeros(1)))],
    ids=lambda x: type(x).__name__,
)
def test_settings_and_solutions_are_made_by_name_and_stay_as_they_are(settings: object) -> None:
    """What has been checked remains so, and no number is taken for another one."""
    first, *_ = fields = vars(settings)
    with pytest.raises(FrozenInstanceError):
        setattr(settings, first, fields[first])
    with pytest.raises(TypeError, match="positional"):
        type(settings)(*fields.values())


def test_the_jacobian_penalty_is_the_norm_of_the_jacobian_and_differentiable_in_the_map_alone() -> None:
    matrix, offset = problem(6)
    matrix.requires_grad_()
    # The rows of sqrt(n) I have the moments of standard normal numbers, which is all the mean depends on.
    probe = 6**0.5 * torch.eye(6, dtype=torch.float64)
    penalty = jacobian_penalty(Linear(matrix, offset), offset, probe)
    torch.testing.assert_close(penalty, (matrix**2).sum() / 6)
    penalty.backward()
    torch.testing.assert_close(matrix.grad, 2 * matrix.detach() / 6)
    few, source = offset[:3], torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)

    def of(weights: Tensor) -> Tensor:
        return jacobian_penalty(Contraction(weights, few), few + source, probe[:3])

    assert torch.autograd.gradcheck(of, (matrix.detach().requires_grad_(),))
    of(matrix).backward()
    assert source.grad is None


def test_products_with_the_transpose_leave_their_point_alone_and_can_be_repeated() -> None:
    matrix, offset = problem()
    product = transpose_by_autograd(Linear(matrix, offset), offset)
    for _ in range(2):
        torch.testing.assert_close(product(offset), offset @ matrix)
    assert not offset.requires_grad


def test_the_spectral_radius_of_a_constant_map_is_0_and_of_no_block_that_of_another() -> None:
    offset = torch.ones(3, 4)
    f = Gains(torch.tensor([[0.0], [0.5], [-3.0]]), offset)
    torch.testing.assert_close(spectral_radius(f, offset), torch.tensor([0.0, 0.5, 3.0]))


@pytest.mark.parametrize(
    "state", [torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 2, 3)], ids=lambda s: str(s.dtype)
)
def test_the_spectral_radius_is_the_mean_growth_of_the_last_half_of_twenty_products(state: Tensor) -> None:
    class Growing(FixedPointMap):
        """Its n-th product is n times the vector, which has the shape and the dtype of the state."""

        products = 0

        def __call__(self, state: Tensor) -> Tensor:
            self.products += 1
            assert (state.shape, state.dtype) == (point.shape, point.dtype)
            return self.products * state

        def transpose_at(self, point: Tensor) -> LinearMap:
            return self

    f, point = Growing(), state
    assert spectral_radius(f, point).item() == pytest.approx(math.prod(range(11, 21)) ** 0.1, rel=1e-3)
    assert f.products == 20
    assert spectral_radius(Growing(), point, 3).item() == pytest.approx(6**0.5, rel=1e-3)


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
