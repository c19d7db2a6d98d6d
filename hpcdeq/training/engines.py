"""How the gradients of several processes become one step of all of them: by DDP here, by DeepSpeed in a module of its own."""

from __future__ import annotations

import contextlib
import gc
import warnings
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from hpcdeq.cluster.group import Team
from hpcdeq.config import DeepSpeedConfig, EngineConfig
from hpcdeq.training.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter."""


class Engine(ABC):
    """Takes steps. Between them ``model`` holds the weights in every process, whatever the engine does with them.

    Parameters
    ----------
    objective
        What is minimised.
    groups
        Parameters of its model, each group with a learning rate ``lr``; those that need no gradient are left out.
    clip
        Largest norm of the gradient.
    state
        Of an engine of any kind and any number of processes, to go on from; its weights must be in the model already.
    """

    objective: nn.Module
    """To call in place of the objective for a loss that `backward` is given."""
    _adam: Adam

    def __init__(
        self, objective: Objective, groups: list[dict[str, Any]], clip: float, state: dict[str, Any] | None
    ) -> None:
        self.model = objective.model
        self.clip = clip
        self.names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters() if p.requires_grad}
        kept = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        self.groups = [group for group in kept if group["params"]]
        if state is not None:
            for group, lr in zip(self.groups, state["lr"], strict=True):
                group["lr"] = lr

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Call the objective and `backward` in here; gradients are averaged over the processes with the ``last`` of a step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""

    @abstractmethod
    def step(self) -> float:
        """Take a step, unless the gradient is not finite, and forget the gradient; return its norm before it was clipped."""

    @abstractmethod
    def memory(self) -> dict[str, dict[str, Tensor]]:
        """What Adam remembers, whole, by parameter; nothing before the first step."""

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rates."""
        for group in self._adam.param_groups:
            group["lr"] *= factor

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on, beside the model: Adam's memory by parameter, and the learning rates."""
        return {"adam": self.memory(), "lr": [group["lr"] for group in self._adam.param_groups]}


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
        super().__init__(objective, groups, clip, state)
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


def new_engine(
    kind: EngineConfig,
    objective: Objective,
    groups: list[dict[str, Any]],
    clip: float,
    state: dict[str, Any] | None,
    team: Team,
) -> Engine:
    """Make the engine that a configuration asks for; parameters as those of `Engine`.

    Raises
    ------
    MissingExtraError
        If it is DeepSpeed's and deepspeed is not installed.
    """
    if isinstance(kind, DeepSpeedConfig):
        from hpcdeq.training.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(objective, groups, clip, state, team, kind)
    return DdpEngine(objective, groups, clip, state, team)


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
