"""The methods of the paper's tables that need no training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcdeq import peers, sparse
from hpcdeq.studies.method import Denoise, Floats, Method
from hpcdeq.studies.protocols import BLOCK, Protocol
from hpcdeq.tiling import blend_weights, tiles_of

_BLOCKS_AT_ONCE = 4

CODERS: dict[str, tuple[str, str, Callable[..., Tensor]]] = {
    "omp": ("batch-OMP", "Rubinstein et al. 2008", sparse.denoise_by_omp),
    "lasso": ("Lasso", "Tibshirani 1996", sparse.denoise_by_lasso),
    "sunsal-tv": ("SUnSAL-TV", "Iordache et al. 2012", sparse.denoise_by_sunsal_tv),
    "fast-tv": ("fast-TV", "Gkillas et al. 2020", sparse.denoise_by_fast_tv),
}


def classical(atoms: Tensor | None, device: torch.device) -> list[Method]:
    """Return the methods of the paper that need no training; without a dictionary the sparse-coding ones cannot be applied."""
    digest = None if atoms is None else hashlib.sha256(atoms.cpu().numpy().tobytes()).hexdigest()

    def coding(code: Callable[[Tensor, Tensor, float], Tensor], protocol: Protocol) -> Denoise:
        assert atoms is not None
        dictionary, block = atoms.to(device), protocol.block or BLOCK

        def denoise(noisy: Floats, sigma: float) -> Floats:
            def each(blocks: Floats) -> Floats:
                return _array(code(torch.from_numpy(blocks).to(device), dictionary, sigma))

            return _in_blocks(each, noisy, block, protocol.overlap_of(block))

        return denoise

    def whole(
        key: str, title: str, source: str, denoise: Callable[[Tensor, float], Tensor], settings: Any
    ) -> Method:
        return Method(
            key=key,
            title=title,
            tables=frozenset({2}),
            source=source,
            denoiser=lambda _: (
                lambda noisy, sigma: _array(denoise(torch.from_numpy(noisy).to(device), sigma))
            ),
            identity=asdict(settings),
        )

    noisy = Method(
        key="noisy",
        title="noisy",
        tables=frozenset({1, 2}),
        source="",
        denoiser=lambda _: lambda noisy, sigma: noisy,
    )
    coders = [
        Method(
            key=key,
            title=title,
            tables=frozenset({1}),
            source=source,
            denoiser=partial(coding, code),
            identity={"dictionary": digest, **_constants(code)},
        )
        for key, (title, source, code) in CODERS.items()
    ]
    return [
        noisy,
        *coders,
        whole("tdl", "TDL", "Peng et al. 2014", peers.tdl, peers.TdlSettings()),
        whole("llrt", "LLRT", "Chang et al. 2017", peers.llrt, peers.LlrtSettings()),
    ]


def _constants(code: Callable[..., Tensor]) -> dict[str, Any]:
    """What a method is told beside blocks, dictionary and sigma."""
    return {p.name: p.default for p in signature(code).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _array(scene: Tensor) -> Floats:
    return scene.float().cpu().numpy()


def _in_blocks(denoise: Callable[[Floats], Floats], noisy: Floats, block: int, overlap: int) -> Floats:
    """Denoise a scene in blocks ``(block, band, y, x)``, a few at a time, blended where they overlap."""
    tiles = tiles_of(noisy.shape[1], noisy.shape[2], block, overlap)
    weights = blend_weights(tiles[0].height, tiles[0].width, overlap)
    total, weight = np.zeros_like(noisy), np.zeros(noisy.shape[1:], np.float32)
    for first in range(0, len(tiles), _BLOCKS_AT_ONCE):
        some = tiles[first : first + _BLOCKS_AT_ONCE]
        found = denoise(np.stack([noisy[(slice(None), *tile.slices)] for tile in some]))
        for tile, estimate in zip(some, found, strict=True):
            total[(slice(None), *tile.slices)] += weights * estimate
            weight[tile.slices] += weights
    return total / weight
