"""Which axis of an array is the spectral one, and how to cut a window out of any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

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
