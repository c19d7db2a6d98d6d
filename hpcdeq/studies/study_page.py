"""One self-contained HTML page of a comparison: tables, figures, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcdeq.studies import published
from hpcdeq.studies.cells import Cell, Store
from hpcdeq.studies.figures import CAPTIONS
from hpcdeq.studies.page import data_uri, jpeg, render_page
from hpcdeq.studies.tables import CONVENTION, METRICS, TITLES, Line, Table, Tables, spread_text


@dataclass(frozen=True)
class Picture:
    """What a method made of the first scene."""

    title: str
    psnr: str
    scene: str
    """Data URI."""
    error: str
    """Data URI."""


def render(tables: Tables, figures: Mapping[str, Path], shown: Sequence[Cell], store: Store) -> str:
    """Return the page."""
    pictures = _pictures(shown, store)
    return render_page(
        "study.html.j2",
        title="Denoisers compared",
        tables=tables,
        metrics=METRICS,
        cell=lambda table, line, sigma, name: _cell(tables, table, line, sigma, name),
        convention=CONVENTION,
        titles=TITLES,
        trained=_trained(tables),
        figures=[
            (CAPTIONS[name], data_uri("image/svg+xml", figures[name].read_bytes()))
            for name in ("blocks", "iterations", "parameters", "spectra")
            if name in figures
        ],
        pictures=pictures,
        shown=shown[0] if shown else None,
        paper=published,
    )


def _cell(tables: Tables, table: Table, line: Line, sigma: float, name: str) -> tuple[str, str, bool]:
    """Mean and spread in a cell, and whether it is the best of its column."""
    if sigma not in line.at:
        return "–", "", False
    value = line.at[sigma][name]
    best = line.method.key != "noisy" and value.mean == tables.best(table.lines, sigma, name)
    mean, _, spread = spread_text(value, METRICS[name][1]).partition(" ")
    return mean, spread, best


def _trained(tables: Tables) -> list[tuple[str, str, str]]:
    """Title, learnt numbers and budget of every trained row, once."""
    lines = {x.method.title: x.method for table in tables.quality for x in table.lines if x.method.training}
    return [(title, f"{m.parameters or 0:,}", m.training) for title, m in lines.items()]


def _pictures(shown: Sequence[Cell], store: Store) -> list[Picture]:
    from matplotlib import colormaps

    pictures: list[Picture] = []
    for cell in shown:
        look, found = store.look(cell), store.get(cell)
        if look is None or found is None:
            continue
        if not pictures:
            black = jpeg(np.zeros((*look.error.shape, 3)))
            pictures.append(Picture("clean", "", jpeg(look.clean / 255), black))
        error = colormaps["magma"](look.error / 255)[..., :3]
        pictures.append(
            Picture(cell.method.title, f"{found.scores.psnr:.2f} dB", jpeg(look.colours / 255), jpeg(error))
        )
    return pictures
