"""Blocks as lists of spectra: the layout that the maps iterate on.

``(block, band, y, x)`` in channels-last memory and ``(block, pixel, band)`` are the same bytes, so that convolutions and
per-pixel products both find their data contiguous.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


def to_spectra(blocks: Tensor) -> Tensor:
    """(block, band, y, x) to contiguous (block, pixel, band)."""
    return blocks.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def to_blocks(spectra: Tensor, height: int, width: int) -> Tensor:
    """(block, pixel, band) to (block, band, y, x) in channels-last memory."""
    blocks: Tensor = spectra.contiguous().unflatten(1, (height, width))
    return blocks.permute(0, 3, 1, 2)


def times(spectra: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``(block, pixel, n)`` by ``(n, m)``, or by each block's own ``(block, n, m)``.

    Block by block: a product over all pixels at once could round differently with the number of blocks.
    """
    matrix = matrix.expand(len(spectra), *matrix.shape[-2:])
    if (
        spectra.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not _every_block_aligned(spectra, matrix)
    ):
        # The library behind rounds by how the memory of its operands is aligned: each block gets memory of its own.
        return torch.stack([x.clone() @ m.clone() for x, m in zip(spectra, matrix, strict=True)])
    product: Tensor = torch.bmm(spectra, matrix)
    return product


def of_moments(function: Callable[[Tensor], Tensor], spectra: Tensor) -> Tensor:
    """Return what a function makes of the second moments ``(block, band, band)`` of blocks ``(block, pixel, band)``, in float64.

    On a GPU all at once: the shape of the batch stays there, and small products take longer to launch than to compute. Else
    one block at a time: what it gets must not depend on its batch mates, not even in a tie.
    """
    if spectra.is_cuda:
        precise = spectra.double()
        return function(precise.transpose(1, 2) @ precise)
    return torch.cat([function((x.T @ x)[None]) for x in map(Tensor.double, spectra)])


def _every_block_aligned(spectra: Tensor, matrix: Tensor) -> bool:
    bytes_a_column = spectra.shape[1] * spectra.element_size()
    return all(n * bytes_a_column % _ALIGNMENT == 0 for n in matrix.shape[1:])
