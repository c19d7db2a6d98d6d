"""What is measured at a point of a scaling study, and what follows from it without any model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

Work = Literal["train", "denoise"]
Mode = Literal["strong", "weak"]

SHARES: dict[Work, tuple[str, ...]] = {
    "train": (
        "data",
        "forward",
        "backward solve",
        "backward",
        "waiting",
        "communication",
        "optimiser",
        "other",
    ),
    "denoise": ("reading", "computing", "writing", "idle", "other"),
}
"""Where the time of a process goes. ``backward solve`` is that of the implicit gradient; ``waiting`` is for the
other processes, before each exchange; ``reading`` and ``writing`` are what the computing waits for them; ``idle`` is the wait for
the slowest process."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine, in the sense of one kernel: nodes that share it are one host."""

    name: str
    processes: int
    threads: int
    """That compute, of all its processes together."""
    cores: int
    """Physical cores that the processes may use, together."""
    gpus: int = 0
    """GPUs that they use, together."""

    @property
    def crowding(self) -> float:
        """How many compute on a core, or on a GPU, at a time; at most 1 where each has its own."""
        return self.processes / self.gpus if self.gpus else self.threads / self.cores


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """An all-reduce over all processes of a point."""

    library: Literal["torch", "mpi"]
    bytes: int
    """Of the vector that every process holds."""
    seconds: float
    """Median of many."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What all processes of a point together read from the storage, or wrote, at the same time."""

    what: Literal["read", "write"]
    bytes: int
    """Of all processes together, as float32 pixels."""
    seconds: float
    """Until the last was done."""


@dataclass(frozen=True, kw_only=True)
class UnitTimes:
    """A unit of bulk work."""

    worker: int
    pixels: int
    """Height x width of all tiles that were computed for it, all bands counted once."""
    read_seconds: float
    compute_seconds: float
    write_seconds: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number that differs from block to block."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Sum up numbers."""
        each = list(numbers)
        return cls(mean=statistics.mean(each), least=min(each), most=max(each))


@dataclass(frozen=True, kw_only=True)
class Result:
    """A point: some work, on some processes."""

    work: Work
    series: str
    """What else was chosen, in words: points of one series differ in size and load only, once they are `arranged`."""
    nodes: int
    tasks: int
    """Processes on each node."""
    load: int
    """Blocks in a step, or scenes in a pass."""
    base: int = 0
    """Processes of the smallest size of the series; this and the next three are set by `arranged`."""
    base_load: int = 0
    """Load of the point of the smallest size that this one is compared with: of its strong curve if it is on two."""
    weak_load: int = 0
    """Load of the point of the smallest size of its weak curve; 0 if it is on none."""
    scale: int = 1
    """Load of this point over ``base_load``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that was asked for beside size and load, by dotted names."""
    bands: int
    """Of the scenes."""
    seconds: tuple[float, ...]
    """Of a step (train) or of a pass over the scenes (denoise), of the slowest process; one number a repeat, after the warm-up."""
    amount: float
    """What is done in that time: blocks, or megapixels (height x width of the scenes, all bands counted once)."""
    largest_part: float
    """Of it, what the process with the most to do does."""
    shares: Mapping[str, float]
    """Seconds of these by what they went into, `SHARES`; mean over processes and repeats."""
    hosts: tuple[Host, ...]
    exchanges: tuple[Exchange, ...] = ()
    """Microbenchmark: all-reduces of several sizes."""
    no_mpi: str | None = None
    """Why there are none through MPI."""
    transfers: tuple[Transfer, ...] = ()
    """Microbenchmark of the storage."""
    exchanged: tuple[int, ...] = ()
    """Bytes of every all-reduce of a training step."""
    half_exchanged: tuple[int, ...] = ()
    """Bytes of every other exchange: gathers, scatters and broadcasts move half of what an all-reduce does."""
    iterations: Mapping[str, Spread] = field(default_factory=dict)
    """Of the solver, over the blocks: ``forward``, ``backward``."""
    units: tuple[UnitTimes, ...] = ()
    """Of bulk denoising, of all repeats."""
    unit_mib: int | None = None
    """Largest size of a unit of bulk denoising."""
    tile: tuple[int, int] | None = None
    """Edge of its tiles, and the pixels that neighbours share."""
    peak_bytes: int = 0
    """Memory of the largest process."""
    gpu: Mapping[str, float] | None = None
    """``utilisation`` (0 to 1), ``peak_bytes`` and ``joules`` of a step or pass on all GPUs, where NVML tells."""
    start_seconds: float = 0.0
    """From the start of the processes until they have met: imports, and the meeting."""
    job_seconds: float = 0.0
    """Of the whole job."""
    stamp: Mapping[str, Any] = field(default_factory=dict)
    """Hardware and software of the first process, from `hpcdeq.cluster.machine`."""
    command: str = ""
    """What measures this point again."""
    when: str = ""
    """Date and time of its end, ISO 8601."""

    @property
    def world(self) -> int:
        """Processes."""
        return self.nodes * self.tasks

    @property
    def crowding(self) -> float:
        """That of the most crowded host."""
        return max(host.crowding for host in self.hosts)

    @property
    def crowded(self) -> bool:
        """Whether processes shared a core or a GPU: what such a point shows is not scaling."""
        return self.crowding > 1

    @property
    def median(self) -> float:
        """Median of the repeats, in seconds."""
        return statistics.median(self.seconds)

    @property
    def threads(self) -> float:
        """That compute, of each process."""
        return sum(host.threads for host in self.hosts) / sum(host.processes for host in self.hosts)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Which curves it is a point of: the smallest size begins both, and where a strong and a weak one meet it is on both."""
        strong: tuple[Mode, ...] = ("strong",) if self.scale == 1 else ()
        weak: tuple[Mode, ...] = ("weak",) if self.weak_load else ()
        return strong + weak

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Result:
        """Read what `as_json` wrote."""
        nested: dict[str, Any] = {
            "seconds": tuple(values["seconds"]),
            "exchanged": tuple(values["exchanged"]),
            "half_exchanged": tuple(values["half_exchanged"]),
            "tile": values["tile"] and tuple(values["tile"]),
            "iterations": {name: Spread(**spread) for name, spread in values["iterations"].items()},
        }
        for name, kind in (
            ("hosts", Host),
            ("exchanges", Exchange),
            ("transfers", Transfer),
            ("units", UnitTimes),
        ):
            nested[name] = tuple(kind(**each) for each in values[name])
        return cls(**{**values, **nested})


def arranged(results: Iterable[Result]) -> list[Result]:
    """Give points that are not alike, but are called alike, names of their own, and find the point that each is compared with.

    Points are alike if the same was asked for, beside size and load, and it ran on the same hardware and software, with as many
    threads a process: else they are no curve.
    """
    found: list[Result] = []
    for title in groupby(sorted(results, key=_title), _title):
        same_title = list(title[1])
        traits = [_traits(result) for result in same_title]
        differing = sorted(
            {name for t in traits for name in t if any(o.get(name) != t[name] for o in traits)}
        )
        series: dict[str, list[Result]] = {}
        for result, trait in zip(same_title, traits, strict=True):
            said = [f"{name.rpartition('.')[2]}={trait.get(name)}" for name in differing]
            series.setdefault(", ".join([result.series, *said]), []).append(result)
        for name, alike in series.items():
            found += _compared([replace(result, series=name) for result in alike])
    return found


_HARDWARE = ("processor", "gpu", "torch", "hpcdeq")  # of a stamp


def _title(result: Result) -> tuple[Work, str]:
    return result.work, result.series


def _traits(result: Result) -> dict[str, Any]:
    stamp = {name: result.stamp.get(name) for name in _HARDWARE}
    return {**result.settings, **stamp, "threads": result.threads}


def _compared(series: list[Result]) -> list[Result]:
    """A point has the load of one of the smallest size (strong), or the same load a process (weak)."""
    base = min(result.world for result in series)
    loads = {result.load for result in series if result.world == base}
    found = []
    for result in series:
        each, left = divmod(result.load * base, result.world)
        weak_load = each if left == 0 and each in loads else 0
        base_load = result.load if result.load in loads else weak_load  # 0: on no curve
        scale = result.load // base_load if base_load else 0
        found.append(replace(result, base=base, base_load=base_load, weak_load=weak_load, scale=scale))
    return found


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one series, strong or weak, by the number of processes."""

    work: Work
    series: str
    mode: Mode
    points: tuple[Result, ...]
    """The first is what the others are compared with."""

    def speedup(self, point: Result) -> float:
        """How many times as much is done in a second as at the first point."""
        first = self.points[0]
        return (point.amount / point.median) / (first.amount / first.median)

    def efficiency(self, point: Result) -> float:
        """Speed-up over the ratio of processes; 1 is ideal."""
        return self.speedup(point) * self.points[0].world / point.world


def curves(results: Iterable[Result]) -> list[Curve]:
    """Arrange points in curves; those of a single point are left out."""

    def key(item: tuple[Mode, Result]) -> tuple[str, str, int, int, str]:
        mode, result = item
        first = result.weak_load if mode == "weak" else result.base_load
        return result.work, result.series, result.base, first, mode

    each = sorted(
        ((mode, result) for result in results for mode in result.modes),
        key=lambda i: (key(i), i[1].world, i[1].nodes),
    )
    found = []
    for (work, series, _, _, mode), items in groupby(each, key):
        points = tuple(result for _, result in items)
        if len({point.world for point in points}) > 1:
            found.append(Curve(work=work, series=series, mode=mode, points=points))  # type: ignore[arg-type]
    return found
