"""What 16 bits cost and save: denoising with the prior in bfloat16 against float32.

    python benchmarks/precision.py ARCHIVE --model runs/deq-fast/model --model runs/du-fast/model [--sigma 50]

On the centre of every scene of a clean archive, with the noise that `hpcdeq evaluate --seed 0` adds, tiles overlapping by a
third, the model's own solver settings. PSNR as in docs/metrics.md, mean over the scenes; PSNR of the one output against the
other; seconds, run in turn after a warm-up, medians.
"""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
from centres import centres, denoise, mean_psnr, parser_of
from measure import seconds_in_turn

from hpcdeq.inference import DenoiseSettings
from hpcdeq.inference.tiles import DenoisedWindow
from hpcdeq.metrics import mpsnr
from hpcdeq.models import SparseDenoiser, load_model

_PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    pairs = centres(arguments.archive, arguments.sigma, arguments.size)
    for folder in arguments.model:
        model = load_model(folder)
        found = {}

        def run(
            name: str, model: SparseDenoiser = model, found: dict[str, list[DenoisedWindow]] = found
        ) -> None:
            settings = DenoiseSettings(precision=name)  # type: ignore[arg-type]
            found[name] = [denoise(model, noisy, settings) for _, noisy in pairs]

        seconds = seconds_in_turn({name: partial(run, name) for name in _PRECISIONS}, arguments.repeats)
        psnr = {name: mean_psnr(pairs, windows) for name, windows in found.items()}
        apart = np.mean([mpsnr(a.values, b.values) for a, b in zip(*found.values(), strict=True)])
        converged = {n: np.mean([t.converged for w in ws for t in w.tiles]) for n, ws in found.items()}
        iterations = {n: np.mean([t.iterations for w in ws for t in w.tiles]) for n, ws in found.items()}
        print(f"{folder}: one output against the other {apart:.1f} dB", flush=True)
        for name in _PRECISIONS:
            median = statistics.median(seconds[name])
            print(
                f"  {name:9} {psnr[name]:.3f} dB ({psnr[name] - psnr['float32']:+.3f})  {median:.2f} s "
                f"({statistics.median(seconds['float32']) / median:.2f} x)  {iterations[name]:.1f} iterations a tile, "
                f"{converged[name]:.0%} converged"
            )


if __name__ == "__main__":
    main()
