"""What follows from the points of a study: fits, checks on points they did not see, projections, nodes worth paying for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from hpcdeq.console import say
from hpcdeq.errors import ConfigError
from hpcdeq.studies.scaling import projection
from hpcdeq.studies.scaling.fits import StepModel, fit, held_out
from hpcdeq.studies.scaling.laws import serial_fraction
from hpcdeq.studies.scaling.microfits import Storage, fit_storage
from hpcdeq.studies.scaling.regression import Estimate, NoFit
from hpcdeq.studies.scaling.results import Result, Work, curves
from hpcdeq.studies.scaling.sections import Line, Plot, Section, Table

_NODES = (16, 64, 256, 1024)  # of a simulation
_UNIT_EDGES = (260, 520, 1300)  # pixels: whole shards
_SEEDS = range(3)
_BYTES = 4  # of a float32
_NONE = "–"


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


def sections(results: Iterable[Result], ask: Ask) -> list[Section]:
    """Return the parts of a report that follow from the measured points.

    Parameters
    ----------
    results
        All points of a study.
    ask
        What the projections are made for.
    """
    by_series = _by_series(results)
    found = [_laws(by_series), _models(by_series), _checks(by_series)]
    found += _projections(by_series)
    found.append(_nodes(by_series, ask))
    found += _simulated(by_series, ask)
    return [section for section in found if section.tables or section.plots or section.paragraphs]


def _by_series(results: Iterable[Result]) -> dict[tuple[Work, str], list[Result]]:
    def key(result: Result) -> tuple[Work, str]:
        return result.work, result.series

    return {name: list(points) for name, points in groupby(sorted(results, key=key), key)}


_Series = dict[tuple[Work, str], list[Result]]


def _laws(by_series: _Series) -> Section:
    rows, reasons = [], []
    for curve in curves(point for points in by_series.values() for point in points):
        name = f"{curve.work}: {curve.series}, {curve.mode}"
        law = serial_fraction(curve)
        if isinstance(law, NoFit):
            reasons.append(f"{name}: {law.reason}.")
            continue
        at = 64 * law.base
        rows.append(
            (
                name,
                ", ".join(map(str, law.worlds)),
                _percent(law.fraction),
                f"{law.speedup(at):.1f} of {at // law.base}",
            )
        )
    table = Table(
        head=("curve", "fitted at processes", "serial part, %", "speed-up it allows"),
        rows=rows,
        note="Strong curves by Amdahl's law, weak ones by Gustafson's; in brackets the 95 % interval by a bootstrap over the repeats.",
    )
    return Section(title="What does not scale", paragraphs=reasons, tables=[table] if rows else [])


def _models(by_series: _Series) -> Section:
    steps, passes, reasons = [], [], []
    for (work, series), points in by_series.items():
        model = fit(points)
        if isinstance(model, NoFit):
            reasons.append(f"{work}: {series}: {model.reason}.")
        elif isinstance(model, StepModel):
            link = model.network.link(max(len(point.hosts) for point in model.points))
            steps.append(
                (
                    series,
                    _milli(model.fixed),
                    _milli(model.per_block),
                    _scaled(link.latency, 1e6),
                    _scaled(link.bandwidth, 1e-9),
                    f"{100 * model.costs.error:.1f}",
                )
            )
        else:
            reads, writes = model.reading, model.writing
            passes.append(
                (
                    series,
                    _scaled(model.fixed, 1),
                    _scaled(model.per_megapixel, 1),
                    *(
                        _scaled(each.alone, 1e-6) if isinstance(each, Storage) else _NONE
                        for each in (reads, writes)
                    ),
                    f"{100 * model.costs.error:.1f}",
                )
            )
    tables = []
    if steps:
        tables.append(
            Table(
                head=("series", "a step, ms", "a block, ms", "latency, µs", "bandwidth, GB/s", "error, %"),
                rows=steps,
                title="A step of training",
                note="Seconds of a step: a fixed part, a part for each block of the busiest process, and the all-reduces of a ring, whose "
                "latency and bandwidth are those of the microbenchmark. Error: median at the fitted points.",
            )
        )
    if passes:
        tables.append(
            Table(
                head=("series", "a pass, s", "a megapixel, s", "read, MB/s", "write, MB/s", "error, %"),
                rows=passes,
                title="A pass of bulk denoising",
                note="Seconds of a pass: a fixed part and a part for each megapixel of the busiest worker, or what the storage takes if "
                "that is longer. Read and write: of one worker alone.",
            )
        )
    return Section(title="Models of the time", paragraphs=reasons, tables=tables)


def _checks(by_series: _Series) -> Section:
    rows, headings, faint, reasons = [], {}, set(), []
    for (work, series), points in by_series.items():
        trials = held_out(points)
        if isinstance(trials, NoFit):
            reasons.append(f"{work}: {series}: {trials.reason}.")
            continue
        for trial in trials:
            headings[len(rows)] = f"{work}: {series}; fitted to {trial.fitted_to}"
            for check in trial.checks:
                if check.crowded:
                    faint.add(len(rows))
                rows.append(
                    (
                        _place(check.point),
                        f"{check.predicted.value:.3g}",
                        f"{check.point.median:.3g}",
                        f"{100 * check.error:+.1f}",
                        "shared cores" if check.crowded else "",
                    )
                )
    table = Table(
        head=("nodes × processes, load", "predicted, s", "measured, s", "error, %", ""),
        rows=rows,
        headings=headings,
        faint=frozenset(faint),
        note="Of a predicted point nothing is used but its size and load. Where processes share cores they are taken to share them fairly.",
    )
    return Section(
        title="Checked on points that the fit did not see", paragraphs=reasons, tables=[table] if rows else []
    )


def _projections(by_series: _Series) -> list[Section]:
    found = []
    for number, ((work, series), points) in enumerate(by_series.items(), 1):
        made = projection.project(points)
        if isinstance(made, NoFit):
            continue
        plots, tables, assumed = [], [], []
        for one in made:
            of = f"{one.of} ({one.mode})"
            lines = [
                Line(
                    label="projected",
                    x=[p.world for p in one.points],
                    y=[p.speedup.value for p in one.points],
                    low=[p.speedup.low for p in one.points if p.speedup.low is not None],
                    high=[p.speedup.high for p in one.points if p.speedup.high is not None],
                ),
                Line(label="ideal", x=[p.world for p in one.points], y=[p.world / one.points[0].world for p in one.points]),
            ]
            plots.append(
                Plot(
                    name=f"projection-{number}-{len(plots) + 1}",
                    caption=f"Projected, not measured: {of}; measured up to {one.measured_to} processes.",
                    x_label="processes",
                    y_label="speed-up",
                    lines=lines,
                    log_y=True,
                )
            )
            tables.append(
                Table(
                    head=("processes", "seconds", "speed-up", "efficiency"),
                    rows=[
                        (f"{p.world:,}", _plain(p.seconds), _plain(p.speedup), _plain(p.efficiency))
                        for p in one.points
                    ],
                    title=of[0].upper() + of[1:],
                )
            )
            assumed += [text for text in one.assumptions if text not in assumed]
        found.append(
            Section(
                title=f"Projection: {work}, {series}",
                paragraphs=["Assumed: " + " ".join(assumed)],
                tables=tables,
                plots=plots,
                projected=True,
            )
        )
    return found


def _nodes(by_series: _Series, ask: Ask) -> Section:
    rows, assumed = [], []
    for (work, series), points in by_series.items():
        made = projection.choices(points, ask.steps if work == "train" else ask.scenes, ask.edge**2 / 1e6)
        if isinstance(made, NoFit):
            continue
        best = projection.nodes_for_best_cost(made)
        row = [series, made.of, _choice(best)]
        if ask.deadline_hours is not None:
            soon = projection.nodes_for_deadline(made, 3600 * ask.deadline_hours)
            row.append(soon.reason if isinstance(soon, NoFit) else _choice(soon))
        rows.append(row)
        assumed += [text for text in made.assumptions if text not in assumed]
    by = [] if ask.deadline_hours is None else [f"fewest nodes for {ask.deadline_hours:g} h"]
    table = Table(
        head=("series", "work", "best cost", *by),
        rows=rows,
        note="Best cost: the most nodes whose node-hours are within a tenth of the least.",
    )
    return Section(
        title="How many nodes are worth paying for",
        paragraphs=["Assumed: " + " ".join(assumed)] if assumed else [],
        tables=[table] if rows else [],
        projected=True,
    )


def _simulated(by_series: _Series, ask: Ask) -> list[Section]:
    """Bulk runs with failing nodes, of the series with the largest units."""
    bulk = {series: points for (work, series), points in by_series.items() if work == "denoise"}
    if not bulk:
        return []
    from hpcdeq.studies.scaling import simulation

    predictions = simulation.check(point for points in bulk.values() for point in points)
    table = Table(
        head=("nodes × processes, load", "simulated, s", "measured, s", "error, %", ""),
        rows=[
            (
                f"{p.point.series}, {_place(p.point)}",
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
    found = [Section(title="Simulation of bulk runs, checked", tables=[table] if predictions else [])]
    series, points = max(bulk.items(), key=lambda item: (item[1][0].unit_mib or 0, len(item[1])))
    fair = [point for point in points if not point.crowded and point.tile]
    if not fair:
        return found
    largest = max(fair, key=lambda point: point.world)
    block, overlap = largest.tile or (0, 0)
    storage = fit_storage(fair, "read")
    cluster = simulation.Cluster(
        nodes=1,
        workers=largest.tasks,
        mtbf_hours=ask.mtbf_hours,
        repair_seconds=3600 * ask.repair_hours,
        preemptions_per_node_hour=ask.preemptions_per_node_hour,
        requeue_seconds=ask.requeue_seconds,
        start_seconds=statistics.median(point.start_seconds for point in fair),
        storage=storage.alone.value if isinstance(storage, Storage) else None,
        sigma=min(1.0, storage.contention.value) if isinstance(storage, Storage) else 0.0,
    )
    times = [unit for point in fair for unit in point.units]
    edges = [edge for edge in _UNIT_EDGES if edge < ask.edge] + [ask.edge]
    say(f"simulating {ask.scenes:,} scenes on up to {_NODES[-1]:,} nodes")

    def sweep(nodes: Sequence[int], units: Sequence[int]) -> list[simulation.Projection]:
        return simulation.sweep(
            cluster,
            times,
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
        f"Assumed: {ask.scenes:,} scenes of {ask.edge} x {ask.edge}, {largest.tasks} workers a node, a node fails every "
        f"{ask.mtbf_hours:,g} h and is back after {ask.repair_hours:g} h, {ask.preemptions_per_node_hour:g} preemptions per node and "
        f"hour, a job that was ended runs again after {ask.requeue_seconds:g} s and needs {cluster.start_seconds:.3g} s to start; "
        f"units take as long a pixel as those measured ({series}), drawn anew for each; nobody has to do anything by hand."
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
    found.append(
        Section(
            title="Simulation: an archive on many nodes",
            paragraphs=[assumed],
            tables=tables,
            plots=[plot],
            projected=True,
        )
    )
    return found


def _row(row: object) -> tuple[str, ...]:
    from hpcdeq.studies.scaling.simulation import Projection

    assert isinstance(row, Projection)
    told = row.forecast
    return (
        f"{row.nodes:,}",
        str(row.unit),
        f"{told.seconds.median / 3600:.3g} ({told.seconds.low / 3600:.3g} to {told.seconds.high / 3600:.3g})",
        f"{told.node_seconds.median / 3600:,.4g}",
        f"{told.failures.median:g}",
        f"{100 * told.lost.median / told.useful.median:.2g}",
    )


def _place(point: Result) -> str:
    load = f"{point.amount:g} blocks" if point.work == "train" else f"{point.amount:.3g} megapixels"
    return f"{point.nodes} × {point.tasks}, {load}"


def _choice(choice: projection.Choice) -> str:
    nodes = f"{choice.nodes:,} node" + "s" * (choice.nodes > 1)
    return f"{nodes}: {choice.seconds.value / 3600:.3g} h, {choice.node_hours.value:,.3g} node-hours"


def _percent(estimate: Estimate) -> str:
    return _scaled(estimate, 100)


def _milli(estimate: Estimate) -> str:
    return _scaled(estimate, 1000)


def _plain(estimate: Estimate) -> str:
    return _scaled(estimate, 1)


def _scaled(estimate: Estimate, factor: float) -> str:
    told = f"{factor * estimate.value:,.3g}"
    if estimate.low is None or estimate.high is None:
        return told
    return f"{told} ({factor * estimate.low:,.3g} to {factor * estimate.high:,.3g})"
