"""A simulation of bulk denoising on clusters that nobody has at hand: failing nodes, preemption, shared storage, crowded cores.

It does what `hpcdeq.inference` does: the plan gives each worker its share beforehand, a worker reads ahead and writes behind
while it computes, and whatever ends its job costs the units in flight, which it computes again when the job is back.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcdeq.errors import ConfigError, MissingExtraError
from hpcdeq.studies.scaling.assumptions import Cluster, Work
from hpcdeq.studies.scaling.results import UnitTimes

try:
    import simpy
except ImportError as error:
    raise MissingExtraError("simpy", "scale", "simulating runs") from error

Kind = Literal["failure", "preemption"]
Upset = tuple[float, Kind]
"""Something that ends the job of a node: when, in seconds from the start of the run, and what."""

_STUCK = 1000  # jobs of a node that end in a row without a finished unit: it never will be


@dataclass(frozen=True, kw_only=True)
class Run:
    """What happened in one simulated run."""

    seconds: float
    """From the submission until the last worker ended."""
    useful: float
    """Seconds of computing that went into finished units, as measured: not stretched by crowded cores."""
    lost: float
    """The same for work that was dropped, and done again."""
    failures: int
    """Of nodes, while a job ran on them."""
    preemptions: int
    node_seconds: float
    """In which jobs held nodes."""
    ends: tuple[float, ...]
    """When each worker ended."""
    finished: tuple[float, ...]
    """When each unit was written."""


def simulate(
    cluster: Cluster,
    work: Work,
    times: Sequence[UnitTimes],
    seed: int,
    *,
    upsets: Mapping[int, Sequence[Upset]] | None = None,
) -> Run:
    """Simulate a run until every unit is written.

    Assumed is, besides what `Cluster` says: a unit takes the seconds per pixel of a measured one, drawn anew for each, and
    the same when it is done again; reading and writing take no cores, as what they take is in the measured times; all that is
    read or written goes through one storage; jobs have no time limit; no worker takes over units of another; and nobody has
    to do anything by hand.

    Parameters
    ----------
    cluster
        The machines.
    work
        What is to be done.
    times
        Measured units. Where they were measured on crowded cores, so are they here.
    seed
        The same gives the same run. What happens to a node depends on the seed and the number of the node only.
    upsets
        What happens to nodes, by their number and in order, in place of what is drawn from the rates of the cluster: to
        replay what happened. What comes while no job runs on the node has no effect.

    Raises
    ------
    ConfigError
        If there are no units, no measured ones, or the nodes fail so often that some unit is never finished.
    """
    if not times or not len(work.pixels):
        raise ConfigError(f"nothing to simulate: {len(work.pixels)} units, {len(times)} measured ones")
    return _Simulation(cluster, work, times, seed, upsets).run()


class _Simulation:
    def __init__(
        self,
        cluster: Cluster,
        work: Work,
        times: Sequence[UnitTimes],
        seed: int,
        upsets: Mapping[int, Sequence[Upset]] | None,
    ) -> None:
        self.cluster = cluster
        self.seed = seed
        self.upsets = upsets
        drawn = np.random.default_rng([seed, 0]).integers(len(times), size=len(work.pixels))

        def seconds(part: str) -> NDArray[np.float64]:
            per_pixel = np.asarray([getattr(unit, part) / unit.pixels for unit in times], np.float64)
            return per_pixel[drawn] * work.pixels

        self.compute: list[float] = seconds("compute_seconds").tolist()
        if cluster.storage is None:
            self.read: list[float] = seconds("read_seconds").tolist()
            self.write: list[float] = seconds("write_seconds").tolist()
        else:
            moved = work.pixels * (work.bytes_per_pixel / cluster.storage)
            self.read, self.write = moved.tolist(), moved.tolist()
        self.left: list[list[int]] = [share.tolist() for share in work.shares(cluster.world)]
        self.finished = [math.nan] * len(work.pixels)
        self.parts = [work.parts] * len(work.pixels)
        self.useful = sum(self.compute)
        self.ends = [math.nan] * cluster.world
        self.lost = self.node_seconds = 0.0
        self.counts: dict[Kind, int] = {"failure": 0, "preemption": 0}
        self.env = simpy.Environment()
        cores, sigma = cluster.cores or math.inf, cluster.sigma
        self.cores = _Shared(self.env, lambda n: min(1.0, cores / n))
        self.storage = _Shared(self.env, lambda n: 1.0 / (1.0 + sigma * (n - 1)))

    def run(self) -> Run:
        nodes = [self.env.process(self._node(node)) for node in range(self.cluster.nodes)]
        self.env.run(self.env.all_of(nodes))
        return Run(
            seconds=max(self.ends),
            useful=self.useful,
            lost=self.lost,
            failures=self.counts["failure"],
            preemptions=self.counts["preemption"],
            node_seconds=self.node_seconds,
            ends=tuple(self.ends),
            finished=tuple(self.finished),
        )

    def _node(self, node: int) -> Generator[Any, Any, None]:
        """The job of a node, as often as it begins."""
        cluster, env = self.cluster, self.env
        workers = range(node * cluster.workers, (node + 1) * cluster.workers)
        upsets = self._upsets(node)
        wait, fruitless = cluster.queue_seconds, 0

        def left() -> Iterator[int]:
            return itertools.chain.from_iterable(self.left[worker] for worker in workers)

        while True:
            yield env.timeout(wait)
            began = env.now
            before = sum(self.parts[unit] for unit in left())
            running = [
                env.process(self._worker(worker)) for worker in workers if math.isnan(self.ends[worker])
            ]
            upset = next((upset for upset in upsets if upset[0] >= began), None)
            over = env.all_of(running)
            yield over if upset is None else over | env.timeout(upset[0] - began)
            alive = [process for process in running if process.is_alive]
            if upset is not None and alive:
                self.counts[upset[1]] += 1
                for process in alive:
                    process.interrupt(upset[1])
                yield env.all_of(alive)  # who was warned writes what is computed
            self.node_seconds += env.now - began
            if upset is None or not any(math.isnan(self.ends[worker]) for worker in workers):
                return
            wait = cluster.requeue_seconds + (cluster.repair_seconds if upset[1] == "failure" else 0.0)
            fruitless = fruitless + 1 if sum(self.parts[unit] for unit in left()) == before else 0
            if fruitless == _STUCK:
                longest = max(
                    (self.read[unit] + self.compute[unit] + self.write[unit]) / self.parts[unit]
                    for unit in left()
                )
                raise ConfigError(
                    f"the job of node {node} ended {_STUCK} times in a row without finishing a unit: one takes {longest:.0f} s "
                    f"if alone, and starting {cluster.start_seconds:.0f} s; take smaller units, or nodes that fail less often"
                )

    def _upsets(self, node: int) -> Iterator[Upset]:
        """What happens to a node. An exponential has no memory: to pass over what comes while no job runs changes nothing."""
        if self.upsets is not None:
            yield from self.upsets.get(node, ())
            return
        failing = 0.0 if self.cluster.mtbf_hours is None else 1 / self.cluster.mtbf_hours
        rate = failing + self.cluster.preemptions_per_node_hour
        if rate == 0:
            return
        random, now = np.random.default_rng([self.seed, 1, node]), 0.0
        while True:
            now += 3600 * random.exponential(1 / rate)
            yield now, "failure" if rate * random.random() < failing else "preemption"

    def _worker(self, worker: int) -> Generator[Any, Any, None]:
        """What a worker does in one job: see `hpcdeq.inference.worker`."""
        storage, cores, most = self.storage, self.cores, self.cluster.ahead
        mine = self.left[worker]
        reads: deque[tuple[int, _Service]] = deque()
        writes: deque[tuple[int, _Service]] = deque()
        computed: tuple[int, _Service] | None = None  # or being computed; not yet being written
        try:
            yield self.env.timeout(self.cluster.start_seconds)
            coming = iter(mine)
            reads.extend((unit, storage.begin(self.read[unit])) for unit in itertools.islice(coming, most))
            while reads:
                yield reads[0][1]
                unit, _ = reads.popleft()
                reads.extend(
                    (after, storage.begin(self.read[after])) for after in itertools.islice(coming, 1)
                )
                computed = unit, cores.begin(self.compute[unit])
                yield computed[1]
                if len(writes) == most:
                    yield writes[0][1]
                    writes.popleft()
                writes.append(self._write(unit))
                computed = None
            for _, write in writes:
                yield write
        except simpy.Interrupt as upset:
            warned = upset.cause == "preemption"
            for _, read in reads:
                storage.cancel(read)
            if computed is not None:
                unit, service = computed
                if warned and service.triggered:
                    writes.append(self._write(unit))
                else:
                    self._drop(unit, self.compute[unit] - cores.cancel(service))
            for unit, write in writes:
                if warned:
                    yield write
                elif not write.triggered:
                    storage.cancel(write)
                    self._drop(unit, self.compute[unit])
        self.left[worker] = [unit for unit in mine if math.isnan(self.finished[unit])]
        if not self.left[worker]:
            self.ends[worker] = self.env.now

    def _drop(self, unit: int, computed: float) -> None:
        """Note that a unit ended when some seconds of it were computed; of its parts all are written but the last begun."""
        if computed > 0:
            written = math.ceil(computed / self.compute[unit] * self.parts[unit]) - 1
            kept = written / self.parts[unit]
            self.lost += computed - kept * self.compute[unit]
            for seconds in (self.read, self.compute, self.write):
                seconds[unit] *= 1 - kept
            self.parts[unit] -= written

    def _write(self, unit: int) -> tuple[int, _Service]:
        return unit, self.storage.begin(self.write[unit], partial(self._written, unit))

    def _written(self, unit: int) -> None:
        assert math.isnan(self.finished[unit]), unit
        self.finished[unit] = self.env.now


class _Service(simpy.Event):
    """Something that is being served; it happens when it is done."""

    def __init__(self, env: simpy.Environment, goal: float, then: Callable[[], None] | None) -> None:
        super().__init__(env)
        self.goal = goal
        self.then = then
        self.cancelled = False


class _Shared:
    """Serves all who ask at the same time, all at one speed, which depends on how many they are.

    So all are ahead of where they were by the same amount, ``served``, and who began at ``served`` and needs ``amount`` is
    done at ``served + amount``: the next to be done is the first of a heap, whatever happens to the speed.

    Parameters
    ----------
    env
        Whose time it is.
    speed_of
        Speed for a number of them, 1 for what one alone has.
    """

    def __init__(self, env: simpy.Environment, speed_of: Callable[[int], float]) -> None:
        self._env = env
        self._speed_of = speed_of
        self._heap: list[tuple[float, int, _Service]] = []
        self._numbers = itertools.count()
        self._count = 0
        self._served = 0.0
        self._last = 0.0
        self._speed = 1.0
        self._goal = math.nan
        self._alarm: simpy.Event | None = None

    def begin(self, amount: float, then: Callable[[], None] | None = None) -> _Service:
        """Serve an amount; ``then`` is called in the moment in which it is done."""
        self._advance()
        self._count += 1
        service = _Service(self._env, self._served + amount, then)
        heapq.heappush(self._heap, (service.goal, next(self._numbers), service))
        self._set_alarm()
        return service

    def cancel(self, service: _Service) -> float:
        """Stop serving, and return the amount that is missing; 0 of what is done."""
        if service.triggered:
            return 0.0
        self._advance()
        self._count -= 1
        service.cancelled = True
        missing = max(0.0, service.goal - self._served)
        self._set_alarm()
        return missing

    def _advance(self) -> None:
        self._served += (self._env.now - self._last) * self._speed
        self._last = self._env.now

    def _set_alarm(self) -> None:
        """To the moment in which the next is done, if the number stays what it is."""
        heap = self._heap
        while heap and heap[0][2].cancelled:
            heapq.heappop(heap)
        if not heap:
            self._alarm, self._served = None, 0.0
            return
        goal, speed = heap[0][0], self._speed_of(self._count)
        if self._alarm is None or goal != self._goal or speed != self._speed:
            self._goal, self._speed = goal, speed
            self._alarm = self._env.timeout(max(0.0, goal - self._served) / speed)
            self._alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm is not self._alarm:  # the speed changed since
            return
        self._alarm, self._served, self._last = None, self._goal, self._env.now
        while self._heap and (self._heap[0][0] <= self._goal or self._heap[0][2].cancelled):
            service = heapq.heappop(self._heap)[2]
            if not service.cancelled:
                self._count -= 1
                service.succeed()
                if service.then is not None:
                    service.then()
        self._set_alarm()
