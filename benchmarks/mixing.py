"""What Anderson's method should mix on the full map: nothing (Picard), G by weights from D G or from G, or only D G.

    python benchmarks/mixing.py ARCHIVE --model runs/deq-full/model [--sigma 50]

A history of G is 512 numbers a pixel and iterate, one of D G 31. `D G only` iterates G as it is and mixes what the prior sees.
On 16 blocks of the centre of every scene, tolerance 0: median and worst relative residual of D G, PSNR of the last iterate
(mean over bands, then blocks), seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from centres import centres
from torch import Tensor

from hpcdeq.metrics import mpsnr
from hpcdeq.models import load_model
from hpcdeq.models.spectra import to_blocks
from hpcdeq.solvers import Anderson, Picard
from hpcdeq.solvers.anderson import _Mixing
from hpcdeq.solvers.iteration import iterate
from hpcdeq.solvers.picard import _Damping

_ITERATIONS = (5, 10, 15, 20, 40)


class WeightsFromCodes(_Mixing):
    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        return super().step(state, image, image - state)


class BandsOnly(_Mixing):
    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        atoms = image.shape[2] - change.shape[2]
        mixed = super().step(state[..., atoms:], image[..., atoms:], change)
        return torch.cat([image[..., :atoms], mixed], 2)


_WAYS = {
    "Picard": lambda: _Damping(Picard().damping),
    "G, weights from D G (ours)": lambda: _Mixing(Anderson()),
    "G, weights from G": lambda: WeightsFromCodes(Anderson()),
    "D G only": lambda: BandsOnly(Anderson()),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sigma", type=float, default=50.0)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    edge = model.settings.block
    clean, noisy = [], []
    for pair in centres(arguments.archive, arguments.sigma, 4 * edge):
        for y in range(0, 4 * edge, edge):
            for x in range(0, 4 * edge, edge):
                for blocks, scene in zip((clean, noisy), pair, strict=True):
                    blocks.append(np.ascontiguousarray(scene[:, y : y + edge, x : x + edge]))
    with torch.inference_mode():
        f = model.iteration(torch.from_numpy(np.stack(noisy)))
        for name, way in _WAYS.items():
            cells = []
            for iterations in _ITERATIONS:
                begin = time.perf_counter()
                solved = iterate(f, f.start(), iterations, 0.0, way())
                seconds = time.perf_counter() - begin
                estimates = to_blocks(f.observe(solved.state), edge, edge).numpy()
                psnr = np.mean([mpsnr(a, b) for a, b in zip(clean, estimates, strict=True)])
                residuals = f"{solved.residual.median():.0e}, {solved.residual.max():.0e}"
                cells.append(f"{iterations}: {residuals}; {psnr:.2f} dB; {seconds:.2f} s")
            print(f"{name:28}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
