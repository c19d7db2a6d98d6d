"""Structural similarity (SSIM) of hyperspectral images, band by band."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from hpcdeq.metrics.images import Image, check_images, pairs_of_bands

_WINDOW = 11
_SIGMA = 1.5
# (K1 L)^2 and (K2 L)^2 with data range L = 1.
_C1 = 0.01**2
_C2 = 0.03**2
# Windows at a time along each side. On a CPU they stay in a core's cache, and torch starts no threads for so few:
# waiting for threads at every step costs several times the work where other processes share the cores.
_TILE = 160


def ssim(reference: Image, estimate: Image, mask: Image | None = None) -> float:
    """Mean over bands and windows of the structural similarity, with data range 1.

    The convention of Wang et al.: Gaussian window of 11 x 11 pixels and sigma 1.5, population covariances,
    K1 = 0.01, K2 = 0.03. Only windows that lie in the image count; with a mask, only those whose pixels are
    all valid, nan if there is none. Equals scikit-image's ``structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1)`` averaged over bands.

    Parameters are those of `hpcdeq.metrics.evaluate_all`.

    Raises
    ------
    ValueError
        If the images are smaller than a window, or shapes, types or devices do not fit.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli: *Image quality assessment: from error visibility to structural
    similarity*, IEEE TIP 13, 2004, doi:10.1109/TIP.2003.819861.
    """
    valid = check_images(reference, estimate, mask)
    if min(valid.shape) < _WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_WINDOW} x {_WINDOW} pixels, got {tuple(valid.shape)}"
        )
    # A window counts if no invalid pixel is in it: a box sum of them is zero.
    counted = _filter((~valid).double(), torch.ones(_WINDOW, dtype=torch.float64)) == 0
    masked = not bool(counted.all())
    height, width = counted.shape
    tile = max(height, width) if valid.is_cuda else _TILE
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window /= window.sum()
    total = torch.zeros((), dtype=torch.float64, device=valid.device)
    for x, y in pairs_of_bands(reference, estimate):
        for i, j in product(range(0, height, tile), range(0, width, tile)):
            cells = (slice(i, i + tile + _WINDOW - 1), slice(j, j + tile + _WINDOW - 1))
            values = _ssim_map(x[cells], y[cells], window)
            total += (values[counted[i : i + tile, j : j + tile]] if masked else values).sum()
    return float(total / (counted.sum() * len(reference)))


def _ssim_map(x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    """SSIM at every window of a tile of one band: (h - 10, w - 10) of (h, w)."""
    mx, my = _filter(x, window), _filter(y, window)
    # The variances enter as their sum only.
    squares = _filter(x * x + y * y, window)
    product = _filter(x * y, window)
    mean_squares, mean_product = mx * mx + my * my, mx * my
    luminance = (2 * mean_product + _C1) / (mean_squares + _C1)
    return luminance * (2 * (product - mean_product) + _C2) / (squares - mean_squares + _C2)


def _filter(image: Tensor, weights: Tensor) -> Tensor:
    """Filter rows, then columns, with the window inside the image.

    Shifted sums: for one channel in float64 they were 15 times as fast as torch's convolution on a CPU.
    """
    for dim in (0, 1):
        size = image.shape[dim] - len(weights) + 1
        total = image.narrow(dim, 0, size) * weights[0].item()
        for i, weight in enumerate(weights[1:].tolist(), start=1):
            total.add_(image.narrow(dim, i, size), alpha=weight)
        image = total
    return image
