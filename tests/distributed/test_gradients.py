"""Two real processes (gloo): the gradients of DDP are those of one process with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from hpcdeq.cluster.group import process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings
from hpcdeq.solvers import Adjoint, Anderson, Implicit, Picard, Solver, Unrolled
from tests.conftest import free_port

BANDS, WORLD = 7, 2
DU: tuple[Solver, Adjoint] = (Picard(iterations=4, tolerance=0), Unrolled())
DEQ: tuple[Solver, Adjoint] = (Anderson(iterations=30), Implicit(solver=Anderson(iterations=30)))
MODELS = {
    f"{name}-{map_}": (map_, *kind) for name, kind in (("du", DU), ("deq", DEQ)) for map_ in ("fast", "full")
}


def new_model(name: str) -> SparseDenoiser:
    map_, solver, adjoint = MODELS[name]
    torch.manual_seed(0)
    atoms = torch.randn(BANDS, 30)
    settings = ModelSettings(
        map=map_,  # type: ignore[arg-type]
        block=12,
        b=2.0,
        prior=CnnSettings(layers=3, filters=6),
        support=SupportSettings(size=3),
        solver=solver,
        adjoint=adjoint,
        learn_dictionary=True,
    )
    return SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)).double()


def blocks() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(4, BANDS, 12, 12, generator=generator, dtype=torch.float64)
    return clean, clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def step(model: torch.nn.Module, clean: Tensor, noisy: Tensor) -> None:
    (model(noisy).estimate - clean).square().mean().backward()


def in_each(rank: int, port: int, name: str, folder: Path) -> None:
    """What each process does: a step of DDP on its half of the batch, then the power iterations."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    clean, noisy = (x.chunk(WORLD)[rank] for x in blocks())
    with process_group(place_of(os.environ), torch.device("cpu"), 60):
        model = new_model(name)
        step(DistributedDataParallel(model), clean, noisy)
        model.after_step()
    state = {"gradients": {n: p.grad for n, p in model.named_parameters()}, "state": model.state_dict()}
    torch.save(state, folder / f"{rank}.pt")


@pytest.mark.parametrize("name", MODELS)
def test_ddp_has_the_gradients_of_one_process(name: str, tmp_path: Path) -> None:
    spawn(in_each, (free_port(), name, tmp_path), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    alone = new_model(name)
    step(alone, *blocks())
    alone.after_step()
    for parameter, tensor in alone.named_parameters():
        assert tensor.grad is not None
        assert tensor.grad.any()
        torch.testing.assert_close(ranks[0]["gradients"][parameter], tensor.grad, rtol=1e-9, atol=1e-13)
    for kind in ("gradients", "state"):  # the spectral norms' vectors are in the state
        assert ranks[0][kind].keys() == ranks[1][kind].keys()
        assert all(torch.equal(value, ranks[1][kind][key]) for key, value in ranks[0][kind].items())
    assert any(key.startswith("prior.power") for key in ranks[0]["state"])
