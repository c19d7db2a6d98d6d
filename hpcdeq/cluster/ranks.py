"""Who am I: this process's place among those that were started together, told by whatever started them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpcdeq.errors import ConfigError

Launcher = Literal["single", "torchrun", "mpi", "slurm"]

_FIRST_PORT, _PORTS = 15000, 15000  # below the range that systems hand out by themselves


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process among those that were started together."""

    launcher: Launcher = "single"
    """Who started them; ``torchrun`` also stands for the DeepSpeed launcher, which sets the same variables."""
    rank: int = 0
    """Number of this process, from 0."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process among those of its node: which of the node's GPUs is its own."""
    address: str | None = None
    """Host of rank 0; None if the launcher does not say: then the processes ask each other through MPI."""
    port: int | None = None
    """Port on which they meet there; None likewise."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank {self.rank} of {self.world_size} processes, as {self.launcher} says, is not possible: "
                "ranks count from 0 to one less; check what sets these variables"
            )


def place_of(environ: Mapping[str, str]) -> Place:
    """Find this process's place from its environment.

    The innermost launcher counts: what MPI starts under SLURM also inherits the variables of the SLURM step that started
    MPI's own helpers. A batch script, and a shell in an allocation, are single processes: only `srun` starts tasks.

    Parameters
    ----------
    environ
        The environment, `os.environ` as a rule.

    Raises
    ------
    ConfigError
        If a launcher's variables are there, but not all, or hold no numbers.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return Place(
            launcher="torchrun",
            rank=_number(environ, "RANK"),
            world_size=_number(environ, "WORLD_SIZE"),
            local_rank=_number(environ, "LOCAL_RANK"),
            address=_text(environ, "MASTER_ADDR"),
            port=_number(environ, "MASTER_PORT"),
        )
    for rank, size, local in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ):
        if rank in environ and not (rank == "PMI_RANK" and _is_slurm_task(environ)):
            return Place(
                launcher="mpi",
                rank=_number(environ, rank),
                world_size=_number(environ, size),
                local_rank=_number(environ, local),
                address=environ.get("MASTER_ADDR"),
                port=_number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else None,
            )
    if _is_slurm_task(environ):
        return Place(
            launcher="slurm",
            rank=_number(environ, "SLURM_PROCID"),
            world_size=_number(environ, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environ, "SLURM_LOCALID"),
            address=environ.get("MASTER_ADDR") or first_host(_text(environ, "SLURM_STEP_NODELIST")),
            port=_number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else _step_port(environ),
        )
    return Place()


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list such as ``gpu[03-05,9],login1``.

    Raises
    ------
    ConfigError
        If it is none.
    """
    # All groups of brackets of the first name: each is its first number.
    name = re.match(r"(?:[^\[\],]|\[[^\]]*\])+", nodes)
    if name is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r} is not a list of nodes")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name.group())


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    # A batch script has SLURM_NTASKS and SLURM_PROCID too: what is true of a task only is that its step has tasks. With
    # srun's PMI-2 plugin PMI_RANK is the task's own number.
    return (
        "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ and "MPI_LOCALRANKID" not in environ
    )


def _step_port(environ: Mapping[str, str]) -> int:
    """A port that all tasks of a step agree on, and other steps and attempts on the node hardly ever have."""
    parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    key = ".".join(environ.get(part, "0") for part in parts)
    return _FIRST_PORT + zlib.crc32(key.encode()) % _PORTS


def _text(environ: Mapping[str, str], name: str) -> str:
    try:
        return environ[name]
    except KeyError:
        raise ConfigError(
            f"{name} is not set, though this process was started by a launcher that sets it; set it, or unset the others "
            "to run a single process"
        ) from None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _text(environ, name)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a number; check what sets it") from None
