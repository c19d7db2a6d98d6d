"""What the fast map can reach at best: clean blocks projected on the support found from noisy ones.

    python benchmarks/support_ceiling.py ARCHIVE --dictionary D.safetensors [--sigma 50]

For every method and size of the support, in dB (PSNR, mean over bands, all blocks pooled): the ceiling, which no prior can
pass, and the noisy block itself projected, which is what the map starts from. Noise seed 0; blocks of 60, side by side.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from hpcdeq.archive import open_archive
from hpcdeq.models import SupportSettings, load_dictionary
from hpcdeq.models.spectra import times
from hpcdeq.models.support import SupportMethod, find_support, support_basis

_BLOCK = 60
_SIZES = (3, 5, 8, 12, 16, 20)


def psnr(reference: Tensor, estimate: Tensor) -> float:
    return float((-10 * torch.log10((reference - estimate).square().mean((0, 1)))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--dictionary", type=Path, required=True)
    parser.add_argument("--sigma", type=float, default=50.0)
    arguments = parser.parse_args()
    dictionary = load_dictionary(arguments.dictionary)
    blocks = []
    for scene in open_archive(arguments.archive).scenes():
        pixels = scene.read()
        for y in range(0, pixels.shape[1] - _BLOCK + 1, _BLOCK):
            for x in range(0, pixels.shape[2] - _BLOCK + 1, _BLOCK):
                blocks.append(pixels[:, y : y + _BLOCK, x : x + _BLOCK].reshape(len(pixels), -1).T)
    clean = torch.from_numpy(np.stack(blocks))
    noise = np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
    noisy = clean + torch.from_numpy(noise) * (arguments.sigma / 255)
    print(f"{len(clean)} blocks, sigma {arguments.sigma:g}; ceiling / noisy block projected, dB; ms a block")
    for method in get_args(SupportMethod):
        cells = []
        for size in _SIZES:
            begin = time.perf_counter()
            support = find_support(noisy, dictionary, SupportSettings(method=method, size=size))
            basis = support_basis(dictionary, support)
            milliseconds = (time.perf_counter() - begin) / len(clean) * 1e3
            projector = basis @ basis.transpose(1, 2)
            reached, begun = (psnr(clean, times(x, projector)) for x in (clean, noisy))
            cells.append(f"{size}: {reached:.1f} / {begun:.1f} ({milliseconds:.1f})")
        print(f"{method:15} " + "  ".join(cells))


if __name__ == "__main__":
    main()
