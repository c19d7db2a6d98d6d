"""The model: a fixed-point map, a solver and an adjoint, joined to a dictionary and a learnt prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from hpcdeq.models.cnn import Cnn, CnnSettings
from hpcdeq.models.fast import FastMap
from hpcdeq.models.full import FullMap, Identity
from hpcdeq.models.hsid_cnn import HsidCnn, HsidCnnSettings
from hpcdeq.models.memnet import MemNet, MemNetSettings
from hpcdeq.models.prefilter import wiener
from hpcdeq.models.prior import FixedPrior, Prior
from hpcdeq.models.qrnn3d import Qrnn3d, Qrnn3dSettings
from hpcdeq.models.qrnn3d_unet import EDGE_MULTIPLE, Qrnn3dUnet, Qrnn3dUnetSettings
from hpcdeq.models.spectra import to_blocks, to_spectra
from hpcdeq.models.support import SupportSettings, find_support
from hpcdeq.solvers import (
    Adjoint,
    Anderson,
    Implicit,
    Solution,
    Solver,
    equilibrium,
    jacobian_penalty,
    spectral_radius,
)

PriorSettings = CnnSettings | Qrnn3dSettings | HsidCnnSettings | MemNetSettings | Qrnn3dUnetSettings

_PAPER_LARGEST_B = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that makes a model except its learnt numbers.

    A deep unrolling (DU) model is ``solver = picard, tolerance 0`` with the unrolled adjoint; a deep equilibrium (DEQ) model
    any solver with another adjoint.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    map: Literal["fast", "full", "prior"] = "fast"
    """The iteration: ``fast`` is equation (32), ``full`` is (14); ``prior`` is none, the prior applied once, to beat."""
    block: int = 60
    """Edge n of a block in pixels."""
    b: float = 20.0
    """First value of the learnt penalty b: noise left in the output scales with 1 / (1 + b)."""
    mu: float = 0.1
    """First value of the learnt sparsity parameter mu of the full map: codes below mu / b become 0."""
    identity: Identity = "hqs"
    """The identity term of the full map: ``hqs`` is b I, which (8) gives; ``paper`` is I, as (10a) prints it, for b <= 1."""
    prefilter: Literal["none", "wiener"] = "none"
    """What stands for the noisy block Y in the map, and where its solves start: ``none``, Y itself, as in the paper; ``wiener``, an
    estimate of the clean block by a Wiener filter, so that b may be smaller and solves are shorter. The prior alone gets it too."""
    learn_dictionary: bool = False
    """Whether training changes the dictionary too; its atoms keep unit norm."""
    prior: PriorSettings = field(default_factory=CnnSettings)
    support: SupportSettings = field(default_factory=SupportSettings)
    solver: Solver = field(default_factory=Anderson)
    adjoint: Adjoint = field(default_factory=Implicit)

    def __post_init__(self) -> None:
        if self.block < 8:
            raise ValueError(f"block must be at least 8 pixels, got {self.block}")
        if not self.b > 0:
            raise ValueError(f"b must be positive, got {self.b}")
        if not self.mu > 0:
            raise ValueError(f"mu must be positive, got {self.mu}")
        if self.identity == "paper" and self.b > _PAPER_LARGEST_B:
            raise ValueError(
                f"identity=paper diverges for b > 1 (the null space of the dictionary grows by b an iteration), got b={self.b}; "
                "set b to at most 1, or identity=hqs"
            )
        if self.batch_norm and self.map != "prior":
            raise ValueError(
                f"prior.kind={self.prior.kind} has batch normalisation, which changes the map={self.map} while it is solved; "
                "set map=prior to apply it once, or take another prior.kind: cnn, qrnn3d or hsid_cnn"
            )
        if isinstance(self.prior, Qrnn3dUnetSettings) and self.block % EDGE_MULTIPLE:
            raise ValueError(
                f"prior.kind={self.prior.kind} halves the image twice: block must be divisible by {EDGE_MULTIPLE}, got {self.block}"
            )

    @property
    def batch_norm(self) -> bool:
        """Whether the prior has batch normalisation: blocks that are learnt from together depend on each other."""
        return isinstance(self.prior, MemNetSettings | Qrnn3dUnetSettings)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Sparse codes of denoised blocks."""

    values: Tensor
    """(block, code, y, x). Of the fast map: the coefficients G of the block's own atoms, D_S G being the estimate. Of the full map:
    V = soft(G, mu / b) over all atoms, mostly zero; the many codes below mu / b that it leaves out carry much of D G."""
    support: Tensor | None
    """(block, code) the atoms that the codes belong to; None if they are all atoms, in order."""


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Denoised blocks and how well each one's fixed point was solved."""

    estimate: Tensor
    """(block, band, y, x)."""
    solution: Solution
    iteration: FastMap | FullMap | None = None
    """The map that was solved; None for a prior alone."""
    jacobian: Tensor | None = None
    """Scalar penalty of the map's Jacobian at the solution, if a probe was given."""

    def codes(self) -> Codes:
        """Recover the sparse codes of the blocks.

        Raises
        ------
        ValueError
            If the model is a prior alone: it has none.
        """
        f = self.iteration
        if f is None:
            raise ValueError("a model with map=prior has no codes; use one with map=fast or map=full")
        values = to_blocks(f.codes(self.solution.state), *self.estimate.shape[2:])
        return Codes(values=values, support=f.support if isinstance(f, FastMap) else None)


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
        If the support is not smaller than the number of bands, or than that of atoms, or the prior needs more bands.
    """

    def __init__(self, settings: ModelSettings, dictionary: Tensor) -> None:
        super().__init__()
        bands, atoms = dictionary.shape
        if settings.map == "fast" and not settings.support.size < min(bands, atoms + 1):
            raise ValueError(
                f"support.size must be below the number of bands ({bands}) and at most the number of atoms ({atoms}), "
                f"got {settings.support.size}; set model.support.size"
            )
        self.settings = settings
        self.prior_dtype = torch.float32
        """What the prior computes in; everything else, weights and gradients too, is float32."""
        self.prior = _make_prior(bands, settings.prior)
        self.log_b = nn.Parameter(torch.tensor(math.log(settings.b)))
        if settings.map == "full":
            self.log_mu = nn.Parameter(torch.tensor(math.log(settings.mu)))
        atoms_of = dictionary.detach().clone()
        if settings.learn_dictionary:
            self.dictionary = nn.Parameter(atoms_of)
        else:
            self.register_buffer("dictionary", atoms_of)

    @property
    def bands(self) -> int:
        """Number of bands d."""
        return self.atoms.shape[0]

    @property
    def atoms(self) -> Tensor:
        """The dictionary D ``(band, atom)``."""
        return cast(Tensor, self.dictionary)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.log_b.device

    @property
    def parameter_count(self) -> int:
        """Learnt numbers: the prior's, those of a map, and the dictionary's if it is learnt (Figure 8 of the paper)."""
        learnt = self.prior if self.settings.map == "prior" else self
        return sum(p.numel() for p in learnt.parameters())

    @property
    def code_count(self) -> int:
        """Codes a pixel has: |S| of the fast map, M of the full one, none of a prior alone."""
        return {"fast": self.settings.support.size, "full": self.atoms.shape[1], "prior": 0}[
            self.settings.map
        ]

    @property
    def b(self) -> Tensor:
        """The penalty b > 0."""
        return self.log_b.exp()

    @property
    def scalars(self) -> dict[str, Tensor]:
        """Logarithms of the learnt scalars, by name: ``log_b``, and ``log_mu`` of the full map."""
        return {name: value for name, value in self.named_parameters(recurse=False) if value.dim() == 0}

    @property
    def constrained(self) -> bool:
        """Whether `after_step` may change parameters."""
        return self.settings.identity == "paper" or self.settings.learn_dictionary

    def set_support_size(self, size: int) -> None:
        """Let a block of the fast map use another number of atoms, below the number of bands: nothing learnt depends on it."""
        self.settings = replace(self.settings, support=replace(self.settings.support, size=size))

    def set_tolerance(self, tolerance: float) -> None:
        """Solve to another relative residual from now on."""
        self.settings = replace(self.settings, solver=replace(self.settings.solver, tolerance=tolerance))

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore what an optimiser step does not keep: norms of weights and atoms, the bound on b, running averages.

        Call it after each.
        """
        self.prior.advance_power_iteration()
        self.prior.advance_statistics()
        if self.settings.identity == "paper":
            self.log_b.clamp_(max=math.log(_PAPER_LARGEST_B))
        if self.settings.learn_dictionary:
            self.atoms.div_(torch.linalg.vector_norm(self.atoms, dim=0))

    def forward(
        self,
        noisy: Tensor,
        on_backward: Callable[[Solution], None] | None = None,
        probe: Sequence[torch.Generator] | None = None,
    ) -> Denoised:
        """Denoise blocks.

        Parameters
        ----------
        noisy
            Y ``(block, band, y, x)``, data scaled to [0, 1] plus noise.
        on_backward
            Called with the solution of the backward solve, if there is one.
        probe
            Source (on the CPU) of each block's random probe of `jacobian_penalty`; without one it is not computed.
        """
        if self.settings.map == "prior":
            estimate = self.prior_alone(noisy)
            return Denoised(estimate=estimate, solution=_applied_once(estimate))
        f = self.iteration(noisy)
        solution = equilibrium(f, f.start(), self.settings.solver, self.settings.adjoint, on_backward)
        jacobian = None
        if probe is not None:
            shape, dtype = solution.state.shape, solution.state.dtype
            random = torch.stack([torch.randn(shape[1:], generator=g, dtype=dtype) for g in probe])
            jacobian = jacobian_penalty(f, solution.state, random.to(noisy.device))
        estimate = to_blocks(f.observe(solution.state), *noisy.shape[2:])
        return Denoised(estimate=estimate, solution=solution, iteration=f, jacobian=jacobian)

    def prior_alone(self, noisy: Tensor) -> Tensor:
        """Denoise blocks ``noisy (block, band, y, x)`` by the prior only, once: what (12) trains."""
        return to_blocks(self._fixed_prior(noisy)(self._data(noisy)), *noisy.shape[2:])

    @torch.no_grad()
    def spectral_radius(self, noisy: Tensor) -> Tensor:
        """Estimate the spectral radius of the map at the solution of blocks ``noisy (block, band, y, x)``: ``(block,)``."""
        f = self.iteration(noisy)
        state = self.settings.solver.solve(f, f.start()).state
        return spectral_radius(f, state)

    def iteration(self, noisy: Tensor) -> FastMap | FullMap:
        """Return the map whose fixed point denoises the blocks ``noisy (block, band, y, x)``."""
        data, prior = self._data(noisy), self._fixed_prior(noisy)
        if self.settings.map == "full":
            return FullMap(data, self.atoms, self.b, self.log_mu.exp(), prior, self.settings.identity)
        support = find_support(data, self.atoms, self.settings.support)
        return FastMap(data, self.atoms, support, self.b, prior)

    def _data(self, noisy: Tensor) -> Tensor:
        """Y of the map ``(block, pixel, band)``, of blocks ``(block, band, y, x)``."""
        return to_spectra(noisy if self.settings.prefilter == "none" else wiener(noisy))

    def _fixed_prior(self, noisy: Tensor) -> FixedPrior:
        return self.prior.fix(noisy, self.prior_dtype if self.log_b.dtype == torch.float32 else None)


def _make_prior(bands: int, settings: PriorSettings) -> Prior:
    match settings:
        case CnnSettings():
            return Cnn(bands, settings)
        case Qrnn3dSettings():
            return Qrnn3d(settings)
        case HsidCnnSettings():
            return HsidCnn(bands, settings)
        case MemNetSettings():
            return MemNet(bands, settings)
        case Qrnn3dUnetSettings():
            return Qrnn3dUnet(settings)


def _applied_once(estimate: Tensor) -> Solution:
    blocks = estimate.shape[0]
    return Solution(
        state=estimate,
        residual=torch.zeros(blocks, device=estimate.device),
        iterations=torch.ones(blocks, dtype=torch.int64, device=estimate.device),
        converged=torch.ones(blocks, dtype=torch.bool, device=estimate.device),
    )
