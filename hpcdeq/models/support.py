"""Which atoms a block of the fast map may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcdeq.sparse import batch_omp


@dataclass(frozen=True, kw_only=True)
class SupportSettings:
    """How the support of a block is found."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    method: Literal["centroid_omp"] = "centroid_omp"
    """``centroid_omp``: OMP of the block's mean spectrum (section V of the paper)."""
    size: int = 16
    """|S|, below the number of bands: at |S| >= d the projection is the identity and the dictionary does nothing."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"support size must be at least 1, got {self.size}")


@torch.no_grad()
def support_basis(noisy: Tensor, dictionary: Tensor, settings: SupportSettings) -> Tensor:
    """Orthonormal basis Q ``(block, band, |S|)`` of span(D_S) for each noisy block ``(block, band, y, x)``."""
    centroid = noisy.mean(dim=(2, 3))
    support = batch_omp(centroid, dictionary, settings.size).support
    atoms = dictionary.T[support].transpose(1, 2)
    basis: Tensor = torch.linalg.qr(atoms).Q
    return basis
