"""Denoising by classical sparse coding: code noisy blocks over a dictionary, keep what the codes say.

One function a method. Penalties and thresholds are constants times sigma, the standard deviation of the noise. Their
defaults are the best compromise at sigma 30, 50 and 70 (of 255) on blocks of 60 x 60 pixels of CAVE training scenes, with 512 atoms
learnt by K-SVD, of those that `benchmarks/coding_constants.py` tries. PSNR (dB) with them on twelve blocks, one a scene:

| | 30 | 50 | 70 | s a block, one core |
|---|---|---|---|---|
| noisy | 18.59 | 14.16 | 11.23 | |
| batch-OMP, residual of 1.4 sigma sqrt(bands) | 29.53 | 25.05 | 22.69 | 0.07 |
| Lasso, 2.5 sigma | 29.18 | 26.09 | 24.20 | 0.2 |
| fast-TV, 16 atoms, 1.3 sigma | 38.90 | 37.01 | 35.79 | 0.05 |
| SUnSAL-TV, 0.1 sigma and 0.8 sigma | 39.73 | 37.19 | 35.40 | 2.2 |

batch-OMP with one atom for each spectrum gives 27.3, 23.0 and 20.0 dB on such blocks: it is better told how large noise is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hpcdeq.sparse.fast_tv import centroid_support, fast_tv
from hpcdeq.sparse.lasso import lasso
from hpcdeq.sparse.pursuit import batch_omp
from hpcdeq.sparse.sunsal_tv import sunsal_tv
from hpcdeq.sparse.total_variation import check_blocks

_MOST_ATOMS = 5
_SUNSAL_TOLERANCE = 3e-3  # 1e-3 takes twice as long, for 0.01 dB


def denoise_by_omp(blocks: Tensor, dictionary: Tensor, sigma: float, *, residual: float = 1.4) -> Tensor:
    """Code each spectrum by `batch_omp` until its residual is as small as noise, with at most 5 atoms.

    Parameters
    ----------
    blocks
        (block, band, y, x), noisy. Blocks are worked on one after another: memory is bounded, and a block has the same
        bytes in any batch, on a CPU.
    dictionary
        (band, atom), atoms of unit norm, on the blocks' device.
    sigma
        Standard deviation of the noise, in the units of the blocks; positive.
    residual
        Norm of the residual at which a pursuit ends, in ``sigma sqrt(bands)``. Above 1, for the atom that suits the noise best
        brings more noise than a faint one brings signal.

    Returns
    -------
    Tensor
        (block, band, y, x), of the blocks' dtype, not clipped.

    Raises
    ------
    ValueError
        If shapes, devices or numbers do not fit, an atom is not of unit norm, or a block is not finite.
    """
    _check(blocks, dictionary, sigma)
    bands, atoms = dictionary.shape
    most, end = min(_MOST_ATOMS, bands, atoms), residual * sigma * math.sqrt(bands)

    def denoise(block: Tensor) -> Tensor:
        spectra = _spectra(block)
        codes = batch_omp(spectra, dictionary, most, residual=end)
        out = torch.zeros_like(spectra)
        for support, weights in zip(codes.support.T, codes.coefficients.T, strict=True):
            out += weights[:, None] * dictionary.T[support]
        denoised: Tensor = out.T.unflatten(1, block.shape[1:])
        return denoised

    return _each(blocks, denoise)


def denoise_by_lasso(blocks: Tensor, dictionary: Tensor, sigma: float, *, penalty: float = 2.5) -> Tensor:
    """Code each spectrum by the `lasso`, with a penalty of ``penalty sigma``.

    sigma is the standard deviation of the correlation of noise and an atom. Else as `denoise_by_omp`.
    """
    _check(blocks, dictionary, sigma)

    def denoise(block: Tensor) -> Tensor:
        codes = lasso(_spectra(block), dictionary, penalty * sigma).coefficients
        return _combine(dictionary, codes.T.unflatten(1, block.shape[1:]))

    return _each(blocks, denoise)


def denoise_by_sunsal_tv(
    blocks: Tensor,
    dictionary: Tensor,
    sigma: float,
    *,
    l1_penalty: float = 0.1,
    tv_penalty: float = 0.8,
) -> Tensor:
    """Code blocks by `sunsal_tv`, with penalties of ``l1_penalty sigma`` and ``tv_penalty sigma``; else as `denoise_by_omp`."""
    _check(blocks, dictionary, sigma)

    def denoise(block: Tensor) -> Tensor:
        codes = sunsal_tv(
            block[None], dictionary, l1_penalty * sigma, tv_penalty * sigma, tolerance=_SUNSAL_TOLERANCE
        )
        return _combine(dictionary, codes.coefficients[0])

    return _each(blocks, denoise)


def denoise_by_fast_tv(
    blocks: Tensor, dictionary: Tensor, sigma: float, *, atoms: int = 16, tv_penalty: float = 1.3
) -> Tensor:
    """Code blocks by `fast_tv` over ``atoms`` atoms of their mean spectrum, with a penalty of ``tv_penalty sigma``; else as
    `denoise_by_omp`.
    """
    _check(blocks, dictionary, sigma)
    size = min(atoms, *dictionary.shape)

    def denoise(block: Tensor) -> Tensor:
        support = centroid_support(block[None], dictionary, size)
        codes = fast_tv(block[None], dictionary, support, tv_penalty * sigma)
        return _combine(dictionary[:, support[0]], codes.coefficients[0])

    return _each(blocks, denoise)


def _check(blocks: Tensor, dictionary: Tensor, sigma: float) -> None:
    check_blocks(blocks, dictionary)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            f"sigma must be the standard deviation of the noise, a positive number in the units of the blocks, got {sigma}"
        )


def _each(blocks: Tensor, denoise: Callable[[Tensor], Tensor]) -> Tensor:
    out = torch.empty_like(blocks)
    for i, block in enumerate(blocks):
        out[i] = denoise(block)
    return out


def _spectra(block: Tensor) -> Tensor:
    """(band, y, x) to (pixel, band)."""
    return block.flatten(1).T.contiguous()


def _combine(atoms: Tensor, codes: Tensor) -> Tensor:
    combined: Tensor = (atoms.to(codes.dtype) @ codes.flatten(1)).unflatten(1, codes.shape[1:])
    return combined
