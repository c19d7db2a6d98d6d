"""SUnSAL-TV: sparse codes of a block whose images are piecewise constant."""

from __future__ import annotations

from torch import Tensor

from hpcdeq.sparse.stopping import check_penalty, check_stopping
from hpcdeq.sparse.total_variation import TvResult, check_blocks, solve_blocks


def sunsal_tv(
    blocks: Tensor,
    dictionary: Tensor,
    l1_penalty: float,
    tv_penalty: float,
    *,
    tolerance: float = 1e-3,
    iterations: int = 1000,
) -> TvResult:
    """Minimise ``1/2 ||D X - Y||_F^2 + l1_penalty ||X||_1 + tv_penalty TV(X)`` for every block Y.

    TV is anisotropic: the absolute differences of pixels that are neighbours down or across, summed over the images of all
    coefficients. Nothing is taken across a block's border (Neumann boundary), where the cyclic differences of the original
    would join pixels that have nothing to do with each other. Coefficients may be negative: the original's are abundances of
    materials, those of a learnt dictionary are not.

    ADMM as in `hpcdeq.sparse.total_variation.solve_block`, with two copies where the original has four. Blocks are solved one
    after another, so that a block has the same bytes in any batch, on a CPU, and memory beyond the result is that
    of one block: about 8 times its coefficients.

    Parameters
    ----------
    blocks
        Y (block, band, y, x), any float type; 16-bit types are computed in float32.
    dictionary
        D (band, atom), atoms of unit norm, on the blocks' device.
    l1_penalty, tv_penalty
        At least 0.
    tolerance
        A block has converged when both residuals of `TvResult` are at most this; they are looked at every tenth iteration.
    iterations
        Most iterations of a block.

    Raises
    ------
    ValueError
        If shapes, devices or numbers do not fit, an atom is not of unit norm, or a block is not finite.

    References
    ----------
    Iordache, Bioucas-Dias, Plaza: *Total variation spatial regularization for sparse hyperspectral unmixing*, IEEE TGRS 50, 2012,
    doi:10.1109/TGRS.2012.2191590.
    """
    check_blocks(blocks, dictionary)
    check_penalty("l1_penalty", l1_penalty)
    check_penalty("tv_penalty", tv_penalty)
    check_stopping(tolerance, iterations)
    atoms = dictionary.expand(len(blocks), -1, -1)
    return solve_blocks(blocks, atoms, tv_penalty, l1_penalty, tolerance, iterations)
