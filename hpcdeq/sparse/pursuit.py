"""Orthogonal matching pursuit of many signals at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of one (signals, atoms) array. On a CPU they stay in a core's cache, and torch starts no threads for so
# few: waiting for threads at every step costs up to 25 times the work where other processes share the cores.
_CHUNK_ELEMENTS_CPU = 1 << 15
_CHUNK_ELEMENTS_GPU = 1 << 23
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class OmpResult:
    """Sparse codes: ``signals[n]`` is about ``dictionary[:, support[n]] @ coefficients[n]``."""

    support: Tensor
    """(N, k) int64: distinct atoms of each signal, in the order they were chosen."""
    coefficients: Tensor
    """(N, k), of the signals' dtype: least squares on the support; 0 from where a pursuit ended early."""


def batch_omp(signals: Tensor, dictionary: Tensor, sparsity: int, *, residual: float = 0.0) -> OmpResult:
    """Code every signal with ``sparsity`` atoms, chosen greedily (orthogonal matching pursuit).

    As in Batch-OMP, correlations with the residual are updated through the Gram matrix and the residual
    itself is never formed. All arithmetic is element by element, with no matrix product over signals: what a
    signal gets has the same bytes in any batch, for any number of threads.

    A pursuit ends early where the signal is explained (a zero signal at once), where the norm of its residual is at
    most ``residual``, or where the next atom lies in the span of those chosen; the rest of its support are other
    atoms, with coefficient 0.

    Parameters
    ----------
    signals
        (N, d), any float type; 16-bit types are computed in float32.
    dictionary
        (d, M), atoms of unit norm, on the signals' device.
    sparsity
        Atoms a signal, from 1 to min(d, M).
    residual
        Norm of what may stay unexplained, for example that of the noise.

    Raises
    ------
    ValueError
        If shapes, devices or sparsity do not fit, ``residual`` is negative, an atom is not of unit norm (within 1e-3),
        or a signal is not finite.

    References
    ----------
    Rubinstein, Zibulevsky, Elad: *Efficient Implementation of the K-SVD Algorithm using Batch Orthogonal
    Matching Pursuit*, Technion CS-2008-08. Pati, Rezaiifar, Krishnaprasad: *Orthogonal matching pursuit*,
    Asilomar 1993, doi:10.1109/ACSSC.1993.342465.
    """
    check_signals(signals)
    check_dictionary(dictionary, signals)
    check_sparsity(sparsity, dictionary)
    if not residual >= 0:
        raise ValueError(f"residual must be a norm, at least 0, got {residual}")
    work = torch.promote_types(signals.dtype, torch.float32)
    atoms = dictionary.detach().to(work)
    gram = atoms.T @ atoms
    support = torch.empty(len(signals), sparsity, dtype=torch.int64, device=signals.device)
    coefficients = torch.empty(len(signals), sparsity, dtype=signals.dtype, device=signals.device)
    budget = _CHUNK_ELEMENTS_GPU if signals.is_cuda else _CHUNK_ELEMENTS_CPU
    step = max(1, budget // atoms.shape[1])
    for i in range(0, len(signals), step):
        part = signals[i : i + step].detach().to(work)
        # With residual 0 only the correlations end a pursuit: a difference of squares ends in rounding.
        excess = _squares(part) - residual**2 if residual > 0 else torch.full_like(part[:, 0], torch.inf)
        support[i : i + step], coefficients[i : i + step] = _pursue(
            correlate(part, atoms), gram, sparsity, excess
        )
    return OmpResult(support=support, coefficients=coefficients)


def check_signals(signals: Tensor) -> None:
    """Raise ValueError unless ``signals`` is a finite float tensor (N, d)."""
    if signals.ndim != 2 or signals.shape[1] < 1:
        raise ValueError(f"signals must be (N, d), got shape {tuple(signals.shape)}")
    if not signals.is_floating_point():
        raise ValueError(f"signals must be of a float type, got {signals.dtype}")
    if not bool(torch.isfinite(signals).all()):
        raise ValueError("signals must be finite, but some hold NaN or infinity")


def check_dictionary(dictionary: Tensor, signals: Tensor) -> None:
    """Raise ValueError unless ``dictionary`` is (d, M) with unit-norm atoms, for these signals."""
    d = signals.shape[1]
    if dictionary.ndim != 2 or dictionary.shape[0] != d or dictionary.shape[1] < 1:
        raise ValueError(
            f"dictionary must be (d, M) with d = {d} as the signals, got shape {tuple(dictionary.shape)}"
        )
    if dictionary.device != signals.device:
        raise ValueError(
            f"dictionary is on {dictionary.device}, signals are on {signals.device}; put both on one"
        )
    off = (torch.linalg.vector_norm(dictionary.detach().double(), dim=0) - 1).abs()
    # Written so that NaN fails too. Storage in 16 bits alone moves a norm by up to 4e-3.
    tolerance = max(_NORM_TOLERANCE, torch.finfo(dictionary.dtype).eps)
    if not bool((off <= tolerance).all()):
        worst = int(off.argmax())
        raise ValueError(
            f"atoms must have norm 1 within {tolerance:g}; atom {worst} is off by {float(off[worst]):.3g}: "
            "divide each column by its norm"
        )


def check_sparsity(sparsity: int, dictionary: Tensor) -> None:
    """Raise ValueError unless 1 <= sparsity <= min(d, M)."""
    most = min(dictionary.shape)
    if not 1 <= sparsity <= most:
        raise ValueError(
            f"sparsity must be from 1 to {most}, the smaller side of the dictionary (d, M) = "
            f"{tuple(dictionary.shape)}, got {sparsity}"
        )


def correlate(signals: Tensor, atoms: Tensor) -> Tensor:
    """``signals @ atoms``, term by term: a matrix product may round differently with the number of rows."""
    total = signals[:, :1] * atoms[0]
    for k in range(1, atoms.shape[0]):
        total += signals[:, k : k + 1] * atoms[k]
    return total


def _squares(signals: Tensor) -> Tensor:
    """Squared norms, term by term."""
    total = signals[:, 0] * signals[:, 0]
    for k in range(1, signals.shape[1]):
        total += signals[:, k] * signals[:, k]
    return total


def _pursue(correlations: Tensor, gram: Tensor, sparsity: int, excess: Tensor) -> tuple[Tensor, Tensor]:
    """Pursue from ``correlations`` (n, M) of signals and atoms, which become those of residuals and atoms.

    A pursuit goes on while its ``excess`` (n,), the squared norm of the residual above what may stay, is positive.

    Chosen atoms are orthonormalised: ``directions[j]`` (n, M) holds the correlation of the j-th orthonormal
    direction with every atom, so its entry at a new atom is that of the new row of the Cholesky factor of the
    support's Gram matrix.
    """
    eps = torch.finfo(correlations.dtype).eps
    taken = torch.zeros_like(correlations, dtype=torch.bool)
    active = torch.ones_like(taken[:, 0])
    scale = torch.zeros_like(correlations[:, 0])
    squares = gram.diagonal()
    directions: list[Tensor] = []
    chosen: list[Tensor] = []
    factor: list[list[Tensor]] = []
    heights: list[Tensor] = []
    for _ in range(sparsity):
        strength = correlations.abs().masked_fill_(taken, -1.0)
        best = strength.argmax(dim=1)
        strongest = _at(strength, best)
        scale = torch.maximum(scale, strongest)
        taken.scatter_(1, best[:, None], True)
        row = [_at(u, best) for u in directions]
        pivot = squares.index_select(0, best)
        for w in row:
            pivot = pivot - w * w
        # Below this is rounding: nothing left to explain, or an atom in the span of the others.
        active = active & (strongest > 16 * eps * scale) & (pivot > 64 * eps) & (excess > 0)
        length = torch.where(active, pivot, torch.ones_like(pivot)).sqrt()
        height = torch.where(active, _at(correlations, best) / length, torch.zeros_like(pivot))
        direction = gram.index_select(0, best)
        for w, u in zip(row, directions, strict=True):
            direction -= w[:, None] * u
        direction /= length[:, None]
        correlations -= height[:, None] * direction
        excess = excess - height * height
        directions.append(direction)
        chosen.append(best)
        factor.append([*row, length])
        heights.append(height)
    coefficients = _back_substitute(factor, heights)
    return torch.stack(chosen, dim=1), torch.stack(coefficients, dim=1)


def _at(values: Tensor, column: Tensor) -> Tensor:
    """Pick one column of each row. By gather: indexing by tensors starts threads even for a few rows."""
    return values.gather(1, column[:, None])[:, 0]


def _back_substitute(factor: list[list[Tensor]], heights: list[Tensor]) -> list[Tensor]:
    """Solve ``L^T c = z`` for every signal; where a pursuit ended, z is 0 and so is c."""
    coefficients = list(heights)
    for j in reversed(range(len(heights))):
        coefficients[j] = coefficients[j] / factor[j][j]
        for i in range(j):
            coefficients[i] = coefficients[i] - factor[j][i] * coefficients[j]
    return coefficients
