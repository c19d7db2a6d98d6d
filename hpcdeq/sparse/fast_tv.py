"""fast-TV: codes of a block over a few atoms that all its pixels share, with images that are piecewise constant."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdeq.sparse.pursuit import batch_omp
from hpcdeq.sparse.stopping import check_penalty, check_stopping
from hpcdeq.sparse.total_variation import TvResult, check_blocks, solve_blocks


def centroid_support(blocks: Tensor, dictionary: Tensor, sparsity: int) -> Tensor:
    """Choose the atoms (block, sparsity) of each block by orthogonal matching pursuit of its mean spectrum.

    Parameters
    ----------
    blocks
        (block, band, y, x).
    dictionary
        (band, atom), atoms of unit norm.
    sparsity
        Atoms a block, at most the number of bands.

    Raises
    ------
    ValueError
        If shapes, devices or sparsity do not fit, an atom is not of unit norm, or a block is not finite.
    """
    check_blocks(blocks, dictionary)
    # One by one: a sum over more blocks could round differently.
    centroids = [block.clone().flatten(1).mean(dim=1) for block in blocks]
    if not centroids:
        return torch.empty(0, sparsity, dtype=torch.int64, device=blocks.device)
    return batch_omp(torch.stack(centroids), dictionary, sparsity).support


def fast_tv(
    blocks: Tensor,
    dictionary: Tensor,
    support: Tensor,
    tv_penalty: float,
    *,
    tolerance: float = 1e-3,
    iterations: int = 1000,
) -> TvResult:
    """Minimise ``1/2 ||D_S G - Y||_F^2 + tv_penalty TV(G)`` for every block Y, with D_S the block's own atoms.

    TV and its boundary are those of `sunsal_tv`, and so are the solver and what is said there of batches; memory beyond
    the result is that of one block. The original finds the support by `centroid_support`; any other will do.

    Parameters
    ----------
    blocks, dictionary, tolerance, iterations
        As those of `sunsal_tv`.
    support
        (block, s) integers: the atoms of each block, at most as many as bands. The coefficients are of these, in this order.
    tv_penalty
        At least 0; 0 projects each spectrum on the span of the atoms.

    Raises
    ------
    ValueError
        As `sunsal_tv`.

    References
    ----------
    Gkillas, Ampeliotis, Berberidis: *Fast sparse coding algorithms for piece-wise smooth signals*, EUSIPCO 2020.
    """
    check_blocks(blocks, dictionary)
    check_penalty("tv_penalty", tv_penalty)
    check_stopping(tolerance, iterations)
    bands, atoms = dictionary.shape
    if support.ndim != 2 or len(support) != len(blocks) or not 1 <= support.shape[1] <= bands:
        raise ValueError(
            f"support must be (block, atoms) with {len(blocks)} rows and 1 to {bands} columns, "
            f"got shape {tuple(support.shape)}"
        )
    if support.is_floating_point() or bool(((support < 0) | (support >= atoms)).any()):
        raise ValueError(f"support must hold integers from 0 to {atoms - 1}, the atoms of the dictionary")
    chosen = dictionary.T[support.to(dictionary.device)].transpose(1, 2)
    return solve_blocks(blocks, chosen, tv_penalty, None, tolerance, iterations)
