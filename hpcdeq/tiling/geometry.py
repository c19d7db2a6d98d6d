"""Rectangles of pixels: how a scene is cut into owned windows, covered by tiles, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of pixels, rows ``y0:y1`` and columns ``x0:x1`` (half open)."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rectangle in an array whose last two axes are (y, x)."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def intersect(self, other: Window) -> Window:
        """Return the common rectangle; it is empty (height or width <= 0) where there is none."""
        return Window(
            max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1)
        )

    def shift(self, dy: int, dx: int) -> Window:
        """Return the same rectangle moved by (dy, dx) pixels."""
        return Window(self.y0 + dy, self.y1 + dy, self.x0 + dx, self.x1 + dx)


def partition(height: int, width: int, step_y: int, step_x: int) -> Iterator[Window]:
    """Cut a scene into disjoint windows of at most ``step_y x step_x`` pixels, row by row.

    Every pixel belongs to exactly one window; the last of a row or column is smaller where the steps do not divide.
    """
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield Window(y, min(y + step_y, height), x, min(x + step_x, width))


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis: a fixed stride, the last tile pushed back to end at the border."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def tiles_of(
    height: int, width: int, tile: int, overlap: int, *, touching: Window | None = None
) -> list[Window]:
    """Cover a scene with tiles that overlap by at least ``overlap`` pixels, in row-major order.

    The grid is a function of the scene alone, so that every worker sees the same tiles however the work is cut.

    Parameters
    ----------
    height, width
        Size of the scene in pixels.
    tile
        Edge of a tile in pixels. A scene that is smaller along an axis gets one tile of its own size there.
    overlap
        Pixels shared by neighbours, ``0 <= overlap < tile``. The last tile of a row or column may share more,
        as it ends at the border (1300 = 21 x 60 + 40).
    touching
        Return only the tiles that share a pixel with this window: the same tiles, in the same order.

    Raises
    ------
    ValueError
        If a size is not positive, or ``overlap`` is not in ``[0, tile)``.
    """
    if height < 1 or width < 1 or tile < 1:
        raise ValueError(f"height, width and tile must be positive, got {height}, {width}, {tile}")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, {tile}) for tiles of {tile} pixels, got {overlap}")
    seen = touching or Window(0, height, 0, width)
    return [
        Window(y, min(y + tile, height), x, min(x + tile, width))
        for y in _starts(height, tile, overlap)
        if y < seen.y1 and seen.y0 < y + tile
        for x in _starts(width, tile, overlap)
        if x < seen.x1 and seen.x0 < x + tile
    ]


def cells_along(size: int, tile: int, overlap: int) -> dict[int, tuple[int, int]]:
    """Pixels ``(first, end)`` that each tile owns along an axis of ``size`` pixels, by the tile's first pixel.

    Neighbours share what they overlap in halves, so that every pixel has one owner.
    """
    starts = _starts(size, tile, overlap)
    borders = [0, *((before + tile + start) // 2 for before, start in pairwise(starts)), size]
    return dict(zip(starts, pairwise(borders), strict=True))


def blend_weights(height: int, width: int, overlap: int) -> NDArray[np.float32]:
    """Weights ``(height, width)`` of a tile in the average of overlapping tiles.

    A raised cosine over the ``overlap`` pixels next to each side, 1 inside: neighbouring tiles of the regular grid
    sum to 1, and every weight is positive, so that a pixel covered by one tile keeps its value. ``overlap = 0``
    gives ones.
    """

    def ramp(size: int) -> NDArray[np.float64]:
        distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        return np.sin(0.5 * np.pi * np.minimum(distance / max(overlap, 0.5), 1.0)) ** 2

    return np.outer(ramp(height), ramp(width)).astype(np.float32)
