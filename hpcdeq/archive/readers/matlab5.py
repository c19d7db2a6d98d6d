"""MATLAB v5 to v7 files through SciPy: 3-D arrays, and the flattened ones of the unmixing scenes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from hpcdeq.archive.readers.axes import cut, find_axes, shape_of
from hpcdeq.archive.readers.base import (
    WAVELENGTH_NAMES,
    RawScene,
    Said,
    Selection,
    Source,
    Variable,
    check_shape,
    choose,
    damaged,
    spectral_among,
)
from hpcdeq.errors import SceneError

_NUMERIC = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
_ITEM_BYTES = {"double": 8, "single": 4} | {n: int(n.lstrip("uint")) // 8 for n in _NUMERIC if "int" in n}
_MOST_BYTES = 4 << 30  # what the format can hold
_FREE_BYTES = 256 << 20
_MOST_EXPANSION = 100  # scenes shrink to a half or a tenth, a file made to fill the memory to a thousandth
_FEW = 1 << 14  # numbers in an array that can be wavelengths or a size


@contextmanager
def open_matlab5(source: Source, selection: Selection) -> Iterator[RawScene]:
    """Open an array of a MATLAB v5 file; it is held in memory, as the format is compressed as a whole.

    Structs and cells are not read. A 2-D array is a scene if the file tells ``nRow`` and ``nCol``, and one of
    its axes has that many pixels: they run down the columns (pixel = row + nRow x column).

    Raises
    ------
    SceneError
        If the file is damaged, or does not hold what was asked for.
    """
    try:
        variables = [Variable(n, tuple(s), c) for n, s, c in scipy.io.whosmat(source.path)]
        few = [v.name for v in variables if v.dtype in _NUMERIC and 0 < np.prod(v.shape, dtype=float) <= _FEW]
        small = {n: a for n, a in _load(source, few).items() if a.size == max(a.shape, default=0)}
        size = _size(small)
        candidates = [
            v.name
            for v in variables
            if v.dtype in _NUMERIC and (len(v.shape) == 3 or _is_flat(v.shape, size))
        ]
        name = choose(variables, candidates, selection.variable)
        _check_size(source, next(v for v in variables if v.name == name))
        data = _load(source, [name])[name]
    except SceneError:
        raise
    except Exception as error:  # the parser meets damage with whatever error comes first
        raise damaged("MATLAB file", error) from error
    if data.dtype.kind not in "uif":
        raise SceneError(
            f"variable {name!r} holds {data.dtype} values; a scene holds integers or real numbers"
        )
    counts = [a.size for n, a in small.items() if n.lower() in WAVELENGTH_NAMES]
    if data.ndim == 3:
        axes = find_axes(data.shape, selection.axes, usual="yxb", band_counts=counts)
    else:
        assert size is not None, "a 2-D array is a candidate only where the size is told"
        data, axes = _unflatten(data, *size)
    shape = check_shape(shape_of(data.shape, axes), data.dtype.itemsize)
    told = spectral_among({n: Said(a) for n, a in small.items() if a.dtype.kind in "uif"}, shape[0])
    full_scale = _scalar(small, "maxValue")
    yield RawScene(
        format="MATLAB v5",
        variable=name,
        shape=shape,
        dtype=data.dtype,
        read=lambda window: cut(data, axes, window),
        wavelengths=told.wavelengths,
        fwhm=told.fwhm,
        full_scale=full_scale,
        full_scale_from="maxValue in the file",
        notes=told.notes,
    )


def _check_size(source: Source, variable: Variable) -> None:
    """Bound what is about to be held in memory: an array is read whole."""
    size = int(np.prod([int(n) for n in variable.shape], dtype=object)) * _ITEM_BYTES[variable.dtype]
    packed = source.path.stat().st_size
    if size > _MOST_BYTES or (size > _FREE_BYTES and size > _MOST_EXPANSION * packed):
        raise SceneError(
            f"variable {variable.name!r} claims {size} bytes in a file of {packed}: over the bound of {_MOST_BYTES}, or more than "
            f"{_MOST_EXPANSION} times the file"
        )


def _load(source: Source, names: list[str]) -> dict[str, NDArray[Any]]:
    if not names:
        return {}
    loaded = scipy.io.loadmat(source.path, variable_names=names)
    return {n: np.asarray(loaded[n]) for n in names}


def _scalar(small: dict[str, NDArray[Any]], name: str) -> float | None:
    found = small.get(name)
    return (
        None if found is None or found.size != 1 or found.dtype.kind not in "uif" else float(found.ravel()[0])
    )


def _size(small: dict[str, NDArray[Any]]) -> tuple[int, int] | None:
    """Return (rows, columns) if the file tells them."""
    rows, columns = _scalar(small, "nRow"), _scalar(small, "nCol")
    return None if rows is None or columns is None else (int(rows), int(columns))


def _is_flat(shape: tuple[int, ...], size: tuple[int, int] | None) -> bool:
    return size is not None and len(shape) == 2 and min(shape) > 1 and size[0] * size[1] in shape


def _unflatten(data: NDArray[Any], rows: int, columns: int) -> tuple[NDArray[Any], str]:
    if data.shape[1] == rows * columns:
        return data.reshape(data.shape[0], columns, rows), "bxy"
    return data.reshape(columns, rows, data.shape[1]), "xyb"
