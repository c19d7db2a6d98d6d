"""The look through a raw scene before it is written: its range, its masked pixels, what makes it unusable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.readers import RawScene
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window, partition

WINDOW_BYTES = 64 << 20
_KEPT = ("uint8", "uint16", "int16", "int32", "uint32")


@dataclass(frozen=True)
class Scan:
    """What a look through all pixels gave; masked pixels do not count."""

    low: float
    high: float
    masked: int


def windows_of(raw: RawScene, kept: int) -> Iterator[Window]:
    """Cut a scene into windows of whole shards, of ``WINDOW_BYTES`` or one shard, for ``kept`` bands to be stored."""
    bands, height, width = raw.shape
    edge_y, edge_x = (layout.shard_edge(n, kept) for n in (height, width))
    shards = max(1, WINDOW_BYTES // (bands * edge_y * edge_x * raw.dtype.itemsize))
    across = min(shards, -(-width // edge_x))
    down = max(1, shards // across)
    return partition(height, width, edge_y * down, edge_x * across)


def read_clean(
    raw: RawScene, window: Window, kept: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read the kept bands of a window, with masked pixels as 0.

    Returns
    -------
    values
        (band, y, x) in the file's type.
    masked
        (y, x), True where all kept bands equal the ignore value; None if there is no such value.
    """
    values = raw.read(window)
    assert values.shape == (raw.shape[0], window.height, window.width), f"{values.shape} for {window}"
    if len(kept) < len(values):
        values = values[kept]
    if raw.ignore_value is None:
        return values, None
    ignore = raw.ignore_value
    masked: NDArray[np.bool_] = (np.isnan(values) if np.isnan(ignore) else values == ignore).all(axis=0)
    if masked.any():
        values[:, masked] = 0
    return values, masked


def scan(raw: RawScene, kept: NDArray[np.intp], windows: Iterable[Window]) -> Scan:
    """Look through all pixels of the kept bands.

    Raises
    ------
    SceneError
        If a value is NaN or infinite, a band holds zeros only, or no pixel holds data.
    """
    low, high, masked, bad = np.inf, -np.inf, 0, 0
    first_bad: tuple[int, int, int] | None = None
    empty = np.ones(len(kept), bool)
    for window in windows:
        values, mask = read_clean(raw, window, kept)
        if mask is not None:
            masked += int(mask.sum())
            if mask.all():
                continue
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                bad += int(finite.size - finite.sum())
                band, y, x = np.nonzero(~finite)
                at = np.lexsort((band, x, y))[0]
                place = (int(y[at]) + window.y0, int(x[at]) + window.x0, int(kept[band[at]]))
                first_bad = place if first_bad is None else min(first_bad, place)
                continue
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        empty &= ~(values != 0).any(axis=(1, 2))
    if first_bad is not None:
        raise SceneError(
            f"{bad} values are NaN or infinite, the first at row {first_bad[0]}, column {first_bad[1]}, "
            f"band {first_bad[2]} (counted from 0); "
            "replace them, or leave out the bands they are in with --skip-bands"
        )
    if masked == raw.shape[1] * raw.shape[2]:
        raise SceneError(f"no pixel holds data: all equal the data ignore value {raw.ignore_value:g}")
    if empty.any():
        raise SceneError(_empty_bands(raw, kept[empty]))
    return Scan(low, high, masked)


def stored_dtype(dtype: np.dtype[Any], seen: Scan) -> np.dtype[Any]:
    """Return the type a scene is stored in: common integer types as they are, floats as float32.

    Raises
    ------
    SceneError
        If no stored type holds the values.
    """
    native = dtype.newbyteorder("=")
    if native.name in _KEPT:
        return native
    if native.kind == "f" and max(abs(seen.low), abs(seen.high)) <= np.finfo(np.float32).max:
        return np.dtype(np.float32)
    if native.kind in "iu":
        for name in ("int16", "int32", "uint32"):
            if np.iinfo(name).min <= seen.low and seen.high <= np.iinfo(name).max:
                return np.dtype(name)
    raise SceneError(
        f"values from {seen.low:g} to {seen.high:g} of type {dtype} fit none of {', '.join(_KEPT)}, float32"
    )


def _empty_bands(raw: RawScene, bands: NDArray[np.intp]) -> str:
    names = [str(b) if raw.wavelengths is None else f"{b} ({raw.wavelengths[b]:g} nm)" for b in bands[:10]]
    more = f" and {len(bands) - 10} more" if len(bands) > 10 else ""
    skip = _ranges(bands)
    return f"all-zero band {', '.join(names)}{more} (counted from 0); leave out with --skip-bands {skip}"


def _ranges(bands: NDArray[np.intp]) -> str:
    """Write band numbers as ``--skip-bands`` takes them: 0,5-7."""
    runs = np.split(bands, np.flatnonzero(np.diff(bands) > 1) + 1)
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
