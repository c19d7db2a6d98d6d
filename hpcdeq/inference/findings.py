"""What is found out about a scene while it is denoised, and kept beside its pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hpcdeq.inference.tiles import TileSolution
from hpcdeq.noise import estimate_sigma
from hpcdeq.tiling import Window

_NOISE_WINDOW = 260  # pixels: edge of the middle of a scene in which its noise is estimated

Placed = tuple[tuple[str, ...], NDArray[np.generic]]
"""Names of the axes, and values."""


def tile_maps(tiles: Iterable[TileSolution]) -> dict[str, Placed]:
    """Return how the tiles of a whole scene were solved, as maps, and where they begin.

    Returns
    -------
    dict
        ``tile_y``, ``tile_x``: first row and column of each tile; ``tile_residual``, ``tile_iterations`` and
        ``tile_converged (tile_y, tile_x)``.
    """
    at = {(tile.y0, tile.x0): tile for tile in tiles}
    rows, columns = (sorted({place[axis] for place in at}) for axis in (0, 1))
    places = ("tile_y", "tile_x")
    maps: dict[str, Placed] = {
        "tile_y": (places[:1], np.array(rows)),
        "tile_x": (places[1:], np.array(columns)),
    }
    for name, dtype in (("residual", np.float32), ("iterations", np.int32), ("converged", np.uint8)):
        values = np.array([[getattr(at[y, x], name) for x in columns] for y in rows], dtype)
        maps[f"tile_{name}"] = (places, values)
    return maps


def noise_in_the_middle(extent: Window, around: Window, pixels: NDArray[np.float32]) -> list[float]:
    """Estimate the noise of every band in the middle of a scene; of a single row or column none can be.

    Parameters
    ----------
    extent
        The whole scene.
    around, pixels
        What is known of it: a window with the middle in it, and its values ``(band, y, x)``.
    """
    y, x, half = extent.height // 2, extent.width // 2, _NOISE_WINDOW // 2
    middle = Window(max(0, y - half), y + half, max(0, x - half), x + half).intersect(around)
    if min(middle.height, middle.width) < 2:
        return []
    inside = middle.shift(-around.y0, -around.x0).slices
    return [float(sigma) for sigma in estimate_sigma(pixels[(slice(None), *inside)])]


def noise_remarks(noise: float, trained: tuple[float, float] | None) -> list[str]:
    """What is to be said of a scene's mean noise, in units of 1/255, to a model trained for a least and a most; None is unknown."""
    if trained is None or noise == 0:
        return []
    least, most = trained
    if 0.8 * least <= noise <= 1.2 * most:
        return []
    known = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    return [
        f"its noise is about {noise:.0f}/255, and the model was trained for {known}: use one that was trained for this noise"
    ]
