"""The processes that were started together, joined while a block of code runs."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from hpcdeq.cluster.ranks import Place
from hpcdeq.errors import ConfigError, MissingExtraError


@contextmanager
def process_group(place: Place, device: torch.device, seconds: float = 600.0) -> Iterator[None]:
    """Join this process to the others; leave with them when the block ends, alone if it fails.

    A process that fails makes the others fail too, at their next exchange or when they leave. One that ends without leaving
    aborts at random.

    Parameters
    ----------
    place
        From `place_of`. A single process joins nobody.
    device
        What tensors are exchanged from: NCCL between GPUs, gloo between CPUs.
    seconds
        How long to wait for the others, here and in every exchange, before giving up.

    Raises
    ------
    ConfigError
        If the others cannot be found in time.
    MissingExtraError
        If the processes can meet through MPI only, and mpi4py is missing.
    """
    if place.world_size == 1:
        yield
        return
    address, port = (place.address, place.port) if place.address and place.port else _meet_through_mpi()
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=seconds),
        )
    except (RuntimeError, ValueError) as error:  # torch's own errors are among them
        raise ConfigError(
            f"rank {place.rank} of {place.world_size} could not meet the others at {address}:{port} within {seconds:.0f} s "
            f"({str(error).splitlines()[0]}); did all start, and can this host reach that port? Set MASTER_ADDR and MASTER_PORT "
            "to choose another"
        ) from error
    try:
        yield
        distributed.barrier()
    finally:
        # Of two gloo processes one in fourteen runs aborted at its end while DDP, in a cycle, still held the group and the other
        # had left; of fifty runs where it was collected none did, nor of thirty-six that left together.
        gc.collect()
        distributed.destroy_process_group()


def _meet_through_mpi() -> tuple[str, int]:
    """Host and a free port of rank 0, told to all by MPI."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtraError("mpi4py", "mpi", "finding the other processes that mpirun started") from error
    chosen: tuple[str, int] | None = None
    if MPI.COMM_WORLD.Get_rank() == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            chosen = socket.gethostname(), free.getsockname()[1]
    told: tuple[str, int] = MPI.COMM_WORLD.bcast(chosen)
    return told
