"""The model: a fixed-point map, a solver and an adjoint, joined to a dictionary and a learnt prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hpcdeq.models.fast import FastMap
from hpcdeq.models.prior import CnnPrior, PriorSettings
from hpcdeq.models.support import SupportSettings, support_basis
from hpcdeq.solvers import Anderson, Implicit, Picard, Solution, Unrolled, equilibrium


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that makes a model except its learnt numbers.

    DU-fast is ``solver = picard, tolerance 0`` with the unrolled adjoint; DEQ-fast any solver with the implicit one.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    map: Literal["fast", "prior"] = "fast"
    """The iteration: ``fast`` is equation (32); ``prior`` is none, the CNN applied once: the baseline to beat."""
    block: int = 60
    """Edge n of a block in pixels."""
    b: float = 20.0
    """First value of the learnt penalty b: noise left in the output scales with 1 / (1 + b)."""
    prior: PriorSettings = field(default_factory=PriorSettings)
    support: SupportSettings = field(default_factory=SupportSettings)
    solver: Picard | Anderson = field(default_factory=Anderson)
    adjoint: Implicit | Unrolled = field(default_factory=Implicit)

    def __post_init__(self) -> None:
        if self.block < 8:
            raise ValueError(f"block must be at least 8 pixels, got {self.block}")
        if not self.b > 0:
            raise ValueError(f"b must be positive, got {self.b}")


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Denoised blocks and how well each one's fixed point was solved."""

    estimate: Tensor
    """(block, band, y, x)."""
    solution: Solution


class SparseDenoiser(nn.Module):
    """A DU or DEQ model (sections IV and V of the paper).

    Parameters
    ----------
    settings
        The model's settings.
    dictionary
        D ``(band, atom)`` with unit-norm atoms.

    Raises
    ------
    ValueError
        If the support is not smaller than the number of bands, or than that of atoms.
    """

    def __init__(self, settings: ModelSettings, dictionary: Tensor) -> None:
        super().__init__()
        bands, atoms = dictionary.shape
        if not settings.support.size < min(bands, atoms + 1):
            raise ValueError(
                f"support.size must be below the number of bands ({bands}) and at most the number of atoms ({atoms}), "
                f"got {settings.support.size}; set model.support.size"
            )
        self.settings = settings
        self.prior = CnnPrior(bands, settings.prior)
        self.log_b = nn.Parameter(torch.tensor(math.log(settings.b)))
        self.register_buffer("dictionary", dictionary.detach().clone())

    @property
    def bands(self) -> int:
        """Number of bands d."""
        return self.get_buffer("dictionary").shape[0]

    @property
    def b(self) -> Tensor:
        """The penalty b > 0."""
        return self.log_b.exp()

    def forward(self, noisy: Tensor, on_backward: Callable[[Solution], None] | None = None) -> Denoised:
        """Denoise blocks.

        Parameters
        ----------
        noisy
            Y ``(block, band, y, x)``, data scaled to [0, 1] plus noise.
        on_backward
            Called with the solution of the backward solve, if there is one.
        """
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        if self.settings.map == "prior":
            estimate = self.prior(noisy)
            return Denoised(estimate=estimate, solution=_applied_once(estimate))
        basis = support_basis(noisy, self.get_buffer("dictionary"), self.settings.support)
        weights = [w.contiguous(memory_format=torch.channels_last) for w in self.prior.weights()]
        f = FastMap(noisy, basis, self.b, lambda x: self.prior(x, weights))
        solution = equilibrium(f, f.start(), self.settings.solver, self.settings.adjoint, on_backward)
        return Denoised(estimate=f.observe(solution.state), solution=solution)


def _applied_once(estimate: Tensor) -> Solution:
    blocks = estimate.shape[0]
    return Solution(
        state=estimate,
        residual=torch.zeros(blocks, device=estimate.device),
        iterations=torch.ones(blocks, dtype=torch.int64, device=estimate.device),
        converged=torch.ones(blocks, dtype=torch.bool, device=estimate.device),
    )
