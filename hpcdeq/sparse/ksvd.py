"""Dictionaries learnt from signals: approximate K-SVD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hpcdeq.sparse.pursuit import OmpResult, batch_omp, check_signals

# Two atoms with a larger |cosine| do one atom's work.
_DUPLICATE_COSINE = 0.999
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class KSvdSettings:
    """How a dictionary is learnt.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    atoms: int = 512
    """Number of atoms, at least 1."""
    sparsity: int = 5
    """Atoms a signal may use, from 1 to the number of atoms."""
    iterations: int = 10
    """Rounds of coding all signals and updating all atoms, at least 1."""
    seed: int = 0
    """Chooses the signals that the atoms begin as."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.atoms < 1:
            raise ValueError(f"atoms must be at least 1, got {self.atoms}")
        if not 1 <= self.sparsity <= self.atoms:
            raise ValueError(f"sparsity must be from 1 to atoms = {self.atoms}, got {self.sparsity}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 <= self.seed <= _MAX_SEED:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KSvdResult:
    """A learnt dictionary."""

    dictionary: Tensor
    """(d, M): unit-norm atoms, the entry of largest magnitude positive."""
    errors: tuple[float, ...]
    """Root mean square of ``signals - dictionary @ codes`` after each iteration, in the signals' units."""


def learn_dictionary(
    signals: Tensor,
    settings: KSvdSettings,
    pursuit: Callable[[Tensor, Tensor, int], OmpResult] = batch_omp,
) -> KSvdResult:
    """Learn a dictionary that codes ``signals`` with few atoms.

    Approximate K-SVD: an atom and its coefficients are updated by one step of the power method on the
    residual of the signals that use it, instead of a full SVD. Between iterations, an atom that no signal
    uses, or that nearly equals another (|cosine| > 0.999), becomes one of the worst represented signals. The
    same signals, settings, device and number of threads give the same bytes.

    Parameters
    ----------
    signals
        (N, d) float32 or float64, d at least ``settings.sparsity``.
    settings
        Size, sparsity, iterations and seed.
    pursuit
        What codes all signals, nine tenths of the work: `batch_omp`, or its like that has others code a part.

    Raises
    ------
    ValueError
        If the signals are not finite (N, d) floats, d is less than the sparsity, or fewer than
        ``settings.atoms`` of them are non-zero.

    References
    ----------
    Aharon, Elad, Bruckstein: *K-SVD*, IEEE TSP 54, 2006, doi:10.1109/TSP.2006.881199. The approximate update:
    Rubinstein, Zibulevsky, Elad, Technion CS-2008-08, algorithm 5.
    """
    check_signals(signals)
    if signals.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"signals must be float32 or float64, got {signals.dtype}")
    if signals.shape[1] < settings.sparsity:
        raise ValueError(
            f"sparsity must be at most the signals' length {signals.shape[1]}, got {settings.sparsity}"
        )
    signals = signals.detach()
    atoms = _first_atoms(signals, settings)
    errors: list[float] = []
    residual = signals
    used = torch.ones(settings.atoms, dtype=torch.bool, device=signals.device)
    for iteration in range(settings.iterations):
        if iteration > 0:
            _replace_idle(atoms, used, signals, residual)
        codes = pursuit(signals, atoms.T, settings.sparsity)
        used, residual = _update_atoms(atoms, codes, signals)
        errors.append(float(residual.double().square().mean().sqrt()))
    peak = atoms.gather(1, atoms.abs().argmax(dim=1, keepdim=True))
    return KSvdResult(dictionary=(atoms * peak.sign()).T.contiguous(), errors=tuple(errors))


def _first_atoms(signals: Tensor, settings: KSvdSettings) -> Tensor:
    """Begin with signals chosen by the seed: (M, d), for atoms are worked on one row at a time."""
    norms = torch.linalg.vector_norm(signals, dim=1)
    useful = norms.nonzero().flatten().cpu()
    if len(useful) < settings.atoms:
        raise ValueError(
            f"{settings.atoms} atoms need as many non-zero signals, and {len(useful)} of {len(signals)} are: "
            "sample more signals or learn fewer atoms"
        )
    order = torch.randperm(len(useful), generator=torch.Generator().manual_seed(settings.seed))
    first = useful[order[: settings.atoms]].to(signals.device)
    atoms: Tensor = signals[first] / norms[first, None]
    return atoms


def _update_atoms(atoms: Tensor, codes: OmpResult, signals: Tensor) -> tuple[Tensor, Tensor]:
    """Update every atom in turn, in place; return which atoms (M,) were used and the residual (N, d)."""
    support, coefficients = codes.support, codes.coefficients
    residual = signals.clone()
    for j in range(support.shape[1]):
        residual -= coefficients[:, j, None] * atoms[support[:, j]]
    uses = coefficients.flatten().nonzero().flatten()
    by_atom = uses[support.flatten()[uses].argsort(stable=True)]
    counts = torch.bincount(support.flatten()[uses], minlength=len(atoms))
    groups = by_atom.split(counts.tolist())
    values = coefficients.flatten()
    for j, group in enumerate(groups):
        if len(group) == 0:
            continue
        users = group // support.shape[1]
        weights = values.index_select(0, group)
        part = residual.index_select(0, users) + weights[:, None] * atoms[j]
        direction = weights @ part
        length = torch.linalg.vector_norm(direction)
        # A group that cancels out says nothing about where its atom should point.
        atoms[j] = torch.where(length > 0, direction / length, atoms[j])
        residual.index_copy_(0, users, part - (part @ atoms[j])[:, None] * atoms[j])
    return counts > 0, residual


def _replace_idle(atoms: Tensor, used: Tensor, signals: Tensor, residual: Tensor) -> None:
    """Turn unused atoms, and the later of near-duplicates, into the worst represented signals, in order."""
    cosines = (atoms @ atoms.T).abs().tril(diagonal=-1)
    idle = (~used | (cosines > _DUPLICATE_COSINE).any(dim=1)).nonzero().flatten()
    worst = residual.square().sum(dim=1).sort(descending=True, stable=True).indices[: len(idle)]
    chosen = signals[worst]
    norms = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    atoms[idle] = torch.where(norms > 0, chosen / norms, atoms[idle])
