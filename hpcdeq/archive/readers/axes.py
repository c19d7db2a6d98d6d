"""Which axis of an array is the spectral one, and how to cut a window out of any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

_PIECE_BYTES = 16 << 20
_CLEARLY = 2  # an axis is clearly the smallest if the others are at least this many times as long


def find_axes(
    shape: Sequence[int], said: str | None, *, usual: str | None = None, band_counts: Sequence[int] = ()
) -> str:
    """Tell the order of an array's axes, such as ``yxb``.

    In this order: what the user said; the one axis as long as the wavelengths; the format's usual order,
    unless another axis is clearly the smallest; the clearly smallest axis.

    Parameters
    ----------
    shape
        Of the 3-D array, in the order in which its format shows it.
    said
        The user's ``--axes``.
    usual
        The format's convention, if it has one.
    band_counts
        Lengths of the wavelength arrays in the file.

    Raises
    ------
    SceneError
        If no rule decides.
    """
    if said is not None:
        return said
    told = [i for i, size in enumerate(shape) if size in band_counts]
    if len(told) == 1:
        return _with_band(told[0])
    order = sorted(range(3), key=lambda i: shape[i])
    smallest = order[0] if shape[order[0]] * _CLEARLY <= shape[order[1]] else None
    if usual is not None and smallest in (None, usual.index("b")):
        return usual
    if usual is None and smallest is not None:
        return _with_band(smallest)
    raise SceneError(
        f"shape {tuple(shape)} does not tell which axis holds the bands; say it with --axes, "
        "such as --axes yxb for (row, column, band) or --axes byx for (band, row, column)"
    )


def _with_band(axis: int) -> str:
    letters = ["y", "x"]
    letters.insert(axis, "b")
    return "".join(letters)


def shape_of(shape: Sequence[int], axes: str) -> tuple[int, int, int]:
    """Return (band, y, x) of an array with these axes."""
    bands, height, width = (int(shape[axes.index(a)]) for a in "byx")
    return bands, height, width


def cut(array: Any, axes: str, window: Window) -> NDArray[Any]:
    """Read a window (band, y, x) out of anything that can be sliced."""
    rows, columns = window.slices
    index = {"b": slice(None), "y": rows, "x": columns}
    values = np.asarray(array[tuple(index[a] for a in axes)])
    return np.array(values.transpose([axes.index(a) for a in "byx"]))


@dataclass(frozen=True, kw_only=True)
class FlatFile:
    """An array that lies uncompressed in a file, its last axis running fastest."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    axes: str

    def read(self, window: Window) -> NDArray[Any]:
        """Read a window (band, y, x) in the machine's byte order.

        The file is mapped anew for every few slabs along its first axis: pages of a mapping that is kept count as
        memory in use, and the kernel maps up to 16 pages around each one that is touched.
        """
        rows, columns = window.slices
        index = {"b": slice(0, self.shape[self.axes.index("b")]), "y": rows, "x": columns}
        first, second, third = (index[a] for a in self.axes)
        lengths = {a: s.stop - s.start for a, s in index.items()}
        values = np.empty(tuple(lengths[a] for a in "byx"), self.dtype.newbyteorder("="))
        turned = values.transpose(["byx".index(a) for a in self.axes])
        step = max(1, _PIECE_BYTES // max(1, self.shape[1] * self.shape[2] * self.dtype.itemsize))
        for start in range(first.start, first.stop, step):
            stop = min(start + step, first.stop)
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            turned[start - first.start : stop - first.start] = mapped[start:stop, second, third]
        return values
