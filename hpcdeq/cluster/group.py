"""The processes that were started together, joined while a block of code runs."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from hpcdeq.cluster.ranks import Place
from hpcdeq.errors import ConfigError, HpcdeqError, MissingExtraError, PeerError

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a job, as seen by one of them. Every process must call the same methods in the same order."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of ``count`` things are this process's: the parts follow each other by rank, and are nearly equally long."""
        return slice(
            count * self.rank // self.world_size,
            count * (self.rank + 1) // self.world_size,
        )

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, the same bytes in all of them."""
        if self.world_size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def any(self, mine: bool) -> bool:
        """Whether something is so in any process."""
        return bool(self.sum(torch.tensor(float(mine))) > 0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in all of them."""
        told: list[T] = [value] * self.world_size
        if self.world_size > 1:
            distributed.all_gather_object(told, value)
        return told

    def first(self, work: Callable[[], T]) -> T:
        """Do something in the first process only; return its result in all of them, or raise its error in all of them."""
        if self.world_size == 1:
            return work()
        told: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.leads:
            try:
                told = [(work(), None)]
            except (HpcdeqError, ValueError, OSError) as error:
                told = [(None, error)]
        distributed.broadcast_object_list(told, src=0)
        done, failed = told[0]
        if failed is not None:
            raise failed
        return done  # type: ignore[return-value]


@contextmanager
def process_group(
    place: Place, device: torch.device, seconds: float = 600.0, *, alone: bool = False
) -> Iterator[Team]:
    """Join this process to the others; leave with them when the block ends, alone if it fails.

    A process that fails or dies makes the others fail too, at their next exchange or when they leave: at once if its host still
    answers, after ``seconds`` otherwise. One that ends without leaving aborts at random.

    Parameters
    ----------
    place
        From `place_of`. A single process joins nobody, and exchanges nothing.
    device
        What tensors are exchanged from: NCCL between GPUs, gloo between CPUs.
    seconds
        How long to wait for the others, here and in every exchange, before giving up.
    alone
        Whether a single process is a process group too, for a library that asks for one.

    Raises
    ------
    ConfigError
        If the others cannot be found in time.
    PeerError
        If another process failed, or vanished.
    MissingExtraError
        If the processes can meet through MPI only, and mpi4py is missing.
    """
    if place.world_size == 1 and not alone:
        yield Team(0, 1, device)
        return
    _join(place, "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=seconds))
    try:
        yield Team(place.rank, place.world_size, device)
        distributed.barrier()
    except RuntimeError as error:
        if isinstance(error, HpcdeqError) or not _is_of_exchange(error):
            raise
        raise PeerError(
            f"rank {place.rank} of {place.world_size} ends, as another process failed or vanished: its own last line says why, and "
            f"if it has none it was killed, or its node died ({str(error).splitlines()[0].split('. ')[0]})"
        ) from error
    finally:
        # Of two gloo processes one in fourteen runs aborted at its end while DDP, in a cycle, still held the group and the other
        # had left; of fifty runs where it was collected none did, nor of thirty-six that left together.
        gc.collect()
        distributed.destroy_process_group()


def _join(place: Place, backend: str, timeout: timedelta) -> None:
    if place.world_size == 1:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    address, port = (place.address, place.port) if place.address and place.port else _meet_through_mpi()
    try:
        distributed.init_process_group(
            backend,
            init_method=f"tcp://{address}:{port}",
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:  # torch's own errors are among them
        raise ConfigError(
            f"rank {place.rank} of {place.world_size} could not meet the others at {address}:{port} within "
            f"{timeout.total_seconds():.0f} s "
            f"({str(error).splitlines()[0]}); did all start, and can this host reach that port? Set MASTER_ADDR and MASTER_PORT "
            "to choose another"
        ) from error


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether an error is of an exchange with other processes: torch has a class for some of them, and words for the rest."""
    return isinstance(error, distributed.DistError) or any(
        word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset", "NCCL")
    )


def _meet_through_mpi() -> tuple[str, int]:
    """Host and a free port of rank 0, told to all by MPI; on one machine no name has to be resolved."""
    world = mpi_world()
    host = socket.gethostname()
    if set(world.allgather(host)) == {host}:
        host = "127.0.0.1"
    chosen: tuple[str, int] | None = None
    if world.Get_rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            chosen = host, free.getsockname()[1]
    told: tuple[str, int] = world.bcast(chosen)
    return told


def mpi_world() -> Any:
    """All processes that MPI started, as mpi4py's communicator.

    Raises
    ------
    MissingExtraError
        If mpi4py is not installed.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtraError("mpi4py", "mpi", "exchanging through MPI") from error
    return MPI.COMM_WORLD
