"""How good a model is on the validation blocks, which all processes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcdeq.cluster.group import Team
from hpcdeq.console import say
from hpcdeq.models import SparseDenoiser
from hpcdeq.training.objective import Objective, outcome_of

_COST_OF_TOLERANCE = 0.02  # dB
_PROBED_BLOCKS = 4  # the spectral radius is that of the worst of these blocks


class Validation:
    """Scores a model on the same blocks every time.

    Parameters
    ----------
    batches
        (clean, noisy) of all processes, from `hpcdeq.training.data.validation_batches`.
    model
        What is scored.
    team
        The processes.
    """

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], model: SparseDenoiser, team: Team) -> None:
        self.batches, self.model, self.team = batches, model, team

    @torch.no_grad()
    def score(self, phase: int) -> tuple[float, float]:
        """PSNR and mean residual of all blocks, which are scored as one scene: as scenes are when they are evaluated.

        A mean of the PSNR of each block would be ruled by the smooth ones.
        """
        self.model.eval()
        objective = Objective(self.model, phase, 0.0)
        errors = torch.zeros(self.model.bands, dtype=torch.float64)
        residual, blocks, pixels = 0.0, 0, 0
        for clean, noisy in self.batches:
            count = len(clean)
            rows = self.team.part(count)
            reference = clean[rows].to(self.team.device)
            outcome = outcome_of(objective, self.model, reference, noisy[rows].to(self.team.device))
            blocks, pixels = blocks + count, pixels + count * clean[0, 0].numel()
            if len(reference) == 0:
                continue
            errors += (outcome.estimate - reference).double().square().sum((0, 2, 3)).cpu()
            residual += 0.0 if outcome.solution is None else outcome.solution.residual.sum().item()
        told = self.team.sum(torch.cat([errors, torch.tensor([residual], dtype=torch.float64)]))
        psnr = (-10.0 * (told[:-1] / pixels).log10()).mean()
        return psnr.item(), told[-1].item() / blocks

    def spectral_radius(self) -> float:
        """Estimate the spectral radius of the map on the worst of a few blocks."""
        probed = self.batches[0][1][:_PROBED_BLOCKS].to(self.team.device)
        return self.model.spectral_radius(probed).max().item()

    def choose_support(self, sizes: Sequence[int], phase: int) -> dict[int, float]:
        """Give a trained fast map the number of atoms, of its own and some others, that is best; PSNR by number.

        More atoms represent the block better and let more noise through; what is best is known only with the prior at hand.
        """
        trained = self.model.settings.support.size
        largest = min(self.model.bands - 1, self.model.atoms.shape[1])
        others = [n for n in sizes if n <= largest and n != trained]
        if not others:
            return {}
        psnr = {}
        for size in [trained, *others]:
            self.model.set_support_size(size)
            psnr[size], _ = self.score(phase)
        best = max(psnr, key=psnr.__getitem__)
        self.model.set_support_size(best)
        say(
            f"support of {best} atoms a block: "
            + ", ".join(f"{n}: {psnr[n]:.2f}" for n in sorted(psnr))
            + " dB"
        )
        return psnr

    def choose_tolerance(self, tolerances: Sequence[float], phase: int) -> dict[float, float]:
        """Let a trained equilibrium model be solved to the largest residual that costs next to nothing; PSNR by residual.

        What training needs, gradients at fixed points, asks for smaller residuals than what comes out does.
        """
        trained = self.model.settings.solver.tolerance
        looser = sorted(t for t in tolerances if t > trained)
        if trained == 0 or not looser:
            return {}
        psnr = {}
        for tolerance in [trained, *looser]:
            self.model.set_tolerance(tolerance)
            psnr[tolerance], _ = self.score(phase)
        best = max(t for t in psnr if psnr[t] >= psnr[trained] - _COST_OF_TOLERANCE)
        self.model.set_tolerance(best)
        say(f"solved to {best:g}: " + ", ".join(f"{t:g}: {psnr[t]:.2f}" for t in psnr) + " dB")
        return psnr
