"""The report of a scaling study: one self-contained HTML page, figures, and everything as text, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdeq.errors import ConfigError
from hpcdeq.studies.page import (
    data_uri,
    render_page,
    require_libraries,
    write_figure,
    write_page,
    write_whole,
)
from hpcdeq.studies.scaling.exports import as_csv, as_json_values, as_text
from hpcdeq.studies.scaling.figures import Drawn, draw_all, plot_figure
from hpcdeq.studies.scaling.results import Mode, Result, Work
from hpcdeq.studies.scaling.sections import Section, Table
from hpcdeq.studies.scaling.tables import (
    KINDS,
    NONE,
    RATES,
    WORKS,
    count,
    curves_of,
    efficiency,
    exchange_table,
    in_order,
    iterations_table,
    lone_points,
    machine_lines,
    points_table,
    resources_table,
    shares_table,
    short,
    transfer_table,
)

# What a process was given of the machine, which differs from size to size.
_ALLOTTED = ("cores", "threads")
_MODES: dict[Mode, str] = {
    "strong": "The same work on more processes.",
    "weak": "Work that grows with the processes, so that each does as much as at the smallest size.",
}


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page."""

    title: str
    value: str
    about: str


@dataclass(frozen=True)
class Shown:
    """A section with its figures: caption and data URI of each."""

    section: Section
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Stamp:
    """What points were measured on."""

    points: int
    facts: Mapping[str, str]


def write_report(results: Sequence[Result], sections: Sequence[Section], out: Path) -> Path:
    """Write ``report.html``, ``scaling.txt``, ``scaling.csv``, ``scaling.json`` and ``figures/``, each file in one step.

    Parameters
    ----------
    results
        Points of one study or of several, in any order.
    sections
        What fits, projections and simulations say of them.
    out
        The folder.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        If there is no point.
    MissingExtraError
        If a library is not installed that it needs.
    """
    require_libraries("the report", "matplotlib", "jinja2")
    if not results:
        raise ConfigError(
            f"there is nothing to report in {out}: no point is measured yet; measure some first, with hpcdeq submit scale"
        )
    results = in_order(results)
    drawn = draw_all(out / "figures", results)
    shown = _measured(results, drawn)
    for section in sections:
        own = {}
        for plot in section.plots:
            assert plot.name not in drawn, f"two figures are called {plot.name}"
            own[plot.name] = Drawn(plot.caption, write_figure(out / "figures" / plot.name, plot_figure(plot)))
        drawn |= own
        shown.append(Shown(section, _uris(own, list(own))))
    values = json.dumps(as_json_values(results, sections), indent=2, allow_nan=False)
    write_whole(out / "scaling.txt", (as_text(results, sections) + "\n").encode())
    write_whole(out / "scaling.csv", as_csv(results).encode())
    write_whole(out / "scaling.json", (values + "\n").encode())
    page = out / "report.html"
    write_page(page, _page(results, shown))
    return page


def _page(results: Sequence[Result], shown: Sequence[Shown]) -> str:
    stamps = _stamps(results)
    differing = _differing(stamps)
    return render_page(
        "scale.html.j2",
        title="Scaling of " + " and ".join(_works(results).values()),
        lines=machine_lines(results),
        processors=_processors(results),
        shared=any(point.crowded for point in results),
        when=sorted({point.when.replace("T", " ") for point in results if point.when}),
        tiles=_tiles(results),
        shown=shown,
        stamps=stamps,
        differing=differing,
        commands=list(dict.fromkeys(point.command for point in results if point.command)),
        count=count,
    )


def _works(results: Sequence[Result]) -> dict[Work, str]:
    return {work: title for work, title in WORKS.items() if any(point.work == work for point in results)}


def _uris(drawn: Mapping[str, Drawn], names: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (drawn[name].caption, data_uri("image/svg+xml", drawn[name].svg.read_bytes()))
        for name in names
        if name in drawn
    ]


# The head


def _tiles(results: Sequence[Result]) -> list[Tile]:
    """Efficiency of the largest points that show scaling, by kind; what was measured; and what that took."""
    tiles = []
    for work, mode in KINDS:
        named = curves_of(results, work, mode)
        if not named:
            continue
        found = [
            (point.world, value)
            for curve in named.values()
            for point in curve.points[1:]
            if (value := efficiency(curve, point)) is not None and point.world > curve.points[0].world
        ]
        title = f"{mode} scaling of {WORKS[work]}: efficiency"
        if not found:
            tiles.append(Tile(title, NONE, "beyond the smallest size, processes share cores"))
            continue
        largest = max(world for world, _ in found)
        values = [value for world, value in found if world == largest]
        least, most = f"{min(values):.2f}", f"{max(values):.2f}"
        series = f", {len(values)} series" if len(values) > 1 else ""
        at = f"at {count(largest, 'process', 'processes')}{series}"
        tiles.append(Tile(title, least if least == most else f"{least} to {most}", at))
    for work, title in _works(results).items():
        fastest = max(
            (point for point in results if point.work == work), key=lambda point: point.amount / point.median
        )
        tiles.append(
            Tile(
                f"fastest, {title}",
                f"{short(fastest.amount / fastest.median)} {RATES[work]}",
                f"{fastest.series}, {count(fastest.world, 'process', 'processes')}"
                + (", which share cores" if fastest.crowded else ""),
            )
        )
    shared = sum(point.crowded for point in results)
    hours = sum(point.nodes * point.job_seconds for point in results) / 3600
    took = f"measured in {short(hours)} node-hours" if hours else ""
    tiles.append(
        Tile(
            "points measured",
            f"{len(results):,}",
            "; ".join(filter(None, (took, f"in {shared:,} of them processes share cores" if shared else ""))),
        )
    )
    return tiles


# What was measured


def _measured(results: Sequence[Result], drawn: Mapping[str, Drawn]) -> list[Shown]:
    """Sections of what was measured; one of which nothing is known is left out."""
    found = []

    def add(
        title: str,
        tables: Sequence[Table | None],
        figures: Sequence[str] = (),
        paragraphs: Sequence[str] = (),
    ) -> None:
        section = Section(
            title=title, paragraphs=paragraphs, tables=[table for table in tables if table is not None]
        )
        shown = Shown(section, _uris(drawn, figures))
        if section.tables or shown.figures:
            found.append(shown)

    for work, mode in KINDS:
        figures = [f"{work}-{mode}-speedup", f"{work}-{mode}-efficiency"]
        title = f"{mode} scaling of {WORKS[work]}".capitalize()
        add(title, [points_table(results, work, mode)], figures, [_MODES[mode]])
    for work, title in WORKS.items():
        why = ["A curve needs a series at two sizes at least."]
        add(f"Points of {title} that are on no curve", [lone_points(results, work)], paragraphs=why)
    for work, title in WORKS.items():
        figures = [f"{work}-shares", f"{work}-memory"]
        add(f"Where the time goes, {title}", [shares_table(results, work)], figures)
    add("Iterations of the solver", [iterations_table(results)])
    add("Memory, GPUs, jobs", [resources_table(results)])
    reasons = sorted({point.no_mpi for point in results if point.no_mpi})
    add(
        "Microbenchmarks",
        [exchange_table(results), transfer_table(results)],
        ["exchanges", "storage"],
        [f"No all-reduce through MPI was measured: {reason}" for reason in reasons],
    )
    return found


# The foot


def _stamps(results: Sequence[Result]) -> list[Stamp]:
    """What the points were measured on; points alike but for what a process was given are one."""
    groups: dict[str, list[dict[str, str]]] = {}
    for point in results:
        facts = {str(name): _fact(value) for name, value in point.stamp.items()}
        same = {name: value for name, value in facts.items() if name not in _ALLOTTED}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(facts)
    stamps = []
    for members in groups.values():
        names = dict.fromkeys(name for facts in members for name in facts)
        stamps.append(
            Stamp(
                len(members),
                {
                    name: " or ".join(dict.fromkeys(facts[name] for facts in members if name in facts))
                    for name in names
                },
            )
        )
    return [stamp for stamp in stamps if stamp.facts]


def _fact(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _differing(stamps: Sequence[Stamp]) -> list[str]:
    """Names of the facts in which stamps differ."""
    names = dict.fromkeys(name for stamp in stamps for name in stamp.facts if name not in _ALLOTTED)
    return [name for name in names if len({stamp.facts.get(name) for stamp in stamps}) > 1]


def _processors(results: Sequence[Result]) -> list[str]:
    kinds = (point.stamp.get(name) for name in ("processor", "gpu") for point in results)
    return list(dict.fromkeys(_fact(kind) for kind in kinds if kind))
