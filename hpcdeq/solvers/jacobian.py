"""How strongly a map expands around a state: a penalty to train with, and a probe to watch."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import FixedPointMap, block_dot, per_block


def jacobian_penalty(f: FixedPointMap, state: Tensor, probe: Tensor) -> Tensor:
    """Mean square of J^T v, J the Jacobian of ``f`` at ``state``: differentiable in the parameters of ``f``.

    Added to the loss it pulls the map towards contraction, so that the solve stays easy while training goes on.

    Parameters
    ----------
    f
        The map.
    state
        (block, ...) where it is linearised, its fixed point as a rule; no gradient goes into it.
    probe
        v of the same shape, independent standard normal numbers: then the expectation is ||J||_F^2 divided by the size of a state.

    Returns
    -------
    Tensor
        A scalar, the mean over blocks.

    References
    ----------
    Bai, Koltun, Kolter: *Stabilizing equilibrium models by Jacobian regularization*, ICML 2021, arXiv:2106.14342.
    """
    point = state.detach().requires_grad_()
    (product,) = torch.autograd.grad(f(point), point, probe, create_graph=True)
    return product.square().mean()


def spectral_radius(f: FixedPointMap, state: Tensor, iterations: int = 20) -> Tensor:
    """Estimate the spectral radius of the Jacobian of ``f`` at ``state`` by power iteration: ``(block,)``.

    Below 1 the Picard iteration converges near the state, by about this factor a step. The full map has a radius of 1
    whatever the prior: codes in the null space of D are kept as they are.

    Parameters
    ----------
    f
        The map.
    state
        (block, ...).
    iterations
        Products with J^T; the last half of them is averaged, as complex eigenvalues make single ones swing.
    """
    transpose = f.transpose_at(state)
    vector = torch.sin(torch.arange(state[0].numel(), device=state.device) + 1.0).to(state.dtype)
    vector = vector.view_as(state[0]).expand_as(state)
    growth = []
    for _ in range(iterations):
        vector = vector / per_block(_length(vector), vector).to(vector.dtype)
        vector = transpose(vector)
        growth.append(_length(vector))
    return torch.stack(growth[iterations // 2 :]).log().mean(0).exp()


def _length(vector: Tensor) -> Tensor:
    return block_dot(vector, vector).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
