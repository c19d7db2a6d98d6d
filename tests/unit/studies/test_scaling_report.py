"""The report of a scaling study: its numbers, what it does not call scaling, and that the page stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hpcdeq.errors import ConfigError
from hpcdeq.studies.scaling import figures, tables
from hpcdeq.studies.scaling.report import write_report
from hpcdeq.studies.scaling.results import (
    SHARES,
    Exchange,
    Host,
    Result,
    Spread,
    Transfer,
    UnitTimes,
    Work,
    curves,
)
from hpcdeq.studies.scaling.sections import Line, Plot, Section, Table

CORES = 2
SERIES = ("DEQ-fast, DDP", "DEQ-fast, ZeRO-1", "DU-fast, DDP", "DU-fast, ZeRO-1")
STAMP = {
    "processor": "Model 9000 at 2.4 GHz",
    "cores": CORES,
    "threads": 1,
    "gpu": None,
    "python": "3.11.2",
    "torch": "2.13.0",
    "hpcdeq": "0.1.0",
}


def point(
    work: Work, series: str, tasks: int, scale: int, seconds: tuple[float, ...], *, nodes: int = 1
) -> Result:
    """A made-up point on one machine of 2 cores."""
    train = work == "train"
    world, median = nodes * tasks, sorted(seconds)[len(seconds) // 2]
    amount = (12.0 if train else 6.0) * scale
    parts = (0.05, 0.4, 0.2, 0.1, 0.05, 0.1, 0.05, 0.05) if train else (0.1, 0.7, 0.1, 0.05, 0.05)
    names = SHARES[work]
    return Result(
        work=work,
        series=series,
        nodes=nodes,
        tasks=tasks,
        base=1,
        base_load=12 if train else 4,
        weak_load=(12 if train else 4) if scale == world else 0,
        load=(12 if train else 4) * scale,
        bands=31,
        scale=scale,
        seconds=seconds,
        amount=amount,
        largest_part=amount / world,
        shares={name: part * median for name, part in zip(names, parts, strict=True)},
        hosts=(Host(name="lab", processes=world, threads=world, cores=CORES),),
        exchanges=tuple(
            Exchange(library="torch", bytes=4**k, seconds=(5e-5 + 4**k / 2e9) * world) for k in range(5, 13)
        )
        if train and world > 1
        else (),
        no_mpi="mpi4py is not installed" if train else None,
        transfers=()
        if train
        else (
            Transfer(what="read", bytes=1 << 28, seconds=0.5 / min(world, 2)),
            Transfer(what="write", bytes=1 << 28, seconds=1.0 / min(world, 2)),
        ),
        exchanged=(1_200_000, 4096) if train else (),
        iterations={
            "forward": Spread(mean=12.25, least=9, most=20),
            "backward": Spread(mean=8.5, least=7, most=11),
        }
        if train
        else {},
        units=()
        if train
        else (UnitTimes(worker=0, pixels=65536, read_seconds=0.1, compute_seconds=0.5, write_seconds=0.1),),
        peak_bytes=(300 + 10 * world) << 20,
        start_seconds=4.5,
        job_seconds=30.0,
        stamp=STAMP,
        command=f"hpcdeq scale {work} --series '{series}' --processes {world} --scale {scale}",
        when=f"2026-08-0{world}T10:00:00",
    )


def around(seconds: float) -> tuple[float, ...]:
    return (1.05 * seconds, 0.97 * seconds, seconds)


def study() -> list[Result]:
    """Strong and weak scaling at 1 to 4 processes on 2 cores: four series of training, one of denoising."""
    found = []
    works: list[tuple[Work, str]] = [("train", series) for series in SERIES]
    for number, (work, series) in enumerate([*works, ("denoise", "DEQ-fast, units of 64 MiB")]):
        alone, lost = 2.0 + 0.5 * number, 0.06 + 0.03 * number
        for world in (1, 2, 3, 4):
            busy = min(world, CORES)
            strong = alone * ((1 - lost) / busy + lost) + 0.05 * (world - 1)
            found.append(point(work, series, world, 1, around(strong)))
            if world > 1:
                weak = alone * world / busy * (1 + lost * (world - 1) / 2)
                found.append(point(work, series, world, world, around(weak)))
    return found


def sections() -> list[Section]:
    """What fits and a simulation may say."""
    worlds = [float(2**k) for k in range(11)]
    model = [world / (1 + 0.004 * world) for world in worlds]
    lines = [
        Line(
            label="Amdahl, fitted to 1 and 2 processes",
            x=worlds,
            y=model,
            low=[0.8 * y for y in model],
            high=[1.15 * y for y in model],
        ),
        Line(
            label="alpha-beta",
            x=worlds,
            y=[0.9 * y for y in model],
        ),
        Line(label="measured", x=[1.0, 2.0], y=[1.0, 1.9], low=[0.95, 1.8], high=[1.05, 2.0], measured=True),
    ]
    table = Table(
        head=("law", "serial part", "95 %"), rows=[("Amdahl", "0.062", "0.051 to 0.074")], note="By repeats."
    )
    plot = Plot(
        name="projected-speedup",
        caption="Speed-up, projected",
        x_label="GPUs (log scale)",
        y_label="speed-up, times (log scale)",
        lines=lines,
        log_y=True,
    )
    return [
        Section(title="Fits", paragraphs=["Fitted to points without sharing."], tables=[table]),
        Section(
            title="To 1,024 GPUs",
            paragraphs=["Assumes an all-reduce of 20 GB/s between the nodes."],
            plots=[plot],
            projected=True,
        ),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the report of the study, with the sections."""
    return write_report(study(), sections(), tmp_path_factory.mktemp("report")).parent


def csv_rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "scaling.csv").read_text())))


class Reader(HTMLParser):
    """Checks that the elements of a page are closed in order; collects its texts, links and cells of tables."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def read_page(path: Path) -> Reader:
    return Reader(path.read_text())


def test_the_numbers_are_those_computed_by_hand(tmp_path: Path) -> None:
    results = [
        point("train", "a", 1, 1, (2.0, 1.9, 2.4)),
        point("train", "a", 2, 1, (1.25, 1.2, 1.3)),
        point("train", "a", 2, 2, (2.5, 2.4, 2.6)),
        point("train", "a", 4, 4, (5.0, 4.9, 5.3)),
    ]
    write_report(results, [], tmp_path)
    first, strong, weak, shared = csv_rows(tmp_path)
    assert (first["seconds_median"], first["seconds_least"], first["seconds_most"]) == ("2.0", "1.9", "2.4")
    assert (first["amount"], first["rate"], first["rate_unit"]) == ("12.0", "6.0", "blocks/s")
    assert [first[f"{mode}_{what}"] for mode in ("strong", "weak") for what in ("speedup", "efficiency")] == [
        "1.0"
    ] * 4
    assert float(strong["strong_speedup"]) == pytest.approx(2.0 / 1.25)
    assert float(strong["strong_efficiency"]) == pytest.approx(0.8)
    assert (strong["weak_speedup"], strong["weak_efficiency"]) == ("", "")
    assert float(weak["weak_speedup"]) == pytest.approx(2 * 2.0 / 2.5)
    assert float(weak["weak_efficiency"]) == pytest.approx(0.8)
    assert (weak["load"], weak["strong_speedup"]) == ("24", "")
    assert (shared["share_cores"], shared["crowding"], shared["load"]) == ("yes", "2.0", "48")
    assert float(shared["weak_speedup"]) == pytest.approx(4 * 2.0 / 5.0)
    assert float(strong["communication_seconds"]) == pytest.approx(0.1 * 1.25)
    assert strong["reading_seconds"] == ""
    assert [first[f"forward_iterations_{what}"] for what in ("mean", "least", "most")] == ["12.25", "9", "20"]
    assert (first["exchanges"], first["exchanged_bytes"]) == ("2", "1204096")
    assert first["gpu_joules"] == ""

    values = json.loads((tmp_path / "scaling.json").read_text())
    assert [Result.from_json(each) for each in values["points"]] == results
    by_mode = {curve["mode"]: curve["points"] for curve in values["curves"]}
    assert [(p["point"], p["processes"], p["efficiency"]) for p in by_mode["strong"]] == [
        (0, 1, 1.0),
        (1, 2, pytest.approx(0.8)),
    ]
    assert [(p["point"], p["processes"], p["efficiency"], p["share_cores"]) for p in by_mode["weak"]] == [
        (0, 1, 1.0, False),
        (2, 2, pytest.approx(0.8), False),
        (3, 4, None, True),
    ]
    assert by_mode["weak"][2]["speedup"] == pytest.approx(1.6)


def test_no_efficiency_is_said_of_points_whose_processes_share_cores(written: Path) -> None:
    page, rows = read_page(written / "report.html"), csv_rows(written)
    assert len(rows) == len(study()) == 35
    for row in rows:
        told = [row["strong_efficiency"], row["weak_efficiency"]]
        if int(row["processes"]) > CORES:
            assert (told, row["share_cores"]) == (["", ""], "yes")
        else:
            assert any(told)
            assert row["share_cores"] == "no"

    values = json.loads((written / "scaling.json").read_text())
    for curve in values["curves"]:
        assert [p["efficiency"] is None for p in curve["points"]] == [False, False, True, True]

    tabled = [table for table in page.tables if table[0][-1] == "efficiency"]
    assert len(tabled) == 4
    assert sum(len(body(table)) for table in tabled) == 5 * 2 * 4
    for row in (row for table in tabled for row in body(table)):
        shared = row[2] in ("3 threads on 2 cores", "4 threads on 2 cores")
        assert (row[-1] == "–") == ("○" in row[0]) == shared

    text = (written / "scaling.txt").read_text()
    lines = [line for line in text.splitlines() if " on 2 cores" in line]
    assert len(lines) == 40
    assert all(line.endswith("  –") == ("○" in line) for line in lines)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (
            {"cores": 2, "threads": 1},
            "2 physical cores (lab): points beyond 2 processes only show what sharing costs. They are not scaling.",
        ),
        (
            {"cores": 8, "threads": 4},
            "8 physical cores (lab): points beyond 8 computing threads only show what sharing costs. They are not scaling.",
        ),
        (
            {"cores": 8, "threads": 4, "gpus": 1},
            "1 GPU (lab): points beyond 1 process only show what sharing costs. They are not scaling.",
        ),
    ],
)
def test_the_page_says_first_how_many_cores_there_are(
    tmp_path: Path, host: dict[str, int], said: str
) -> None:
    results = [
        replace(p, hosts=(replace(p.hosts[0], **{**host, "threads": host["threads"] * p.world}),))
        for p in study()[:7]
    ]
    page = write_report(results, [], tmp_path)
    texts = read_page(page).texts
    assert said in texts
    assert texts.index(said) < texts.index("Strong scaling of training")
    assert (tmp_path / "scaling.txt").read_text().startswith(said)
    assert json.loads((tmp_path / "scaling.json").read_text())["machine"][0] == said


def test_a_machine_that_several_nodes_share_is_one_however_many_a_point_uses() -> None:
    points = [
        replace(
            point("train", "a", 1, 1, around(1.0), nodes=n),
            hosts=(Host(name=name, processes=n, threads=n, cores=2),),
        )
        for n, name in ((1, "n1"), (2, "n1, n2"), (3, "n1, n2, n3"))
    ]
    assert tables.machine_lines(points)[0].startswith(
        "2 physical cores (n1, n2, n3): points beyond 2 processes"
    )


def test_machines_alike_are_named_together_and_nodes_that_share_one_are_told() -> None:
    many = point("train", "a", 4, 4, around(1.0), nodes=3)
    hosts = tuple(Host(name=f"node{n:02}", processes=4, threads=4, cores=32) for n in range(3))
    lines = tables.machine_lines([replace(many, hosts=hosts)])
    assert lines == [
        "32 physical cores on each of 3 machines (node00, node01, node02): points with more than 32 processes on a machine only "
        "show what sharing costs. They are not scaling.",
        "In no point do processes share cores or GPUs.",
    ]
    assert (
        "The nodes of this study are not machines of their own: several share one."
        in tables.machine_lines([many])
    )


def test_a_curve_that_begins_with_shared_cores_has_no_efficiency() -> None:
    crowded = replace(point("train", "a", 4, 1, around(2.0)), base=4)
    wide = tuple(Host(name=f"node{n}", processes=1, threads=1, cores=2) for n in range(8))
    free = replace(point("train", "a", 1, 1, around(1.0), nodes=8), base=4, hosts=wide)
    (curve,) = curves([crowded, free])
    assert not free.crowded
    assert curve.efficiency(free) == pytest.approx(1.0)
    assert [tables.efficiency(curve, each) for each in curve.points] == [None, None]


def test_curves_of_one_series_that_begin_elsewhere_have_names_of_their_own() -> None:
    results = [point("train", "a", world, 1, around(1.0)) for world in (1, 2)]
    results += [replace(each, base_load=24) for each in results]
    named = tables.curves_of(results, "train", "strong")
    assert list(named) == ["a (from 1 process, load 12)", "a (from 1 process, load 24)"]


def test_the_page_stands_alone_and_its_elements_are_closed(written: Path) -> None:
    path = written / "report.html"
    page = read_page(path)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert len(page.links) == 8 + 4 + 2 + 1  # curves, shares and memory, microbenchmarks, that of a section
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import", path.read_text())
    names = {file.stem for file in (written / "figures").iterdir()}
    assert names == {
        *(
            f"{work}-{mode}-{what}"
            for work in ("train", "denoise")
            for mode in ("strong", "weak")
            for what in ("speedup", "efficiency")
        ),
        *(f"{work}-{what}" for work in ("train", "denoise") for what in ("shares", "memory")),
        "exchanges",
        "storage",
        "projected-speedup",
    }
    for name in names:
        assert (written / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (written / "figures" / f"{name}.svg").read_bytes()


def test_texts_of_users_are_texts_on_the_page_and_in_figures(tmp_path: Path) -> None:
    series = "<b>x</b> $\\frac{$ _"
    results = [
        replace(p, series=series, command=f"hpcdeq '{series}'") for p in study() if p.series == SERIES[0]
    ]
    results += [replace(p, series="_hidden") for p in results]
    section = Section(
        title="<i>title</i>", paragraphs=["a < b & c"], tables=[Table(head=["<u>"], rows=[["<s>"]])]
    )
    path = write_report(results, [section], tmp_path)
    page = read_page(path)
    assert not page.tags & {"b", "i", "u", "s"}
    assert series in [row[0] for table in page.tables for row in table]
    assert {"<i>title</i>", "a < b & c"} <= set(page.texts)
    figure = figures.speedup_figure(tables.curves_of(results, "train", "strong"))
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()][:2] == [
        series.replace("$", "\\$"),
        "_hidden",
    ]


def test_a_label_that_begins_with_an_underscore_is_in_the_legend() -> None:
    plot = Plot(
        name="a", caption="", x_label="x", y_label="y", lines=[Line(label="_model", x=[1, 2], y=[1, 2])]
    )
    (legend,) = figures.plot_figure(plot).legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_model"]


@pytest.mark.parametrize(("gpus", "said"), [(0, "cores"), (1, "GPUs")])
def test_it_is_said_what_processes_share(gpus: int, said: str) -> None:
    results = [point("train", "a", world, 1, around(1.0)) for world in (1, 4)]
    results = [replace(p, hosts=(replace(p.hosts[0], gpus=gpus),)) for p in results]
    legend = figures.speedup_figure(tables.curves_of(results, "train", "strong")).legends[0]
    assert legend.get_texts()[-1].get_text() == f"processes share {said}: not scaling"
    table = tables.points_table(results, "train", "strong")
    assert table is not None
    assert f"○ processes share {said}: not scaling, so no efficiency." in table.note


def axes_of(figure: Any) -> Any:
    (axes,) = figure.axes
    return axes


def test_axes_have_names_and_units_and_the_true_numbers_of_processes() -> None:
    results = study()
    named = tables.curves_of(results, "train", "weak")
    train = [p for p in results if p.work == "train"]
    labels = {
        figures.speedup_figure(named): ("processes (log scale)", "speed-up, times (log scale)"),
        figures.efficiency_figure(named): ("processes (log scale)", "efficiency (1 is ideal)"),
        figures.shares_figure(train, "train"): (
            "time of a step, %",
            "nodes × processes, load (blocks a step)",
        ),
        figures.memory_figure(train): ("peak memory, MiB", "nodes × processes, load (blocks a step)"),
        figures.exchange_figure(results): ("size of the vector (log scale)", "seconds (log scale)"),
        figures.storage_figure(results): (
            "processes reading or writing at once (log scale)",
            "all together, MB/s",
        ),
        figures.plot_figure(sections()[1].plots[0]): ("GPUs (log scale)", "speed-up, times (log scale)"),
    }
    for figure, expected in labels.items():
        axes = axes_of(figure)
        assert (axes.get_xlabel(), axes.get_ylabel() or axes.get_title(loc="left")) == expected
    axes = axes_of(next(iter(labels)))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3", "4"]
    assert list(axes.get_xticks()) == [1, 2, 3, 4]
    assert axes.get_xscale() == "log"


def marks(axes: Any) -> dict[float, tuple[float, str]]:
    """Height and face of the marks of a figure with one curve, by processes."""
    found = {}
    for container in axes.containers:
        (line, _, _) = container.lines
        ((x, y),) = line.get_xydata().tolist()
        found[x] = (y, line.get_markerfacecolor())
    return found


def test_points_whose_processes_share_cores_are_hollow_and_off_the_efficiency_figure() -> None:
    seconds = {1: 2.0, 2: 1.25, 3: 1.25, 4: 1.6}
    results = [point("train", "a", world, 1, (s,)) for world, s in seconds.items()]
    named = tables.curves_of(results, "train", "strong")
    speedup = figures.speedup_figure(named)
    found = marks(axes_of(speedup))
    assert {x: y for x, (y, _) in found.items()} == pytest.approx({1: 1.0, 2: 1.6, 3: 1.6, 4: 1.25})
    assert [face == "white" for _, face in found.values()] == [False, False, True, True]
    assert "processes share cores: not scaling" in [t.get_text() for t in speedup.legends[0].get_texts()]
    assert {x: y for x, (y, _) in marks(axes_of(figures.efficiency_figure(named))).items()} == pytest.approx(
        {1: 1.0, 2: 0.8}
    )
    own = figures.speedup_figure(tables.curves_of(results[:2], "train", "strong"))
    assert "processes share cores: not scaling" not in [t.get_text() for t in own.legends[0].get_texts()]


def test_error_bars_reach_from_the_slowest_to_the_fastest_repeat() -> None:
    results = [point("train", "a", 1, 1, (2.0,)), point("train", "a", 2, 1, (1.0, 1.25, 1.6))]
    axes = axes_of(figures.speedup_figure(tables.curves_of(results, "train", "strong")))
    ends = axes.containers[1].lines[2][0].get_segments()[0][:, 1]
    assert sorted(ends) == pytest.approx([2.0 / 1.6, 2.0 / 1.0])


def test_shares_of_each_bar_add_up_to_all_of_the_time() -> None:
    train = [p for p in study() if p.work == "train"]
    axes = axes_of(figures.shares_figure(train, "train"))
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert [sum(each) for each in zip(*widths, strict=True)] == pytest.approx([100.0] * len(train))
    assert [each[0] for each in widths] == pytest.approx([5, 40, 20, 10, 5, 10, 5, 5])


def test_microbenchmarks_are_medians_over_the_points_of_a_size(written: Path) -> None:
    def measured(seconds: float, series: str) -> Result:
        vector = Exchange(library="torch", bytes=1 << 20, seconds=seconds)
        mpi = Exchange(library="mpi", bytes=1 << 20, seconds=2 * seconds)
        read = Transfer(what="read", bytes=10**8, seconds=seconds)
        return replace(
            point("train", series, 2, 1, around(1.0)), exchanges=(vector, mpi), transfers=(read,), no_mpi=None
        )

    results = [measured(seconds, str(seconds)) for seconds in (0.5, 0.1, 0.2)]
    exchange, transfer = tables.exchange_table(results), tables.transfer_table(results)
    assert exchange is not None
    assert transfer is not None
    assert exchange.head == ("size of the vector", "1 × 2, mpi", "1 × 2, torch")
    assert exchange.rows == [("1 MiB", "400,000", "200,000")]
    assert transfer.head == ("nodes × processes", "read, MB/s")
    assert transfer.rows == [("1 × 2", "500")]
    texts = read_page(written / "report.html").texts
    assert "No all-reduce through MPI was measured: mpi4py is not installed" in texts


def body(table: list[list[str]]) -> list[list[str]]:
    """Rows without the head and the headings of series."""
    return [row for row in table[1:] if len(row) == len(table[0])]


def table_with(page: Reader, column: str) -> list[list[str]]:
    (found,) = (table for table in page.tables if column in table[0])
    return found


def test_memory_gpus_and_iterations_are_said_where_they_are_known(tmp_path: Path) -> None:
    first, second = point("train", "a", 1, 1, around(1.0)), point("train", "a", 2, 1, around(0.6))
    gpu = {"utilisation": 0.875, "peak_bytes": 2.0**30, "joules": 1234.4}
    page = read_page(write_report([first, replace(second, gpu=gpu)], [], tmp_path))
    rows = table_with(page, "energy of the GPUs, J a step or pass")
    assert rows[0][2:] == [
        "peak memory, MiB",
        "GPUs used, %",
        "GPU memory, MiB",
        "energy of the GPUs, J a step or pass",
        "exchanged a step",
        "start, s",
        "job, s",
    ]
    assert body(rows)[0][2:] == ["310", "–", "–", "–", "1.148 MiB in 2", "4.50", "30.0"]
    assert body(rows)[1][2:] == ["320", "87.5", "1,024", "1,234", "1.148 MiB in 2", "4.50", "30.0"]
    iterations = body(table_with(page, "forward iterations"))
    assert iterations[0][2:] == ["12.2 (9 to 20)", "8.5 (7 to 11)"]
    bare = read_page(write_report([first, replace(second, iterations={})], [], tmp_path))
    assert not any("energy of the GPUs, J a step or pass" in table[0] for table in bare.tables)


@pytest.mark.parametrize(("name", "other"), [("processor", "Model 9001"), ("torch", "2.12.0")])
def test_points_of_other_hardware_or_software_are_warned_of(tmp_path: Path, name: str, other: str) -> None:
    results = study()
    strange = replace(results[3], stamp=STAMP | {name: other})
    page = " ".join(read_page(write_report([*results[:3], strange], [], tmp_path)).texts)
    assert f"The points were measured on different hardware or software ({name})" in page
    assert other in page


def test_what_a_process_was_given_of_the_machine_is_no_other_hardware(tmp_path: Path) -> None:
    results = study()
    given = replace(results[3], stamp=STAMP | {"cores": 1, "threads": 4})
    page = " ".join(read_page(write_report([*results[:3], given], [], tmp_path)).texts)
    assert "different hardware" not in page
    assert "2 or 1" in page


def test_sections_are_on_the_page_and_projections_are_marked(written: Path) -> None:
    page = read_page(written / "report.html")
    assert page.texts.count("projection, not measured") == 1
    before = page.texts[: page.texts.index("projection, not measured")]
    assert before[-1] == "To 1,024 GPUs"
    assert [["law", "serial part", "95 %"], ["Amdahl", "0.062", "0.051 to 0.074"]] in page.tables
    text = (written / "scaling.txt").read_text()
    assert "To 1,024 GPUs (projection, not measured)" in text
    assert "Amdahl  0.062        0.051 to 0.074" in text
    fits, projected = json.loads((written / "scaling.json").read_text())["sections"]
    assert fits["tables"][0]["rows"] == [["Amdahl", "0.062", "0.051 to 0.074"]]
    assert projected["plots"][0]["lines"][2]["y"] == [1.0, 1.9]


def test_commands_are_said_once_each(tmp_path: Path) -> None:
    results = [replace(p, command="hpcdeq scale train --resume") for p in study()[:3]]
    page = read_page(write_report(results, [], tmp_path))
    assert "".join(page.texts).count("hpcdeq scale train --resume") == 1


@pytest.mark.parametrize("work", ["train", "denoise"])
def test_a_single_point_makes_a_page_that_says_what_is_missing(tmp_path: Path, work: Work) -> None:
    page = read_page(write_report([point(work, "a", 1, 1, (1.0,))], [], tmp_path))
    assert f"Points of {tables.WORKS[work]} that are on no curve" in page.texts
    assert "A curve needs a series at two sizes at least." in page.texts
    (row,) = csv_rows(tmp_path)
    assert [row[f"{mode}_{what}"] for mode in ("strong", "weak") for what in ("speedup", "efficiency")] == [
        ""
    ] * 4


def test_a_bare_point_makes_a_page(tmp_path: Path) -> None:
    bare = Result(
        work="train",
        series="a",
        nodes=1,
        tasks=1,
        base=1,
        base_load=1,
        load=1,
        bands=31,
        scale=1,
        seconds=(1.0,),
        amount=1.0,
        largest_part=1.0,
        shares={},
        hosts=(Host(name="lab", processes=1, threads=1, cores=1),),
    )
    page = read_page(write_report([bare], [], tmp_path))
    assert (
        "1 physical core (lab): points beyond 1 process only show what sharing costs. They are not scaling."
        in page.texts
    )
    assert page.links == []


def test_no_point_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no point is measured yet; measure some first, with hpcdeq submit scale"
    ):
        write_report([], sections(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    def refuse(value: str) -> None:
        raise AssertionError(value)

    strange = replace(point("train", "a", 1, 1, (1.0,)), gpu={"joules": float("nan")})
    write_report([strange], [], tmp_path)
    values = json.loads((tmp_path / "scaling.json").read_text(), parse_constant=refuse)
    assert values["points"][0]["gpu"] == {"joules": None}


def test_the_order_of_the_points_does_not_matter(tmp_path: Path) -> None:
    def texts(results: Sequence[Result], name: str) -> list[str]:
        write_report(results, [], tmp_path / name)
        return [(tmp_path / name / f"scaling.{kind}").read_text() for kind in ("txt", "csv", "json")]

    results = study()[:7]
    assert texts(results, "one") == texts(results[::-1], "other")
