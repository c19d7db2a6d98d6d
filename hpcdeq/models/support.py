"""Which atoms a block of the fast map may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.models.spectra import of_moments
from hpcdeq.sparse import batch_omp, lasso_order, simultaneous_omp

SupportMethod = Literal["centroid_omp", "centroid_lasso", "somp"]

_DEPENDENT = 1e-6  # length of what is left of a unit-norm atom that lies in the span of others


@dataclass(frozen=True, kw_only=True)
class SupportSettings:
    """How the support of a block is found."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    method: SupportMethod = "somp"
    """``somp``: simultaneous OMP of all spectra of the block; ``centroid_omp``: OMP of the block's mean spectrum (section V of the
    paper); ``centroid_lasso``: the atoms that enter its Lasso path first."""
    size: int = 8
    """|S|, below the number of bands: at |S| >= d the projection is the identity and the dictionary does nothing."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"support size must be at least 1, got {self.size}")


def support_basis(dictionary: Tensor, support: Tensor) -> Tensor:
    """Orthonormal basis Q ``(block, band, |S|)`` of the span of the atoms ``support (block, |S|)``; differentiable in them."""
    return _orthonormalise(dictionary.T[support].double()).transpose(1, 2).to(dictionary.dtype)


@torch.no_grad()
def find_support(spectra: Tensor, dictionary: Tensor, settings: SupportSettings) -> Tensor:
    """Return the atoms ``(block, |S|)`` that each block ``(block, pixel, band)`` may use, in the order chosen."""
    if settings.method == "somp":
        atoms = dictionary.double()
        # Of the pixels a pursuit needs their moments only.
        return of_moments(lambda moments: simultaneous_omp(moments, atoms, settings.size), spectra)
    centroid = spectra.mean(dim=1)
    if settings.method == "centroid_lasso":
        return lasso_order(centroid.double(), dictionary.double(), settings.size)
    return batch_omp(centroid, dictionary, settings.size).support


def _orthonormalise(atoms: Tensor) -> Tensor:
    """Gram-Schmidt, twice, of the rows of ``atoms (block, |S|, band)``; a row that depends on those before it becomes 0.

    Not `torch.linalg.qr`: its last bits change with the place of a block in its batch.
    """
    rows: list[Tensor] = []
    for atom in atoms.unbind(1):
        rest = atom
        for _ in range(2):
            for row in rows:
                rest = rest - (rest * row).sum(1, keepdim=True) * row
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        rows.append(torch.where(length > _DEPENDENT, rest / length.clamp_min(_DEPENDENT), 0.0))
    return torch.stack(rows, dim=1)
