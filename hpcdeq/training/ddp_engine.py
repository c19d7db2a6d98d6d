"""Steps by DDP: every process has the whole model."""

from __future__ import annotations

import contextlib
import gc
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from hpcdeq.cluster.group import Team
from hpcdeq.training.engine import MOMENTS, Engine
from hpcdeq.training.objective import Objective


class DdpEngine(Engine):
    """Every process has the whole model, and gradients are averaged as they are made. A single process needs nothing."""

    def __init__(
        self,
        objective: Objective,
        groups: list[dict[str, Any]],
        clip: float,
        state: dict[str, Any] | None,
        team: Team,
    ) -> None:
        super().__init__(objective, groups, clip)
        gc.collect()  # the engine of another phase, in a cycle, still listens to the parameters
        self._adam = Adam(self.groups)
        if state is not None:
            for parameter, name in self.names.items():
                if name in state["adam"]:
                    self._adam.state[parameter] = {
                        key: value.to(parameter.device, copy=True) if key in MOMENTS else value.clone()
                        for key, value in state["adam"][name].items()
                    }
        self.objective = objective
        if team.world_size > 1:
            # Buffers are a function of the parameters, so they are the same everywhere by themselves. torch 2.13 has a new
            # name for this, which older ones do not know.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                ddp = DistributedDataParallel(objective, broadcast_buffers=False)
            ddp.register_comm_hook(None, lambda _, bucket: _average_one_by_one(bucket))
            self.objective = ddp

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """See `Engine`."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        loss.backward()

    def step(self) -> float:
        """See `Engine`."""
        norm = torch.nn.utils.clip_grad_norm_(self.names, self.clip)
        if torch.isfinite(norm):
            self._adam.step()
            self.model.after_step()
        self._adam.zero_grad(set_to_none=True)
        return norm.item()

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """See `Engine`."""
        return {self.names[parameter]: dict(state) for parameter, state in self._adam.state.items()}


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
