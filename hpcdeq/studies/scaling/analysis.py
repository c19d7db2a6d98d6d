"""What follows from the points of a study: fits, checks on points they did not see, projections, nodes worth paying for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from hpcdeq.studies.scaling import projection
from hpcdeq.studies.scaling.fits import StepModel, fit, held_out
from hpcdeq.studies.scaling.forecast import Ask, place_and_load, simulated
from hpcdeq.studies.scaling.laws import serial_fraction
from hpcdeq.studies.scaling.microfits import Storage
from hpcdeq.studies.scaling.regression import Estimate, NoFit
from hpcdeq.studies.scaling.results import Result, Work, curves
from hpcdeq.studies.scaling.sections import Line, Plot, Section, Table

_NONE = "–"
_LAWS_NOTE = (
    "Strong curves by Amdahl's law, weak ones by Gustafson's; in brackets the 95 % interval, by a bootstrap over the repeats. The "
    "speed-up is that of 64 times as many processes."
)
_STEP_NOTE = (
    "A fixed part, a part for each block of the busiest process, and the all-reduces of a ring, whose latency and bandwidth are "
    "those of the microbenchmark. Error: median at the fitted points."
)
_PASS_NOTE = (
    "A fixed part and a part for each megapixel of the busiest worker, or what the storage takes if that is longer. Read and "
    "write: of one worker alone. Error: median at the fitted points."
)
_NODES_ASSUMED = (
    "Assumed: what the projection of the same series above assumes; and nodes are paid for from the start of the job to its end. "
    "The start takes as long as at the largest fitted point."
)
_CHECK_NOTE = (
    "Of a predicted point nothing is used but its size and load. Where processes share cores they are taken to share them fairly, "
    "which no fit has seen."
)


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
    found += _projections(by_series, ask)
    found.append(_nodes(by_series, ask))
    bulk = {series: points for (work, series), points in by_series.items() if work == "denoise"}
    if bulk:
        found += simulated(bulk, ask)
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
        note=_LAWS_NOTE,
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
                note=_STEP_NOTE,
            )
        )
    if passes:
        tables.append(
            Table(
                head=("series", "a pass, s", "a megapixel, s", "read, MB/s", "write, MB/s", "error, %"),
                rows=passes,
                title="A pass of bulk denoising",
                note=_PASS_NOTE,
            )
        )
    return Section(title="Models of the time", paragraphs=reasons, tables=tables)


def _checks(by_series: _Series) -> Section:
    rows: list[tuple[str, ...]] = []
    headings: dict[int, str] = {}
    faint: set[int] = set()
    reasons = []
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
                        place_and_load(check.point),
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
        note=_CHECK_NOTE,
    )
    return Section(
        title="Checked on points that the fit did not see", paragraphs=reasons, tables=[table] if rows else []
    )


def _projections(by_series: _Series, ask: Ask) -> list[Section]:
    found = []
    for number, ((work, series), points) in enumerate(by_series.items(), 1):
        made = projection.project(points, ask.scenes, ask.edge**2 / 1e6)
        if isinstance(made, NoFit):
            continue
        plots: list[Plot] = []
        tables: list[Table] = []
        assumed: list[str] = []
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
                Line(
                    label="ideal",
                    x=[p.world for p in one.points],
                    y=[p.world / one.points[0].world for p in one.points],
                ),
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
    rows = []
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
    by = [] if ask.deadline_hours is None else [f"fewest nodes for {ask.deadline_hours:g} h"]
    table = Table(
        head=("series", "work", "best cost", *by),
        rows=rows,
        note="Best cost: the most nodes whose node-hours are within a tenth of the least.",
    )
    return Section(
        title="How many nodes are worth paying for",
        paragraphs=[_NODES_ASSUMED] if rows else [],
        tables=[table] if rows else [],
        projected=True,
    )


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
