"""Training steps by DDP and by every stage of DeepSpeed's ZeRO, at one and more processes: samples a second, and what is lost.

    python benchmarks/engines.py ARCHIVE [--ranks 1 2] [--device cuda] [KEY=VALUE ...]

Each process has one thread, or one GPU. In turn, in the same processes and on blocks streamed from the archive, every engine takes
a few steps; "alone" is as many processes that take steps on their parts of the batch and exchange nothing: so what an
engine takes longer is communication and its bookkeeping. Settings are those of `hpcdeq train`.
"""

from __future__ import annotations

import argparse
import copy
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.config import DdpConfig, DeepSpeedConfig, EngineConfig, TrainConfig, load_train_config
from hpcdeq.models import SparseDenoiser
from hpcdeq.training import data
from hpcdeq.training.engine import Engine
from hpcdeq.training.engines import new_engine
from hpcdeq.training.objective import Objective

_DEFAULTS = ["model.block=32", "data.batch=8", "data.workers=1", "dictionary.atoms=512"]
_ENGINES: dict[str, EngineConfig] = {
    "DDP": DdpConfig(),
    **{f"ZeRO-{stage}": DeepSpeedConfig(kind="deepspeed", stage=stage) for stage in (0, 1, 2, 3)},  # type: ignore[arg-type]
}


def contestant(
    engine: Engine, batches: Iterator[tuple[Tensor, Tensor, int]], device: torch.device, steps: int
) -> Callable[[], tuple[float, float]]:
    """Take steps; return the seconds they took, and those of them spent waiting for data."""

    def run() -> tuple[float, float]:
        waited = 0.0
        begin = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            clean, noisy, _ = next(batches)
            waited += time.perf_counter() - asked
            clean, noisy = (x.to(device, non_blocking=True) for x in (clean, noisy))
            with engine.accumulating(last=True):
                engine.backward(engine.objective(clean, noisy).loss)
            engine.step()  # asks for the norm, so the device has done its work
        return time.perf_counter() - begin, waited

    return run


def in_each(rank: int, world: int, port: int, config: TrainConfig, steps: int, repeats: int) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = choose_device(config.device, rank)
    with process_group(place_of(os.environ), device, alone=True) as team:
        scenes, _ = data.split(config)
        torch.manual_seed(0)
        atoms = torch.rand(scenes[0].shape[0], config.dictionary.atoms)  # type: ignore[union-attr]
        first = SparseDenoiser(config.model, atoms / torch.linalg.vector_norm(atoms, dim=0)).to(device)
        batches = iter(
            data.torch_loader(data.training_stream(config, scenes, team), 0, pin=device.type == "cuda")
        )
        alone = {"alone": (DdpConfig(), Team(0, 1, device))} if world > 1 else {}
        runs = {}
        for name, (kind, members) in (
            alone | {name: (kind, team) for name, kind in _ENGINES.items()}
        ).items():
            model = copy.deepcopy(first)
            groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "lr": 1e-6}]
            engine = new_engine(kind, Objective(model, 1, 0.0), groups, 1.0, None, members)
            runs[name] = contestant(engine, batches, device, steps)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                team.any(False)  # all begin together
                mine = run()
                slowest = max(team.gather(mine))
                if repeat:  # the first warms up
                    seconds[name].append(slowest)
        if team.leads:
            _tell(seconds, config, world, steps)
        runs.clear()


def _tell(seconds: dict[str, list[tuple[float, float]]], config: TrainConfig, world: int, steps: int) -> None:
    median = {name: statistics.median(total for total, _ in each) for name, each in seconds.items()}
    for name, each in seconds.items():
        rates = [config.data.batch * steps / total for total, _ in each]
        waiting = statistics.median(waited / total for total, waited in each)
        lost = f"{1 - median['alone'] / median[name]:.0%}" if world > 1 else "-"
        rate = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        print(f"| {world} | {name} | {rate} | {waiting:.1%} | {lost} |", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_intermixed_args()
    config = load_train_config(
        None,
        [*_DEFAULTS, f"data.train={arguments.archive}", f"device={arguments.device}", *arguments.overrides],
    )
    print("| processes | engine | samples/s, median (least to most) | waiting for data | communication |")
    print("|---|---|---|---|---|", flush=True)
    for world in arguments.ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        spawn(in_each, (world, port, config, arguments.steps, arguments.repeats), nprocs=world)


if __name__ == "__main__":
    main()
