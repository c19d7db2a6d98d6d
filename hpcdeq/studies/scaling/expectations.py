"""What simulated runs say of real ones: of measured points that they did not know, and of archives on other clusters."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcdeq.studies.scaling.assumptions import Cluster, Work
from hpcdeq.studies.scaling.results import Result, UnitTimes
from hpcdeq.studies.scaling.simulation import simulate
from hpcdeq.tiling import partition, tiles_of

_MOST_UNITS = 200_000  # that `sweep` simulates one by one: some seconds


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
