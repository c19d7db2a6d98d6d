"""A prior that walks along the spectrum: quasi-recurrent 3-D convolutions, as the paper proposes for later work."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hpcdeq.models.prior import MOST_LAYERS, Prior, convolve


@dataclass(frozen=True, kw_only=True)
class Qrnn3dSettings:
    """Architecture of the quasi-recurrent prior; it knows nothing of the number of bands."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["qrnn3d"]
    layers: int = 4
    """Convolutions of 3 x 3 x 3, all but the last of them recurrent."""
    filters: int = 16
    norm: Literal["none", "kernel"] = "kernel"
    """``kernel``: each reshaped kernel has spectral norm 1; ``none``."""
    residual: bool = True
    """Whether the network gives the noise, N(x) = x - network(x), or the clean block itself."""

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= MOST_LAYERS:
            raise ValueError(f"layers must be 2 to {MOST_LAYERS}, got {self.layers}")
        if self.filters < 1:
            raise ValueError(f"filters must be at least 1, got {self.filters}")


class Qrnn3d(Prior):
    """Quasi-recurrent layers in alternating direction along the bands, then one 3-D convolution.

    Each layer convolves to candidates Z = tanh(.) and gates F = sigmoid(.), then pools along the bands,
    h_i = F_i h_(i-1) + (1 - F_i) Z_i. A small, stride-free relative of the network of Wei, Fu and Huang (2021,
    doi:10.1109/TNNLS.2020.2978756).
    """

    def __init__(self, settings: Qrnn3dSettings) -> None:
        widths = [1, *[settings.filters] * (settings.layers - 1)]
        recurrent = [nn.Conv3d(a, 2 * b, 3, padding=1) for a, b in pairwise(widths)]
        super().__init__(
            [*recurrent, nn.Conv3d(settings.filters, 1, 3, padding=1)],
            settings.norm,
            residual=settings.residual,
        )

    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Return the noise of the blocks, or clean ones."""
        hidden = blocks.to(kernels[0].dtype).unsqueeze(1)  # (block, 1, band, y, x)
        for i, (layer, kernel) in enumerate(zip(self.layers(), kernels, strict=True)):
            hidden = convolve(layer, kernel, hidden)
            if i < len(kernels) - 1:
                candidates, gates = hidden.chunk(2, dim=1)
                hidden = pool(torch.tanh(candidates), torch.sigmoid(gates), backwards=i % 2 == 1)
        return hidden[:, 0]


def pool(candidates: Tensor, gates: Tensor, *, backwards: bool) -> Tensor:
    """Run h_i = F_i h_(i-1) + (1 - F_i) Z_i over the bands, axis 2, in one direction."""
    pooled: list[Tensor] = []
    state = torch.zeros_like(candidates[:, :, 0])
    steps = list(zip(candidates.unbind(2), gates.unbind(2), strict=True))
    for candidate, gate in reversed(steps) if backwards else steps:
        state = torch.lerp(candidate, state, gate)
        pooled.append(state)
    return torch.stack(pooled[::-1] if backwards else pooled, dim=2)
