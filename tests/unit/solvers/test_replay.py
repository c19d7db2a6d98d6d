"""Replayed solves against those done operation by operation: here what a GPU replays is simply run again."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hpcdeq.models import CnnSettings, ModelSettings, Qrnn3dSettings, SparseDenoiser
from hpcdeq.models.support import SupportSettings
from hpcdeq.solvers import Anderson, Broyden, FixedPointMap, Picard, Solution, Solver, iteration, replay
from hpcdeq.solvers.adjoint import _AdjointMap

BANDS = 9
SOLVERS = [
    Anderson(iterations=23, tolerance=1e-4),
    Anderson(iterations=40, tolerance=1e-5, history=7, beta=0.9),
    Anderson(iterations=12, tolerance=0),
    Anderson(iterations=3, tolerance=1e-4),
    Broyden(iterations=23, tolerance=1e-4),
    Picard(iterations=10, tolerance=0),
    Picard(iterations=31, tolerance=1e-3, damping=0.8),
]


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Recordings that are made by keeping what is run, none yet; a list of them."""
    made: list[Callable[[], None]] = []

    def graph_of(run: Callable[[], None]) -> Callable[[], None]:
        made.append(run)
        return run

    monkeypatch.setattr(replay, "graph_of", graph_of)
    monkeypatch.setattr(iteration, "_RECORDINGS", replay.Recordings())
    return made


def a_model(kind: str, solver: Solver, **settings: object) -> SparseDenoiser:
    torch.manual_seed(0)
    atoms = torch.randn(BANDS, 40, dtype=torch.float64)
    prior = CnnSettings(layers=3, filters=5, noise_map=True)
    made = ModelSettings(
        **{
            "map": kind,
            "b": 0.7,
            "mu": 0.05,
            "prior": prior,
            "support": SupportSettings(size=4),
            "solver": solver,
        }  # type: ignore[arg-type]
        | settings
    )
    return SparseDenoiser(made, atoms / torch.linalg.vector_norm(atoms, dim=0)).double()


def blocks(seed: int, number: int = 3, height: int = 5, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, BANDS, height, width, dtype=torch.float64, generator=generator)


def both(solver: Solver, f: FixedPointMap, start: Tensor) -> tuple[Solution, Solution | None]:
    """A solve done operation by operation, and replayed if it can be."""
    found: list[Solution | None] = []

    def doubly(
        f: FixedPointMap, state: Tensor, iterations: int, tolerance: float, mixing: iteration.Mixing
    ) -> Solution:
        found.append(iteration._replay(f, state, iterations, tolerance, mixing))
        return iterate(f, state, iterations, tolerance, mixing)

    iterate = iteration.iterate
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for module in ("anderson", "broyden", "picard"):
            patch.setattr(f"hpcdeq.solvers.{module}.iterate", doubly)
        return solver.solve(f, start), found[0]


def assert_same(found: Solution | None, expected: Solution) -> None:
    assert found is not None
    assert found.iterations.tolist() == expected.iterations.tolist()
    assert found.converged.tolist() == expected.converged.tolist()
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(found.state, expected.state, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", ["fast", "full"])
def test_a_replayed_solve_is_the_solve_whatever_the_numbers(
    kind: str, solver: Solver, recordings: list[Callable[[], None]]
) -> None:
    model = a_model(kind, solver)
    for seed in range(4):
        with torch.no_grad():  # as an optimiser does
            model.log_b.add_(0.1)
            for parameter in model.prior.parameters():
                parameter.mul_(1.05)
        model.after_step()
        noisy = blocks(seed)
        if seed == 3:
            noisy[1] = torch.nan
        f = model.iteration(noisy)
        expected, found = both(solver, f, f.start())
        assert_same(found, expected)
    assert len(recordings) == 2


@pytest.mark.parametrize("kind", ["fast", "full"])
def test_a_replayed_backward_solve_is_the_solve(kind: str, recordings: list[Callable[[], None]]) -> None:
    solver = Anderson(iterations=40, tolerance=1e-6)
    model = a_model(kind, solver)
    for seed in range(3):
        f = model.iteration(blocks(seed))
        with torch.no_grad():
            point = solver.solve(f, f.start()).state
            gradient = torch.randn(
                point.shape, dtype=point.dtype, generator=torch.Generator().manual_seed(seed)
            )
            g = _AdjointMap(f.transpose_at(point), gradient)
            expected, found = both(solver, g, gradient)
        assert_same(found, expected)
    assert len(recordings) == 2


def test_what_differs_in_more_than_its_numbers_has_a_recording_of_its_own(
    recordings: list[Callable[[], None]],
) -> None:
    solver = Anderson(iterations=12, tolerance=1e-4)
    model, other = a_model("fast", solver), a_model("fast", solver)
    cases = [
        (model, solver, blocks(0)),
        (model, Anderson(iterations=13, tolerance=1e-4), blocks(0)),
        (model, Anderson(iterations=12, tolerance=1e-3), blocks(0)),
        (model, Anderson(iterations=12, tolerance=1e-4, history=4), blocks(0)),
        (model, Picard(iterations=12, tolerance=1e-4), blocks(0)),
        (model, solver, blocks(0, number=4)),
        (model, solver, blocks(0, height=6, width=5)),
        (other, solver, blocks(0)),
    ]
    for brighter in (0.0, 0.1):
        for which, by, noisy in cases:
            f = which.iteration(noisy + brighter)
            expected, found = both(by, f, f.start())
            assert_same(found, expected)
    assert len(recordings) == 2 * len(cases)


def test_parameters_that_have_moved_are_not_read_where_they_were() -> None:
    solver = Anderson(iterations=12, tolerance=1e-4)
    model = a_model("fast", solver)
    f = model.iteration(blocks(0))
    both(solver, f, f.start())
    for layer in model.prior.layers():
        assert layer.bias is not None
        layer.bias.data = layer.bias.data + 0.3
    f = model.iteration(blocks(0))
    expected, found = both(solver, f, f.start())
    assert_same(found, expected)


def test_recordings_are_forgotten_the_longest_unused_first_and_with_their_model(
    recordings: list[Callable[[], None]],
) -> None:
    solver = Anderson(iterations=6, tolerance=1e-4)
    models = [a_model("fast", solver)]

    def recorded(number: int) -> bool:
        """Solve for so many blocks; return whether that was recorded now."""
        before = len(recordings)
        f = models[0].iteration(blocks(0, number=number))
        both(solver, f, f.start())
        return len(recordings) > before

    for number in range(1, replay._MOST + 1):
        assert [recorded(number), recorded(number)] == [True, False]
    assert not recorded(1)
    assert recorded(20)  # number 2 has gone for it
    assert not recorded(1)
    assert recorded(2)
    gone = weakref.ref(models[0].prior)
    recordings.clear()
    kept = iteration._RECORDINGS._kept
    for of_model in kept.values():
        for recording in of_model.values():
            if isinstance(recording, replay.Recording):  # a graph holds no map; what stands for one here does
                recording._begin = recording._go_on = lambda: None
    models.clear()
    gc.collect()
    assert gone() is None
    assert not kept


def test_where_recording_fails_the_solve_is_done_as_ever_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "graph_of", failing)
    solver = Anderson(iterations=6, tolerance=1e-4)
    model = a_model("fast", solver)
    f = model.iteration(blocks(0))
    with pytest.warns(UserWarning, match="recording failed: operation not permitted"):
        assert both(solver, f, f.start())[1] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert both(solver, f, f.start())[1] is None


def test_a_map_that_cannot_tell_what_it_computes_is_not_replayed() -> None:
    """The transposed Jacobian by autograd: its graph is another in every solve."""
    solver = Anderson(iterations=6, tolerance=1e-4)
    model = a_model("fast", solver, prior=Qrnn3dSettings(kind="qrnn3d", layers=2, filters=2))
    f = model.iteration(blocks(0))
    point = f.start().detach()
    g = _AdjointMap(f.transpose_at(point), torch.ones_like(point))
    assert both(solver, g, torch.ones_like(point))[1] is None
    assert both(solver, f, f.start())[1] is not None
