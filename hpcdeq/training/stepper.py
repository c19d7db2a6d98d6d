"""One step: micro-batches, sums over the processes, and whether the step may be taken at all."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcdeq.cluster.group import Team
from hpcdeq.config import TrainConfig
from hpcdeq.models import SparseDenoiser
from hpcdeq.noise import generator
from hpcdeq.solvers import Solution, Unrolled
from hpcdeq.timing import part
from hpcdeq.training.engine import Engine
from hpcdeq.training.engines import new_engine
from hpcdeq.training.objective import Objective, Outcome, outcome_of

_PROBE = 13  # what a key is for


class Taken(NamedTuple):
    """What a step was like."""

    loss: float
    """Of the whole batch."""
    norm: float
    """Of the gradient, before it was clipped. If it is not finite, the step was not taken."""
    jacobian: Tensor | None
    """Penalty of the last micro-batch of this process."""


class Stepper:
    """Takes the steps of a phase at a time; `begin` a phase first.

    Parameters
    ----------
    config
        The run's configuration.
    model
        What is trained.
    team
        The processes.
    """

    engine: Engine

    def __init__(self, config: TrainConfig, model: SparseDenoiser, team: Team) -> None:
        self.config, self.settings, self.model, self.team = config, config.training, model, team
        self.solutions: dict[str, Solution] = {}
        """How this process's last blocks were solved, without states: ``forward``, and ``backward`` of an implicit gradient."""

    def begin(self, phase: int, state: dict[str, Any] | None = None) -> None:
        """Begin a phase, or go on with it from the state of an engine."""
        lr = (self.settings.pretrain_lr, self.settings.lr)[phase]
        groups = [
            {"params": list(self.model.prior.parameters()), "lr": lr},
            {"params": list(self.model.scalars.values()), "lr": lr * self.settings.lr_scalars_factor},
        ]
        if self.config.model.learn_dictionary:
            groups.append({"params": [self.model.atoms], "lr": lr})
        objective = Objective(self.model, phase, self.settings.jacobian_weight)
        self.engine = new_engine(
            self.settings.engine, objective, groups, self.settings.clip, state, self.team
        )

    def take(self, clean: Tensor, noisy: Tensor, planned: int, batch: int, lr_factor: float) -> Taken:
        """Take a step, or none if its gradient is not finite or its blocks are not solved well enough.

        Parameters
        ----------
        clean, noisy
            This process's blocks ``(block, band, y, x)`` of the batch.
        planned
            Blocks of the whole batch.
        batch
            Its number in the run.
        lr_factor
            What the learning rates are multiplied by.
        """
        self.model.train()
        most = -(-planned // self.team.world_size)  # blocks of a process
        size = min(self.config.data.micro_batch or most, most)
        probes = self._probes(planned, batch)
        loss = 0.0
        for first in range(0, most, size):
            rows = slice(first, first + size)
            with self.engine.accumulating(last=first + size >= most):
                with part("forward"):
                    outcome = outcome_of(
                        self.engine.objective,
                        self.model,
                        clean[rows],
                        noisy[rows],
                        None if probes is None else probes[rows],
                        partial(self._keep, "backward"),
                    )
                share = len(clean[rows]) / planned
                told = self._tell(outcome, share, len(clean[rows]))
                loss += told[0].item()
                # A gradient that is not a number, so that no process takes the step, whatever its own blocks say.
                weight = share * self.team.world_size if self._solved(told) else float("nan")
                with part("backward"):
                    self.engine.backward(outcome.loss * weight)
        if outcome.solution is not None and len(clean[rows]):
            self._keep("forward", outcome.solution)
        with part("optimiser"):
            self.engine.set_lr_factor(lr_factor)
            norm = self.engine.step()
        return Taken(loss, norm, outcome.jacobian)

    def _probes(self, planned: int, batch: int) -> list[torch.Generator] | None:
        """Random numbers of the Jacobian penalty of this process's blocks: a function of their place in the run."""
        if self.settings.jacobian_weight == 0:
            return None
        rows = range(planned)[self.team.part(planned)]
        keys = (generator(self.config.seed, batch, row, _PROBE) for row in rows)
        return [torch.Generator().manual_seed(int(key.integers(1 << 62))) for key in keys]

    def _tell(self, outcome: Outcome, share: float, blocks: int) -> Tensor:
        """Sums over the processes: weighted loss, residuals, blocks."""
        residual = 0.0 if outcome.solution is None else outcome.solution.residual.sum().item()
        mine = [outcome.loss.item() * share, residual if blocks else 0.0, float(blocks)]
        return self.team.sum(torch.tensor(mine, dtype=torch.float64))

    def _solved(self, told: Tensor) -> bool:
        """Whether the fixed points are solved well enough for an implicit gradient, which holds at fixed points only."""
        loss, residual, blocks = told.tolist()
        if not math.isfinite(loss):
            return False
        if isinstance(self.config.model.adjoint, Unrolled) or blocks == 0:
            return True
        return bool(residual <= self.settings.largest_residual * blocks)

    def _keep(self, name: str, solution: Solution) -> None:
        self.solutions[name] = replace(solution, state=torch.empty(0))  # which would hold the graph
