"""What the two phases of training minimise, as a module that an engine can wrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.models import SparseDenoiser
from hpcdeq.solvers import Solution

PHASES = ("pretrain", "train")


class Outcome(NamedTuple):
    """What a model made of some blocks. A tuple, as DeepSpeed looks for tensors in tuples."""

    loss: Tensor
    """Mean squared error, plus the weighted penalty of the Jacobian if there is one."""
    estimate: Tensor
    """(block, band, y, x)."""
    solution: Solution | None
    """None for a prior alone."""
    jacobian: Tensor | None


class Objective(nn.Module):
    """The loss of a phase: of the prior alone, equation (12), or of the whole model, equations (13) and (21).

    Parameters
    ----------
    model
        What is trained; in the first phase the parameters other than the prior's need no gradient.
    phase
        Index into `PHASES`.
    jacobian_weight
        Weight of the penalty of the map's Jacobian.
    """

    def __init__(self, model: SparseDenoiser, phase: int, jacobian_weight: float) -> None:
        super().__init__()
        self.model = model
        self.prior_only = PHASES[phase] == "pretrain"
        self.jacobian_weight = jacobian_weight
        for name, parameter in model.named_parameters():
            of_prior = name.startswith("prior.")
            parameter.requires_grad_(of_prior or not (self.prior_only or model.settings.map == "prior"))

    def forward(
        self,
        clean: Tensor,
        noisy: Tensor,
        probe: Sequence[torch.Generator] | None = None,
        on_backward: Callable[[Solution], None] | None = None,
    ) -> Outcome:
        """Denoise blocks ``(block, band, y, x)`` and compare them with the clean ones."""
        if self.prior_only:
            estimate = self.model.prior_alone(noisy)
            return Outcome(loss=F.mse_loss(estimate, clean), estimate=estimate, solution=None, jacobian=None)
        denoised = self.model(noisy, on_backward, probe)
        loss = F.mse_loss(denoised.estimate, clean)
        if denoised.jacobian is not None:
            loss = loss + self.jacobian_weight * denoised.jacobian
        return Outcome(
            loss=loss, estimate=denoised.estimate, solution=denoised.solution, jacobian=denoised.jacobian
        )


def outcome_of(
    objective: nn.Module,
    model: SparseDenoiser,
    clean: Tensor,
    noisy: Tensor,
    probe: Sequence[torch.Generator] | None = None,
    on_backward: Callable[[Solution], None] | None = None,
) -> Outcome:
    """Run an objective on a process's blocks; on a grey one, which does not count, if it has none: all processes must take part.

    Parameters
    ----------
    objective
        An `Objective`, or what an engine made of it.
    model
        Its model.
    clean, noisy, probe, on_backward
        As those of `Objective.forward`.
    """
    if len(clean) == 0:
        size = model.settings.block
        clean = noisy = torch.full((1, model.bands, size, size), 0.5, device=clean.device)
        probe = None if probe is None else [torch.Generator()]
        model.eval()  # not in running averages either
    outcome: Outcome = objective(clean, noisy, probe, on_backward)
    return outcome
