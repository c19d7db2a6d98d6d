"""The paper's prior: a small CNN on the bands of a block; deeper, or told the noise level, if asked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models.level import noise_level
from hpcdeq.models.prior import MOST_LAYERS, Norm, Prior, TransposedNetwork
from hpcdeq.solvers.replay import Change


@dataclass(frozen=True, kw_only=True)
class CnnSettings:
    """Architecture of the CNN (section VI-B of the paper: 4 layers, 64 filters, 3 x 3, spectrally normalised)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["cnn"] = "cnn"
    layers: int = 4
    filters: int = 64
    kernel_size: int = 3
    norm: Norm = "kernel"
    """``kernel``: each reshaped kernel has spectral norm 1 (the paper's; it does not bound the convolution);
    ``conv``: each convolution has operator norm 1 on a block (the true bound); ``none``."""
    residual: bool = True
    """Whether the CNN gives the noise, N(x) = x - CNN(x), or the clean block itself."""
    noise_map: bool = False
    """Whether the CNN is told the noise level of its block, estimated from the block, as one more input image: one model for
    many levels (FFDNet, Zhang, Zuo and Zhang 2018, doi:10.1109/TIP.2018.2839891)."""

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= MOST_LAYERS:
            raise ValueError(f"layers must be 2 to {MOST_LAYERS}, got {self.layers}")
        if self.filters < 1:
            raise ValueError(f"filters must be at least 1, got {self.filters}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


class Cnn(Prior):
    """N_theta of equation (12): convolutions with ReLU between them, zero-padded, size-preserving.

    Parameters
    ----------
    bands
        Channels d of a block.
    settings
        Architecture.
    """

    def __init__(self, bands: int, settings: CnnSettings) -> None:
        widths = [bands + settings.noise_map, *[settings.filters] * (settings.layers - 1), bands]
        size = settings.kernel_size
        convolutions = [nn.Conv2d(a, b, size, padding=size // 2) for a, b in pairwise(widths)]
        super().__init__(convolutions, settings.norm, residual=settings.residual)
        self.noise_map = settings.noise_map

    def tell(self, noisy: Tensor) -> Tensor:
        """Return the noise level of each block, ``(block, 1)`` on the scale of the blocks, if the CNN has a noise map."""
        return noise_level(noisy)[:, None] if self.noise_map else super().tell(noisy)

    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Return the noise of the blocks, or clean ones."""
        hidden = self._first(blocks.to(kernels[0].dtype), told)
        for i, (layer, kernel) in enumerate(zip(self.layers(), kernels, strict=True)):
            if i > 0:
                hidden = F.relu(hidden, inplace=not torch.is_grad_enabled())
            bias = None if layer.bias is None else layer.bias.to(kernel.dtype)
            hidden = F.conv2d(hidden, kernel, bias, padding=kernel.shape[-1] // 2)
        return hidden

    def _first(self, blocks: Tensor, told: Tensor) -> Tensor:
        """What the first layer sees: the blocks, and the noise map if there is one."""
        if not self.noise_map:
            return blocks
        level = told.to(blocks.dtype)[:, :, None, None].expand(-1, -1, *blocks.shape[2:])
        return torch.cat([blocks, level], dim=1).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def transpose_at(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> TransposedNetwork:
        """Return u -> J^T u at ``blocks``: by turned kernels and the signs of ReLU, a third faster than autograd."""
        precision = kernels[0].dtype
        hidden, passed = self._first(blocks.to(precision), told), []
        for layer, kernel in zip(self.layers()[:-1], kernels[:-1], strict=True):
            bias = None if layer.bias is None else layer.bias.to(precision)
            hidden = F.relu_(F.conv2d(hidden, kernel, bias, padding=kernel.shape[-1] // 2))
            passed.append(hidden > 0)
        turned = [k.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last) for k in kernels]
        return _TransposedCnn(turned, passed, blocks.shape[1])


class _TransposedCnn(TransposedNetwork):
    """The layers backwards: kernels turned, and where ReLU let numbers pass."""

    def __init__(self, turned: list[Tensor], passed: list[Tensor], bands: int) -> None:
        self._turned, self._passed, self._bands = turned, passed, bands

    def __call__(self, vector: Tensor) -> Tensor:
        dtype = vector.dtype
        vector = vector.to(self._turned[0].dtype)
        for kernel, mask in zip(reversed(self._turned), [*reversed(self._passed), None], strict=True):
            vector = F.conv2d(vector, kernel, padding=kernel.shape[-1] // 2)
            if mask is not None:
                vector *= mask
        return vector[:, : self._bands].to(dtype)  # not to the noise map

    def replaced(self, change: Change) -> _TransposedCnn:
        turned, passed = ([change(x) for x in some] for some in (self._turned, self._passed))
        return _TransposedCnn(turned, passed, self._bands)
