"""QRNN3D as published: an encoder and a decoder of quasi-recurrent 3-D convolutions, with batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models.batch_norm import BatchNorm
from hpcdeq.models.prior import Convolution, Prior, convolve, start_normal
from hpcdeq.models.qrnn3d import pool

_HALVES = (
    False,
    True,
    False,
    True,
    False,
)  # which layers of the encoder halve the image and double the channels
EDGE_MULTIPLE = 2 ** sum(_HALVES)
"""The edges of a block are divided by this."""


@dataclass(frozen=True, kw_only=True)
class Qrnn3dUnetSettings:
    """Architecture of QRNN3D; it knows nothing of the number of bands."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["qrnn3d_unet"]
    filters: int = 16
    """Channels of the first layer; they double where the image is halved."""

    def __post_init__(self) -> None:
        if self.filters < 1:
            raise ValueError(f"filters must be at least 1, got {self.filters}")


class Qrnn3dUnet(Prior):
    """The network of Wei, Fu and Huang (2021, doi:10.1109/TNNLS.2020.2978756): 860,453 parameters with 16 filters.

    Twelve layers, each a batch normalisation, a convolution of 3 x 3 x 3 to candidates and gates, and a quasi-recurrent pooling
    along the bands (`hpcdeq.models.qrnn3d.pool`). The first and the last pool in both directions, with gates for each, and add the
    two up; the ten between them pool forwards and backwards in turn. Two layers of the encoder convolve with stride 2 in the
    image, two of the decoder enlarge it twofold first, trilinearly. What comes out of a layer of the decoder is added to its mirror
    image in the encoder, and what comes out at the end to the noisy block.

    The transposed convolutions of the authors' code, all of stride 1, are plain ones here: the same, with kernels turned. All begin
    as in that code. The edges of a block that are no multiple of 4 (of a small scene) are extended by copies of the last pixels.
    """

    def __init__(self, settings: Qrnn3dUnetSettings) -> None:
        width = settings.filters
        layers = [_convolution(1, 3 * width)]
        for halves in _HALVES:
            layers.append(_convolution(width, 2 * width * (1 + halves), stride=1 + halves))
            width *= 1 + halves
        for enlarges in reversed(_HALVES):
            layers.append(_convolution(width, 2 * width // (1 + enlarges), transposed=not enlarges))
            width //= 1 + enlarges
        layers.append(_convolution(width, 3, transposed=True, bias=True))
        super().__init__(layers, "none", residual=True)
        self.norms = nn.ModuleList(BatchNorm(layer.in_channels) for layer in layers)

    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Return the noise of the blocks."""
        height, width = blocks.shape[2:]
        if height % EDGE_MULTIPLE or width % EDGE_MULTIPLE:
            blocks = F.pad(blocks, (0, -width % EDGE_MULTIPLE, 0, -height % EDGE_MULTIPLE), mode="replicate")
        layers = list(zip(self.layers(), self.batch_norms(), kernels, strict=True))
        hidden = _both_ways(*layers[0], blocks.to(kernels[0].dtype).unsqueeze(1))  # (block, 1, band, y, x)
        encoded = [hidden]
        for i, (layer, norm, kernel) in enumerate(layers[1:-1]):
            hidden = norm(hidden)
            decodes = i >= len(_HALVES)
            if decodes and _HALVES[-1 - i % len(_HALVES)]:
                hidden = F.interpolate(hidden, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
            candidates, gates = convolve(layer, kernel, hidden).chunk(2, dim=1)
            hidden = pool(candidates.tanh(), gates.sigmoid(), backwards=i % 2 == 1)
            if decodes:
                hidden = hidden + encoded.pop()
            elif i < len(_HALVES) - 1:
                encoded.append(hidden)
        return -_both_ways(*layers[-1], hidden)[:, 0, :, :height, :width]


def _convolution(
    inputs: int, outputs: int, *, stride: int = 1, transposed: bool = False, bias: bool = False
) -> nn.Conv3d:
    """Make a convolution that begins as the authors' code lets it, or one in place of a transposed one there."""
    layer = nn.Conv3d(inputs, outputs, 3, stride=(1, stride, stride), padding=1, bias=bias)
    if not transposed:
        start_normal(layer, "fan_out")
        return layer
    bound = layer.weight[:, 0].numel() ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound)
    return layer


def _both_ways(layer: Convolution, norm: BatchNorm, kernel: Tensor, hidden: Tensor) -> Tensor:
    candidates, forwards, backwards = convolve(layer, kernel, norm(hidden)).chunk(3, dim=1)
    candidates = torch.tanh(candidates)
    return pool(candidates, forwards.sigmoid(), backwards=False) + pool(
        candidates, backwards.sigmoid(), backwards=True
    )
