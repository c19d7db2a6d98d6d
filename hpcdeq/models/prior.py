"""The learnt prior N: a small CNN on blocks, with the spectral normalisations of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["none", "kernel", "conv"]

_POWER_GRID = 60  # pixels: the operator norm is taken on images of a block's size
_FIRST_POWER_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Architecture of the CNN (section VI-B of the paper: 4 layers, 64 filters, 3 x 3, spectrally normalised)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    layers: int = 4
    filters: int = 64
    kernel_size: int = 3
    norm: Norm = "kernel"
    """``kernel``: each reshaped kernel has spectral norm 1 (the paper's; it does not bound the convolution);
    ``conv``: each convolution has operator norm 1 on a block (the true bound); ``none``."""
    residual: bool = True
    """Whether the CNN gives the noise, N(x) = x - CNN(x), or the clean block itself."""

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise ValueError(f"layers must be at least 2, got {self.layers}")
        if self.filters < 1:
            raise ValueError(f"filters must be at least 1, got {self.filters}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


class CnnPrior(nn.Module):
    """N_theta of equation (12): convolutions with ReLU between them, zero-padded, size-preserving.

    Parameters
    ----------
    bands
        Channels d of a block.
    settings
        Architecture.

    Notes
    -----
    The weights are normalised once per solve (`weights`) and the power iteration is advanced once per optimiser
    step (`advance_power_iteration`), outside the solve: otherwise the map would change while it is being solved.
    """

    def __init__(self, bands: int, settings: PriorSettings) -> None:
        super().__init__()
        self.settings = settings
        inner = [settings.filters] * (settings.layers - 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, settings.kernel_size, padding=settings.kernel_size // 2)
            for a, b in zip([bands, *inner], [*inner, bands], strict=True)
        )
        if settings.norm != "none":
            for i, layer in enumerate(self._layers()):
                start = torch.sin(torch.arange(self._power_size(layer), dtype=torch.float32) + 1.0)
                self.register_buffer(f"power_{i}", start / torch.linalg.vector_norm(start))
            self.advance_power_iteration(_FIRST_POWER_STEPS)

    def weights(self) -> list[Tensor]:
        """Kernels of all layers, normalised; differentiable. Compute them once per solve."""
        kernels = [layer.weight for layer in self._layers()]
        if self.settings.norm == "none":
            return kernels
        return [kernel / self._norm(i, kernel) for i, kernel in enumerate(kernels)]

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Denoise blocks ``x (block, band, y, x)`` in [0, 1] with kernels from `weights`, in the precision of the kernels."""
        kernels = self.weights() if weights is None else weights
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            # The library behind chooses its kernel by the shape of the whole batch, so that a block would get other
            # last bits with other batch mates; one at a time it cannot.
            return torch.cat([self._denoise(block, kernels) for block in x.split(1)])
        return self._denoise(x, kernels)

    @torch.no_grad()
    def advance_power_iteration(self, steps: int = 1) -> None:
        """Improve the estimates of the norms; call it once after every optimiser step."""
        if self.settings.norm == "none":
            return
        for i, layer in enumerate(self._layers()):
            vector = self._power(i)
            for _ in range(steps):
                image = self._times(layer.weight, vector)
                vector = self._transpose_times(layer.weight, image)
                vector = vector / torch.linalg.vector_norm(vector).clamp_min(1e-12)
            self._power(i).copy_(vector)

    def _denoise(self, x: Tensor, kernels: list[Tensor]) -> Tensor:
        layers = self._layers()
        hidden = x.to(kernels[0].dtype)
        for i, (layer, kernel) in enumerate(zip(layers, kernels, strict=True)):
            bias = None if layer.bias is None else layer.bias.to(kernel.dtype)
            hidden = F.conv2d(hidden, kernel, bias, padding=layer.padding)
            if i < len(layers) - 1:
                hidden = F.relu(hidden)
        hidden = hidden.to(x.dtype)
        return x - hidden if self.settings.residual else hidden

    def _layers(self) -> list[nn.Conv2d]:
        return [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]

    def _power(self, i: int) -> Tensor:
        return self.get_buffer(f"power_{i}")

    def _power_size(self, layer: nn.Conv2d) -> int:
        if self.settings.norm == "kernel":
            return layer.weight[0].numel()
        return layer.in_channels * _POWER_GRID**2

    def _norm(self, i: int, kernel: Tensor) -> Tensor:
        # v is a constant here; with u = W v / ||W v|| this is the derivative u v^T of the spectral norm.
        norm: Tensor = torch.linalg.vector_norm(self._times(kernel, self._power(i)))
        return norm

    def _times(self, kernel: Tensor, vector: Tensor) -> Tensor:
        if self.settings.norm == "kernel":
            return kernel.flatten(1) @ vector
        image = vector.view(1, kernel.shape[1], _POWER_GRID, _POWER_GRID)
        return F.conv2d(image, kernel, padding=self.settings.kernel_size // 2)

    def _transpose_times(self, kernel: Tensor, image: Tensor) -> Tensor:
        if self.settings.norm == "kernel":
            return kernel.flatten(1).T @ image
        return F.conv_transpose2d(image, kernel, padding=self.settings.kernel_size // 2).flatten()
