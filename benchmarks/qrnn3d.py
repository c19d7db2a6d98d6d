"""Seconds for a scene: QRNN3D (Wei et al., 2021, doi:10.1109/TNNLS.2020.2978756) and FastHyDe against DEQ-fast.

    git clone https://github.com/Vandermode/QRNN3D
    pip install hyde-images pytorch_wavelets scikit-image scikit-learn "setuptools<81"
    python benchmarks/qrnn3d.py --code QRNN3D [--fasthyde] [--size 240] [--repeats 3]

QRNN3D is its public network (`qrnn3d()` of its models) on the whole scene at once. hpcdeq is `denoise_array` with DEQ-fast, 20
iterations (tolerance 0), blocks of 60 without overlap, its prior in float32 and in bfloat16. FastHyDe: as in `fasthyde.py`.
Random weights, a random scene of 31 bands. Medians of runs taken in turn in one process; ratios to DEQ-fast in float32.
Said first: how far hpcdeq's own QRNN3D (`model.prior.kind=qrnn3d_unet`) is from the public one with the same weights.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import seconds_in_turn
from torch import nn

from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import ModelSettings, Qrnn3dUnetSettings, SparseDenoiser
from hpcdeq.models.qrnn3d_unet import Qrnn3dUnet
from hpcdeq.solvers import Anderson

_BANDS, _ATOMS = 31, 512
_OURS = "DEQ-fast"


def qrnn3d(code: Path) -> nn.Module:
    # Its `models/__init__.py` imports packages for data sets and plots that the network does not need: a stand-in for it.
    package = types.ModuleType("models")
    package.__path__ = [str(code / "models")]
    sys.modules["models"] = package
    network: nn.Module = importlib.import_module("models.qrnn").QRNNREDC3D(1, 16, 5, [1, 3], has_ad=True)
    return network.eval()


@torch.no_grad()
def difference(code: Path, training: bool) -> float:
    """Largest difference of our network's output to the public one's, with the same weights, in double precision."""
    public = qrnn3d(code).double().train(training)
    ours = Qrnn3dUnet(Qrnn3dUnetSettings(kind="qrnn3d_unet")).double().train(training)
    theirs = [m for m in public.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    for layer, given in zip(ours.layers(), theirs, strict=True):
        turned = isinstance(given, nn.ConvTranspose3d)
        layer.weight.copy_(given.weight.transpose(0, 1).flip(2, 3, 4) if turned else given.weight)
        if layer.bias is not None:
            layer.bias.copy_(given.bias)
    cube = torch.rand(2, _BANDS, 24, 20, dtype=torch.float64)
    return (ours(cube) - public(cube[:, None])[:, 0]).abs().max().item()


def new_model() -> SparseDenoiser:
    dictionary = torch.randn(_BANDS, _ATOMS, generator=torch.Generator().manual_seed(0))
    settings = ModelSettings(map="fast", solver=Anderson(iterations=20, tolerance=0))
    return SparseDenoiser(settings, dictionary / torch.linalg.vector_norm(dictionary, dim=0))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, required=True, help="folder of QRNN3D's public code")
    parser.add_argument("--fasthyde", action="store_true")
    parser.add_argument("--size", type=int, default=240, help="edge of the scene, divisible by 4")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    network, model = qrnn3d(arguments.code), new_model()
    noisy = np.random.default_rng(0).random((_BANDS, arguments.size, arguments.size), dtype=np.float32)
    cube = torch.from_numpy(noisy)[None, None]
    image = torch.from_numpy(noisy.transpose(1, 2, 0).copy())

    def whole_scene() -> None:
        with torch.inference_mode():
            network(cube)

    contestants: dict[str, Callable[[], object]] = {
        _OURS: lambda: denoise_array(model, noisy, DenoiseSettings(overlap=0, device="cpu")),
        f"{_OURS}, bfloat16": lambda: denoise_array(
            model, noisy, DenoiseSettings(overlap=0, device="cpu", precision="bfloat16")
        ),
        "QRNN3D": whole_scene,
    }
    if arguments.fasthyde:
        import hyde

        denoiser = hyde.FastHyDe()
        contestants["FastHyDe"] = lambda: denoiser(image, noise_type="additive", iid=True, k_subspace=10)

    for mode, training in (("evaluation", False), ("training", True)):
        print(f"our QRNN3D and the public one differ by {difference(arguments.code, training):.0e} in {mode}")
    seconds = seconds_in_turn(contestants, arguments.repeats)
    print(f"a scene of {arguments.size} x {arguments.size} x {_BANDS}, {torch.get_num_threads()} threads")
    print(f"parameters: {_OURS} {parameters(model):,}, QRNN3D {parameters(network):,}")
    found = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        ratio = found[name] / found[_OURS]
        print(f"{name:20} {found[name]:8.2f} s ({min(times):.2f} to {max(times):.2f})  {ratio:6.2f}")


if __name__ == "__main__":
    main()
