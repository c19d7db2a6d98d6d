"""Which atoms explain many spectra at once, or one spectrum in the sense of the Lasso."""

from __future__ import annotations

import torch
from torch import Tensor

_DEPENDENT = 1e-10  # squared length of what is left of a unit-norm atom that lies in the span of those chosen


def simultaneous_omp(moments: Tensor, dictionary: Tensor, sparsity: int) -> Tensor:
    """Choose atoms that explain all spectra of a block together, greedily (simultaneous OMP).

    Each step takes the atom that, made orthogonal to those chosen, has most energy of the block's spectra along it. White
    noise adds the same to every atom, so it does not sway the choice, and no principal components need be cut off.

    Parameters
    ----------
    moments
        (block, d, d): sum of y y^T over a block's spectra.
    dictionary
        (d, M), unit-norm atoms.
    sparsity
        Atoms a block, from 1 to d.

    Returns
    -------
    Tensor
        (block, sparsity) int64, distinct atoms in the order they were chosen.

    References
    ----------
    Tropp, Gilbert, Strauss: *Algorithms for simultaneous sparse approximation, part I*, Signal Processing 86, 2006,
    doi:10.1016/j.sigpro.2005.05.030; the normalised criterion is that of orthogonal least squares (Chen, Billings, Luo,
    Int. J. Control 50, 1989, doi:10.1080/00207178908953472).
    """
    blocks = moments.shape[0]
    rest = dictionary.T.expand(blocks, -1, -1).clone()  # atoms less their part in the span of those chosen
    length = torch.ones_like(rest[..., 0])
    taken = torch.zeros_like(length, dtype=torch.bool)
    chosen: list[Tensor] = []
    for _ in range(sparsity):
        energy = (torch.bmm(rest, moments) * rest).sum(2)
        gain = torch.where(length > _DEPENDENT, energy / length.clamp_min(_DEPENDENT), 0.0)
        best = gain.masked_fill(taken, -1.0).argmax(dim=1)
        chosen.append(best)
        taken.scatter_(1, best[:, None], True)
        direction = rest.gather(1, best[:, None, None].expand(-1, 1, rest.shape[2]))
        norm = torch.linalg.vector_norm(direction, dim=2, keepdim=True)
        direction = torch.where(norm**2 > _DEPENDENT, direction / norm.clamp_min(_DEPENDENT), 0.0)
        rest = rest - torch.bmm(rest, direction.transpose(1, 2)) * direction
        length = (rest * rest).sum(2)
    return torch.stack(chosen, dim=1)


def lasso_order(
    signals: Tensor, dictionary: Tensor, count: int, *, levels: int = 50, sweeps: int = 20
) -> Tensor:
    """Order atoms by when they enter the Lasso path min 1/2 ||y - D g||^2 + lambda ||g||_1 as lambda falls.

    The path is followed on a geometric grid of lambda by accelerated proximal gradients (FISTA), each level started from
    the one before; atoms that enter at the same level are ordered by the size of their coefficient.

    Parameters
    ----------
    signals
        (N, d).
    dictionary
        (d, M), unit-norm atoms.
    count
        Atoms to return for each signal, from 1 to M.
    levels, sweeps
        Values of lambda from its largest down to 1e-4 of it, and iterations at each.

    Returns
    -------
    Tensor
        (N, count) int64, distinct.

    References
    ----------
    Tibshirani, J. R. Statist. Soc. B 58, 1996, doi:10.1111/j.2517-6161.1996.tb02080.x; Beck, Teboulle, SIAM J. Imaging Sci. 2,
    2009, doi:10.1137/080716542.
    """
    gram = dictionary.T @ dictionary
    step = 1 / torch.linalg.matrix_norm(gram, 2)
    # One signal at a time (bmm), so that a signal's codes do not depend on its batch.
    grams = gram.expand(len(signals), -1, -1)
    target = torch.bmm(signals[:, None], dictionary.expand(len(signals), -1, -1))[:, 0]
    largest = target.abs().amax(1, keepdim=True)
    codes = torch.zeros_like(target)
    entered = torch.full_like(target, float(levels + 1))
    size = target.abs()
    for level, share in enumerate(torch.logspace(0, -4, levels, dtype=target.dtype).tolist()):
        threshold = step * largest * share
        momentum, ahead = 1.0, codes
        for _ in range(sweeps):
            gradient = torch.bmm(ahead[:, None], grams)[:, 0] - target
            moved = ahead - step * gradient
            following = moved - torch.clamp(moved, -threshold, threshold)
            faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = following + (momentum - 1) / faster * (following - codes)
            codes, momentum = following, faster
        new = (codes != 0) & (entered > levels)
        entered = torch.where(new, float(level), entered)
        size = torch.where(new, codes.abs(), size)
        if bool(((entered <= levels).sum(1) >= count).all()):
            break
    # Earliest first; of equals the largest.
    rank = entered - size / (size.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny) * 2)
    return rank.argsort(dim=1, stable=True)[:, :count]
