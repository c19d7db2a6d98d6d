"""MemNet with all bands as channels: memory blocks of residual blocks, with batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models.batch_norm import BatchNorm
from hpcdeq.models.prior import MOST_LAYERS, Prior, convolve, start_normal


@dataclass(frozen=True, kw_only=True)
class MemNetSettings:
    """Architecture of MemNet."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["memnet"]
    filters: int = 64
    memory_blocks: int = 6
    residual_blocks: int = 6
    """In each memory block."""

    def __post_init__(self) -> None:
        for name in ("filters", "memory_blocks", "residual_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.memory_blocks * self.residual_blocks > MOST_LAYERS:
            raise ValueError(
                f"memory_blocks times residual_blocks must be at most {MOST_LAYERS}, "
                f"got {self.memory_blocks} times {self.residual_blocks}"
            )


class MemNet(Prior):
    """The network of Tai et al. (2017, doi:10.1109/ICCV.2017.486), as it is used for cubes: 2,940,094 parameters at 31 bands.

    A layer is a batch normalisation, ReLU and a convolution without bias. After a first one, each memory block runs its residual
    blocks (two layers of 3 x 3 each) one after the other, and a gate, a layer of 1 x 1, joins what each of them gave and what came
    out of the first layer and of all memory blocks before. A last layer gives what is added to the noisy block.

    This is the variant that the public code of QRNN3D compares with: of the original for grey images, whose 677 thousand parameters
    serve all residual blocks of a memory block, it has neither this sharing nor the outputs of every memory block.

    Parameters
    ----------
    bands
        Channels d of a block.
    settings
        Architecture.
    """

    def __init__(self, bands: int, settings: MemNetSettings) -> None:
        width, residuals = settings.filters, settings.residual_blocks
        layers = [_convolution(bands, width)]
        for earlier in range(1, settings.memory_blocks + 1):
            layers += [_convolution(width, width) for _ in range(2 * residuals)]
            layers.append(_convolution((residuals + earlier) * width, width, 1))
        layers.append(_convolution(width, bands))
        super().__init__(layers, "none", residual=True)
        self.norms = nn.ModuleList(BatchNorm(layer.in_channels) for layer in layers)
        self._memory_blocks, self._residual_blocks = settings.memory_blocks, residuals

    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Return the noise of the blocks."""
        layers = zip(self.layers(), self.batch_norms(), kernels, strict=True)

        def next_layer(hidden: Tensor) -> Tensor:
            layer, norm, kernel = next(layers)
            return convolve(layer, kernel, F.relu(norm(hidden), inplace=True))

        hidden = next_layer(blocks.to(kernels[0].dtype))
        remembered = [hidden]
        for _ in range(self._memory_blocks):
            recent = []
            for _ in range(self._residual_blocks):
                hidden = hidden + next_layer(next_layer(hidden))
                recent.append(hidden)
            hidden = next_layer(torch.cat([*recent, *remembered], dim=1))
            remembered.append(hidden)
        return -next_layer(hidden)


def _convolution(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    start_normal(layer, "fan_out")
    return layer
