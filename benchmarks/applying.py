"""What more can be done when a trained model is applied, and what it costs: tiles that overlap more, ensembles.

    python benchmarks/applying.py ARCHIVE --model du-fast --model deq-fast [--sigma 50]

On the centre of every scene of a clean archive, with the noise that `hpcdeq evaluate --seed 0` adds. The ensemble denoises the
eight turns and mirror images of a scene, turns them back and takes their mean. PSNR as in docs/metrics.md, mean over the scenes;
seconds of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from centres import Floats, centres, denoise, parser_of

from hpcdeq.inference import DenoiseSettings
from hpcdeq.metrics import mpsnr
from hpcdeq.models import SparseDenoiser, load_model

_SHARES = (0.0, 0.15, 1 / 3, 0.5, 0.7)  # of a tile


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    pairs = centres(arguments.archive, arguments.sigma, arguments.size)
    for folder in arguments.model:
        model = load_model(folder)
        tile = model.settings.block
        print(f"{folder}, tiles of {tile} px, sigma {arguments.sigma:g}, {arguments.size} px", flush=True)
        for share in _SHARES:
            overlap = int(share * tile)
            _score(f"overlap {overlap}", pairs, partial(_once, model, overlap))
        for overlap in (0, tile // 3):
            _score(f"overlap {overlap}, ensemble of 8", pairs, partial(_ensemble, model, overlap))


def _score(name: str, pairs: list[tuple[Floats, Floats]], denoise: Callable[[Floats], Floats]) -> None:
    begin = time.perf_counter()
    found = [denoise(noisy) for _, noisy in pairs]
    seconds = time.perf_counter() - begin
    psnr = np.mean([mpsnr(clean, one) for (clean, _), one in zip(pairs, found, strict=True)])
    print(f"  {name:28} {psnr:.2f} dB  {seconds:.1f} s", flush=True)


def _once(model: SparseDenoiser, overlap: int, noisy: Floats) -> Floats:
    return denoise(model, noisy, DenoiseSettings(overlap=overlap)).values


def _ensemble(model: SparseDenoiser, overlap: int, noisy: Floats) -> Floats:
    total = np.zeros_like(noisy)
    for turns in range(4):
        turned = np.rot90(noisy, turns, (1, 2))
        for mirrored in (False, True):
            seen = turned[:, :, ::-1] if mirrored else turned
            found = _once(model, overlap, np.ascontiguousarray(seen))
            total += np.rot90(found[:, :, ::-1] if mirrored else found, -turns, (1, 2))
    return total / 8


if __name__ == "__main__":
    main()
