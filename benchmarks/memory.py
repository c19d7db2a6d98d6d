"""Peak memory of a training step: the implicit gradient against unrolling, as the iterations grow.

    python benchmarks/memory.py [--batch 16] [--full-batch 2] [--repeats 3]

DEQ with 5, 20 and 40 iterations of Anderson's method forward and backward (tolerance 0), and DU with K = 5, 10 and 15, with the
fast and with the full map (512 atoms), blocks of 60 x 60 x 31, random weights. A step is forward and backward, no optimiser.
Anderson's history of 5 is full from the sixth iteration on, so that 5 iterations keep two states less than 20 or 40 do.

Every point is a fresh process: the peak of two steps above what it has after a step on one block of 16 x 16. glibc is told
to give freed memory back at once, so that the peak is that of live tensors. Medians; ratios to the first of each group.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Literal

import torch
from measure import memory, printed_by
from torch import Tensor
from torch.nn import functional as F

from hpcdeq.models import ModelSettings, SparseDenoiser
from hpcdeq.solvers import Anderson, Implicit, Picard, Unrolled

_BANDS, _ATOMS, _BLOCK = 31, 512, 60
_POINTS = {"deq": (5, 20, 40), "du": (5, 10, 15)}

Kind = Literal["deq", "du"]
Map = Literal["fast", "full"]


def new_model(kind: Kind, map_: Map, iterations: int) -> SparseDenoiser:
    torch.manual_seed(0)
    dictionary = torch.randn(_BANDS, _ATOMS)
    dictionary = dictionary / torch.linalg.vector_norm(dictionary, dim=0)
    if kind == "du":
        solver = Picard(iterations=iterations, tolerance=0)
        return SparseDenoiser(ModelSettings(map=map_, solver=solver, adjoint=Unrolled()), dictionary)
    anderson = Anderson(iterations=iterations, tolerance=0)
    return SparseDenoiser(
        ModelSettings(map=map_, solver=anderson, adjoint=Implicit(solver=anderson)), dictionary
    )


def training_step(model: SparseDenoiser, clean: Tensor) -> None:
    model.zero_grad()
    noisy = clean + 0.2 * torch.randn_like(clean)
    F.mse_loss(model(noisy).estimate, clean).backward()


def print_peak(kind: Kind, map_: Map, iterations: int, batch: int) -> None:
    """Run by `peak` in a process of its own."""
    model = new_model(kind, map_, iterations)
    training_step(model, torch.rand(1, _BANDS, 16, 16))
    before = memory("VmRSS")
    clean = torch.rand(batch, _BANDS, _BLOCK, _BLOCK)
    for _ in range(2):
        training_step(model, clean)
    print(memory("VmHWM") - before)


def peak(*point: object, repeats: int) -> float:
    options = ["--peak-of", ",".join(map(str, point))]
    return statistics.median(printed_by(__file__, options) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="blocks, for the fast map")
    parser.add_argument("--full-batch", type=int, default=2, help="blocks, for the full map")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        kind, map_, iterations, batch = arguments.peak_of.split(",")
        print_peak(kind, map_, int(iterations), int(batch))
        return
    for map_, batch in (("fast", arguments.batch), ("full", arguments.full_batch)):
        print(f"a training step on {batch} blocks of {_BLOCK} x {_BLOCK} x {_BANDS}, {map_} map", flush=True)
        for kind, counts in _POINTS.items():
            first = None
            for iterations in counts:
                found = peak(kind, map_, iterations, batch, repeats=arguments.repeats)
                first = first or found
                name = f"{kind.upper()}-{map_}, {iterations} iterations"
                print(f"{name:26} {found:9.1f} MiB {found / first:6.2f}", flush=True)


if __name__ == "__main__":
    main()
