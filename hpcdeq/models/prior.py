"""What every learnt prior N shares: normalised kernels, and the form in which one solve uses them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models.batch_norm import BatchNorm
from hpcdeq.models.spectra import to_blocks, to_spectra
from hpcdeq.solvers import transpose_by_autograd
from hpcdeq.solvers.replay import Change, Kind

Norm = Literal["none", "kernel", "conv"]
Convolution = nn.Conv2d | nn.Conv3d

MOST_LAYERS = 1000
"""What settings may ask for: those of a model file are not always one's own."""

_POWER_GRID = 60  # pixels: the operator norm is taken on images of a block's size
_FIRST_POWER_STEPS = 20


class Prior(nn.Module, ABC):
    """A network that denoises blocks. A new one overrides `network` (and `tell`); nothing else in the package knows what it is.

    Parameters
    ----------
    convolutions
        All its learnt layers, in the order in which `network` gets their kernels.
    norm
        How the kernels are normalised: see `CnnSettings.norm`; ``conv`` for two-dimensional convolutions only.
    residual
        Whether the network gives the noise, N(x) = x - network(x), or the clean block itself.

    Notes
    -----
    The weights are normalised once per solve (`fix`) and the power iteration is advanced once per optimiser step
    (`advance_power_iteration`), outside the solve: otherwise the map would change while it is being solved.
    """

    def __init__(self, convolutions: Sequence[Convolution], norm: Norm, *, residual: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.norm = norm
        self.residual = residual
        if norm != "none":
            for i, layer in enumerate(self.layers()):
                self.register_buffer(f"power_{i}", torch.empty(self._power_size(layer)))
            if not self.layers()[0].weight.is_meta:  # where only the shapes are asked for
                self._start_power_iteration()

    @abstractmethod
    def network(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Tensor:
        """Map ``blocks (block, band, y, x)`` to the noise in them, or to clean ones, in the precision of the kernels."""

    def transpose_at(self, blocks: Tensor, kernels: list[Tensor], told: Tensor) -> Callable[[Tensor], Tensor]:
        """Return u -> J^T u, J the Jacobian of `network` at ``blocks``: by autograd, unless overridden."""
        fixed = [kernel.detach() for kernel in kernels]
        return transpose_by_autograd(lambda point: self.network(point, fixed, told).to(blocks.dtype), blocks)

    def tell(self, noisy: Tensor) -> Tensor:
        """Return what `network` is ``told (block, n)`` of the noisy blocks that are denoised: nothing, unless overridden."""
        return noisy.new_zeros(len(noisy), 0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise blocks ``(block, band, y, x)`` in [0, 1] once."""
        denoised: Tensor = to_blocks(self.fix(noisy)(to_spectra(noisy)), *noisy.shape[2:])
        return denoised

    def fix(self, noisy: Tensor, dtype: torch.dtype | None = None) -> FixedPrior:
        """Return N as one solve for the blocks ``noisy (block, band, y, x)`` uses it, in a precision if given."""
        kernels = [
            w.to(dtype or w.dtype, memory_format=torch.channels_last)
            if w.dim() == 4
            else w.to(dtype or w.dtype)
            for w in self.weights()
        ]
        return FixedPrior(self, kernels, self.tell(noisy), noisy.shape[2], noisy.shape[3])

    def layers(self) -> list[Convolution]:
        """Return all learnt layers."""
        return [layer for layer in self.convolutions if isinstance(layer, Convolution)]

    def weights(self) -> list[Tensor]:
        """Kernels of all layers, normalised; differentiable."""
        kernels = [layer.weight for layer in self.layers()]
        if self.norm == "none":
            return kernels
        return [kernel / self._norm(i, kernel) for i, kernel in enumerate(kernels)]

    @torch.no_grad()
    def advance_power_iteration(self, steps: int = 1) -> None:
        """Improve the estimates of the norms; call it once after every optimiser step."""
        if self.norm == "none":
            return
        for i, layer in enumerate(self.layers()):
            vector = self._power(i)
            for _ in range(steps):
                image = self._times(layer.weight, vector)
                vector = self._transpose_times(layer.weight, image)
                vector = vector / torch.linalg.vector_norm(vector).clamp_min(1e-12)
            self._power(i).copy_(vector)

    def _start_power_iteration(self) -> None:
        for i in range(len(self.layers())):
            start = torch.sin(torch.arange(len(self._power(i)), dtype=torch.float32) + 1.0)
            self._power(i).copy_(start / torch.linalg.vector_norm(start))
        self.advance_power_iteration(_FIRST_POWER_STEPS)

    def advance_statistics(self) -> None:
        """Let the running averages of batch normalisation, if there is any, take in the last batch; after every optimiser step."""
        for norm in self.batch_norms():
            norm.advance()

    @property
    def mixes_blocks(self) -> bool:
        """Whether what it makes of a block depends on the others of the batch now: in training mode, with batch normalisation."""
        return self.training and bool(self.batch_norms())

    def batch_norms(self) -> list[BatchNorm]:
        """Return all batch normalisations, in the order in which they were made."""
        return [module for module in self.modules() if isinstance(module, BatchNorm)]

    def _power(self, i: int) -> Tensor:
        return self.get_buffer(f"power_{i}")

    def _power_size(self, layer: Convolution) -> int:
        if self.norm == "kernel":
            return layer.weight[0].numel()
        return layer.in_channels * _POWER_GRID**2

    def _norm(self, i: int, kernel: Tensor) -> Tensor:
        # v is a constant here; with u = W v / ||W v|| this is the derivative u v^T of the spectral norm.
        norm: Tensor = torch.linalg.vector_norm(self._times(kernel, self._power(i)))
        return norm

    def _times(self, kernel: Tensor, vector: Tensor) -> Tensor:
        if self.norm == "kernel":
            return kernel.flatten(1) @ vector
        image = vector.view(1, kernel.shape[1], _POWER_GRID, _POWER_GRID)
        return F.conv2d(image, kernel, padding=kernel.shape[-1] // 2)

    def _transpose_times(self, kernel: Tensor, image: Tensor) -> Tensor:
        if self.norm == "kernel":
            return kernel.flatten(1).T @ image
        return F.conv_transpose2d(image, kernel, padding=kernel.shape[-1] // 2).flatten()


def start_normal(layer: Convolution, mode: Literal["fan_in", "fan_out"]) -> None:
    """Begin with He's normal weights."""
    if not layer.weight.is_meta:  # where only the shapes are asked for
        nn.init.kaiming_normal_(layer.weight, mode=mode)


def convolve(layer: Convolution, kernel: Tensor, hidden: Tensor) -> Tensor:
    """Apply a layer with the kernel given instead of its own, in the precision of that kernel."""
    bias = None if layer.bias is None else layer.bias.to(kernel.dtype)
    function = F.conv3d if isinstance(layer, nn.Conv3d) else F.conv2d
    result: Tensor = function(hidden, kernel, bias, layer.stride, layer.padding)
    return result


class FixedPrior:
    """N with everything fixed that must not change during a solve, on spectra ``(block, pixel, band)``."""

    def __init__(self, prior: Prior, kernels: list[Tensor], told: Tensor, height: int, width: int) -> None:
        self._prior, self._kernels, self._told = prior, kernels, told
        self._height, self._width = height, width

    def __call__(self, spectra: Tensor) -> Tensor:
        """Denoise the blocks."""
        blocks = to_blocks(spectra, self._height, self._width)
        if spectra.device.type == "cpu" and not torch.is_grad_enabled() and not self._prior.mixes_blocks:
            # The library behind chooses its kernel by the shape of the whole batch, so that a block would get other
            # last bits with other batch mates; one at a time it cannot.
            pairs = zip(blocks.split(1), self._told.split(1), strict=True)
            found = torch.cat([self._prior.network(block, self._kernels, told) for block, told in pairs])
        else:
            found = self._prior.network(blocks, self._kernels, self._told)
        found = found.to(blocks.dtype)
        return to_spectra(blocks - found if self._prior.residual else found)

    def take(self, blocks: Tensor) -> FixedPrior:
        """Return the prior for some of the blocks."""
        taken = copy.copy(self)
        taken._told = self._told[blocks]
        return taken

    def kind(self, use: str) -> Kind:
        """What a map that uses it so is beside its tensors."""
        return Kind(self._prior, (use, self._height, self._width))

    def replaced(self, change: Change) -> FixedPrior:
        """Return the prior with its tensors changed."""
        other = copy.copy(self)
        other._kernels, other._told = [change(kernel) for kernel in self._kernels], change(self._told)
        return other

    def transpose_at(self, spectra: Tensor) -> TransposedPrior:
        """Return u -> J^T u, J the Jacobian of N at ``spectra``."""
        blocks = to_blocks(spectra, self._height, self._width)
        size = 1 if spectra.device.type == "cpu" else len(blocks)  # as in __call__
        parts = [
            self._prior.transpose_at(block, self._kernels, told)
            for block, told in zip(blocks.split(size), self._told.split(size), strict=True)
        ]
        return TransposedPrior(parts, self._prior, self._height, self._width)


class TransposedNetwork(ABC):
    """u -> J^T u of a network at given blocks, as a computation on tensors that can be told."""

    @abstractmethod
    def __call__(self, vector: Tensor) -> Tensor:
        """Apply J^T to ``vector (block, band, y, x)``."""

    @abstractmethod
    def replaced(self, change: Change) -> TransposedNetwork:
        """Return it with its tensors changed."""


class TransposedPrior:
    """u -> J^T u of a prior at given spectra, on spectra."""

    def __init__(
        self, parts: list[Callable[[Tensor], Tensor]], prior: Prior, height: int, width: int
    ) -> None:
        self._parts, self._prior = parts, prior
        self._height, self._width = height, width

    def __call__(self, spectra: Tensor) -> Tensor:
        """Apply J^T."""
        blocks = to_blocks(spectra, self._height, self._width)
        pieces = blocks.split(len(blocks) // len(self._parts))
        found = torch.cat([part(piece) for part, piece in zip(self._parts, pieces, strict=True)])
        return to_spectra(blocks - found if self._prior.residual else found)

    def take(self, blocks: Tensor) -> TransposedPrior:
        """Return the transposed prior for some of the blocks; on a CPU, where each is a part of its own."""
        parts = [self._parts[i] for i in blocks.tolist()]
        return TransposedPrior(parts, self._prior, self._height, self._width)

    def kind(self, use: str) -> Kind | None:
        """What a map that uses it so is beside its tensors; None if it cannot be told."""
        if not all(isinstance(part, TransposedNetwork) for part in self._parts):
            return None
        return Kind(self._prior, (use, self._height, self._width))

    def replaced(self, change: Change) -> TransposedPrior:
        """Return it with its tensors changed."""
        networks = cast(list[TransposedNetwork], self._parts)  # as it has a kind
        parts = [network.replaced(change) for network in networks]
        return TransposedPrior([*parts], self._prior, self._height, self._width)
