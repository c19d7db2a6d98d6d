"""What an engine is: how the gradients of several processes become one step of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

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
    """

    objective: nn.Module
    """To call in place of the objective for a loss that `backward` is given."""
    _adam: Adam

    def __init__(self, objective: Objective, groups: list[dict[str, Any]], clip: float) -> None:
        self.model = objective.model
        self.clip = clip
        self.names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters() if p.requires_grad}
        kept = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        self.groups = [group for group in kept if group["params"]]
        self._rates = [group["lr"] for group in self.groups]

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

    def set_lr_factor(self, factor: float) -> None:
        """Set the learning rates to a factor times those of the groups."""
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on, beside the model and the learning rates: Adam's memory by parameter."""
        return {"adam": self.memory()}
