"""What a simulation is told: the machines that are assumed, and the work that they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcdeq.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is assumed of the machines.

    Each node has one job, which has one share of the work for each of its workers. A failure kills the job, and what its
    workers read, compute and write is lost. A preemption warns it: what is computed is still written, what is read or being
    computed is lost.
    """

    nodes: int
    workers: int = 1
    """On each node."""
    mtbf_hours: float | None = None
    """Mean time between the failures of one node, which are exponential; None is never."""
    repair_seconds: float = 0.0
    """Until a node that failed is back; its job waits for it. 0: there are others, and the job takes one of them."""
    preemptions_per_node_hour: float = 0.0
    """While a job runs; they are exponential too."""
    queue_seconds: float = 0.0
    """Before a job runs for the first time."""
    requeue_seconds: float = 0.0
    """Before it runs again, once its node is back or after a preemption."""
    start_seconds: float = 0.0
    """Of a worker, each time that its job begins: imports, opening, planning."""
    cores: float | None = None
    """Workers that can compute at full speed at a time, all nodes together; more share evenly. None: each has its own cores."""
    storage: float | None = None
    """Bytes that a worker reads or writes in a second while no other does; None: as long as was measured."""
    sigma: float = 0.0
    """Of n that read or write at a time each is slower by 1 + sigma (n - 1): together they never pass 1 / sigma of one."""
    ahead: int = 1
    """Units that a worker reads ahead, and writes behind: 1 on processors, up to 8 on GPUs."""

    def __post_init__(self) -> None:
        for name in ("nodes", "workers", "ahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mtbf_hours", "cores", "storage"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, or None, got {value}")
        for name in ("repair", "queue", "requeue", "start"):
            if getattr(self, f"{name}_seconds") < 0:
                raise ConfigError(
                    f"{name}_seconds must not be negative, got {getattr(self, f'{name}_seconds')}"
                )
        for name in ("preemptions_per_node_hour", "sigma"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def world(self) -> int:
        """Workers of all nodes."""
        return self.nodes * self.workers


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The units of a run, in the order of the plan."""

    pixels: NDArray[np.float64]
    """Of each unit, counted as in `hpcdeq.studies.scaling.results.UnitTimes`."""
    costs: NDArray[np.float64] | None = None
    """By which the plan shares them out; None: their pixels."""
    owners: NDArray[np.int64] | None = None
    """The worker of each, where that is known; None: as the plan does it."""
    bytes_per_pixel: float = 0.0
    """Read, and written again; matters where the bandwidth of the storage is given."""
    parts: int = 1
    """How many units of the run, one after the other, a unit here stands for; in flight is one of them all the same."""

    def shares(self, workers: int) -> list[NDArray[np.int64]]:
        """Return the units of each worker: neighbours, nearly as costly as those of any other, as the plan gives them."""
        owners = self.owners
        if owners is None:
            costs = self.pixels if self.costs is None else self.costs
            middles = 2 * np.cumsum(costs) - costs  # as hpcdeq.inference.plan.share_of has them
            owners = (middles * workers // (2 * costs.sum())).astype(np.int64)
        return [np.flatnonzero(owners == worker) for worker in range(workers)]
