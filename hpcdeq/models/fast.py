"""The fast map (32) of the paper, in the 31 dimensions where it lives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class FastMap:
    """X -> P_S (Y + b N(X)) / (1 + b), with P_S the projector on the span of the block's atoms.

    This is D_S G of equation (32) without ever forming codes: the state is ``(block, band, y, x)``, and the map
    contracts by b / (1 + b) when N is 1-Lipschitz.

    Parameters
    ----------
    noisy
        Y ``(block, band, y, x)``.
    basis
        Orthonormal Q ``(block, band, |S|)``, P_S = Q Q^T.
    b
        Penalty parameter, a positive scalar tensor.
    prior
        N, with its weights already normalised.
    """

    def __init__(self, noisy: Tensor, basis: Tensor, b: Tensor, prior: Callable[[Tensor], Tensor]) -> None:
        projector = basis @ basis.transpose(1, 2)
        self._pull = projector * (b / (1 + b))
        self._data = _per_pixel(projector, noisy)
        self._anchor = self._data / (1 + b)
        self._prior = prior

    def start(self) -> Tensor:
        """First iterate: the noisy block projected on its atoms."""
        return self._data

    def __call__(self, state: Tensor) -> Tensor:
        """Apply the map once."""
        return self._anchor + _per_pixel(self._pull, self._prior(state))

    def observe(self, state: Tensor) -> Tensor:
        """D G: the state itself."""
        return state


def _per_pixel(matrix: Tensor, blocks: Tensor) -> Tensor:
    """Multiply every pixel's spectrum by its block's ``matrix (block, band, band)``, in channels-last memory."""
    batch, bands, height, width = blocks.shape
    spectra = blocks.permute(0, 2, 3, 1).reshape(batch, height * width, bands)
    product = torch.bmm(spectra, matrix.transpose(1, 2))
    return product.view(batch, height, width, -1).permute(0, 3, 1, 2)
