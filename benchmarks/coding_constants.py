"""Which constants the classical coders of `hpcdeq.sparse` denoise best with.

    python benchmarks/coding_constants.py TRAIN.zarr --dictionary D [--methods omp,lasso] [--blocks 12] [--sigma 30,50,70]

Run it on training scenes, never on those that are scored. D is a dictionary file or a model's folder, whose dictionary is taken.
Blocks of 60 at random places, scene after scene; noise and places from seed 0. Prints PSNR (dB, mean over bands and blocks)
at each sigma, and seconds a block.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcdeq.archive import open_archive
from hpcdeq.models import load_dictionary, load_model
from hpcdeq.noise import generator
from hpcdeq.sparse import denoise_by_fast_tv, denoise_by_lasso, denoise_by_omp, denoise_by_sunsal_tv

_BLOCK = 60
_GRIDS: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[float, ...]]]] = {
    "omp": (denoise_by_omp, {"residual": (1.0, 1.2, 1.3, 1.4, 1.5, 1.7)}),
    "lasso": (denoise_by_lasso, {"penalty": (1.0, 1.5, 2.0, 2.5, 3.0)}),
    "fast_tv": (denoise_by_fast_tv, {"atoms": (4, 8, 12, 16), "tv_penalty": (1.0, 1.3, 1.6)}),
    "sunsal_tv": (denoise_by_sunsal_tv, {"l1_penalty": (0.03, 0.1, 0.3), "tv_penalty": (0.6, 0.8, 1.0, 1.2)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--dictionary", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(_GRIDS))
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--sigma", default="30,50,70")
    arguments = parser.parse_args()
    if arguments.dictionary.is_dir():
        dictionary = load_model(arguments.dictionary).dictionary.detach()
    else:
        dictionary = load_dictionary(arguments.dictionary)
    clean = sample(arguments.archive, arguments.blocks)
    noise = torch.from_numpy(generator(0, 1).standard_normal(clean.shape, dtype=np.float32))
    sigmas = [float(s) for s in arguments.sigma.split(",")]
    print(f"{len(clean)} blocks; PSNR (dB) at sigma {arguments.sigma}; s a block")
    for name in arguments.methods.split(","):
        denoise, grid = _GRIDS[name]
        for values in itertools.product(*grid.values()):
            constants = dict(zip(grid, values, strict=True))
            begin = time.perf_counter()
            scores = [
                psnr(clean, denoise(clean + noise * (s / 255), dictionary, s / 255, **constants))
                for s in sigmas
            ]
            seconds = (time.perf_counter() - begin) / len(clean) / len(sigmas)
            print(name, constants, " ".join(f"{score:.2f}" for score in scores), f"{seconds:.3f}", flush=True)


def sample(archive: str, count: int) -> Tensor:
    rng = generator(0, 0)
    scenes = open_archive(archive).scenes()
    blocks = []
    for i in range(count):
        pixels = scenes[i % len(scenes)].read()
        y, x = (int(rng.integers(0, size - _BLOCK + 1)) for size in pixels.shape[1:])
        blocks.append(pixels[:, y : y + _BLOCK, x : x + _BLOCK])
    return torch.from_numpy(np.stack(blocks))


def psnr(reference: Tensor, estimate: Tensor) -> float:
    return float((-10 * torch.log10((reference - estimate).square().mean((2, 3)))).mean())


if __name__ == "__main__":
    main()
