"""The paper that a scaling study's figures are drawn on: its size, colours and axes of processes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from hpcdeq.studies.page import blank_figure

_WIDTH, HEIGHT = 5.6, 3.5
# Okabe and Ito's, which the colour-blind tell apart, without their yellow, which white paper swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#7a7a7a")
MARKERS = "osD^vPX*"
GREY, PALE, SHADE = "#8b93a0", "#e4e7ec", "#f3f1ec"
LEGEND, HEADING = 72, 58  # letters a line


def canvas(height: float) -> tuple[Any, Any]:
    """Return an empty figure of such a height in inches, and its axes."""
    figure, ((axes,),) = blank_figure(_WIDTH, height)
    return figure, axes


def process_axis(axes: Any, worlds: Sequence[int], what: str = "processes") -> None:
    """Powers of two, with the numbers of processes that were measured as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(worlds, [f"{world:,}" for world in worlds])
    axes.set_xlim(min(worlds) / 1.15, max(worlds) * 1.15)
    axes.minorticks_off()
    axes.set_xlabel(f"{what} (log scale)")
    axes.grid(color=PALE, linewidth=0.8)


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of a curve."""
    return COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]


def words(text: str, width: int) -> str:
    """Break a text of the user into lines; keep it from being taken for a formula, or for a label that is not to be shown."""
    lines = textwrap.fill(text, width, break_on_hyphens=False).replace("$", r"\$")
    return f" {lines}" if lines.startswith("_") else lines


def legend_height(names: Iterable[str]) -> float:
    """Return how many inches a legend of such names takes, with two lines of its own."""
    return 0.2 * (2 + sum(1 + words(name, LEGEND).count("\n") for name in names))
