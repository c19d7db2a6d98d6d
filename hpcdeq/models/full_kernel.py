"""One step of the full map as one kernel for a GPU: memory is passed over once, where torch passes over it seven times.

It needs Triton, which CUDA builds of torch bring: import this module when it is needed, and expect an ImportError.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# Larger tiles and chunks spill registers when they are compiled for NVIDIA GPUs.
_PIXELS = {16: 32, 32: 32, 64: 16}  # pixels of a tile, by the number that bands are padded to
_ATOMS = 32  # of a chunk
_WARPS, _STAGES = 4, 2


def available(state: Tensor, bands: int) -> bool:
    """Whether :func:`fused_step` can do the step of a state.

    Parameters
    ----------
    state
        The state ``(block, pixel, atom + band)``: on a GPU, float32, and without gradients.
    bands
        Number of bands.
    """
    fits = state.is_cuda and state.dtype == torch.float32 and bands <= max(_PIXELS)
    return fits and not torch.is_grad_enabled() and _works(state.device)


def fused_step(
    state: Tensor, right: Tensor, dictionary: Tensor, inverse: Tensor, b: Tensor, c: Tensor, threshold: Tensor
) -> Tensor:
    """G' beside D G' ``(block, pixel, atom + band)``, of the equations of :class:`hpcdeq.models.full.FullMap`; no gradients.

    Each pixel is computed alone, in one order: its result depends on neither its block nor its batch mates.

    Parameters
    ----------
    state
        G beside D G ``(block, pixel, atom + band)``, float32, contiguous.
    right
        r = Y + b N(D G) ``(block, pixel, band)``, contiguous.
    dictionary
        D ``(band, atom)``, of at most 64 bands.
    inverse
        (c / (1 + b) I + D D^T)^-1 ``(band, band)``.
    b, c, threshold
        Penalty b, identity term c and soft threshold mu / b, scalar tensors: on the GPU, where nobody waits for their values.
    """
    blocks, pixels, width = state.shape
    bands, atoms = dictionary.shape
    assert width == atoms + bands, "the state is G beside D G"
    assert state.is_contiguous(), "the state must be contiguous"
    assert right.is_contiguous(), "the right side must be contiguous"
    image = torch.empty_like(state)
    padded = min(n for n in _PIXELS if n >= bands)
    tile = _PIXELS[padded]
    with torch.cuda.device_of(state):
        _step[(blocks * triton.cdiv(pixels, tile),)](
            state,
            right,
            image,
            dictionary.contiguous(),
            inverse.contiguous(),  # torch.linalg.inv leaves columns
            *(x.to(state) for x in (b, c, threshold)),
            pixels,
            atoms,
            bands,
            TILE=tile,
            CHUNK=_ATOMS,
            BANDS=padded,
            num_warps=_WARPS,
            num_stages=_STAGES,
        )
    return image


@cache
def _works(device: torch.device) -> bool:
    """Try the kernel: Triton may lack the C compiler it needs, or the GPU be too old for it."""
    unit, one = torch.eye(16, device=device), torch.ones((), device=device)
    state = torch.zeros(1, 1, 32, device=device)
    try:
        fused_step(state, torch.zeros(1, 1, 16, device=device), unit, unit, one, one, one)
    except Exception as error:
        warnings.warn(
            f"the full map runs without its kernel, which is faster: Triton fails on {device}: {error}",
            stacklevel=2,
        )
        return False
    return True


@triton.jit  # type: ignore[untyped-decorator]
def _step(
    state: tl.tensor,
    right: tl.tensor,
    image: tl.tensor,
    dictionary: tl.tensor,
    inverse: tl.tensor,
    b_at: tl.tensor,
    c_at: tl.tensor,
    threshold_at: tl.tensor,
    pixels: int,
    atoms: tl.constexpr,
    bands: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BANDS: tl.constexpr,
) -> None:
    """Do the step of one tile: ``TILE`` pixels of a block, ``CHUNK`` atoms at a time, ``bands`` padded with zeros to ``BANDS``.

    It is compiled for each size of dictionary: with that known it needs fewer registers.
    """
    b, c, threshold = tl.load(b_at), tl.load(c_at), tl.load(threshold_at)
    tiles = tl.cdiv(pixels, TILE)
    pixel = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row = ((tl.program_id(0) // tiles).to(tl.int64) * pixels + pixel)[:, None]  # states pass 2^31 numbers
    is_pixel = (pixel < pixels)[:, None]
    begin = row * (atoms + bands)

    band = tl.arange(0, BANDS)
    is_band = band < bands
    here = is_pixel & is_band[None, :]
    r = tl.load(right + row * bands + band[None, :], mask=here, other=0.0)

    s = tl.zeros((TILE, BANDS), tl.float32)
    for first in range(0, atoms, CHUNK):
        atom = first + tl.arange(0, CHUNK)[None, :]
        v, d = _chunk(state + begin, dictionary, atom, atoms, is_pixel, band, is_band, threshold)
        s = tl.dot(v, tl.trans(d), s, input_precision="ieee")

    square = is_band[:, None] & is_band[None, :]
    m = tl.load(inverse + band[:, None] * bands + band[None, :], mask=square, other=0.0)
    w = tl.dot(r / (1 + b) - (b / c) * s, m, input_precision="ieee")
    tl.store(image + begin + atoms + band[None, :], (r - c * w) / (1 + b), mask=here)

    # G once more: the tile is still in the cache, and held in registers it would spill out of them.
    for first in range(0, atoms, CHUNK):
        atom = first + tl.arange(0, CHUNK)[None, :]
        v, d = _chunk(state + begin, dictionary, atom, atoms, is_pixel, band, is_band, threshold)
        image_of_g = tl.dot(w, d, (b / c) * v, input_precision="ieee")
        tl.store(image + begin + atom, image_of_g, mask=is_pixel & (atom < atoms))


@triton.jit  # type: ignore[untyped-decorator]
def _chunk(
    codes: tl.tensor,
    dictionary: tl.tensor,
    atom: tl.tensor,
    atoms: tl.constexpr,
    is_pixel: tl.tensor,
    band: tl.tensor,
    is_band: tl.tensor,
    threshold: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """V of the pixels of a tile, and D, both at the atoms of a chunk."""
    g = tl.load(codes + atom, mask=is_pixel & (atom < atoms), other=0.0)
    v = g - tl.minimum(tl.maximum(g, -threshold), threshold)
    mask = is_band[:, None] & (atom < atoms)
    d = tl.load(dictionary + band[:, None] * atoms + atom, mask=mask, other=0.0)
    return v, d
