"""What the benchmarks on trained models share: the noisy centre of every scene of an archive, and its score."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import open_archive
from hpcdeq.inference import DenoiseSettings
from hpcdeq.inference.applied import prepare
from hpcdeq.inference.tiles import DenoisedWindow, NoisyWindow, denoise_windows
from hpcdeq.metrics import mpsnr
from hpcdeq.models import SparseDenoiser
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import noisy_copy
from hpcdeq.tiling import Window

Floats = NDArray[np.float32]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What a benchmark of several models on the centres is told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--sigma", type=float, default=50.0)
    parser.add_argument("--size", type=int, default=240, help="edge of the centre that is scored, in pixels")
    return parser


def centres(archive: str, sigma: float, size: int) -> list[tuple[Floats, Floats]]:
    """(clean, noisy) ``(band, y, x)`` of every scene, with the noise that `hpcdeq evaluate --seed 0` adds."""
    pairs = []
    for scene in open_archive(archive).scenes():
        y, x = ((n - size) // 2 for n in scene.shape[1:])
        centre = slice(None), slice(y, y + size), slice(x, x + size)
        noisy = noisy_copy(scene, Gaussian(sigma=sigma), 0)
        pairs.append((np.ascontiguousarray(scene.read()[centre]), np.ascontiguousarray(noisy[centre])))
    return pairs


def denoise(model: SparseDenoiser, noisy: Floats, settings: DenoiseSettings) -> DenoisedWindow:
    extent = Window(0, noisy.shape[1], 0, noisy.shape[2])
    whole = NoisyWindow(extent=extent, window=extent, pixels=noisy)
    (found,) = denoise_windows(prepare(model, settings), [whole], settings)
    return found


def mean_psnr(pairs: list[tuple[Floats, Floats]], found: list[DenoisedWindow]) -> float:
    return float(np.mean([mpsnr(clean, one.values) for (clean, _), one in zip(pairs, found, strict=True)]))
