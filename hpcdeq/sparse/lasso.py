"""The Lasso of many signals at once, to a duality gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcdeq.sparse.pursuit import check_dictionary, check_signals, correlate
from hpcdeq.sparse.stopping import check_penalty, check_stopping

# Elements of one (signals, atoms) array. On a CPU a few of them stay in a core's cache.
_CHUNK_ELEMENTS_CPU = 1 << 17
_CHUNK_ELEMENTS_GPU = 1 << 24
# Added to the diagonal of unit-norm atoms' Gram matrices: dependent atoms give a long step instead of none, and the first
# coefficient that it brings to 0 leaves. As steps are those of Newton's method, the solution has no bias from it.
_RIDGE = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class LassoResult:
    """Solutions of the Lasso: ``signals[n]`` is about ``dictionary @ coefficients[n]``."""

    coefficients: Tensor
    """(N, M), of the signals' dtype."""
    gap: Tensor
    """(N,) float64: duality gap over ``1/2 ||y||^2``, the objective at g = 0. The objective is at most this far above its least."""
    iterations: Tensor
    """(N,) int64: linear systems solved."""
    converged: Tensor
    """(N,) bool: the gap is at most the tolerance."""


def lasso(
    signals: Tensor,
    dictionary: Tensor,
    penalty: float,
    *,
    tolerance: float = 1e-5,
    iterations: int = 1000,
) -> LassoResult:
    """Minimise ``1/2 ||y - D g||^2 + penalty ||g||_1`` for every signal y.

    An active-set method (feature-sign search): the atom that breaks the optimality condition most joins those in use, their
    coefficients move towards the least squares solution for their signs, and one that reaches 0 on the way leaves. As noisy
    signals use few atoms, this takes about two small systems an atom, where methods of gradients take hundreds of products with
    a dictionary as coherent as one of spectra.

    A signal stops at its duality gap ``P(g) - Q(t)``, with P the objective, ``Q(t) = 1/2 ||y||^2 - 1/2 ||y - t||^2`` the
    dual one and t the residual, scaled down to ``|D^T t| <= penalty``. Signals that stopped leave the work, and
    the others have the same bytes for any batch, on a CPU.

    Parameters
    ----------
    signals
        (N, d), any float type; 16-bit types are computed in float32.
    dictionary
        (d, M), atoms of unit norm, on the signals' device.
    penalty
        Positive. From ``max |D^T y|`` on, the solution is 0.
    tolerance
        Largest duality gap, relative to ``1/2 ||y||^2``. Below 1e-6 give float64 signals.
    iterations
        Most systems solved for a signal.

    Raises
    ------
    ValueError
        If shapes, devices or numbers do not fit, an atom is not of unit norm, or a signal is not finite.

    References
    ----------
    Tibshirani, J. R. Statist. Soc. B 58, 1996, doi:10.1111/j.2517-6161.1996.tb02080.x. The method: Lee, Battle, Raina, Ng:
    *Efficient sparse coding algorithms*, NIPS 2006. The gap: Fercoq, Gramfort, Salmon: *Mind the duality gap*, ICML 2015.
    """
    check_signals(signals)
    check_dictionary(dictionary, signals)
    check_penalty("penalty", penalty, positive=True)
    check_stopping(tolerance, iterations)
    atoms = dictionary.detach().to(torch.promote_types(signals.dtype, torch.float32))
    n, device = len(signals), signals.device
    coefficients = torch.zeros(n, atoms.shape[1], dtype=signals.dtype, device=device)
    gap = torch.empty(n, dtype=torch.float64, device=device)
    used = torch.empty(n, dtype=torch.int64, device=device)
    gram = atoms.double().T @ atoms.double()
    step = max(1, (_CHUNK_ELEMENTS_GPU if signals.is_cuda else _CHUNK_ELEMENTS_CPU) // atoms.shape[1])
    for i in range(0, n, step):
        work = _ActiveSets(signals[i : i + step].detach().double(), atoms, gram, penalty)
        row = torch.arange(i, min(i + step, n), device=device)
        for count in range(iterations + 1):
            distance = work.gap()
            done = (distance <= tolerance) | (count == iterations)
            if bool(done.any()):
                leaving = done.nonzero().flatten()
                at = row[leaving]
                gap[at], used[at] = distance[leaving], count
                work.write(leaving, coefficients, at)
                stay = (~done).nonzero().flatten()
                if len(stay) == 0:
                    break
                work.take(stay)
                row = row[stay]
            work.step()
    return LassoResult(coefficients=coefficients, gap=gap, iterations=used, converged=gap <= tolerance)


class _ActiveSets:
    """Signals on their way: the atoms each uses, in slots, with signs and coefficients. Free slots have sign 0.

    Small arrays are float64, whatever the signals are. Sums over slots are made slot by slot: how many slots there are depends on
    the other signals of the chunk, and must not change a signal's bytes.
    """

    def __init__(self, signals: Tensor, atoms: Tensor, gram: Tensor, penalty: float) -> None:
        self._atoms, self._gram, self._penalty = atoms, gram, penalty
        self._rows = atoms.T.double().contiguous()
        self._signals = signals
        self._energy = signals.square().sum(dim=1)
        self._chosen = torch.zeros(len(signals), 0, dtype=torch.int64, device=signals.device)
        self._sign = torch.zeros(len(signals), 0, dtype=torch.float64, device=signals.device)
        self._value = torch.zeros_like(self._sign)
        self._settled = torch.ones(len(signals), dtype=torch.bool, device=signals.device)
        self._residual, self._correlations = self._look()

    def take(self, keep: Tensor) -> None:
        """Keep some signals."""
        self._signals, self._residual, self._energy, self._settled = (
            x[keep] for x in (self._signals, self._residual, self._energy, self._settled)
        )
        self._chosen, self._sign, self._value = (x[keep] for x in (self._chosen, self._sign, self._value))
        self._correlations = self._correlations[keep]

    def write(self, which: Tensor, out: Tensor, at: Tensor) -> None:
        """Add the coefficients of some signals to rows ``at`` of ``out``, which are 0."""
        for j in range(self._chosen.shape[1]):
            out[at, self._chosen[which, j]] += self._value[which, j].to(out.dtype)

    def gap(self) -> Tensor:
        """Duality gaps, relative to 1/2 ||y||^2."""
        strongest = self._correlations.abs().amax(dim=1).double()
        scale = self._penalty / strongest.clamp_min(self._penalty)
        left = self._residual.square().sum(dim=1)
        norm = torch.zeros_like(left)
        for j in range(self._value.shape[1]):
            norm += self._value[:, j].abs()
        along = (self._signals * self._residual).sum(dim=1)
        gap = left / 2 + self._penalty * norm - scale * along + scale * scale * left / 2
        return torch.where(self._energy > 0, gap.clamp_min(0) / (self._energy / 2), 0.0)

    def step(self) -> None:
        """Let an atom join where the last step was a full one, and move towards the solution of the atoms in use."""
        self._join()
        held = self._sign != 0
        move = self._newton(held)
        target = self._value + move
        crosses = held & (target * self._sign < 0)
        share = torch.where(crosses, self._value / (self._value - target), 2.0)
        first = share.amin(dim=1, keepdim=True)
        self._settled = first[:, 0] > 1
        self._value += first.clamp_max(1) * move
        leaves = crosses & (share <= first)
        self._value.masked_fill_(leaves, 0)
        self._sign.masked_fill_(leaves, 0)
        self._residual, self._correlations = self._look()

    def _join(self) -> None:
        held = self._sign != 0
        strength = self._correlations.abs()
        for j in range(held.shape[1]):  # an atom in use does not join again
            atom = self._chosen[:, j : j + 1]
            strength.scatter_(1, atom, torch.where(held[:, j : j + 1], 0.0, strength.gather(1, atom)))
        best = strength.argmax(dim=1, keepdim=True)
        joins = self._settled & (strength.gather(1, best)[:, 0] > self._penalty)
        if bool((held.all(dim=1) & joins).any()):
            self._chosen, self._sign, self._value = (
                torch.cat([x, torch.zeros_like(best, dtype=x.dtype)], dim=1)
                for x in (self._chosen, self._sign, self._value)
            )
            held = self._sign != 0
        slot = held.to(torch.int8).argmin(dim=1, keepdim=True)
        joins = joins[:, None]
        sign = self._correlations.gather(1, best).sign().double()
        self._chosen.scatter_(1, slot, torch.where(joins, best, self._chosen.gather(1, slot)))
        self._sign.scatter_(1, slot, torch.where(joins, sign, self._sign.gather(1, slot)))

    def _newton(self, held: Tensor) -> Tensor:
        """Solve ``Gram step = D^T r - penalty sign`` on the atoms in use, by elimination (L D L^T)."""
        size = held.shape[1]
        rhs = torch.zeros_like(self._value)
        for j in range(size):
            rhs[:, j] = (self._rows.index_select(0, self._chosen[:, j]) * self._residual).sum(dim=1)
        rhs = torch.where(held, rhs - self._penalty * self._sign, 0.0)
        system = self._gram[self._chosen[:, :, None], self._chosen[:, None, :]]
        system = torch.where(held[:, :, None] & held[:, None, :], system, 0.0)
        system.diagonal(dim1=1, dim2=2).copy_(torch.where(held, 1 + _RIDGE, 1.0))
        for j in range(size):
            below = system[:, j + 1 :, j] / system[:, j, j, None].clamp_min(_RIDGE / 2)
            system[:, j + 1 :, j + 1 :] -= below[:, :, None] * system[:, j, None, j + 1 :]
            rhs[:, j + 1 :] -= below * rhs[:, j, None]
            system[:, j + 1 :, j] = below
        rhs /= system.diagonal(dim1=1, dim2=2).clamp_min(_RIDGE / 2)
        for j in reversed(range(1, size)):
            rhs[:, :j] -= system[:, j, :j] * rhs[:, j, None]
        return rhs

    def _look(self) -> tuple[Tensor, Tensor]:
        """Residuals, and their correlations with all atoms."""
        residual = self._signals.clone()
        for j in range(self._value.shape[1]):
            residual -= self._value[:, j, None] * self._rows.index_select(0, self._chosen[:, j])
        return residual, correlate(residual.to(self._atoms.dtype), self._atoms)
