"""A whole study as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpcdeq import __version__
from hpcdeq.console import table as text_table
from hpcdeq.studies.scaling.results import SHARES, Curve, Result, curves
from hpcdeq.studies.scaling.sections import Section, Table
from hpcdeq.studies.scaling.tables import (
    KINDS,
    MODES,
    RATES,
    WORKS,
    efficiency,
    in_order,
    load,
    lone_points,
    machine_lines,
    points_table,
)

_COLUMNS = 132  # of prose


def as_text(results: Sequence[Result], sections: Sequence[Section] = ()) -> str:
    """All points and sections, as lines of text."""
    parts = machine_lines(results)
    for work, mode in KINDS:
        if table := points_table(results, work, mode):
            parts += ["", f"{mode} scaling of {WORKS[work]}".capitalize(), *_text(table)]
    for work in WORKS:
        if table := lone_points(results, work):
            parts += ["", f"Points of {WORKS[work]} that are on no curve", *_text(table)]
    for section in sections:
        parts += ["", section.title + (" (projection, not measured)" if section.projected else "")]
        parts += map(_wrapped, section.paragraphs)
        for table in section.tables:
            parts += _text(table)
    return "\n".join(parts)


def _text(table: Table) -> list[str]:
    lines = [table.title] if table.title else []
    head, *rows = text_table(table.head, table.rows).split("\n")
    lines.append(f"  {head}" if table.headings else head)
    for number, row in enumerate(rows):
        lines += [table.headings[number]] if number in table.headings else []
        lines.append(f"  {row}" if table.headings else row)
    return [*lines, _wrapped(table.note)] if table.note else lines


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _COLUMNS)


def as_csv(results: Sequence[Result]) -> str:
    """One line for each point; a cell is empty where nothing is known, or would be no scaling."""
    all_curves = curves(results)
    rows = [_csv_row(point, all_curves) for point in in_order(results)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv_row(point: Result, all_curves: Sequence[Curve]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "work": point.work,
        "series": point.series,
        "nodes": point.nodes,
        "processes_per_node": point.tasks,
        "processes": point.world,
        "base": point.base,
        "base_load": point.base_load,
        "scale": point.scale,
        "load": load(point),
        "share_cores": "yes" if point.crowded else "no",
        "crowding": point.crowding,
        "repeats": len(point.seconds),
        "seconds_median": point.median,
        "seconds_least": min(point.seconds),
        "seconds_most": max(point.seconds),
        "amount": point.amount,
        "rate": point.amount / point.median,
        "rate_unit": RATES[point.work],
        "largest_part": point.largest_part,
    }
    for mode in MODES:
        of = [c for c in all_curves if c.mode == mode and any(p is point for p in c.points)]
        found = efficiency(of[0], point) if of else None
        row[f"{mode}_speedup"] = of[0].speedup(point) if of else ""
        row[f"{mode}_efficiency"] = "" if found is None else found
    for work in WORKS:
        for name in SHARES[work]:
            row[f"{name}_seconds"] = point.shares.get(name, "")
    for solve in ("forward", "backward"):
        spread = point.iterations.get(solve)
        for what in ("mean", "least", "most"):
            row[f"{solve}_iterations_{what}"] = getattr(spread, what) if spread else ""
    gpu = point.gpu or {}
    row |= {
        "peak_bytes": point.peak_bytes or "",
        "gpu_utilisation": gpu.get("utilisation", ""),
        "gpu_peak_bytes": gpu.get("peak_bytes", ""),
        "gpu_joules": gpu.get("joules", ""),
        "exchanges": len(point.exchanged),
        "exchanged_bytes": sum(point.exchanged),
        "start_seconds": point.start_seconds,
        "job_seconds": point.job_seconds,
        "when": point.when,
        "command": point.command,
    }
    return row


def as_json_values(results: Sequence[Result], sections: Sequence[Section] = ()) -> dict[str, Any]:
    """Return everything as JSON values; what is not finite is null."""
    points = in_order(results)
    numbers = {id(point): number for number, point in enumerate(points)}

    def of_point(curve: Curve, point: Result) -> dict[str, Any]:
        return {
            "point": numbers[id(point)],
            "nodes": point.nodes,
            "processes": point.world,
            "seconds": point.median,
            "rate": point.amount / point.median,
            "speedup": curve.speedup(point),
            "efficiency": efficiency(curve, point),
            "share_cores": point.crowded,
        }

    values: dict[str, Any] = _plain(
        {
            "hpcdeq": __version__,
            "machine": machine_lines(points),
            "points": [point.as_json() for point in points],
            "curves": [
                {
                    "work": curve.work,
                    "mode": curve.mode,
                    "series": curve.series,
                    "base": curve.points[0].base,
                    "base_load": curve.points[0].base_load,
                    "points": [of_point(curve, point) for point in curve.points],
                }
                for curve in curves(points)
            ],
            "sections": [asdict(section) for section in sections],
        }
    )
    return values


def _plain(value: Any) -> Any:
    """Make lists of what holds several values; what JSON cannot say is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
