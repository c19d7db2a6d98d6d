"""What is said of measured points in tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from hpcdeq.studies.scaling.results import SHARES, Curve, Host, Mode, Result, Spread, Work, curves
from hpcdeq.studies.scaling.sections import Table

WORKS: dict[Work, str] = {"train": "training", "denoise": "bulk denoising"}
TIMED: dict[Work, str] = {"train": "step", "denoise": "pass"}
LOADS: dict[Work, str] = {"train": "blocks a step", "denoise": "scenes a pass"}
RATES: dict[Work, str] = {"train": "blocks/s", "denoise": "Mpixel/s"}
MODES: tuple[Mode, ...] = ("strong", "weak")
KINDS: tuple[tuple[Work, Mode], ...] = tuple((work, mode) for work in WORKS for mode in MODES)
SHARED = "○"
"""Marks points whose processes share cores or GPUs."""
NONE = "–"


def efficiency(curve: Curve, point: Result) -> float | None:
    """Return the efficiency of a point, or None where processes share cores: what is seen there is not scaling."""
    return None if point.crowded or curve.points[0].crowded else curve.efficiency(point)


def curves_of(results: Sequence[Result], work: Work, mode: Mode) -> dict[str, Curve]:
    """Return the curves of a kind by their names: the series, and where they begin if a series has several."""
    found = [curve for curve in curves(results) if (curve.work, curve.mode) == (work, mode)]
    series = [curve.series for curve in found]

    def name(curve: Curve) -> str:
        first = curve.points[0]
        begin = f" (from {count(first.base, 'process', 'processes')}, load {first.base_load})"
        return curve.series + (begin if series.count(curve.series) > 1 else "")

    return {name(curve): curve for curve in found}


def in_order(results: Iterable[Result]) -> list[Result]:
    """Arrange points by work, series, size and load."""
    works = list(WORKS)
    return sorted(
        results,
        key=lambda p: (works.index(p.work), p.series, p.base, p.base_load, p.world, p.nodes, p.scale),
    )


def place(point: Result) -> str:
    """Say how large a point is; marked if its processes share cores."""
    return f"{point.nodes} × {point.tasks}{f' {SHARED}' if point.crowded else ''}"


def sharing(points: Iterable[Result]) -> str:
    """Say what processes share in some of the points; nothing if they share nothing."""
    busiest = [max(point.hosts, key=lambda host: host.crowding) for point in points if point.crowded]
    shared = sorted({"GPUs" if host.gpus else "cores" for host in busiest}, reverse=True)
    return f"processes share {' or '.join(shared)}: not scaling" if shared else ""


def load(point: Result) -> int:
    """Blocks in a step, or scenes in a pass."""
    return point.load


def short(value: float) -> str:
    """Write a number with three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def size(number: int) -> str:
    """Write a number of bytes."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= bytes_:
            return f"{number / bytes_:,.4g} {unit}"
    return f"{number} B"


def count(number: int, one: str, many: str) -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else many}"


# The machine


def machine_lines(results: Sequence[Result]) -> list[str]:
    """Say on what the points were measured, and which of them are no scaling because processes share cores."""
    found = _machines([host for point in results for host in point.hosts])
    alike: dict[tuple[int, int, bool], list[str]] = {}
    for name, hosts in found.items():
        # A smaller point may be given fewer cores of the same machine.
        cores, gpus = max(h.cores for h in hosts), max(h.gpus for h in hosts)
        alike.setdefault((cores, gpus, all(h.threads == h.processes for h in hosts)), []).append(name)
    lines = [
        _bound(cores, gpus, single, sorted(names)) for (cores, gpus, single), names in sorted(alike.items())
    ]
    if any(point.nodes > len(point.hosts) for point in results):
        lines.append("The nodes of this study are not machines of their own: several share one.")
    shared = sum(point.crowded for point in results)
    if shared:
        lines.append(
            f"{shared} of {count(len(results), 'point is', 'points are')} of that kind: marked {SHARED}, drawn hollow, "
            "and without an efficiency."
        )
    else:
        lines.append("In no point do processes share cores or GPUs.")
    return lines


def _machines(hosts: Sequence[Host]) -> dict[str, list[Host]]:
    """Hosts by the machine they are: nodes that share one are named together, and a smaller point uses fewer of them."""
    found: list[tuple[set[str], list[Host]]] = []
    for host in hosts:
        nodes, alike = set(host.name.split(", ")), [host]
        for other in [other for other in found if other[0] & nodes]:
            nodes, alike = nodes | other[0], other[1] + alike
            found.remove(other)
        found.append((nodes, alike))
    return {", ".join(sorted(nodes)): alike for nodes, alike in found}


def _bound(cores: int, gpus: int, single: bool, names: Sequence[str]) -> str:
    number = gpus or cores
    have = count(gpus, "GPU", "GPUs") if gpus else count(cores, "physical core", "physical cores")
    single = single or gpus > 0
    what = ("process", "processes") if single else ("computing thread", "computing threads")
    if len(names) == 1:
        where, beyond = names[0], f"points beyond {count(number, *what)}"
        return f"{have} ({where}): {beyond} only show what sharing costs. They are not scaling."
    where = ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"
    beyond = f"points with more than {count(number, *what)} on a machine"
    return (
        f"{have} on each of {len(names):,} machines ({where}): {beyond} only show what sharing costs. "
        "They are not scaling."
    )


def _occupied(point: Result) -> str:
    """Say what the most crowded host of a point has for its processes."""
    host = max(point.hosts, key=lambda h: h.crowding)
    if host.gpus:
        return f"{count(host.processes, 'process', 'processes')} on {count(host.gpus, 'GPU', 'GPUs')}"
    return f"{count(host.threads, 'thread', 'threads')} on {count(host.cores, 'core', 'cores')}"


# Tables of points


def points_table(results: Sequence[Result], work: Work, mode: Mode) -> Table | None:
    """Tabulate the curves of a kind; None if there are none."""
    named = curves_of(results, work, mode)
    items = [(name, curve, point) for name, curve in named.items() for point in curve.points]
    return _points(work, items) if items else None


def lone_points(results: Sequence[Result], work: Work) -> Table | None:
    """Tabulate the points that are on no curve; None if there are none."""
    on_curves = {id(point) for curve in curves(results) for point in curve.points}
    items = [(p.series, None, p) for p in in_order(results) if p.work == work and id(p) not in on_curves]
    return _points(work, items) if items else None


def _points(work: Work, items: Sequence[tuple[str, Curve | None, Result]]) -> Table:
    timed = TIMED[work]
    columns = (
        "nodes × processes",
        LOADS[work],
        "busiest machine",
        f"{timed}, s: median",
        "least to most",
        RATES[work],
        "speed-up",
        "efficiency",
    )
    rows = []
    for _, curve, point in items:
        found = None if curve is None else efficiency(curve, point)
        rows.append(
            (
                place(point),
                str(load(point)),
                _occupied(point),
                short(point.median),
                f"{short(min(point.seconds))} to {short(max(point.seconds))}",
                short(point.amount / point.median),
                NONE if curve is None else f"{curve.speedup(point):.2f}",
                NONE if found is None else f"{found:.2f}",
            )
        )
    repeats = sorted({len(point.seconds) for _, _, point in items})
    note = f"Of {' or '.join(map(str, repeats))} {'repeat' if repeats == [1] else 'repeats'}, after the warm-up. "
    note += "Speed-up: times as much done in a second as at the first point of the series."
    if shared := sharing(point for _, _, point in items):
        note += f" {SHARED} {shared}, so no efficiency."
    return _grouped(columns, rows, [(name, point) for name, _, point in items], note)


def shares_table(results: Sequence[Result], work: Work) -> Table | None:
    """Tabulate where the time of the points goes; None if it is not known."""
    points = [p for p in in_order(results) if p.work == work and sum(p.shares.values()) > 0]
    if not points:
        return None
    rows = []
    for point in points:
        total = sum(point.shares.values())
        parts = [f"{100 * point.shares.get(name, 0.0) / total:.1f}" for name in SHARES[work]]
        even = point.amount / point.world / point.largest_part if point.largest_part else math.nan
        rows.append((place(point), str(load(point)), *parts, f"{even:.2f}" if even == even else NONE))
    columns = ("nodes × processes", LOADS[work], *SHARES[work], "evenness")
    note = (
        "In % of the time; mean over processes and repeats. Evenness: what a process does on average over what the one with the "
        "most to do does; the efficiency cannot be larger."
    )
    return _grouped(columns, rows, _named(points), note)


def iterations_table(results: Sequence[Result]) -> Table | None:
    """Tabulate the iterations of the solver: mean, least and most over the blocks; None if they are not known."""
    points = [p for p in in_order(results) if p.iterations]
    if not points:
        return None
    solves = list(dict.fromkeys(name for point in points for name in point.iterations))

    def cell(spread: Spread | None) -> str:
        return f"{spread.mean:.1f} ({spread.least:g} to {spread.most:g})" if spread else NONE

    rows = [(place(p), str(load(p)), *(cell(p.iterations.get(solve)) for solve in solves)) for p in points]
    heads = [f"{solve} iterations" for solve in solves]
    note = "Mean, least and most over the blocks."
    return _grouped(("nodes × processes", "load", *heads), rows, _named(points), note)


def resources_table(results: Sequence[Result]) -> Table:
    """Tabulate memory, GPU use and energy where known, and the time of the jobs."""
    points = in_order(results)
    columns: dict[str, Callable[[Result], str]] = {
        "peak memory, MiB": lambda p: short(p.peak_bytes / 2**20) if p.peak_bytes else NONE
    }
    if any(point.gpu for point in points):
        columns |= {
            "GPUs used, %": lambda p: _known(p.gpu, "utilisation", 100.0),
            "GPU memory, MiB": lambda p: _known(p.gpu, "peak_bytes", 2.0**-20),
            "energy of the GPUs, J a step or pass": lambda p: _known(p.gpu, "joules", 1.0),
        }
    if any(point.exchanged for point in points):
        columns["exchanged a step"] = lambda p: (
            f"{size(sum(p.exchanged + p.half_exchanged))} in {len(p.exchanged + p.half_exchanged)}"
            if p.exchanged
            else NONE
        )
    columns |= {
        "start, s": lambda p: short(p.start_seconds) if p.start_seconds else NONE,
        "job, s": lambda p: short(p.job_seconds) if p.job_seconds else NONE,
    }
    rows = [(place(p), str(load(p)), *(cell(p) for cell in columns.values())) for p in points]
    note = "Peak memory: of the largest process. Start: until the processes have met."
    return _grouped(("nodes × processes", "load", *columns), rows, _named(points), note)


def _known(values: Mapping[str, float] | None, name: str, factor: float) -> str:
    return short(values[name] * factor) if values and name in values else NONE


def _named(points: Sequence[Result]) -> list[tuple[str, Result]]:
    """Points with their series, and the work where there are both."""
    if len({point.work for point in points}) == 1:
        return [(point.series, point) for point in points]
    return [(f"{WORKS[point.work]}: {point.series}", point) for point in points]


def _grouped(
    columns: Sequence[str], rows: Sequence[Sequence[str]], points: Sequence[tuple[str, Result]], note: str
) -> Table:
    """Tabulate rows about points, those of a series below its name."""
    names = [name for name, _ in points]
    headings = {n: name for n, name in enumerate(names) if n == 0 or names[n - 1] != name}
    faint = frozenset(n for n, (_, point) in enumerate(points) if point.crowded)
    return Table(head=columns, rows=rows, note=note, headings=headings, faint=faint)


# Microbenchmarks


def exchange_times(results: Iterable[Result]) -> dict[tuple[int, int, str], dict[int, float]]:
    """Seconds of an all-reduce by (nodes, processes on each, library) and bytes: median over the points that measured it."""
    found: dict[tuple[int, int, str], dict[int, list[float]]] = {}
    for point in results:
        for exchange in point.exchanges:
            by_bytes = found.setdefault((point.nodes, point.tasks, exchange.library), {})
            by_bytes.setdefault(exchange.bytes, []).append(exchange.seconds)
    return {
        key: {number: statistics.median(found[key][number]) for number in sorted(found[key])}
        for key in sorted(found, key=lambda k: (k[0] * k[1], *k))
    }


def transfer_rates(results: Iterable[Result]) -> dict[str, dict[tuple[int, int], float]]:
    """Bytes a second from and to the storage, by ``read`` or ``write`` and (nodes, processes on each): median over points."""
    found: dict[str, dict[tuple[int, int], list[float]]] = {}
    for point in results:
        for transfer in point.transfers:
            by_size = found.setdefault(transfer.what, {})
            by_size.setdefault((point.nodes, point.tasks), []).append(transfer.bytes / transfer.seconds)
    return {
        what: {
            key: statistics.median(found[what][key])
            for key in sorted(found[what], key=lambda k: (k[0] * k[1], k))
        }
        for what in sorted(found)
    }


def shared_sizes(results: Iterable[Result]) -> set[tuple[int, int]]:
    """Sizes (nodes, processes on each) at which processes share cores."""
    return {(point.nodes, point.tasks) for point in results if point.crowded}


def size_text(key: tuple[int, int], shared: set[tuple[int, int]]) -> str:
    """Write a size, marked if processes share cores at it."""
    return f"{key[0]} × {key[1]}{f' {SHARED}' if key in shared else ''}"


def exchange_table(results: Sequence[Result]) -> Table | None:
    """Tabulate the all-reduces: microseconds by bytes, processes and library; None if there are none."""
    times, shared = exchange_times(results), shared_sizes(results)
    if not times:
        return None
    sizes = sorted({number for by_bytes in times.values() for number in by_bytes})
    return Table(
        title="All-reduce, microseconds",
        head=("size of the vector", *(f"{size_text(key[:2], shared)}, {key[2]}" for key in times)),
        rows=[(size(n), *(short(1e6 * by[n]) if n in by else NONE for by in times.values())) for n in sizes],
        note="Columns: nodes × processes, library. Median of many, and over the points that measured it.",
    )


def transfer_table(results: Sequence[Result]) -> Table | None:
    """Tabulate what all processes together read from the storage and write to it; None if it was not measured."""
    rates, shared = transfer_rates(results), shared_sizes(results)
    if not rates:
        return None
    keys = sorted({key for by_size in rates.values() for key in by_size}, key=lambda k: (k[0] * k[1], k))
    return Table(
        title="Storage, all processes together",
        head=("nodes × processes", *(f"{what}, MB/s" for what in rates)),
        rows=[
            (size_text(key, shared), *(short(by[key] / 1e6) if key in by else NONE for by in rates.values()))
            for key in keys
        ],
        faint=frozenset(number for number, key in enumerate(keys) if key in shared),
    )
