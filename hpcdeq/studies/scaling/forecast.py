"""What the simulation says of a study's bulk runs, as parts of its report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcdeq.console import say
from hpcdeq.errors import ConfigError
from hpcdeq.studies.scaling.assumptions import Cluster
from hpcdeq.studies.scaling.microfits import Storage, fit_storage
from hpcdeq.studies.scaling.results import Result
from hpcdeq.studies.scaling.sections import Line, Plot, Section, Table

if TYPE_CHECKING:
    from hpcdeq.studies.scaling.expectations import Projection

_NODES = (16, 64, 256, 1024)
_UNIT_EDGES = (260, 520, 1300)  # pixels: whole shards
_SEEDS = range(3)
_BYTES = 4  # of a float32
_TRANSFERS: tuple[Literal["read", "write"], ...] = ("read", "write")
_AHEAD_OF_GPU = 8  # units that a worker reads ahead, on a node with as many cores


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the projections, the recommendation and the simulation are made for."""

    scenes: int = 100_000
    """Of an archive."""
    edge: int = 1300
    """Of its scenes, in pixels."""
    steps: int = 100_000
    """Of training."""
    deadline_hours: float | None = None
    """By when it must be done."""
    mtbf_hours: float = 6000.0
    """Mean time between the failures of a node. In training Llama 3, 419 failures came in 54 days on 2,048 nodes: 6,300 h."""
    repair_hours: float = 0.0
    """Until a node that failed is back; 0 where there are others."""
    preemptions_per_node_hour: float = 0.0
    requeue_seconds: float = 60.0
    """Before a job that was ended runs again."""

    def __post_init__(self) -> None:
        for name in ("scenes", "edge", "steps", "mtbf_hours"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for name in ("repair_hours", "preemptions_per_node_hour", "requeue_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}"
                )
        if self.deadline_hours is not None and self.deadline_hours <= 0:
            raise ConfigError(f"--deadline-hours must be above 0, got {self.deadline_hours}")


def simulated(bulk: Mapping[str, Sequence[Result]], ask: Ask) -> list[Section]:
    """Return what the simulation says of bulk runs: of measured ones, and of an archive on clusters with failing nodes.

    Parameters
    ----------
    bulk
        Points of every series of bulk denoising; the archive is that of the one with the largest units.
    ask
        The archive, and what is assumed of the cluster.

    Raises
    ------
    MissingExtraError
        If simpy is not installed.
    """
    series, points = max(bulk.items(), key=lambda item: (item[1][0].unit_mib or 0, len(item[1])))
    fair = [point for point in points if not point.crowded and point.tile]
    checked = _checked([point for points in bulk.values() for point in points])
    return [checked, _archive(series, fair, ask)] if fair else [checked]


def _checked(points: Sequence[Result]) -> Section:
    """Return measured points beside what the simulation made of smaller ones."""
    from hpcdeq.studies.scaling import expectations

    predictions = expectations.check(points)
    table = Table(
        head=("nodes × processes, load", "simulated, s", "measured, s", "error, %", ""),
        rows=[
            (
                f"{p.point.series}, {place_and_load(p.point)}",
                f"{p.predicted.median:.3g}",
                f"{p.measured:.3g}",
                f"{100 * p.error:+.1f}",
                "shared cores" if p.point.crowded else "",
            )
            for p in predictions
        ],
        faint=frozenset(i for i, p in enumerate(predictions) if p.point.crowded),
        note="The simulation is made from the two smallest sizes of a series; workers share the cores of a machine fairly.",
    )
    return Section(title="Simulation of bulk runs, checked", tables=[table] if predictions else [])


def _archive(series: str, fair: Sequence[Result], ask: Ask) -> Section:
    """Return what is to be expected of an archive, from the points of a series whose processes share no cores."""
    from hpcdeq.studies.scaling import expectations

    largest = max(fair, key=lambda point: point.world)
    cluster = _cluster(fair, largest, ask)
    block, overlap = largest.tile or (0, 0)
    edges = [edge for edge in _UNIT_EDGES if edge < ask.edge] + [ask.edge]
    say(f"simulating {ask.scenes:,} scenes on up to {_NODES[-1]:,} nodes")

    def sweep(nodes: Sequence[int], units: Sequence[int]) -> list[Projection]:
        return expectations.sweep(
            cluster,
            [unit for point in fair for unit in point.units],
            scenes=ask.scenes,
            height=ask.edge,
            width=ask.edge,
            block=block,
            overlap=overlap,
            bytes_per_pixel=_BYTES * largest.bands,
            nodes=nodes,
            units=units,
            seeds=_SEEDS,
        )

    by_nodes = sweep(_NODES, edges[-1:])
    by_unit = [*sweep(_NODES[1:2], edges[:-1]), *(row for row in by_nodes if row.nodes == _NODES[1])]
    assumed = (
        f"Assumed: {ask.scenes:,} scenes of {ask.edge} x {ask.edge}; {largest.tasks} workers a node; a node fails every "
        f"{ask.mtbf_hours:,g} h and is back after {ask.repair_hours:g} h; {ask.preemptions_per_node_hour:g} preemptions per node "
        f"and hour; a job that was ended runs again after {ask.requeue_seconds:g} s and needs {cluster.start_seconds:.3g} s to "
        f"start; units take as long a pixel as those measured ({series}), drawn anew for each; reading and writing are as fast "
        "as the slower of them; nobody has to do anything by hand."
    )
    head = ("nodes", "unit, pixels", "hours", "node-hours", "failures", "lost, % of the computing")
    tables = [
        Table(head=head, rows=[_row(row) for row in rows], title=title)
        for title, rows in (("By the number of nodes", by_nodes), ("By the size of a unit", by_unit))
    ]
    plot = Plot(
        name="simulation",
        caption="Simulated, not measured: time to finish, by the number of nodes; the band spans three runs that differ by chance.",
        x_label="nodes",
        y_label="hours to finish",
        lines=[
            Line(
                label="simulated",
                x=[row.nodes for row in by_nodes],
                y=[row.forecast.seconds.median / 3600 for row in by_nodes],
                low=[row.forecast.seconds.low / 3600 for row in by_nodes],
                high=[row.forecast.seconds.high / 3600 for row in by_nodes],
            )
        ],
        log_y=True,
    )
    title = "Simulation: an archive on many nodes"
    return Section(title=title, paragraphs=[assumed], tables=tables, plots=[plot], projected=True)


def _cluster(fair: Sequence[Result], largest: Result, ask: Ask) -> Cluster:
    """Return one node as it was measured, with what is assumed of its failures."""
    # One rate for both: that of the slower.
    rates = [rate for what in _TRANSFERS if isinstance(rate := fit_storage(fair, what), Storage)]
    storage = min(rates, key=lambda rate: rate.alone.value, default=None)
    return Cluster(
        nodes=1,
        workers=largest.tasks,
        mtbf_hours=ask.mtbf_hours,
        repair_seconds=3600 * ask.repair_hours,
        preemptions_per_node_hour=ask.preemptions_per_node_hour,
        requeue_seconds=ask.requeue_seconds,
        start_seconds=statistics.median(point.start_seconds for point in fair),
        storage=None if storage is None else storage.alone.value,
        sigma=0.0 if storage is None else min(1.0, storage.contention.value),
        ahead=_AHEAD_OF_GPU if any(host.gpus for host in largest.hosts) else 1,
    )


def _row(row: Projection) -> tuple[str, ...]:
    told = row.forecast
    return (
        f"{row.nodes:,}",
        str(row.unit),
        f"{told.seconds.median / 3600:.3g} ({told.seconds.low / 3600:.3g} to {told.seconds.high / 3600:.3g})",
        f"{told.node_seconds.median / 3600:,.4g}",
        f"{told.failures.median:g}",
        f"{100 * told.lost.median / told.useful.median:.2g}",
    )


def place_and_load(point: Result) -> str:
    """Say which point it is: its size and load."""
    load = f"{point.amount:g} blocks" if point.work == "train" else f"{point.amount:.3g} megapixels"
    return f"{point.nodes} × {point.tasks}, {load}"
