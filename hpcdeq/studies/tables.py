"""The paper's tables on the user's scenes: quality by method and noise level, and seconds a scene."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcdeq.console import table as text_table
from hpcdeq.studies import published
from hpcdeq.studies.cells import Comparison, Store
from hpcdeq.studies.method import Method
from hpcdeq.studies.page import write_whole
from hpcdeq.studies.protocols import Protocol
from hpcdeq.studies.runtime import Runtime

METRICS = {
    "psnr": ("PSNR, dB", 2, max),
    "ssim": ("SSIM", 3, max),
    "sam": ("SAM, rad", 3, min),
    "ergas": ("ERGAS", 1, min),
}
TITLES = {
    1: "Table I: sparse coding",
    2: "Table II: denoisers",
    0: "Not in the paper",
    3: "Table III: seconds for a scene",
}
CONVENTION = (
    "PSNR: mean over bands, peak 1. SSIM: mean over bands, Gaussian window of 11, sigma 1.5, data range 1. SAM: mean over pixels. "
    "ERGAS: ratio of pixel sizes 1. Nothing is clamped. Mean and standard deviation over scenes and seeds."
)


@dataclass(frozen=True)
class Value:
    """A score of several scenes and seeds."""

    mean: float
    spread: float
    """Standard deviation over scenes and seeds; 0 for one."""
    count: int


@dataclass(frozen=True)
class Line:
    """A row: one method at all noise levels."""

    method: Method
    at: dict[float, dict[str, Value]]
    """By noise level and metric; a level is missing if a cell of it is."""
    seconds: float | None
    """Median of a scene's, on the machines of the cells."""


@dataclass(frozen=True)
class Table:
    """One of `TITLES`."""

    number: int
    lines: list[Line]

    @property
    def title(self) -> str:
        """What it is."""
        return TITLES[self.number]


@dataclass(frozen=True)
class Tables:
    """All tables of a comparison."""

    quality: list[Table]
    runtimes: list[tuple[Method, Runtime]]
    protocol: Protocol
    sigmas: list[float]
    scenes: list[str]
    seeds: list[int]
    missing: int
    """Cells that are not known."""
    machines: list[str]

    def best(self, lines: Iterable[Line], sigma: float, metric: str) -> float | None:
        """Return the best mean of a column, the noisy input left out."""
        values = [
            line.at[sigma][metric].mean for line in lines if sigma in line.at and line.method.key != "noisy"
        ]
        return METRICS[metric][2](values) if values else None


def gather(comparison: Comparison, store: Store, runtimes: Sequence[tuple[Method, Runtime]]) -> Tables:
    """Put together what is known."""
    scores: dict[str, dict[float, list[dict[str, float]]]] = {}
    seconds: dict[str, list[float]] = {}
    rows: dict[str, Method] = {}
    machines: set[str] = set()
    missing = 0
    for cell in comparison.cells():
        rows.setdefault(cell.method.title, cell.method)
        found = store.get(cell)
        if found is None:
            missing += 1
            continue
        machines.add(describe(found.machine))
        seconds.setdefault(cell.method.title, []).append(found.seconds)
        scores.setdefault(cell.method.title, {}).setdefault(cell.sigma, []).append(asdict(found.scores))
    whole = len(comparison.scenes) * len(comparison.seeds)
    lines = [
        Line(
            method,
            {
                sigma: {name: _value([one[name] for one in found]) for name in METRICS}
                for sigma, found in scores.get(title, {}).items()
                if len(found) == whole  # a mean over some of the scenes is another number
            },
            float(np.median(seconds[title])) if title in seconds else None,
        )
        for title, method in rows.items()
    ]
    return Tables(
        quality=[
            Table(number, chosen)
            for number in (1, 2, 0)
            if (chosen := [line for line in lines if number in line.method.tables])
        ],
        runtimes=list(runtimes),
        protocol=comparison.protocol,
        sigmas=list(comparison.sigmas),
        scenes=[scene.name for scene in comparison.scenes],
        seeds=list(comparison.seeds),
        missing=missing,
        machines=sorted(machines),
    )


def describe(machine: dict[str, Any]) -> str:
    """Say in a line what a machine is."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores used{gpu}, torch {machine['torch']}"


def _value(values: list[float]) -> Value:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Value(float(np.mean(values)), spread, len(values))


# As text


def as_text(tables: Tables) -> str:
    """All tables, as lines of text; the paper's numbers in blocks of their own."""
    parts = [_heading(tables)]
    for table in tables.quality:
        columns = ["method", *(f"sigma {s:g}: PSNR, SSIM, SAM, ERGAS" for s in tables.sigmas), "s a scene"]
        parts += [
            "",
            table.title,
            text_table(columns, [_text_row(line, tables.sigmas) for line in table.lines]),
        ]
        if notes := [f"  {x.method.title}: {x.method.training}" for x in table.lines if x.method.training]:
            parts += ["trained for:", *dict.fromkeys(notes)]
    if tables.runtimes:
        rows = [(m.title, _number(r.seconds, 2), r.about) for m, r in tables.runtimes]
        parts += ["", TITLES[3], text_table(("method", "s", "of"), rows)]
    parts += ["", published.ABOUT]
    for number, printed in published.TABLES.items():
        columns = ["method", *(f"sigma {s:g}: PSNR, SSIM, SAM" for s in published.SIGMAS)]
        rows_of = [
            [name, *(f"{psnr:.2f}  {ssim:.3f}  {sam:.3f}" for psnr, ssim, sam in values)]
            for name, values in printed.items()
        ]
        parts += ["", f"{TITLES[number]} (the paper's, ICVL)", text_table(columns, rows_of)]
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in published.SECONDS.items())
    parts += ["", f"{TITLES[3]} of 1300 x 1300 x 31 (the paper's, hardware not named): {seconds}"]
    return "\n".join(parts)


def _heading(tables: Tables) -> str:
    return "\n".join(
        (
            f"{len(tables.scenes)} scenes ({', '.join(tables.scenes[:6])}{', ...' if len(tables.scenes) > 6 else ''}), "
            f"seeds {', '.join(map(str, tables.seeds))}; protocol {tables.protocol.name}: {tables.protocol.about}.",
            CONVENTION,
            f"On {'; '.join(tables.machines)}." if tables.machines else "Nothing is known yet.",
            *(
                [f"{tables.missing} cells are not known: their rows are incomplete."]
                if tables.missing
                else []
            ),
        )
    )


def _text_row(line: Line, sigmas: Sequence[float]) -> list[str]:
    cells = [
        "  ".join(spread_text(line.at[s][name], METRICS[name][1]) for name in METRICS)
        if s in line.at
        else "-"
        for s in sigmas
    ]
    return [line.method.title, *cells, "-" if line.seconds is None else f"{line.seconds:.1f}"]


def spread_text(value: Value, digits: int) -> str:
    """A mean with its spread, if there are several values."""
    spread = f" ± {value.spread:.{digits}f}" if value.count > 1 else ""
    return f"{_number(value.mean, digits)}{spread}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


# As CSV, JSON and LaTeX


def as_csv(tables: Tables) -> str:
    """One line for each number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("table", "method", "sigma", "metric", "mean", "spread", "count", "from"))
    for table in tables.quality:
        for line in table.lines:
            for sigma, values in line.at.items():
                for name, value in values.items():
                    row = (
                        table.number,
                        line.method.title,
                        f"{sigma:g}",
                        name,
                        value.mean,
                        value.spread,
                        value.count,
                    )
                    writer.writerow((*row, "measured"))
    for method, runtime in tables.runtimes:
        writer.writerow((3, method.title, "", "seconds", runtime.seconds, "", runtime.count, "measured"))
    for number, printed in published.TABLES.items():
        for title, at in printed.items():
            for sigma, scores in zip(published.SIGMAS, at, strict=True):
                for name, score in zip(("psnr", "ssim", "sam"), scores, strict=True):
                    writer.writerow((number, title, f"{sigma:g}", name, score, "", "", "the paper, ICVL"))
    for title, seconds in published.SECONDS.items():
        writer.writerow((3, title, "", "seconds", seconds, "", "", "the paper, hardware not named"))
    return out.getvalue()


def as_json_values(tables: Tables) -> dict[str, Any]:
    """Return everything as JSON values; what is not finite is null."""

    def plain(value: Value) -> dict[str, Any]:
        return {name: x if math.isfinite(x) else None for name, x in asdict(value).items()}

    def row(line: Line) -> dict[str, Any]:
        return {
            "method": line.method.title,
            "source": line.method.source,
            "parameters": line.method.parameters,
            "training": line.method.training or None,
            "seconds": line.seconds,
            "sigma": {f"{s:g}": {name: plain(v) for name, v in at.items()} for s, at in line.at.items()},
        }

    return {
        "protocol": asdict(tables.protocol),
        "convention": CONVENTION,
        "scenes": tables.scenes,
        "seeds": tables.seeds,
        "machines": tables.machines,
        "missing": tables.missing,
        "tables": [
            {"number": t.number, "title": t.title, "rows": [row(x) for x in t.lines]} for t in tables.quality
        ],
        "runtimes": [{"method": m.title, **asdict(r)} for m, r in tables.runtimes],
        "paper": {
            "about": published.ABOUT,
            "sigmas": published.SIGMAS,
            "tables": published.TABLES,
            "seconds": published.SECONDS,
        },
    }


def as_latex(tables: Tables) -> str:
    """Tables for a paper, by booktabs; the best of each column bold."""
    shown = ("psnr", "ssim", "sam", "ergas")
    parts = [f"% {line}" for line in _heading(tables).splitlines()]
    for table in tables.quality:
        head = " & ".join(
            rf"\multicolumn{{{len(shown)}}}{{c}}{{$\sigma={sigma:g}$}}" for sigma in tables.sigmas
        )
        names = " & ".join(["PSNR & SSIM & SAM & ERGAS"] * len(tables.sigmas))
        body = [_latex_row(tables, table, line, shown) for line in table.lines]
        parts += _latex(
            table.title,
            "l" + "r" * len(shown) * len(tables.sigmas),
            [f" & {head}", f"Method & {names}"],
            body,
        )
    if tables.runtimes:
        rows = [f"{_escape(m.title)} & {r.seconds:.2f}" for m, r in tables.runtimes]
        parts += _latex(f"{TITLES[3]}: {_escape(tables.runtimes[0][1].about)}", "lr", ["Method & s"], rows)
    parts += [f"% {published.ABOUT}"]
    for number, printed in published.TABLES.items():
        head = " & ".join(rf"\multicolumn{{3}}{{c}}{{$\sigma={sigma:g}$}}" for sigma in published.SIGMAS)
        rows = [
            " & ".join([_escape(name), *(f"{p:.2f} & {s:.3f} & {a:.3f}" for p, s, a in values)])
            for name, values in printed.items()
        ]
        names = " & ".join(["PSNR & SSIM & SAM"] * len(published.SIGMAS))
        title = f"{TITLES[number]} (the paper's own numbers, on ICVL)"
        parts += _latex(title, "l" + "r" * 9, [f" & {head}", f"Method & {names}"], rows)
    return "\n".join(parts) + "\n"


def _latex_row(tables: Tables, table: Table, line: Line, shown: Sequence[str]) -> str:
    cells = [_escape(line.method.title)]
    for sigma in tables.sigmas:
        for name in shown:
            if sigma not in line.at:
                cells.append("--")
                continue
            mean = line.at[sigma][name].mean
            number = _number(mean, METRICS[name][1])
            is_best = mean == tables.best(table.lines, sigma, name)
            cells.append(rf"\textbf{{{number}}}" if is_best else number)
    return " & ".join(cells)


def _latex(title: str, columns: str, head: list[str], body: list[str]) -> list[str]:
    return [
        "",
        r"\begin{table}",
        rf"\caption{{{title}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *(rf"{row} \\" for row in head),
        r"\midrule",
        *(rf"{row} \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _escape(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)


def write_all(tables: Tables, folder: Path) -> list[Path]:
    """Write ``tables.txt``, ``.csv``, ``.json`` and ``.tex``, each in one step."""
    contents = {
        "txt": as_text(tables) + "\n",
        "csv": as_csv(tables),
        "json": json.dumps(as_json_values(tables), indent=2) + "\n",
        "tex": as_latex(tables),
    }
    written = []
    for kind, content in contents.items():
        path = folder / f"tables.{kind}"
        write_whole(path, content.encode())
        written.append(path)
    return written
