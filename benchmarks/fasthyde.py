"""FastHyDe (Zhuang and Bioucas-Dias, 2018, doi:10.1109/JSTARS.2018.2796570) on the noise that `hpcdeq evaluate` adds.

    pip install hyde-images pytorch_wavelets "setuptools<81"
    python benchmarks/fasthyde.py CLEAN_ARCHIVE --sigma 30,50,70 [--subspace 10]

The same scenes, seed and metrics as `hpcdeq evaluate CLEAN_ARCHIVE --model MODEL --sigma 30,50,70 --seed 0`; scenes in memory.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from hpcdeq.archive import open_archive
from hpcdeq.metrics import Scores, evaluate_all
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import noisy_copy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--sigma", default="30,50,70")
    parser.add_argument(
        "--subspace", type=int, default=10, help="dimension of FastHyDe's subspace (its default is 10)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import hyde

    denoiser = hyde.FastHyDe()
    for sigma in [float(s) for s in arguments.sigma.split(",")]:
        scores = []
        for scene in open_archive(arguments.archive).scenes():
            clean = scene.read()
            noisy = noisy_copy(scene, Gaussian(sigma=sigma), arguments.seed)
            begin = time.perf_counter()
            image = torch.from_numpy(noisy.transpose(1, 2, 0).copy())
            denoised = denoiser(image, noise_type="additive", iid=True, k_subspace=arguments.subspace)
            seconds = time.perf_counter() - begin
            estimate = np.ascontiguousarray(denoised.numpy().transpose(2, 0, 1), dtype=np.float32)
            score = evaluate_all(clean, estimate)
            scores.append(score)
            print(line(sigma, scene.name, [score]), f"{seconds:.1f} s")
        print(line(sigma, "mean", scores))


def line(sigma: float, name: str, scores: list[Scores]) -> str:
    mean = {k: np.mean([getattr(s, k) for s in scores]) for k in ("psnr", "ssim", "sam", "ergas")}
    return f"sigma {sigma:g}  {name:20} " + "  ".join(f"{k.upper()} {v:.4g}" for k, v in mean.items())


if __name__ == "__main__":
    main()
