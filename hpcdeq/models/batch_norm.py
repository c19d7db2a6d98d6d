"""Batch normalisation whose running statistics move with the optimiser's steps, and not between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOMENTUM = 0.1
_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Normalise the channels (axis 1) of images or volumes, as Ioffe and Szegedy (2015, arXiv:1502.03167) do.

    In training mode by the mean and variance of the batch, so that a block's output depends on its batch mates; in evaluation
    mode by running averages of these, so that it does not.

    Parameters
    ----------
    channels
        How many.

    Notes
    -----
    The averages belong to the weights: a forward pass in training mode only prepares their next values, and `advance` takes
    them over. A step that is skipped because its numbers broke thus leaves them as they were.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self._next: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise ``(block, channel, ...)``."""
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = self._next = mean.clone(), variance.clone()
        normalised: Tensor = F.batch_norm(
            hidden, mean, variance, self.weight, self.bias, self.training, _MOMENTUM, _EPSILON
        )
        return normalised

    @torch.no_grad()
    def advance(self) -> None:
        """Take over the running averages of the last forward pass in training mode."""
        if self._next is not None:
            for running, found in zip((self.mean, self.variance), self._next, strict=True):
                running.copy_(found)
            self._next = None
