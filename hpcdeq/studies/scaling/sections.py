"""Parts of a scaling report, as plain values: what fits, projections and simulations say goes into the page as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    head: Sequence[str]
    """Titles of the columns, with their units; the first column, to the left, says what a row is about."""
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    """What one must know to read it."""
    headings: Mapping[int, str] = field(default_factory=dict)
    """What stands above rows, by their numbers."""
    faint: frozenset[int] = frozenset()
    """Rows, by number, that are shown faint, as they are no scaling."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.head


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot, or points that were measured."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """Lower end of the band around it, or of the error bars of points; empty if there is none."""
    high: Sequence[float] = ()
    measured: bool = False
    """Points, which are not joined."""

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), self.label
        assert len(self.low) == len(self.high), self.label
        assert len(self.low) in (0, len(self.x)), self.label


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines with bands over a number of processes, nodes, or the like."""

    name: str
    """Of its files, in small letters, digits and hyphens."""
    caption: str
    x_label: str
    """With its unit."""
    y_label: str
    """With its unit."""
    lines: Sequence[Line]
    log_x: bool = True
    """Powers of two."""
    log_y: bool = False
    """Powers of ten."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading of its own."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    projected: bool = False
    """Whether it says what was not measured: the page marks it so."""
