"""Denoise whole scenes that are in memory; the numbers are those of a bulk run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcdeq.console import Bar
from hpcdeq.errors import SceneError
from hpcdeq.inference.applied import DenoiseSettings, prepare
from hpcdeq.inference.tiles import DenoisedWindow, NoisyWindow, denoise_windows
from hpcdeq.models import SparseDenoiser
from hpcdeq.tiling import Window, tiles_of


def denoise_array(
    model: SparseDenoiser, noisy: NDArray[np.float32], settings: DenoiseSettings | None = None
) -> NDArray[np.float32]:
    """Denoise a scene ``(band, y, x)`` in memory; the numbers are those of `denoise_archive`.

    Raises
    ------
    ValueError
        If the band count is not the model's, or the overlap does not fit its blocks.
    """
    return denoise_whole(model, noisy, settings or DenoiseSettings()).values


def denoise_whole(
    model: SparseDenoiser, noisy: NDArray[np.float32], settings: DenoiseSettings, bar: Bar | None = None
) -> DenoisedWindow:
    """Denoise a scene ``(band, y, x)`` in memory, and tell how each of its tiles was solved.

    Parameters
    ----------
    model, noisy, settings
        As those of `denoise_array`.
    bar
        Counts the tiles, as many as `tile_count` says.

    Raises
    ------
    SceneError
        If the band count is not the model's.
    """
    if noisy.ndim != 3 or noisy.shape[0] != model.bands:
        raise SceneError(
            f"the scene must be (band, y, x) with the model's {model.bands} bands, got shape {noisy.shape}"
        )
    extent = Window(0, noisy.shape[1], 0, noisy.shape[2])
    inputs = [NoisyWindow(extent=extent, window=extent, pixels=noisy)]
    (whole,) = denoise_windows(
        prepare(model, settings), inputs, settings, tell=bar.advance if bar else lambda: None
    )
    return whole


def tile_count(model: SparseDenoiser, shape: tuple[int, ...], settings: DenoiseSettings) -> int:
    """Return how many tiles a scene ``(band, y, x)`` of a shape is cut into."""
    _, height, width = shape
    return len(tiles_of(height, width, model.settings.block, settings.overlap_of(model)))
