"""How the gradients of several processes become one step of all of them."""

from __future__ import annotations

import contextlib
import gc
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hpcdeq.cluster.group import Team
from hpcdeq.training.objective import Objective


class DdpEngine:
    """Every process has the whole model, and gradients are averaged as they are made. A single process needs nothing.

    Parameters
    ----------
    objective
        What is minimised.
    optimizer
        Of its model.
    team
        The processes.
    """

    def __init__(self, objective: Objective, optimizer: torch.optim.Optimizer, team: Team) -> None:
        gc.collect()  # the engine of another phase, in a cycle, still listens to the parameters
        self.model = objective.model
        self._optimizer = optimizer
        self.objective: nn.Module = objective
        """To call in place of the objective."""
        if team.world_size > 1:
            # Buffers are a function of the parameters, so they are the same everywhere by themselves. torch 2.13 has a new
            # name for this, which older ones do not know.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                ddp = DistributedDataParallel(objective, broadcast_buffers=False)
            ddp.register_comm_hook(None, lambda _, bucket: _average_one_by_one(bucket))
            self.objective = ddp

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Call the objective and `backward` in here; gradients are averaged over the processes with the ``last`` of a step."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        loss.backward()

    def step(self, clip: float) -> Tensor:
        """Take a step, if the gradient is finite, and forget the gradient; return its norm, before it was clipped to ``clip``."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if torch.isfinite(norm):
            self._optimizer.step()
            self.model.after_step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rates."""
        for group in self._optimizer.param_groups:
            group["lr"] *= factor

    def state(self) -> dict[str, Any]:
        """Return the whole state of the model and the optimiser, in every process."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def _average_one_by_one(bucket: Any) -> torch.futures.Future[Tensor]:
    """Average the gradients of a bucket over the processes, each parameter's by itself.

    After the first step DDP arranges its buckets anew, and three or more processes add what lies elsewhere in a bucket in another
    order: a continued run, whose first step is another one, would have other last bits.
    """
    for gradient in bucket.gradients():
        distributed.all_reduce(gradient.div_(distributed.get_world_size()))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
