"""Two real processes (gloo): DDP and every stage of DeepSpeed's ZeRO take the steps of one process with the whole batch."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.config import DdpConfig, DeepSpeedConfig, EngineConfig
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings
from hpcdeq.solvers import Anderson, Implicit, Picard, Unrolled
from hpcdeq.training.engine import Engine
from hpcdeq.training.engines import new_engine
from hpcdeq.training.objective import Objective
from tests.conftest import free_port

BANDS, WORLD, BLOCKS, CLIP = 7, 2, 4, 1e-3
ENGINES: dict[str, EngineConfig] = {
    "ddp": DdpConfig(),
    **{f"zero{stage}": DeepSpeedConfig(kind="deepspeed", stage=stage) for stage in (0, 1, 2, 3)},  # type: ignore[arg-type]
    **{
        f"zero{stage}-offload": DeepSpeedConfig(kind="deepspeed", stage=stage, offload=True)  # type: ignore[arg-type]
        for stage in (1, 2, 3)
    },
}
DU = {"solver": Picard(iterations=4, tolerance=0), "adjoint": Unrolled()}
TO_THE_END = Anderson(iterations=40, tolerance=1e-6)
# The full map does not contract in the dictionary's null space, where last bits would decide when a solve is done.
SO_FAR = Picard(iterations=30, tolerance=0)
MODELS: dict[str, dict[str, Any]] = {
    "du-fast": {"map": "fast", **DU},
    "du-full": {"map": "full", "identity": "paper", **DU},
    "deq-fast": {"map": "fast", "solver": TO_THE_END, "adjoint": Implicit(solver=TO_THE_END)},
    "deq-full": {"map": "full", "solver": SO_FAR, "adjoint": Implicit(solver=SO_FAR)},
}
STEPS = 4
BROKEN = 1  # this step has a gradient that is not a number


def new_model(name: str) -> SparseDenoiser:
    torch.manual_seed(0)
    atoms = torch.randn(BANDS, 30)
    settings = ModelSettings(
        block=12,
        b=1.0,
        prior=CnnSettings(layers=3, filters=6, norm="conv"),
        support=SupportSettings(size=3),
        learn_dictionary=True,
        **MODELS[name],
    )
    return SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0))


def blocks(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    clean = torch.rand(BLOCKS, BANDS, 12, 12, generator=generator)
    return clean, clean + 0.1 * torch.randn(clean.shape, generator=generator)


def start(engine: EngineConfig, model: SparseDenoiser, state: dict[str, Any] | None, team: Team) -> Engine:
    groups = [
        {"params": list(model.prior.parameters()), "lr": 1e-3},
        {"params": list(model.scalars.values()), "lr": 1e-2},
        {"params": [model.atoms], "lr": 0.05},  # so that their norms need restoring
    ]
    return new_engine(engine, Objective(model, 1, 0.0), groups, CLIP, state, team)


def take(engine: Engine, steps: range, team: Team) -> list[float]:
    """Take steps of two micro-batches on this process's rows; the norms of their gradients."""
    norms = []
    for step in steps:
        clean, noisy = (x.chunk(team.world_size)[team.rank] for x in blocks(step))
        size = len(clean) // 2
        for first in (0, size):
            rows = slice(first, first + size)
            with engine.accumulating(last=first > 0):
                weight = size / BLOCKS * team.world_size * (float("nan") if step == BROKEN else 1.0)
                engine.backward(engine.objective(clean[rows], noisy[rows]).loss * weight)
        norms.append(engine.step())
    return norms


def run(
    name: str, engines: list[EngineConfig], team: Team
) -> tuple[list[float], dict[str, Tensor], dict[str, Any]]:
    """Take all steps, each half by an engine that goes on from the other's state."""
    model, state, norms = new_model(name), None, []
    for half, kind in enumerate(engines):
        engine = start(kind, model, state, team)
        engine.set_lr_factor(0.5**half)
        first, last = (half * STEPS // len(engines) for half in (half, half + 1))
        norms += take(engine, range(first, last), team)
        state = engine.state()
    assert state is not None
    return norms, {key: value.clone() for key, value in model.state_dict().items()}, state


def in_each(rank: int, port: int, name: str, folder: Path) -> None:
    """What each process does: the steps by every engine, in one go, continued, and continued by the next engine."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    kinds = list(ENGINES)
    told = {}
    with process_group(place_of(os.environ), torch.device("cpu"), 60) as team:
        for kind, following in pairwise([*kinds, kinds[0]]):
            told[f"{kind} and again"] = run(name, [ENGINES[kind], ENGINES[kind]], team)
            told[f"{kind}, then {following}"] = run(name, [ENGINES[kind], ENGINES[following]], team)
    torch.save(told, folder / f"{rank}.pt")


@pytest.mark.parametrize("name", MODELS)
def test_every_engine_takes_the_steps_of_one_process(name: str, tmp_path: Path) -> None:
    spawn(in_each, (free_port(), name, tmp_path), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    alone = Team(0, 1, torch.device("cpu"))
    norms, weights, state = run(name, [DdpConfig(), DdpConfig()], alone)
    assert norms[0] > CLIP, "clipping is tested too"
    assert max(norms[:1] + norms[2:]) < 10
    start = new_model(name).state_dict()
    assert all(not torch.equal(weights[key], start[key]) for key in weights), "all learnt"
    for engines, (found_norms, found, found_state) in ranks[0].items():
        finite = [i for i in range(STEPS) if i != BROKEN]
        assert [found_norms[i] for i in finite] == pytest.approx([norms[i] for i in finite], rel=1e-4), (
            engines
        )
        assert not torch.isfinite(torch.tensor(found_norms[BROKEN])), engines
        for key, value in weights.items():
            distance = (found[key] - value).abs().max()
            assert distance < 1e-4 * value.abs().max(), f"{engines}: {key} is off by {distance}"
            assert torch.equal(found[key], ranks[1][engines][1][key]), (
                f"{engines}: {key} differs between processes"
            )
        assert found_state["adam"].keys() == state["adam"].keys()
        for key, of_adam in state["adam"].items():
            assert found_state["adam"][key]["step"] == of_adam["step"] == STEPS - 1
            for moment in ("exp_avg", "exp_avg_sq"):
                expected = of_adam[moment]
                torch.testing.assert_close(
                    found_state["adam"][key][moment],
                    expected,
                    rtol=1e-3,
                    atol=1e-4 * expected.abs().max().item(),
                )
