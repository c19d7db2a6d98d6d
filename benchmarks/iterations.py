"""Iterations against PSNR (the paper's Figure 7): an equilibrium model keeps its quality, an unrolled one need not.

    python benchmarks/iterations.py ARCHIVE --model runs/deq-fast/model --model runs/du-fast/model [--sigma 50]

Every model is run for 1 to 80 iterations, all of them (tolerance 0, the last iterate), on the centre of every scene of a
clean archive, with the noise that `hpcdeq evaluate --seed 0` adds; tiles side by side. PSNR as in docs/metrics.md, mean
over the scenes; beside it the worst relative residual. Also the number of learnt parameters (Figure 8).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hpcdeq.archive import open_archive
from hpcdeq.inference import DenoiseSettings
from hpcdeq.inference.tiles import denoise_window, prepare
from hpcdeq.metrics import mpsnr
from hpcdeq.models import load_model
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import noisy_copy
from hpcdeq.tiling import Window

_ITERATIONS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 60, 80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--sigma", type=float, default=50.0)
    parser.add_argument("--size", type=int, default=240, help="edge of the centre that is scored, in pixels")
    arguments = parser.parse_args()
    pairs = []
    for scene in open_archive(arguments.archive).scenes():
        y, x = ((n - arguments.size) // 2 for n in scene.shape[1:])
        centre = slice(y, y + arguments.size), slice(x, x + arguments.size)
        noisy = noisy_copy(scene, Gaussian(sigma=arguments.sigma), 0)
        pairs.append(tuple(np.ascontiguousarray(a[(slice(None), *centre)]) for a in (scene.read(), noisy)))
    extent = Window(0, arguments.size, 0, arguments.size)
    print(f"sigma {arguments.sigma:g}, {len(pairs)} scenes, {arguments.size} px; PSNR dB (worst residual)")
    for folder in arguments.model:
        model = load_model(folder)
        cells = []
        for iterations in _ITERATIONS:
            settings = DenoiseSettings(overlap=0, iterations=iterations, tolerance=0.0)
            ready = prepare(model, settings)
            scores, residuals = [], [0.0]
            for clean, noisy in pairs:
                found = denoise_window(
                    ready, lambda w, n=noisy: n[(slice(None), *w.slices)], extent, extent, settings
                )
                scores.append(mpsnr(clean, found.values))
                residuals += [tile.residual for tile in found.tiles]
            cells.append(f"{iterations}: {np.mean(scores):.2f} ({max(residuals):.0e})")
        print(f"{folder}: {model.parameter_count} parameters\n  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
