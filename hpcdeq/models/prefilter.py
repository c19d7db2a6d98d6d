"""A first estimate of noisy blocks, by a filter that nothing was learnt for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hpcdeq.models.level import noise_level
from hpcdeq.models.spectra import of_moments, times, to_blocks, to_spectra
from hpcdeq.sparse import cosine_basis

_NOISE = 2.0  # standard deviations up to which a coefficient may be noise alone


@torch.no_grad()
def wiener(noisy: Tensor) -> Tensor:
    """Estimate clean blocks by an empirical Wiener filter over their own principal spectra and the cosines of their images.

    There every coefficient of white noise of standard deviation s has variance s^2, and those of a scene are few and large. A
    coefficient is multiplied by p / (p + s^2): its power p is the mean over the frequencies near it, where coefficients up to
    2 s count as 0. The mean spectrum is kept. Of the family of empirical Wiener filters in a transform domain (Ghael, Sayeed
    and Baraniuk 1997, doi:10.1117/12.292799); here made for what the maps lack, the long range of a small CNN, and mild:
    what it takes away, they cannot bring back.

    Parameters
    ----------
    noisy
        (block, band, y, x), with white noise; its level is measured on each block.

    Returns
    -------
    Tensor
        (block, band, y, x) in channels-last memory.
    """
    size = noisy.shape[2:]
    spectra = to_spectra(noisy)
    mean = spectra.mean(dim=1, keepdim=True)
    centred = spectra - mean
    principal = of_moments(_principal, centred).to(centred.dtype)
    coefficients = _cosine_transform(to_blocks(times(centred, principal), *size).contiguous())
    variance = noise_level(noisy).square()[:, None, None, None]
    square = coefficients.square()
    power = _local_mean(torch.where(square > _NOISE**2 * variance, square, 0.0))
    coefficients *= power / (power + variance).clamp_min(torch.finfo(power.dtype).tiny)
    components = to_spectra(_cosine_transform(coefficients, inverse=True))
    return to_blocks(times(components, principal.transpose(1, 2)) + mean, *size)


def _principal(moments: Tensor) -> Tensor:
    """Principal spectra ``(block, band, component)``, orthonormal, of second moments ``(block, band, band)``."""
    # Of a block that is not finite nothing comes out but NaN, and no error for its batch mates.
    principal: Tensor = torch.linalg.eigh(moments.nan_to_num(0.0, 0.0, 0.0)).eigenvectors
    return principal


def _cosine_transform(images: Tensor, inverse: bool = False) -> Tensor:
    """Orthonormal cosine transform (DCT-II) of images ``(block, component, y, x)``, or its inverse."""
    for _ in range(2):  # along x, and as both axes change places, along y
        blocks, components, height, width = images.shape
        cosines = cosine_basis(width, images)
        rows = times(images.reshape(blocks, components * height, width), cosines if inverse else cosines.T)
        images = rows.view(blocks, components, height, width).transpose(2, 3)
    return images.contiguous()


def _local_mean(power: Tensor) -> Tensor:
    """Mean over a third of the frequencies, ``(block, component, y, x)``."""
    half = [size // 6 for size in power.shape[2:]]
    return F.avg_pool2d(power, [2 * n + 1 for n in half], 1, half, count_include_pad=False)
