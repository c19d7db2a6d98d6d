"""The fast map (32) of the paper, in the dimensions of the bands where it lives."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hpcdeq.models.prior import FixedPrior, TransposedPrior
from hpcdeq.models.spectra import times
from hpcdeq.models.support import support_basis
from hpcdeq.solvers.fixed_point import ReplayableMap
from hpcdeq.solvers.replay import Change, Kind, Replayable


class FastMap(ReplayableMap):
    """X -> P_S (Y + b N(X)) / (1 + b), with P_S the projector on the span of the block's atoms.

    This is D_S G of equation (32) without ever forming codes: the state is ``(block, pixel, band)``, and the map
    contracts by b / (1 + b) when N is 1-Lipschitz.

    Parameters
    ----------
    noisy
        Y ``(block, pixel, band)``.
    dictionary
        D ``(band, atom)``.
    support
        S ``(block, |S|)``, the atoms that each block may use.
    b
        Penalty parameter, a positive scalar tensor.
    prior
        N on ``(block, pixel, band)``, fixed for one solve.
    """

    def __init__(
        self, noisy: Tensor, dictionary: Tensor, support: Tensor, b: Tensor, prior: FixedPrior
    ) -> None:
        self.support = support
        self._dictionary = dictionary
        basis = support_basis(dictionary, support)
        projector = basis @ basis.transpose(1, 2)
        self._pull = projector * (b / (1 + b))
        self._data = times(noisy, projector)
        self._anchor = self._data / (1 + b)
        self._prior = prior

    def start(self) -> Tensor:
        """First iterate: the noisy block projected on its atoms."""
        return self._data

    def __call__(self, state: Tensor) -> Tensor:
        """Apply the map once."""
        return self._anchor + times(self._prior(state), self._pull)

    def observe(self, state: Tensor) -> Tensor:
        """D G: the state itself."""
        return state

    def codes(self, state: Tensor) -> Tensor:
        """G ``(block, pixel, |S|)`` with D_S G the state, over each block's own atoms; the least such G if they are dependent."""
        atoms = self._dictionary.T[self.support].double()
        # One by one: equal bytes in any batch.
        inverses = torch.stack([torch.linalg.pinv(one) for one in atoms])
        return times(state, inverses.to(state.dtype))

    def transpose_at(self, point: Tensor) -> _FastTranspose:
        """Return u -> J^T u at the state ``point``."""
        return _FastTranspose(self._prior.transpose_at(point), self._pull)

    def take(self, blocks: Tensor) -> FastMap:
        """Return the map on some of its blocks."""
        taken = copy.copy(self)
        taken.support = self.support[blocks]
        taken._pull, taken._data, taken._anchor = (x[blocks] for x in (self._pull, self._data, self._anchor))
        taken._prior = self._prior.take(blocks)
        return taken

    def kind(self) -> Kind:
        """What it is beside its tensors."""
        return self._prior.kind("fast")

    def replaced(self, change: Change) -> FastMap:
        """Return the map with the tensors that its application reads changed."""
        other = copy.copy(self)
        other._pull, other._anchor = change(self._pull), change(self._anchor)
        other._prior = self._prior.replaced(change)
        return other


class _FastTranspose(Replayable):
    def __init__(self, prior: TransposedPrior, pull: Tensor) -> None:
        self._prior, self._pull = prior, pull

    def __call__(self, state: Tensor) -> Tensor:
        return self._prior(times(state, self._pull))  # the projector is symmetric

    def take(self, blocks: Tensor) -> _FastTranspose:
        return _FastTranspose(self._prior.take(blocks), self._pull[blocks])

    def kind(self) -> Kind | None:
        return self._prior.kind("fast transpose")

    def replaced(self, change: Change) -> _FastTranspose:
        return _FastTranspose(self._prior.replaced(change), change(self._pull))
