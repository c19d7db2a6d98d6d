"""The full and the fast map against the paper's formulas taken literally, and the four models on one scene.

    python benchmarks/maps.py [--repeats 5] [--size 240] [--overlap 0,20] [--device cpu]

- literal full: (14) with its product by the inverse of a 512 x 512 matrix (precomputed), codes G in full.
- literal fast: (32) with codes G and the products by the atoms and by the precomputed inverse over all 512 atoms that a reader of
  (14) would reuse: the dense form the paper's runtimes suggest; and `restricted`, over the |S| atoms only.

The prior is left out (N is the identity): the map alone. Then one application of the prior beside it, and the time of
20 iterations on a scene. Random weights, a random dictionary of 512 atoms, 31 bands, blocks of 60, batches of 16. Ratios
are of medians of runs taken in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measure import seconds_in_turn
from torch import Tensor

from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import ModelSettings, SparseDenoiser, SupportSettings
from hpcdeq.models.fast import FastMap
from hpcdeq.models.full import FullMap
from hpcdeq.models.support import find_support
from hpcdeq.solvers import Adjoint, Anderson, Implicit, Picard, Solver, Unrolled

_BANDS, _ATOMS, _BLOCK, _BATCH = 31, 512, 60, 16
_B, _MU, _SUPPORT = 20.0, 0.1, SupportSettings(size=8, method="somp")


def literal_full(noisy: Tensor, dictionary: Tensor) -> Callable[[Tensor], Tensor]:
    identity = torch.eye(_ATOMS, device=noisy.device)
    inverse = torch.linalg.inv((1 + _B) * dictionary.T @ dictionary + _B * identity)

    def step(codes: Tensor) -> Tensor:  # (block, atom, pixel)
        shrunk = codes.sign() * (codes.abs() - _MU / _B).clamp_min(0)
        return inverse @ (dictionary.T @ noisy + _B * shrunk + _B * dictionary.T @ (dictionary @ codes))

    return step


def literal_fast(noisy: Tensor, atoms: Tensor) -> Callable[[Tensor], Tensor]:
    """Return (32) over the atoms ``(block, band, |S|)`` of each block."""
    inverse = torch.linalg.pinv((1 + _B) * atoms.transpose(1, 2) @ atoms)

    def step(codes: Tensor) -> Tensor:
        right = atoms.transpose(1, 2) @ noisy + _B * atoms.transpose(1, 2) @ (atoms @ codes)
        return inverse @ right

    return step


def timed(
    contestants: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    def finished(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    runs = {name: partial(finished, run) for name, run in contestants.items()}
    return {name: statistics.median(times) for name, times in seconds_in_turn(runs, repeats).items()}


def maps(repeats: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(_BANDS, _ATOMS, generator=generator)
    dictionary = (dictionary / torch.linalg.vector_norm(dictionary, dim=0)).to(device)
    spectra = torch.rand(_BATCH, _BLOCK**2, _BANDS, generator=generator).to(device)
    columns = spectra.transpose(1, 2).contiguous()
    b, mu = torch.tensor(_B, device=device), torch.tensor(_MU, device=device)

    def same(x: Tensor) -> Tensor:
        return x

    full = FullMap(spectra, dictionary, b, mu, same)
    fast = FastMap(spectra, dictionary, find_support(spectra, dictionary, _SUPPORT), b, same)
    atoms = dictionary.T[find_support(spectra, dictionary, _SUPPORT)].transpose(1, 2)
    whole, restricted = literal_full(columns, dictionary), literal_fast(columns, atoms)
    everywhere = literal_fast(columns, dictionary.expand(_BATCH, -1, -1))
    state, codes = full.start(), torch.rand(_BATCH, _ATOMS, _BLOCK**2, generator=generator).to(device)
    model = SparseDenoiser(ModelSettings(), dictionary.cpu()).to(device).eval()
    blocks = spectra.unflatten(1, (_BLOCK, _BLOCK)).permute(0, 3, 1, 2)
    prior = model.prior.fix(blocks)
    found = timed(
        {
            "literal full": lambda: whole(codes),
            "full": lambda: full(state),
            "literal fast, all atoms": lambda: everywhere(codes),
            "literal fast, restricted": lambda: restricted(codes[:, : _SUPPORT.size]),
            "fast": lambda: fast(fast.start()),
            "prior": lambda: prior(spectra),
        },
        repeats,
        device,
    )
    print(f"one application to {_BATCH} blocks of {_BLOCK} x {_BLOCK} x {_BANDS}")
    against = {"full": "literal full", "fast": "literal fast, all atoms"}
    for name, seconds in found.items():
        ratio = f"{found[against[name]] / seconds:6.1f} x {against[name]}" if name in against else ""
        print(f"{name:26} {seconds * 1e3:9.2f} ms  {ratio}")
    print(f"{'fast':26} {'':12} {found['literal fast, restricted'] / found['fast']:6.1f} x restricted")


def scenes(repeats: int, size: int, overlaps: list[int], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(_BANDS, _ATOMS, generator=generator)
    dictionary = dictionary / torch.linalg.vector_norm(dictionary, dim=0)
    noisy = np.random.default_rng(0).random((_BANDS, size, size), dtype=np.float32)
    du: tuple[Solver, Adjoint] = (Picard(iterations=10, tolerance=0), Unrolled())
    deq: tuple[Solver, Adjoint] = (Anderson(iterations=20, tolerance=0), Implicit())
    contestants: dict[str, Callable[[], object]] = {}
    for name, (solver, adjoint) in (("DU", du), ("DEQ", deq)):
        for kind in ("fast", "full"):
            settings = ModelSettings(map=kind, solver=solver, adjoint=adjoint, support=_SUPPORT)  # type: ignore[arg-type]
            model = SparseDenoiser(settings, dictionary)
            for overlap in overlaps:
                how = DenoiseSettings(overlap=overlap, device=device.type)
                contestants[f"{name}-{kind}, overlap {overlap}"] = lambda m=model, h=how: denoise_array(
                    m, noisy, h
                )
    print(
        f"a scene of {size} x {size} x {_BANDS}, batches of {DenoiseSettings().batch}; DU 10 iterations, DEQ 20"
    )
    for name, seconds in timed(contestants, repeats, device).items():
        print(f"{name:26} {seconds:9.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=240, help="edge of the scene; 1300 is the paper's")
    parser.add_argument("--overlap", default="0,20", help="pixels shared by neighbouring tiles")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with torch.inference_mode():
        maps(arguments.repeats, device)
    scenes(arguments.repeats, arguments.size, [int(n) for n in arguments.overlap.split(",")], device)


if __name__ == "__main__":
    main()
