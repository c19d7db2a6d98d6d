"""HSID-CNN: each band from itself and its neighbours, by features of several kernel sizes and depths."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models.prior import Prior, convolve, start_normal

_SIZES = (3, 5, 7)  # of the first kernels
_DEPTH = 9  # convolutions between the first and the last ones
_TAKEN = (3, 5, 7, 9)  # after how many of these the features are taken


@dataclass(frozen=True, kw_only=True)
class HsidCnnSettings:
    """Architecture of HSID-CNN."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["hsid_cnn"]
    neighbours: int = 24
    """Bands that a band is seen with: half of them on each side, or the outermost ones for a band near the end of the spectrum."""
    filters: int = 60
    """Of each layer in the middle; a third of it for each of the first kernel sizes, a quarter at each depth that is taken."""

    def __post_init__(self) -> None:
        if self.neighbours < 2 or self.neighbours % 2:
            raise ValueError(f"neighbours must be an even number from 2, got {self.neighbours}")
        if self.filters < 1 or self.filters % (len(_SIZES) * len(_TAKEN)):
            raise ValueError(f"filters must be divisible by {len(_SIZES) * len(_TAKEN)}, got {self.filters}")


class HsidCnn(Prior):
    """The network of Yuan et al. (2019, doi:10.1109/TGRS.2018.2865197): 399,161 parameters, for any number of bands from 24.

    Convolutions of 3, 5 and 7 pixels of a band, and others of its neighbours, then nine of 3 pixels, with ReLU; convolutions of
    what came after the 3rd, 5th, 7th and 9th are joined by a last one to what is added to the noisy band. Bands are denoised one
    by one, so that the memory to apply it does not grow with their number (to train it, it does: see `data.micro_batch`).

    As the authors' Caffe network, layer by layer, with He's normal initialisation over the inputs and biases of 0. There the biases
    of most layers stay 0 and others learn ten times slower than kernels; here all learn alike.

    Parameters
    ----------
    bands
        Channels d of a block.
    settings
        Architecture.

    Raises
    ------
    ValueError
        If there are fewer bands than neighbours.
    """

    def __init__(self, bands: int, settings: HsidCnnSettings) -> None:
        if bands < settings.neighbours:
            raise ValueError(
                f"prior.neighbours must be at most the number of bands, got {settings.neighbours} and {bands} bands; "
                f"set model.prior.neighbours to an even number up to {bands}"
            )
        width = settings.filters
        first = [_convolution(n, width // len(_SIZES), k) for n in (settings.neighbours, 1) for k in _SIZES]
        middle = [_convolution(a, b) for a, b in pairwise([2 * width, *[width] * _DEPTH])]
        taken = [_convolution(width, width // len(_TAKEN)) for _ in _TAKEN]
        super().__init__([*first, *middle, *taken, _convolution(width, 1)], "none", residual=True)
        self._neighbours = settings.neighbours

    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Return the noise of the blocks."""
        blocks = blocks.to(kernels[0].dtype)
        found = [self._noise_of(band, blocks, kernels) for band in range(blocks.shape[1])]
        return torch.cat(found, dim=1)

    def _noise_of(self, band: int, blocks: Tensor, kernels: list[Tensor]) -> Tensor:
        """Noise of one band, (block, 1, y, x)."""
        layers = iter(zip(self.layers(), kernels, strict=True))

        def next_layer(hidden: Tensor) -> Tensor:
            return convolve(*next(layers), hidden)

        seen = (blocks[:, _neighbours(band, blocks.shape[1], self._neighbours)], blocks[:, band : band + 1])
        hidden = F.relu(torch.cat([next_layer(images) for images in seen for _ in _SIZES], dim=1))
        taken = []
        for depth in range(1, _DEPTH + 1):
            hidden = F.relu(next_layer(hidden))
            if depth in _TAKEN:
                taken.append(hidden)
        joined = torch.cat([next_layer(features) for features in taken], dim=1)
        return -next_layer(F.relu(joined))


def _neighbours(band: int, bands: int, count: int) -> list[int]:
    """Bands that a band is seen with, as the authors choose them; near the ends of the spectrum it is one of them itself."""
    half = count // 2
    if band < half:
        return list(range(count))
    if band >= bands - half:
        return list(range(bands - count, bands))
    return [*range(band - half, band), *range(band + 1, band + half + 1)]


def _convolution(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    start_normal(layer, "fan_in")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
