"""K-SVD by several processes: seconds by part of the work, and whether the dictionary is that of one process.

    python benchmarks/ksvd_ranks.py [--ranks 1 2] [--signals 20000 200000]

One thread a process. The last contestant shares the update of the atoms too, which takes a sum over the processes for every
atom: the codes' exchange, which it could do without, is not held against it.
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.sparse import KSvdSettings, OmpResult, ksvd
from hpcdeq.training import shared_ksvd

_PARTS = ("code", "exchange", "update", "all", "cpu")


def spectra(count: int) -> Tensor:
    """Mixtures of a few smooth spectra of 31 bands with a little noise, as pixels are."""
    rng = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 31)
    centres, widths = torch.rand(40, 1, generator=rng), 0.05 + 0.35 * torch.rand(40, 1, generator=rng)
    basis = torch.exp(-(((x - centres) / widths) ** 2))
    weights = torch.rand(count, 40, generator=rng) ** 4 * (torch.rand(count, 40, generator=rng) < 0.1)
    return weights @ basis + 0.002 * torch.randn(count, 31, generator=rng)


def update_by_sums(team: Team, atoms: Tensor, codes: OmpResult, signals: Tensor) -> tuple[Tensor, Tensor]:
    """The update of `learn_dictionary` with residuals shared by signals: a sum over the processes for every atom."""
    own = team.part(len(signals))
    support, coefficients = codes.support[own], codes.coefficients[own]
    residual = signals[own] - torch.einsum("nk,nkd->nd", coefficients, atoms[support])
    uses = coefficients.flatten().nonzero().flatten()
    by_atom = uses[support.flatten()[uses].argsort(stable=True)]
    counts = torch.bincount(support.flatten()[uses], minlength=len(atoms))
    for j, group in enumerate(by_atom.split(counts.tolist())):
        users = group // support.shape[1]
        weights = coefficients.flatten()[group]
        part = residual[users] + weights[:, None] * atoms[j]
        direction = team.sum(weights @ part)
        length = torch.linalg.vector_norm(direction)
        atoms[j] = torch.where(length > 0, direction / length, atoms[j])
        residual[users] = part - (part @ atoms[j])[:, None] * atoms[j]
    return team.sum(counts) > 0, torch.cat(team.gather(residual))


def in_each(rank: int, world: int, port: int, count: int, iterations: int, sums: bool, answer: Path) -> None:
    """What each process does: learn, with the parts of the work timed."""
    torch.set_num_threads(1)
    seconds = dict.fromkeys(_PARTS, 0.0)

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            value = call(*arguments, **named)
            seconds[part] += time.perf_counter() - begin
            return value

        return run

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    signals, settings = spectra(count), KSvdSettings(iterations=iterations)
    shared_ksvd.batch_omp = timed("code", shared_ksvd.batch_omp)  # type: ignore[assignment]
    Team.first = timed("exchange", Team.first)  # type: ignore[method-assign]
    Team.gather = timed("exchange", Team.gather)  # type: ignore[method-assign]
    with process_group(place_of(os.environ), torch.device("cpu")) as team:
        update = functools.partial(update_by_sums, team) if sums else ksvd._update_atoms
        ksvd._update_atoms = timed("update", update)  # type: ignore[assignment]
        own = signals[team.part(count)].clone()
        team.any(False)  # all begin together
        begin = time.process_time()
        result = timed("all", shared_ksvd.learn_shared)(own, settings, team)
        seconds["cpu"] = time.process_time() - begin
    if rank == 0:
        torch.save({"seconds": seconds, "dictionary": result.dictionary, "error": result.errors[-1]}, answer)


def measure(world: int, count: int, iterations: int, sums: bool) -> dict[str, Any]:
    """One run of ``world`` processes, as rank 0 tells it."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        spawn(in_each, (world, port, count, iterations, sums, Path(folder) / "answer.pt"), nprocs=world)
        answer: dict[str, Any] = torch.load(Path(folder) / "answer.pt", weights_only=True)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--signals", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    contestants = [(world, False) for world in arguments.ranks] + [(max(arguments.ranks), True)]
    for count in arguments.signals:
        runs: dict[tuple[int, bool], list[dict[str, Any]]] = {c: [] for c in contestants}
        for _ in range(arguments.repeats):
            for world, sums in contestants:
                runs[world, sums].append(measure(world, count, arguments.iterations, sums))
        first = runs[contestants[0]][0]["dictionary"]
        alone = statistics.median(run["seconds"]["all"] for run in runs[contestants[0]])
        print(
            f"{count} signals, {arguments.iterations} iterations, 512 atoms; seconds of rank 0, median (least to most)"
        )
        print("| processes | all | coding | exchange | update | CPU time | speed-up | dictionary |")
        print("|---|---|---|---|---|---|---|---|")
        for (world, sums), each in runs.items():
            cells = [f"{world}, update shared" if sums else str(world)]
            for part in ("all", "code", "exchange", "update", "cpu"):
                taken = [run["seconds"][part] for run in each]
                cells.append(f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})")
            cells.append(f"{alone / statistics.median(run['seconds']['all'] for run in each):.2f}")
            off = max(float((run["dictionary"] - first).abs().max()) for run in each)
            moved = int(((each[0]["dictionary"] - first).abs().amax(dim=0) > 1e-3).sum())
            cells.append("the same bytes" if off == 0 else f"off by {off:.0e}, {moved} atoms by > 1e-3")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
