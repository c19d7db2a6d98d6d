"""The noise level of blocks, measured on them."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdeq.noise.estimation import NORMAL_MEDIAN


@torch.no_grad()
def noise_level(noisy: Tensor) -> Tensor:
    """Estimate the standard deviation of the noise of blocks ``(block, band, y, x)``: ``(block,)``, the mean over bands.

    By the median of the finest diagonal Haar coefficients of every band, as `hpcdeq.noise.estimate_sigma` does for scenes;
    cells that hold an exact 0 (no data) are left out.
    """
    height, width = (n - n % 2 for n in noisy.shape[2:])
    a, b = noisy[:, :, 0:height:2, 0:width:2], noisy[:, :, 0:height:2, 1:width:2]
    c, d = noisy[:, :, 1:height:2, 0:width:2], noisy[:, :, 1:height:2, 1:width:2]
    empty = (a == 0) | (b == 0) | (c == 0) | (d == 0)
    coefficients = (a - b - c + d).abs().masked_fill(empty, torch.nan)
    medians = coefficients.flatten(2).nanmedian(dim=2).values.nan_to_num(0.0)
    return medians.mean(dim=1) / (2 * NORMAL_MEDIAN)
