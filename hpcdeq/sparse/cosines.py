"""The discrete cosine transform, which PyTorch has not, as a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_basis(size: int, like: Tensor) -> Tensor:
    """Orthonormal basis of the discrete cosine transform (DCT-II) ``(frequency, sample)``, of the type and device of ``like``."""
    k = torch.arange(size, dtype=torch.float64, device=like.device)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(like.dtype)
