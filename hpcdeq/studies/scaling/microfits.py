"""What the microbenchmarks say: all-reduces by latency and bandwidth, storage by how it saturates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcdeq.studies.scaling.regression import Estimate, Floats, NoFit, TwoCosts, generator, redrawn, two_costs
from hpcdeq.studies.scaling.results import Exchange, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """What an all-reduce costs, by the number of processes and bytes."""

    costs: TwoCosts
    """Seconds of a message, and seconds of a byte."""
    worlds: tuple[int, ...]
    """Numbers of processes it was measured on."""

    @property
    def latency(self) -> Estimate:
        """Seconds of a message, however small."""
        return self.costs.first

    @property
    def bandwidth(self) -> Estimate:
        """Bytes per second of one process; infinite where bytes cost too little to be seen."""
        return _inverse(self.costs.parameters[:, 1], self.costs.scatter)

    def draws(self, size: int, world: int) -> Floats:
        """Return the seconds of an all-reduce of ``size`` bytes, over the draws."""
        return self.costs.draws(*_ring(size, world))

    def seconds(self, size: int, world: int) -> Estimate:
        """Return the seconds of an all-reduce of ``size`` bytes over ``world`` processes."""
        return Estimate.of(self.draws(size, world), self.costs.scatter)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """All-reduces inside a machine and between machines; one may be missing, not both."""

    inside: Link | None
    between: Link | None

    def link(self, machines: int) -> Link:
        """Return what was measured for so many machines, or the other one if nothing was."""
        chosen = (self.between or self.inside) if machines > 1 else (self.inside or self.between)
        assert chosen is not None
        return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
    """How much processes that read, or write, at the same time get out of the storage."""

    costs: TwoCosts
    """Seconds of a byte that are divided among the processes, and those that are not."""
    worlds: tuple[int, ...]
    """Numbers of processes it was measured on."""

    @property
    def alone(self) -> Estimate:
        """Bytes per second of one process alone."""
        return _inverse(self.costs.parameters[:, 0], self.costs.scatter)

    @property
    def limit(self) -> Estimate:
        """Bytes per second that no number of processes passes; infinite where they do not disturb each other."""
        return _inverse(self.costs.parameters[:, 1], self.costs.scatter)

    @property
    def contention(self) -> Estimate:
        """Sigma of the scalability law: 0 if processes do not disturb each other, 1 if two get no more than one."""
        alone, shared = self.costs.parameters.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate.of(np.where(shared > 0, shared / alone, 0.0), self.costs.scatter)

    def draws(self, size: float, world: int) -> Floats:
        """Return the seconds of ``size`` bytes, of all processes together, over the draws."""
        return self.costs.draws(size / world, size * (world - 1) / world)

    def throughput(self, world: int) -> Estimate:
        """Return the bytes per second of ``world`` processes together."""
        return _inverse(self.draws(1.0, world), self.costs.scatter)


def fit_network(points: Iterable[Result], library: Literal["torch", "mpi"] = "torch") -> Network | NoFit:
    """Fit latency and bandwidth to the all-reduces of the points that are not crowded.

    The alpha-beta model of a ring: ``2 (W - 1) alpha + 2 (W - 1) / W * bytes / bandwidth`` (Thakur, Rabenseifner and Gropp 2005,
    doi:10.1177/1094342005051521). Points inside one machine and on several are fitted apart, because their wires differ.

    Parameters
    ----------
    points
        Of any series.
    library
        Through which they were made.
    """
    uncrowded = [point for point in points if not point.crowded]

    def fit(name: str, inside: bool) -> Link | NoFit:
        return _fit_link(
            name,
            [
                (exchange, point.world)
                for point in uncrowded
                for exchange in point.exchanges
                if exchange.library == library and point.world > 1 and (len(point.hosts) == 1) == inside
            ],
        )

    inside, between = fit(f"{library} inside", True), fit(f"{library} between", False)
    if isinstance(inside, NoFit) and isinstance(between, NoFit):
        return NoFit(inside.reason)
    return Network(
        inside=None if isinstance(inside, NoFit) else inside,
        between=None if isinstance(between, NoFit) else between,
    )


def fit_storage(points: Iterable[Result], what: Literal["read", "write"]) -> Storage | NoFit:
    """Fit how the throughput of the storage saturates to the transfers of the points that are not crowded.

    ``W x / (1 + sigma (W - 1))`` bytes per second for W processes that get x each alone: the universal scalability law without
    coherency (Gunther, *Guerrilla Capacity Planning*, 2007, doi:10.1007/978-3-540-31010-5). Seconds per byte are linear in
    ``1 / x`` and ``sigma / x``, so this is a fit of two costs.

    Parameters
    ----------
    points
        Of any series.
    what
        Which transfers.
    """
    found = [
        (transfer, point.world)
        for point in points
        if not point.crowded
        for transfer in point.transfers
        if transfer.what == what and transfer.bytes > 0
    ]
    amounts = np.array([[t.bytes / world, t.bytes * (world - 1) / world] for t, world in found]).reshape(
        -1, 2
    )
    values, scatter = redrawn(amounts, np.array([t.seconds for t, _ in found]), generator(what))
    costs = two_costs(amounts, values, scatter)
    if costs is None:
        return NoFit(
            f"the storage was not measured ({what}) by two numbers of processes with a core or a GPU each, so it is not known "
            "whether it saturates"
        )
    return Storage(costs=costs, worlds=_worlds(found))


def _fit_link(name: str, found: Sequence[tuple[Exchange, int]]) -> Link | NoFit:
    amounts = np.array([_ring(exchange.bytes, world) for exchange, world in found]).reshape(-1, 2)
    values, scatter = redrawn(amounts, np.array([e.seconds for e, _ in found]), generator(name))
    costs = two_costs(amounts, values, scatter)
    if costs is None:
        return NoFit(
            "all-reduces of at least two sizes, over processes with a core or a GPU each, are needed to tell latency from bandwidth"
        )
    return Link(costs=costs, worlds=_worlds(found))


def _ring(size: int, world: int) -> tuple[float, float]:
    """Return how many messages one after the other an all-reduce over a ring takes, and how many bytes."""
    return 2.0 * (world - 1), 2.0 * (world - 1) / world * size


def _worlds(found: Iterable[tuple[object, int]]) -> tuple[int, ...]:
    return tuple(sorted({world for _, world in found}))


def _inverse(costs: Floats, scatter: bool) -> Estimate:
    with np.errstate(divide="ignore"):
        return Estimate.of(1 / costs, scatter)
