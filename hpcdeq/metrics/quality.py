"""Pixel-wise quality: MPSNR, SAM, ERGAS, and all scores in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcdeq.metrics.images import Image, check_images, mean_over, pairs_of_bands
from hpcdeq.metrics.structure import ssim


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All scores of one estimate. Nothing is clamped before measuring."""

    psnr: float
    """MPSNR in dB; higher is better, inf for equal images."""
    ssim: float
    """Mean SSIM; higher is better, 1 for equal images."""
    sam: float
    """Mean spectral angle in radians (times 180 / pi for degrees); lower is better."""
    ergas: float
    """ERGAS with ratio 1; lower is better."""


def evaluate_all(reference: Image, estimate: Image, mask: Image | None = None) -> Scores:
    """Measure all four scores.

    Parameters
    ----------
    reference, estimate
        (d, H, W) float tensors or arrays, nominally in [0, 1], H and W at least 11. They are not clamped.
    mask
        (H, W), True where a pixel counts; all of them by default.

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit, or no pixel is left to measure.
    """
    return Scores(
        psnr=mpsnr(reference, estimate, mask),
        ssim=ssim(reference, estimate, mask),
        sam=sam(reference, estimate, mask),
        ergas=ergas(reference, estimate, mask),
    )


def mpsnr(reference: Image, estimate: Image, mask: Image | None = None) -> float:
    """Mean over bands of the peak signal-to-noise ratio of each band, with peak 1, in dB.

    Not the ratio of the whole cube, which a bad band lowers more. inf if any band is exactly equal.

    Parameters and errors are those of `evaluate_all`; images may be of any size.
    """
    valid = check_images(reference, estimate, mask)
    errors = [mean_over(valid, (x - y).square_()) for x, y in pairs_of_bands(reference, estimate)]
    return float((-10.0 * torch.stack(errors).log10()).mean())


def sam(reference: Image, estimate: Image, mask: Image | None = None) -> float:
    """Mean over pixels of the spectral angle: between reference and estimated spectrum, in radians.

    Over the valid pixels where both spectra are non-zero, for an angle with a zero spectrum is undefined; nan
    if there is none.

    Parameters and errors are those of `evaluate_all`; images may be of any size.

    References
    ----------
    Kruse et al.: *The spectral image processing system (SIPS)*, Remote Sensing of Environment 44, 1993,
    doi:10.1016/0034-4257(93)90013-N.
    """
    valid = check_images(reference, estimate, mask)
    xx, yy, xy = (torch.zeros(valid.shape, dtype=torch.float64, device=valid.device) for _ in range(3))
    for x, y in pairs_of_bands(reference, estimate):
        xx += x * x
        yy += y * y
        xy += x * y
    counted = valid & (xx != 0) & (yy != 0)
    # sqrt of the product, so that equal spectra give exactly 1; the clamp is for rounding alone.
    cosine = xy[counted] / (xx[counted] * yy[counted]).sqrt()
    return float(cosine.clamp(-1.0, 1.0).arccos().mean())


def ergas(reference: Image, estimate: Image, mask: Image | None = None) -> float:
    """Relative global error: 100 times the root mean over bands of MSE / mean^2, the reference's mean.

    The ratio of pixel sizes in the original definition is 1, for denoising keeps the resolution. Bands whose
    reference has mean zero are left out; nan if all have.

    Parameters and errors are those of `evaluate_all`; images may be of any size.

    References
    ----------
    Wald: *Quality of high resolution synthesised images: Is there a simple criterion?*, Fusion of Earth Data
    2000, hal-00395027.
    """
    valid = check_images(reference, estimate, mask)
    terms = []
    for x, y in pairs_of_bands(reference, estimate):
        mean = mean_over(valid, x)
        if mean != 0:
            terms.append(float(mean_over(valid, (x - y).square_()) / mean**2))
    return 100.0 * math.sqrt(sum(terms) / len(terms)) if terms else math.nan
