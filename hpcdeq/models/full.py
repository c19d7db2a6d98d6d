"""The full map (14) of the paper, without its product of atoms by atoms."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from hpcdeq.models.prior import FixedPrior, TransposedPrior
from hpcdeq.models.spectra import times
from hpcdeq.solvers.fixed_point import ReplayableMap
from hpcdeq.solvers.replay import Change, Kind, Replayable

Identity = Literal["hqs", "paper"]

_CHUNK = 512  # pixels: 512 codes of each are a megabyte


class FullMap(ReplayableMap):
    """G -> ((1 + b) D^T D + c I)^-1 (D^T Y + b soft(G, mu / b) + b D^T N(D G)), equation (14).

    By the Woodbury identity, with V = soft(G, mu / b), s = D V and r = Y + b N(D G), everything but one soft threshold and
    two thin products has the dimension of the bands:

        w = (c / (1 + b) I + D D^T)^-1 (r / (1 + b) - (b / c) s),   G' = (b / c) V + D^T w,   D G' = (r - c w) / (1 + b).

    The state ``(block, pixel, atom + band)`` is G beside D G. It stays so in any mix of states whose weights sum to 1.

    Parameters
    ----------
    noisy
        Y ``(block, pixel, band)``.
    dictionary
        D ``(band, atom)``, unit-norm atoms.
    b, mu
        Penalty and sparsity parameters, positive scalar tensors.
    prior
        N on ``(block, pixel, band)``, fixed for one solve.
    identity
        ``hqs``: c = b, as half-quadratic splitting of (8) gives it; ``paper``: c = 1, as (10a) prints it, which diverges
        for b > 1 on the null space of D. They agree at b = 1.
    """

    def __init__(
        self,
        noisy: Tensor,
        dictionary: Tensor,
        b: Tensor,
        mu: Tensor,
        prior: FixedPrior,
        identity: Identity = "hqs",
    ) -> None:
        self._noisy, self._dictionary, self._b, self._prior = noisy, dictionary, b, prior
        self._c = b if identity == "hqs" else torch.ones_like(b)
        self._threshold = mu / b
        precise = dictionary.double()
        small = precise @ precise.T + torch.diag_embed((self._c / (1 + b)).double().expand(len(precise)))
        self._inverse = torch.linalg.inv(small).to(dictionary.dtype)

    def start(self) -> Tensor:
        """First iterate: one application of the map to G = 0 with a prior that returns Y."""
        return self._state(None, (1 + self._b) * self._noisy)

    def __call__(self, state: Tensor) -> Tensor:
        """Apply the map once."""
        right = self._noisy + self._b * self._prior(self.observe(state))
        if torch.is_grad_enabled():
            return self._state(self.codes(state), right)
        if state.device.type == "cpu":
            return self._in_cache(state, right)
        return self._fused(state, right)

    def observe(self, state: Tensor) -> Tensor:
        """D G ``(block, pixel, band)``."""
        return state[..., self._dictionary.shape[1] :].contiguous()

    def codes(self, state: Tensor) -> Tensor:
        """V = soft(G, mu / b) ``(block, pixel, atom)``: the sparse codes."""
        codes = state[..., : self._dictionary.shape[1]]
        return codes - torch.clamp(codes, -self._threshold, self._threshold)

    def transpose_at(self, point: Tensor) -> _FullTranspose:
        """Return u -> J^T u at the state ``point``."""
        return _FullTranspose(self, self.codes(point) != 0, self._prior.transpose_at(self.observe(point)))

    def take(self, blocks: Tensor) -> FullMap:
        """Return the map on some of its blocks."""
        taken = copy.copy(self)
        taken._noisy, taken._prior = self._noisy[blocks], self._prior.take(blocks)
        return taken

    def kind(self) -> Kind:
        """What it is beside its tensors."""
        return self._prior.kind("full")

    def replaced(self, change: Change) -> FullMap:
        """Return the map with its tensors changed."""
        other = copy.copy(self)
        for name in ("_noisy", "_dictionary", "_b", "_c", "_threshold", "_inverse"):
            setattr(other, name, change(getattr(self, name)))
        other._prior = self._prior.replaced(change)
        return other

    def _in_cache(self, state: Tensor, right: Tensor) -> Tensor:
        """Apply the map chunk by chunk: G is read and written once, everything between stays in the processor's cache."""
        image = torch.empty_like(state)
        for part in _parts(state):
            image[part] = self._state(self.codes(state[part]), right[part])
        return image

    def _fused(self, state: Tensor, right: Tensor) -> Tensor:
        """Apply the map in one kernel, where there is one for this state."""
        kernel = _kernel()
        if kernel is None or not kernel.available(state, len(self._dictionary)):
            return self._state(self.codes(state), right)
        image: Tensor = kernel.fused_step(
            state, right, self._dictionary, self._inverse, self._b, self._c, self._threshold
        )
        return image

    def _state(self, sparse: Tensor | None, right: Tensor) -> Tensor:
        """G' beside D G' of sparse codes V (none: all zero) and r."""
        b, c = self._b, self._c
        pull = right / (1 + b)
        if sparse is not None:
            pull = pull - (b / c) * times(sparse, self._dictionary.T)
        w = times(pull, self._inverse)
        codes = times(w, self._dictionary)
        if sparse is not None:
            codes = (b / c) * sparse + codes
        return torch.cat([codes, (right - c * w) / (1 + b)], dim=2)


def _parts(state: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of a state that fit in the cache of a CPU; on a GPU all of it."""
    if state.device.type != "cpu":
        yield slice(None), slice(None)
        return
    for block in range(len(state)):
        for begin in range(0, state.shape[1], _CHUNK):
            yield slice(block, block + 1), slice(begin, begin + _CHUNK)


class _FullTranspose(Replayable):
    """The transposed Jacobian of the full map: the steps of `FullMap._state` backwards.

    ``support`` (block, pixel, atom) is where the soft threshold lets codes pass.
    """

    def __init__(self, f: FullMap, support: Tensor, prior: TransposedPrior) -> None:
        self._f, self._support, self._prior = f, support, prior

    def __call__(self, state: Tensor) -> Tensor:
        f, b, c = self._f, self._f._b, self._f._c
        d = f._dictionary
        atoms = d.shape[1]
        image = torch.empty_like(state)
        right = torch.empty_like(state[..., atoms:])
        for part in _parts(state):
            codes, bands = state[part][..., :atoms].contiguous(), state[part][..., atoms:]
            pull = times(times(codes, d.T) - c / (1 + b) * bands, f._inverse)
            right[part] = b / (1 + b) * (pull + bands)
            image[part][..., :atoms] = (b / c) * self._support[part] * (codes - times(pull, d))
        image[..., atoms:] = self._prior(right)
        return image

    def take(self, blocks: Tensor) -> _FullTranspose:
        return _FullTranspose(self._f, self._support[blocks], self._prior.take(blocks))

    def kind(self) -> Kind | None:
        return self._prior.kind("full transpose")

    def replaced(self, change: Change) -> _FullTranspose:
        return _FullTranspose(self._f.replaced(change), change(self._support), self._prior.replaced(change))


@cache
def _kernel() -> ModuleType | None:
    """Return the module of the kernel, where there is Triton."""
    try:
        from hpcdeq.models import full_kernel
    except ImportError:
        return None
    return full_kernel
