"""Denoising by classical sparse coding: code noisy spectra over a dictionary, keep what the codes say.

One function a method. What each is told is a constant times the noise's standard deviation sigma; the constants are the best compromise at
sigma 30, 50 and 70 on blocks of training scenes.
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
_TV_TOLERANCE = 3e-3


def denoise_by_omp(blocks: Tensor, dictionary: Tensor, sigma: float, *, residual: float = 1.35) -> Tensor:
    """Code each spectrum by `batch_omp` until its residual is as small as noise, with at most 5 atoms.

    Parameters
    ----------
    blocks
        (block, band, y, x), noisy.
    dictionary
        (band, atom), atoms of unit norm, on the blocks' device.
    sigma
        Standard deviation of the noise, in the units of the blocks; positive.
    residual
        Where a pursuit ends, in ``sigma sqrt(bands)``. Above 1: an atom that only explains noise costs more than a weak one is worth.

    Returns
    -------
    Tensor
        (block, band, y, x), of the blocks' dtype: not clipped.

    Raises
    ------
    ValueError
        If shapes, devices or numbers do not fit, an atom is not of unit norm, or a block is not finite.
    """
    _check(blocks, dictionary, sigma)
    bands, atoms = dictionary.shape

    def denoise(spectra: Tensor) -> Tensor:
        codes = batch_omp(
            spectra,
            dictionary,
            min(_MOST_ATOMS, bands, atoms),
            residual=residual * sigma * math.sqrt(bands),
        )
        out = torch.zeros_like(spectra)
        for support, weights in zip(codes.support.T, codes.coefficients.T, strict=True):
            out += weights[:, None] * dictionary.T[support]
        return out

    return _each(blocks, denoise)


def denoise_by_lasso(blocks: Tensor, dictionary: Tensor, sigma: float, *, penalty: float = 2.0) -> Tensor:
    """Code each spectrum by the `lasso`.

    Parameters, result and errors are those of `denoise_by_omp`, except

    Parameters
    ----------
    penalty
        Of the l1 norm, in sigma: that of a correlation of noise and an atom.
    """
    _check(blocks, dictionary, sigma)

    def denoise(spectra: Tensor) -> Tensor:
        return lasso(spectra, dictionary, penalty * sigma).coefficients @ dictionary.T.to(spectra.dtype)

    return _each(blocks, denoise)


def denoise_by_sunsal_tv(
    blocks: Tensor,
    dictionary: Tensor,
    sigma: float,
    *,
    l1_penalty: float = 0.3,
    tv_penalty: float = 0.5,
    tolerance: float = _TV_TOLERANCE,
) -> Tensor:
    """Code blocks by `sunsal_tv`; parameters as in `denoise_by_omp`, penalties in sigma."""
    _check(blocks, dictionary, sigma)
    out = torch.empty_like(blocks)
    for i in range(len(blocks)):  # one by one: codes take 512 values a pixel
        block = blocks[i : i + 1]
        codes = sunsal_tv(block, dictionary, l1_penalty * sigma, tv_penalty * sigma, tolerance=tolerance)
        out[i] = _combine(dictionary, codes.coefficients[0])
    return out


def denoise_by_fast_tv(
    blocks: Tensor,
    dictionary: Tensor,
    sigma: float,
    *,
    atoms: int = 4,
    tv_penalty: float = 0.5,
    tolerance: float = _TV_TOLERANCE,
) -> Tensor:
    """Code blocks by `fast_tv` over ``atoms`` atoms of their mean spectrum; the rest as in `denoise_by_sunsal_tv`."""
    _check(blocks, dictionary, sigma)
    support = centroid_support(blocks, dictionary, min(atoms, *dictionary.shape))
    codes = fast_tv(blocks, dictionary, support, tv_penalty * sigma, tolerance=tolerance)
    return torch.stack(
        [_combine(dictionary[:, s], x) for s, x in zip(support, codes.coefficients, strict=True)]
    )


def _check(blocks: Tensor, dictionary: Tensor, sigma: float) -> None:
    check_blocks(blocks, dictionary)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            f"sigma must be the standard deviation of the noise, a positive number in the units of the blocks, got {sigma}"
        )


def _each(blocks: Tensor, denoise: Callable[[Tensor], Tensor]) -> Tensor:
    """Denoise the spectra (pixel, band) of one block after another."""
    out = torch.empty_like(blocks)
    for target, block in zip(out, blocks, strict=True):
        spectra = block.flatten(1).T.contiguous()
        target.copy_(denoise(spectra).T.unflatten(1, target.shape[1:]))
    return out


def _combine(atoms: Tensor, codes: Tensor) -> Tensor:
    return (atoms.to(codes.dtype) @ codes.flatten(1)).unflatten(1, codes.shape[1:])
