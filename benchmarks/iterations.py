"""Iterations against PSNR (the paper's Figure 7): an equilibrium model keeps its quality, an unrolled one need not.

    python benchmarks/iterations.py ARCHIVE --model runs/deq-fast/model --model runs/du-fast/model [--sigma 50] [--b 20,50]

Every model is run for 1 to 80 iterations, all of them (tolerance 0, the last iterate), on the centre of every scene of a
clean archive, with the noise that `hpcdeq evaluate --seed 0` adds; tiles side by side. PSNR as in docs/metrics.md, mean
over the scenes; beside it the worst relative residual. Also the number of learnt parameters (Figure 8). `--b` tries other
penalties than the learnt one, solved by Anderson's method.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from centres import Floats, centres, denoise, mean_psnr, parser_of

from hpcdeq.inference import DenoiseSettings
from hpcdeq.models import SparseDenoiser, load_model
from hpcdeq.solvers import Anderson

_ITERATIONS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 60, 80)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--b", type=lambda text: [float(b) for b in text.split(",")], default=[])
    arguments = parser.parse_args()
    pairs = centres(arguments.archive, arguments.sigma, arguments.size)
    print(f"sigma {arguments.sigma:g}, {len(pairs)} scenes, {arguments.size} px; PSNR dB (worst residual)")
    for folder in arguments.model:
        model = load_model(folder)
        print(f"{folder}: {model.parameter_count} parameters, b {model.b.item():.3g}")
        print(_row(model, pairs))
        for b in arguments.b:
            with torch.no_grad():
                model.log_b.fill_(math.log(b))
            model.settings = replace(model.settings, solver=Anderson())
            print(f"  b {b:g}\n{_row(model, pairs)}")


def _row(model: SparseDenoiser, pairs: list[tuple[Floats, Floats]]) -> str:
    cells = []
    for iterations in _ITERATIONS:
        settings = DenoiseSettings(overlap=0, iterations=iterations, tolerance=0.0)
        found = [denoise(model, noisy, settings) for _, noisy in pairs]
        worst = max(tile.residual for one in found for tile in one.tiles)
        cells.append(f"{iterations}: {mean_psnr(pairs, found):.2f} ({worst:.0e})")
    return "  " + "  ".join(cells)


if __name__ == "__main__":
    main()
