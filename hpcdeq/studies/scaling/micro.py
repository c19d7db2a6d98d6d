"""Microbenchmarks beside the points of a study, so that a bad curve has a reason: all-reduce, and the storage."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from hpcdeq.archive import Scene, SceneHeader, open_archive
from hpcdeq.cluster.group import Team, mpi_world
from hpcdeq.errors import MissingExtraError
from hpcdeq.studies.scaling.results import Exchange, Transfer

SIZES = tuple(4 << (2 * i) for i in range(11))  # bytes: 4 to 4 MiB
_REPEATS, _WARM_UP = 15, 3
_MOST_SHARDS = 16  # that a process reads, and writes


def all_reduces(team: Team) -> list[Exchange]:
    """Time all-reduces of several sizes over all processes, which must all call this."""
    if team.world_size == 1:
        return []
    found = []
    for size in SIZES:
        vector = torch.ones(size // 4, device=team.device)

        def once(vector: torch.Tensor = vector) -> None:
            distributed.all_reduce(vector)
            if team.device.type == "cuda":
                torch.cuda.synchronize(team.device)

        found.append(Exchange(library="torch", bytes=size, seconds=_median(once, team)))
    return found


def mpi_all_reduces(team: Team) -> tuple[list[Exchange], str | None]:
    """Time the same exchanges through MPI, between the processors; if that cannot be, say why."""
    if team.world_size == 1:
        return [], None
    # An MPI that did not start a process may end it.
    by_mpi = "PMI_RANK" in os.environ and "SLURM_PROCID" not in os.environ  # srun's PMI-2 is not every MPI's
    if not (by_mpi or "OMPI_COMM_WORLD_RANK" in os.environ or "PMIX_RANK" in os.environ):
        return [], "the processes were not started by MPI: mpirun, or srun --mpi=pmix"
    try:
        world = mpi_world()
    except MissingExtraError as error:
        return [], str(error)
    if world.Get_size() != team.world_size:
        return [], f"MPI sees {world.Get_size()} of the {team.world_size} processes"
    found = []
    for size in SIZES:
        given, got = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)

        def once(given: NDArray[np.float32] = given, got: NDArray[np.float32] = got) -> None:
            world.Allreduce(given, got)

        found.append(Exchange(library="mpi", bytes=size, seconds=_median(once, team)))
    return found, None


def transfers(scenes: list[Scene], folder: Path, team: Team) -> list[Transfer]:
    """Time how fast all processes together read shards of scenes, each its own, and write them into an archive in a folder.

    What was read before may come from memory: the report says so.
    """
    shards = [(scene, window) for scene in scenes for window in scene.shards()][team.rank :: team.world_size]
    kept: list[NDArray[np.float32]] = []

    def read(number: int) -> int:
        scene, window = shards[number]
        kept.append(scene.read(window))
        return kept[-1].nbytes

    team.first(lambda: open_archive(folder / "transfers.zarr", create=True))
    archive = open_archive(folder / "transfers.zarr")

    def write(number: int) -> int:
        pixels = kept[number]
        draft = archive.draft(
            f"scene_{team.rank}_{number}", SceneHeader(shape=pixels.shape, dtype=np.dtype(np.float32))
        )
        for window in draft.scene.shards():
            draft.write(window, pixels[(slice(None), *window.slices)])
        draft.publish()
        return pixels.nbytes

    found = [
        _together("read", read, min(len(shards), _MOST_SHARDS), team),
        _together("write", write, min(len(shards), _MOST_SHARDS), team),
    ]
    return [transfer for transfer in found if transfer.bytes]


def _together(what: Literal["read", "write"], once: Callable[[int], int], count: int, team: Team) -> Transfer:
    """Let every process move so many things; all begin at the same time."""
    team.any(False)
    begin, size = time.perf_counter(), 0
    for number in range(count):
        size += once(number)
    each = team.gather((size, time.perf_counter() - begin))
    return Transfer(what=what, bytes=sum(n for n, _ in each), seconds=max(s for _, s in each))


def _median(once: Callable[[], None], team: Team) -> float:
    """Median of the seconds that the slowest process needs."""
    seconds = []
    for repeat in range(_WARM_UP + _REPEATS):
        begin = time.perf_counter()
        once()
        if repeat >= _WARM_UP:
            seconds.append(time.perf_counter() - begin)
    return max(team.gather(statistics.median(seconds)))
