"""Figures of a scaling study, as PNG and SVG: curves, shares of the time, memory, microbenchmarks, projections."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdeq.studies.page import write_figure
from hpcdeq.studies.scaling.canvas import (
    COLOURS,
    GREY,
    HEADING,
    HEIGHT,
    LEGEND,
    MARKERS,
    PALE,
    SHADE,
    canvas,
    legend_height,
    look,
    process_axis,
    words,
)
from hpcdeq.studies.scaling.results import SHARES, Curve, Result, Work
from hpcdeq.studies.scaling.sections import Plot
from hpcdeq.studies.scaling.tables import (
    KINDS,
    LOADS,
    TIMED,
    WORKS,
    curves_of,
    efficiency,
    exchange_times,
    in_order,
    load,
    place,
    shared_sizes,
    sharing,
    size,
    size_text,
    transfer_rates,
)

_SHARES = {
    "data": "#56b4e9",
    "forward": "#0072b2",
    "backward solve": "#5b4b8a",
    "backward": "#009e73",
    "waiting": "#e69f00",
    "communication": "#d55e00",
    "optimiser": "#cc79a7",
    "reading": "#56b4e9",
    "computing": "#0072b2",
    "writing": "#cc79a7",
    "idle": "#d55e00",
    "other": "#b8bfc9",
}
_BARS = "Bars: slowest to fastest repeat."


@dataclass(frozen=True)
class Drawn:
    """A figure that is written."""

    caption: str
    svg: Path
    """The PNG is beside it."""


def draw_all(folder: Path, results: Sequence[Result]) -> dict[str, Drawn]:
    """Draw what was measured, as far as it was, each as PNG and SVG.

    Returns
    -------
    dict
        By name: ``train-strong-speedup``, ``train-strong-efficiency`` and so on, ``train-shares``, ``train-memory`` and so on,
        ``exchanges``, ``storage``.
    """
    drawn = {}
    for work, mode in KINDS:
        if named := curves_of(results, work, mode):
            kind = f"{mode} scaling of {WORKS[work]}"
            drawn[f"{work}-{mode}-speedup"] = (
                f"Speed-up, {kind}. {_BARS}",
                speedup_figure(named),
            )
            drawn[f"{work}-{mode}-efficiency"] = (
                f"Efficiency, {kind}; points that share cores have none. {_BARS}",
                efficiency_figure(named),
            )
    for work in WORKS:
        points = [point for point in in_order(results) if point.work == work]
        if timed := [point for point in points if sum(point.shares.values()) > 0]:
            caption = (
                f"Where the time of a {TIMED[work]} goes, {WORKS[work]}: mean over processes and repeats."
            )
            drawn[f"{work}-shares"] = (caption, shares_figure(timed, work))
        if sized := [point for point in points if point.peak_bytes]:
            caption = f"Peak memory of the largest process, {WORKS[work]}."
            drawn[f"{work}-memory"] = (caption, memory_figure(sized))
    if exchange_times(results):
        caption = "All-reduce over all processes (nodes × processes, library), median."
        drawn["exchanges"] = (caption, exchange_figure(results))
    if transfer_rates(results):
        caption = "Storage: what all processes together read and write at the same time."
        drawn["storage"] = (caption, storage_figure(results))
    return {
        name: Drawn(caption, write_figure(folder / name, figure)) for name, (caption, figure) in drawn.items()
    }


# Curves


def speedup_figure(named: Mapping[str, Curve]) -> Any:
    """Draw speed-ups against processes; points whose processes share cores are hollow."""
    from matplotlib.lines import Line2D

    figure, axes = canvas(HEIGHT + legend_height(named))
    worlds = _worlds(named)
    for first in sorted({curve.points[0].world for curve in named.values()}):
        reach = [world for world in worlds if world >= first]
        axes.plot(reach, [w / first for w in reach], "--", color=GREY, linewidth=1.2, zorder=1)
    _draw_curves(axes, named, lambda curve, point: curve.speedup(point))
    process_axis(axes, worlds)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("speed-up, times (log scale)")
    hollow = Line2D([], [], color=GREY, marker="o", markerfacecolor="white", markersize=5.5, linestyle=":")
    _legend(figure, named, "ideal: as many times as processes", hollow)
    return figure


def efficiency_figure(named: Mapping[str, Curve]) -> Any:
    """Draw efficiencies against processes, of points that have one."""
    from matplotlib.patches import Patch

    figure, axes = canvas(HEIGHT + legend_height(named))
    worlds = _worlds(named)
    axes.axhline(1.0, linestyle="--", color=GREY, linewidth=1.2, zorder=1)
    _draw_curves(axes, named, efficiency)
    process_axis(axes, worlds)
    axes.set_ylim(0.0, max(1.1, axes.get_ylim()[1]))
    axes.set_ylabel("efficiency (1 is ideal)")
    _legend(figure, named, "ideal", Patch(facecolor=SHADE, edgecolor=GREY, linewidth=0.5))
    return figure


def _draw_curves(
    axes: Any, named: Mapping[str, Curve], value: Callable[[Curve, Result], float | None]
) -> None:
    """Draw lines through points with bars from the slowest to the fastest repeat, and shade where all share cores."""
    # Curves stand a little side by side, lest their bars hide each other.
    step = 1 + min(0.02, 0.12 / len(named))
    for number, curve in enumerate(named.values()):
        colour, marker = look(number)
        aside = step ** (number - (len(named) - 1) / 2)
        known = [(point, y) for point in curve.points if (y := value(curve, point)) is not None]
        own = [(aside * point.world, y) for point, y in known if not point.crowded]
        axes.plot(
            [aside * point.world for point, _ in known],
            [y for _, y in known],
            ":",
            color=colour,
            linewidth=1,
        )
        axes.plot([x for x, _ in own], [y for _, y in own], "-", color=colour, linewidth=1.6)
        for point, y in known:
            # The value is in proportion to 1 / seconds.
            bar = [[y - y * point.median / max(point.seconds)], [y * point.median / min(point.seconds) - y]]
            axes.errorbar(
                [aside * point.world],
                [y],
                bar,
                fmt=marker,
                color=colour,
                markersize=5.5,
                markerfacecolor="white" if point.crowded else colour,
                capsize=3,
                elinewidth=1,
                zorder=3,
            )
    points = [point for curve in named.values() for point in curve.points]
    own_worlds = [point.world for point in points if not point.crowded]
    shared_worlds = [point.world for point in points if point.crowded]
    if own_worlds and shared_worlds and max(own_worlds) < min(shared_worlds):
        begin = math.sqrt(max(own_worlds) * min(shared_worlds))
        axes.axvspan(begin, 1.15 * max(shared_worlds), color=SHADE, zorder=0, linewidth=0)


def _worlds(named: Mapping[str, Curve]) -> list[int]:
    return sorted({point.world for curve in named.values() for point in curve.points})


def _legend(figure: Any, named: Mapping[str, Curve], ideal: str, shared: Any) -> None:
    """Name the curves, the ideal, and what shows that processes share cores, if some do."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5.5, linewidth=1.6)
        for colour, marker in map(look, range(len(named)))
    ]
    labels = [words(name, LEGEND) for name in named]
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.2))
    labels.append(ideal)
    if text := sharing(point for curve in named.values() for point in curve.points):
        handles.append(shared)
        labels.append(text)
    figure.legend(handles, labels, loc="outside lower left", ncols=1, frameon=False, fontsize=9)


# By point


def shares_figure(points: Sequence[Result], work: Work) -> Any:
    """Draw where the time of each point goes, in percent of it."""
    figure, axes, rows = _bar_canvas(points, legend=0.3 * -(-len(SHARES[work]) // 4))
    lefts = [0.0] * len(points)
    for name in SHARES[work]:
        widths = [100 * point.shares.get(name, 0.0) / sum(point.shares.values()) for point in points]
        axes.barh(rows, widths, left=lefts, color=_SHARES[name], height=0.78, label=name)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"time of a {TIMED[work]}, %")
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8.5, **_TIGHT)
    return figure


def memory_figure(points: Sequence[Result]) -> Any:
    """Draw the peak memory of the largest process of each point."""
    figure, axes, rows = _bar_canvas(points)
    values = [point.peak_bytes / 2**20 for point in points]
    bars = axes.barh(rows, values, color=COLOURS[0], height=0.78)
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axes.set_xlabel("peak memory, MiB")
    axes.margins(x=0.14)
    return figure


_TIGHT = {"columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}


def _bar_canvas(points: Sequence[Result], legend: float = 0.0) -> tuple[Any, Any, list[float]]:
    """Make room for a bar a point, downwards, with a heading above those of each series; return the places of the bars too."""
    rows: list[float] = []
    headings: list[tuple[float, str]] = []
    at, last = 0.0, None
    for point in points:
        if point.series != last:
            at += 0.35 if last is not None else 0.0
            heading = words(point.series, HEADING)
            headings.append((at, heading))
            at, last = at + 1.0 + 0.7 * heading.count("\n"), point.series
        rows.append(at)
        at += 1.0
    figure, axes = canvas(0.9 + legend + 0.22 * at)
    labels = [f"{place(point)}, load {load(point)}" for point in points]
    axes.set_yticks(rows, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.4, -0.5)
    for row, heading in headings:
        place_of = axes.get_yaxis_transform()
        axes.text(0.0, row - 0.3, heading, transform=place_of, fontsize=8.5, fontweight="bold", va="top")
    axes.spines["left"].set_visible(False)
    axes.set_title(f"nodes × processes, load ({LOADS[points[0].work]})", loc="left", fontsize=8, color=GREY)
    return figure, axes, rows


# Microbenchmarks


def exchange_figure(results: Sequence[Result]) -> Any:
    """Draw seconds of an all-reduce against bytes, a line for each size and library."""
    times, shared = exchange_times(results), shared_sizes(results)
    figure, axes = canvas(HEIGHT + 0.2 * math.ceil(len(times) / 2))
    sizes = list(dict.fromkeys(key[:2] for key in times))
    for key, by_bytes in times.items():
        colour, _ = look(sizes.index(key[:2]))
        axes.plot(
            list(by_bytes),
            list(by_bytes.values()),
            "-" if key[2] == "torch" else "--",
            color=colour,
            marker="o" if key[2] == "torch" else "s",
            markersize=4,
            markerfacecolor="white" if key[:2] in shared else colour,
            linewidth=1.4,
            label=f"{size_text(key[:2], shared)}, {key[2]}",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: size(round(value)))
    axes.set_yscale("log")
    axes.set_xlabel("size of the vector (log scale)")
    axes.set_ylabel("seconds (log scale)")
    axes.grid(color=PALE, linewidth=0.8)
    handles, labels = axes.get_legend_handles_labels()
    _add_hollow(handles, labels, [point for point in results if point.exchanges])
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def storage_figure(results: Sequence[Result]) -> Any:
    """Draw what is read and written a second against the processes that do so at the same time."""
    rates, shared = transfer_rates(results), shared_sizes(results)
    figure, axes = canvas(HEIGHT)
    for number, (what, by_size) in enumerate(rates.items()):
        colour, _ = look(number)
        xs = [nodes * tasks for nodes, tasks in by_size]
        axes.plot(xs, [rate / 1e6 for rate in by_size.values()], "-", color=colour, linewidth=1.4)
        for key, rate in by_size.items():
            face = "white" if key in shared else colour
            axes.plot([key[0] * key[1]], [rate / 1e6], "o", color=colour, markerfacecolor=face, markersize=5)
        axes.plot([], [], "-o", color=colour, markersize=5, linewidth=1.4, label=what)
    sizes = {key for by_size in rates.values() for key in by_size}
    process_axis(
        axes, sorted({nodes * tasks for nodes, tasks in sizes}), "processes reading or writing at once"
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("all together, MB/s")
    handles, labels = axes.get_legend_handles_labels()
    _add_hollow(handles, labels, [point for point in results if point.transfers])
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _add_hollow(handles: list[Any], labels: list[str], points: Sequence[Result]) -> None:
    """Say in a legend what hollow points are, if there are some."""
    from matplotlib.lines import Line2D

    if text := sharing(points):
        handles.append(
            Line2D([], [], color=GREY, marker="o", markerfacecolor="white", markersize=5, linestyle="")
        )
        labels.append(text)


# Projections and the like


def plot_figure(plot: Plot) -> Any:
    """Draw lines with bands, and measured points with error bars."""
    assert re.fullmatch(r"[a-z0-9-]+", plot.name), plot.name
    figure, axes = canvas(HEIGHT + legend_height(line.label for line in plot.lines))
    modelled = 0
    for number, line in enumerate(plot.lines):
        colour, _ = look(number)
        if line.measured:
            bars = None
            if line.low:
                bars = [
                    [max(0.0, y - low) for y, low in zip(line.y, line.low, strict=True)],
                    [max(0.0, high - y) for y, high in zip(line.y, line.high, strict=True)],
                ]
            axes.errorbar(
                line.x,
                line.y,
                bars,
                fmt=MARKERS[number % len(MARKERS)],
                color=colour,
                markersize=5.5,
                capsize=3,
                elinewidth=1,
                zorder=3,
                label=words(line.label, LEGEND),
            )
            continue
        style = ("-", "--", "-.", ":")[modelled % 4]
        modelled += 1
        axes.plot(line.x, line.y, style, color=colour, linewidth=1.6, label=words(line.label, LEGEND))
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if plot.log_x:
        ticks = sorted({x for line in plot.lines for x in line.x})
        axes.set_xscale("log", base=2)
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(words(plot.x_label, HEADING))
    axes.set_ylabel(words(plot.y_label, HEADING))
    axes.grid(color=PALE, linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    return figure
