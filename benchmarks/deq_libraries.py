"""One training step of DEQ-fast by hpcdeq, and as users of torchdeq and deepinv write it: time, peak memory, equality.

    pip install torchdeq deepinv
    python benchmarks/deq_libraries.py [--batch 8] [--block 60] [--iterations 20] [--repeats 7]

All have the same weights, support (found in every step, by hpcdeq's code), start and number of iterations of Anderson's method
forward and backward (history 5, beta 1, tolerance 0). What differs:

- hpcdeq: `SparseDenoiser` as it is.
- torchdeq: `get_deq` with `ift` (its Implicit Differentiation), and with `hook_ift`, which saves one graph of the map; the map in
  NCHW with contiguous `conv2d`. Its Anderson solver regularises by an absolute 1e-4, hpcdeq's by 1e-6 of the trace.
- deepinv: `HQS(g_first=True, DEQ=...)` is (32) exactly: the prior is a PnP denoiser, the data fidelity ||x - y||^2 / 2 on the span
  of the block's atoms, whose prox with stepsize 1 / b is P_S (y + b u) / (1 + b). Regularised by 1e-4 too.

A step is the loss (MSE) forward and backward, without an optimiser. First, with b = 1, where random weights make a contraction, all
run to convergence: estimates and gradients must agree. Then times, in turn in one process; then the peak of three steps, each
contestant in a process of its own, above what it has after one tiny step. Ratios are theirs / hpcdeq's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

import torch
from measure import memory, printed_by, seconds_in_turn
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models import ModelSettings, SparseDenoiser, SupportSettings
from hpcdeq.models.prior import FixedPrior, Prior, TransposedPrior
from hpcdeq.models.spectra import to_spectra
from hpcdeq.models.support import find_support, support_basis
from hpcdeq.solvers import Anderson, Implicit

_BANDS, _ATOMS, _HISTORY = 31, 512, 5
_NAMES = ("hpcdeq", "torchdeq, ift", "torchdeq, hook_ift", "deepinv")

Denoise = Callable[[Tensor], Tensor]


class PlainPrior(nn.Module):
    """The same CNN on contiguous NCHW; its kernels are normalised once a step, as torchdeq too advises."""

    def __init__(self, shared: Prior) -> None:
        super().__init__()
        self.shared = shared

    def normalise(self) -> None:
        self.kernels = self.shared.weights()

    def forward(self, x: Tensor, sigma: object = None) -> Tensor:
        hidden = x
        for i, (layer, kernel) in enumerate(zip(self.shared.convolutions, self.kernels, strict=True)):
            hidden = F.conv2d(F.relu(hidden) if i else hidden, kernel, layer.bias, padding=layer.padding)
        return x - hidden


def projectors(model: SparseDenoiser, noisy: Tensor) -> Tensor:
    basis = support_basis(model.atoms, find_support(to_spectra(noisy), model.atoms, model.settings.support))
    return basis @ basis.transpose(1, 2)


def project(projector: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(projector, x.flatten(2)).view_as(x)


def by_hpcdeq(model: SparseDenoiser, iterations: int) -> tuple[Denoise, nn.Module]:
    return lambda noisy: model(noisy).estimate, model.prior


def by_torchdeq(model: SparseDenoiser, iterations: int, **gradient: bool) -> tuple[Denoise, nn.Module]:
    import torchdeq
    from torchdeq.solver import get_solver, register_solver

    # The backward solver is given no history by `get_deq`: hence one of a name of its own.
    register_solver("anderson_5", partial(get_solver("anderson"), m=_HISTORY))
    deq = torchdeq.get_deq(
        f_solver="anderson_5",
        b_solver="anderson_5",
        f_max_iter=iterations,
        b_max_iter=iterations,
        f_tol=0.0,
        b_tol=0.0,
        **gradient,
    )
    prior = PlainPrior(model.prior)

    def denoise(noisy: Tensor) -> Tensor:
        prior.normalise()
        projector, b = projectors(model, noisy), model.b
        start = project(projector, noisy)
        anchor, share = start / (1 + b), b / (1 + b)
        found, _ = deq(lambda x: anchor + share * project(projector, prior(x)), start)
        return found[-1]

    return denoise, prior


def by_deepinv(model: SparseDenoiser, iterations: int) -> tuple[Denoise, nn.Module]:
    optim, physics = import_deepinv()

    class NearInSpan(optim.L2):
        def prox(self, x: Tensor, y: Tensor, physics: nn.Module, *args: object, gamma: Tensor) -> Tensor:
            return project(self.projector, (x + gamma * y) / (1 + gamma))

    prior, fidelity = PlainPrior(model.prior), NearInSpan()
    deq = optim.HQS(
        data_fidelity=fidelity,
        prior=optim.PnP(denoiser=prior),
        stepsize=1 / model.b.item(),
        trainable_params=["stepsize"],
        g_first=True,
        max_iter=iterations,
        thres_conv=0.0,
        anderson_acceleration=optim.AndersonAccelerationConfig(history_size=_HISTORY, beta=1.0, eps=1e-4),
        DEQ=optim.DEQConfig(
            anderson_acceleration_backward=True,
            history_size_backward=_HISTORY,
            beta_backward=1.0,
            eps_backward=1e-4,
            max_iter_backward=iterations,
        ),
    )
    identity = physics.Denoising()

    def denoise(noisy: Tensor) -> Tensor:
        prior.normalise()
        fidelity.projector = projectors(model, noisy)
        return deq(noisy, identity, init=project(fidelity.projector, noisy))

    return denoise, prior


def import_deepinv():
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # PyPI's torchvision is made for CUDA builds of torch. deepinv imports it, nothing here uses it: two names suffice.
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    from deepinv import optim, physics

    return optim, physics


def make(name: str, model: SparseDenoiser, iterations: int) -> tuple[Denoise, nn.Module]:
    """Return the denoiser of a contestant, and the module that computes its prior."""
    if name == "hpcdeq":
        return by_hpcdeq(model, iterations)
    if name == "deepinv":
        return by_deepinv(model, iterations)
    return by_torchdeq(model, iterations, **{name.split(", ")[1]: True})


def new_model(iterations: int, b: float) -> SparseDenoiser:
    torch.manual_seed(0)
    dictionary = torch.randn(_BANDS, _ATOMS)
    solver = Anderson(iterations=iterations, tolerance=0, history=_HISTORY)
    settings = ModelSettings(
        map="fast",
        b=b,
        support=SupportSettings(method="somp", size=8),
        solver=solver,
        adjoint=Implicit(solver=solver),
    )
    return SparseDenoiser(settings, dictionary / torch.linalg.vector_norm(dictionary, dim=0))


def blocks(batch: int, block: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(batch, _BANDS, block, block, generator=generator)
    return clean, clean + 0.2 * torch.randn(clean.shape, generator=generator)


def training_step(model: SparseDenoiser, denoise: Denoise, clean: Tensor, noisy: Tensor) -> Tensor:
    model.zero_grad()
    estimate = denoise(noisy)
    F.mse_loss(estimate, clean).backward()
    return estimate.detach()


def check(iterations: int, block: int) -> None:
    model = new_model(iterations, b=1.0)
    clean, noisy = blocks(2, block)
    found = {}
    for name in _NAMES:
        estimate = training_step(model, make(name, model, iterations)[0], clean, noisy)
        found[name] = estimate, model.prior.convolutions[0].weight.grad.clone()
    print(f"after {iterations} + {iterations} iterations, b = 1: relative difference from hpcdeq's")
    print(f"{'':20} {'estimate':>10} {'gradient of the first kernel':>30}")
    for name in _NAMES[1:]:
        differences = [(a - b).norm() / b.norm() for a, b in zip(found[name], found["hpcdeq"], strict=True)]
        print(f"{name:20} {differences[0]:10.1e} {differences[1]:30.1e}")


def counting(kind: type, counts: Counter[str], name: str) -> AbstractContextManager[object]:
    """Count calls of hpcdeq's prior, or of its transposed Jacobian; one more of that is autograd's, at the end."""
    call = kind.__call__

    def counted(self: object, x: Tensor) -> Tensor:
        counts[name] += 1
        return call(self, x)

    return mock.patch.object(kind, "__call__", counted)


def times(iterations: int, batch: int, block: int, repeats: int) -> dict[str, float]:
    model = new_model(iterations, b=20.0)
    clean, noisy = blocks(batch, block)
    made = {name: make(name, model, iterations) for name in _NAMES}
    print(
        f"applications of the prior, and of its transposed Jacobian, in a step of {iterations} + {iterations} iterations"
    )
    for name, (denoise, prior) in made.items():
        counts: Counter[str] = Counter()

        def count(_module: nn.Module, _inputs: object, output: Tensor, c: Counter[str] = counts) -> None:
            c["forward"] += 1
            if output.requires_grad:
                output.register_hook(lambda _: c.update(["backward"]))

        hook = prior.register_forward_hook(count)
        with counting(FixedPrior, counts, "forward"), counting(TransposedPrior, counts, "backward"):
            training_step(model, denoise, clean, noisy)
        hook.remove()
        print(f"{name:20} {counts['forward']:4} {counts['backward']:4}")
    steps = {
        name: partial(training_step, model, denoise, clean, noisy) for name, (denoise, _) in made.items()
    }
    seconds = seconds_in_turn(steps, repeats)
    return {name: statistics.median(s) for name, s in seconds.items()}


def print_peak(name: str, iterations: int, batch: int, block: int) -> None:
    """Run by `peak` in a process of its own."""
    model = new_model(iterations, b=20.0)
    denoise, _ = make(name, model, iterations)
    training_step(model, denoise, *blocks(1, 16))
    before = memory("VmRSS")
    clean, noisy = blocks(batch, block)
    for _ in range(3):
        training_step(model, denoise, clean, noisy)
    print(memory("VmHWM") - before)


def peak(name: str, arguments: argparse.Namespace) -> float:
    options = [f"--{k}={getattr(arguments, k)}" for k in ("iterations", "batch", "block")]
    return printed_by(__file__, ["--peak-of", name, *options])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--block", type=int, default=60)
    parser.add_argument(
        "--iterations", type=int, default=20, help="of the forward and of the backward solver"
    )
    parser.add_argument("--check-iterations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-of", choices=_NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = arguments.iterations, arguments.batch, arguments.block
    if arguments.peak_of:
        print_peak(arguments.peak_of, *shape)
        return
    check(arguments.check_iterations, arguments.block)
    found = times(*shape, arguments.repeats)
    peaks = {name: peak(name, arguments) for name in _NAMES}
    print(f"a training step, {arguments.batch} blocks of {arguments.block} x {arguments.block} x {_BANDS}")
    print(f"{'':20} {'ms':>8} {'ratio':>7} {'peak MiB':>10} {'ratio':>7}")
    for name in _NAMES:
        ratios = found[name] / found["hpcdeq"], peaks[name] / peaks["hpcdeq"]
        print(f"{name:20} {found[name] * 1e3:8.0f} {ratios[0]:7.2f} {peaks[name]:10.1f} {ratios[1]:7.2f}")


if __name__ == "__main__":
    main()
