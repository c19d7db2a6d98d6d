"""A simulation of bulk denoising on clusters that nobody has at hand: failing nodes, preemption, shared storage, crowded cores.

It does what `hpcdeq.inference` does: the plan gives each worker its share beforehand, a worker reads ahead and writes behind
while it computes, and whatever ends its job costs the units in flight, which it computes again when the job is back.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcdeq.errors import ConfigError, MissingExtraError
from hpcdeq.studies.scaling.results import Result, UnitTimes
from hpcdeq.tiling import partition, tiles_of

try:
    import simpy
except ImportError as error:
    raise MissingExtraError("simpy", "scale", "simulating runs") from error

Kind = Literal["failure", "preemption"]
Upset = tuple[float, Kind]
"""Something that ends the job of a node: when, in seconds from the start of the run, and what."""

_STUCK = 1000  # jobs of a node that end in a row without a finished unit: it never will be
_MOST_UNITS = 200_000  # that `sweep` simulates one by one: some seconds


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
    """Of each unit, counted as in `UnitTimes`."""
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


@dataclass(frozen=True, kw_only=True)
class Range:
    """Of a number that differs from seed to seed: median, and 5 and 95 of 100."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Sum up values."""
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        return cls(median=float(median), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What to expect of a run, from many simulated ones; the fields are those of `Run`."""

    seconds: Range
    useful: Range
    lost: Range
    failures: Range
    preemptions: Range
    node_seconds: Range


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A measured point, and what the smaller ones say of it."""

    point: Result
    predicted: Range
    """Seconds of a pass."""

    @property
    def measured(self) -> float:
        """Median seconds of a pass."""
        return self.point.median

    @property
    def error(self) -> float:
        """Of the predicted median, relative to the measured one: above 0 was thought slower than it was."""
        return self.predicted.median / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What to expect of an archive on some nodes, cut into units of some size."""

    nodes: int
    unit: int
    """Edge in pixels."""
    units: int
    """How many."""
    forecast: Forecast


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


def repeat(cluster: Cluster, work: Work, times: Sequence[UnitTimes], seeds: Iterable[int]) -> Forecast:
    """Simulate a run with several seeds.

    Parameters, assumptions and errors are those of `simulate`. The range is that of chance alone: of assumptions that are
    wrong it knows nothing.
    """
    runs = [simulate(cluster, work, times, seed) for seed in seeds]
    return Forecast(
        seconds=Range.of([run.seconds for run in runs]),
        useful=Range.of([run.useful for run in runs]),
        lost=Range.of([run.lost for run in runs]),
        failures=Range.of([run.failures for run in runs]),
        preemptions=Range.of([run.preemptions for run in runs]),
        node_seconds=Range.of([run.node_seconds for run in runs]),
    )


def archive_work(
    scenes: int, height: int, width: int, *, unit: int, block: int, overlap: int, bytes_per_pixel: float
) -> Work:
    """Return the units of an archive of equal scenes.

    The pixels of a unit are those of all tiles that touch it, as `hpcdeq.inference.plan.Unit.reach` has them: smaller units
    are more work, as tiles on their borders are computed twice. Assumed is that a pixel takes as long in units of any size.

    Parameters
    ----------
    scenes, height, width
        How many, and their size in pixels.
    unit
        Edge of a unit in pixels; a multiple of that of a shard, if a run is to have it.
    block, overlap
        Edge of a tile, and the pixels that neighbours share.
    bytes_per_pixel
        Four times the number of bands. As many are counted for writing, which is a little too much.
    """
    pixels, costs = [], []
    for window in partition(height, width, unit, unit):
        tiles = tiles_of(height, width, block, overlap, touching=window)
        pixels.append((tiles[-1].y1 - tiles[0].y0) * (tiles[-1].x1 - tiles[0].x0))
        costs.append((window.height + 2 * block) * (window.width + 2 * block))  # as in hpcdeq.inference.plan
    return Work(
        pixels=np.tile(np.asarray(pixels, np.float64), scenes),
        costs=np.tile(np.asarray(costs, np.float64), scenes),
        bytes_per_pixel=bytes_per_pixel,
    )


def check(results: Iterable[Result], seeds: Iterable[int] = range(20)) -> list[Prediction]:
    """Predict measured points of bulk denoising from the two smallest sizes of their series.

    Of a larger point only what is known before it is measured is used: the units that each worker has, and how many workers
    its cores serve at full speed, all hosts taken together. Assumed is that computing takes as long as at the larger of the
    two sizes, as its machine was busier, or at the smaller one if only that had a core for each thread; that storage goes on
    to slow down as it did from the smaller to the larger; and that what a pass takes beside its units (``other``) is the same
    for every worker.

    Parameters
    ----------
    results
        Points; those of other work and without times of units are left out.
    seeds
        Of the simulations of each point.

    Returns
    -------
    list
        The larger points of all series; none of series with fewer than three sizes.
    """
    series: dict[str, list[Result]] = {}
    for result in results:
        if result.work == "denoise" and result.units:
            series.setdefault(result.series, []).append(result)
    return [prediction for points in series.values() for prediction in _check(points, list(seeds))]


def sweep(
    cluster: Cluster,
    times: Sequence[UnitTimes],
    *,
    scenes: int,
    height: int,
    width: int,
    block: int,
    overlap: int,
    bytes_per_pixel: float,
    nodes: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024),
    units: Sequence[int] = (1300,),
    seeds: Iterable[int] = range(5),
) -> list[Projection]:
    """Say what to expect of an archive on other numbers of nodes, and cut into units of other sizes.

    Parameters and assumptions are those of `simulate`, `repeat` and `archive_work`; all but ``nodes`` of the cluster is used.
    Of more than 200,000 units some neighbours are simulated as one (`Work.parts`): as they take the same seconds per pixel,
    workers differ a little more, and the first is read and the last is written a little longer.
    """
    seeds, rows = list(seeds), []
    for unit in units:
        work = archive_work(
            scenes, height, width, unit=unit, block=block, overlap=overlap, bytes_per_pixel=bytes_per_pixel
        )
        number = len(work.pixels)
        work = _in_parts(work, -(-number // _MOST_UNITS))
        for count in nodes:
            forecast = repeat(replace(cluster, nodes=count), work, times, seeds)
            rows.append(Projection(nodes=count, unit=unit, units=number, forecast=forecast))
    return rows


def _in_parts(work: Work, parts: int) -> Work:
    """Take neighbours as one."""
    first = np.arange(0, len(work.pixels), parts)
    costs = work.pixels if work.costs is None else work.costs
    return replace(
        work, pixels=np.add.reduceat(work.pixels, first), costs=np.add.reduceat(costs, first), parts=parts
    )


def _check(points: list[Result], seeds: list[int]) -> list[Prediction]:
    worlds = sorted({point.world for point in points})
    if len(worlds) < 3:
        return []
    small, large = ([point for point in points if point.world == world] for world in worlds[:2])
    known = [p for p in large if not p.crowded] or [p for p in small if not p.crowded] or large
    times = [unit for point in known for unit in point.units]
    crowding = max([1.0, *(point.crowding for point in known)])  # that is in these times already
    alone, together = _storage_seconds(small), _storage_seconds(large)
    ratio = worlds[1] / worlds[0]
    # That storage serves more in all to fewer is noise.
    slower = min(max(together / alone, 1.0), ratio) if alone else 1.0
    sigma = (slower - 1) / (worlds[1] - 1 - slower * (worlds[0] - 1))
    factor = alone / (1 + sigma * (worlds[0] - 1)) / (_storage_seconds(known) or 1.0)
    times = [
        replace(u, read_seconds=factor * u.read_seconds, write_seconds=factor * u.write_seconds)
        for u in times
    ]
    found = []
    for point in sorted((p for p in points if p.world > worlds[1]), key=lambda p: (p.world, p.scale)):
        cluster = Cluster(
            nodes=point.nodes,
            workers=point.tasks,
            start_seconds=statistics.mean(p.shares.get("other", 0.0) for p in known),
            cores=crowding * sum(host.processes / host.crowding for host in point.hosts),
            sigma=sigma,
        )
        forecast = repeat(cluster, _work_of(point), times, seeds)
        found.append(Prediction(point=point, predicted=forecast.seconds))
    return found


def _storage_seconds(points: list[Result]) -> float:
    """Seconds of reading and writing a pixel."""
    units = [unit for point in points for unit in point.units]
    return sum(u.read_seconds + u.write_seconds for u in units) / sum(u.pixels for u in units)


def _work_of(point: Result) -> Work:
    """Units of one repeat: every repeat has the same."""
    pixels: list[int] = []
    owners: list[int] = []
    for worker in range(point.world):
        own = sorted(unit.pixels for unit in point.units if unit.worker == worker)[:: len(point.seconds)]
        pixels += own
        owners += [worker] * len(own)
    return Work(pixels=np.asarray(pixels, np.float64), owners=np.asarray(owners, np.int64))


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
