"""How noisy a scene is, from the scene alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Median of |x| for a standard normal x.
NORMAL_MEDIAN = 0.6744897501960817


def estimate_sigma(scene: NDArray[np.float32]) -> NDArray[np.float64]:
    """Estimate the standard deviation of the noise in every band.

    The median absolute value of the finest diagonal Haar coefficients, (a - b - c + d) / 2 over cells of
    2 x 2 pixels: edges and gradients along rows or columns cancel in them, and a median passes over the rest
    while texture fills less than about half of the scene. Fine texture reads as noise: on a clean scene the
    estimate is an upper one.

    Parameters
    ----------
    scene
        (band, y, x). Cells with a value of exactly 0 (no data, dead columns) are left out.

    Returns
    -------
    sigma
        (band,), in the scene's units; 0 for a band without a cell to measure.

    Raises
    ------
    ValueError
        If the scene is not (band, y, x) of at least 2 x 2 pixels.

    References
    ----------
    Donoho, Johnstone: *Ideal spatial adaptation by wavelet shrinkage*, Biometrika 81, 1994,
    doi:10.1093/biomet/81.3.425.
    """
    if scene.ndim != 3 or min(scene.shape[1:]) < 2:
        raise ValueError(f"scene must be (band, y, x) of at least 2 x 2 pixels, got shape {scene.shape}")
    return np.array([_band_sigma(band) for band in scene])


def _band_sigma(band: NDArray[np.float32]) -> float:
    height, width = (n - n % 2 for n in band.shape)
    a, b = band[0:height:2, 0:width:2], band[0:height:2, 1:width:2]
    c, d = band[1:height:2, 0:width:2], band[1:height:2, 1:width:2]
    measured = (a != 0) & (b != 0) & (c != 0) & (d != 0)
    if not measured.any():
        return 0.0
    return float(np.median(np.abs(a - b - c + d)[measured])) / 2 / NORMAL_MEDIAN
