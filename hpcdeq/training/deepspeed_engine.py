"""Steps by DeepSpeed's ZeRO: Adam's memory (stage 1), gradients (2) and parameters (3) divided among the processes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import math
import os
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from hpcdeq.cluster.group import Team
from hpcdeq.config import DeepSpeedConfig
from hpcdeq.errors import MissingExtraError
from hpcdeq.training.engine import MOMENTS, Engine
from hpcdeq.training.objective import Objective

_DIVIDES_PARAMETERS = 3
_BUCKET = 1 << 22  # numbers that are exchanged at a time


class DeepSpeedEngine(Engine):
    """The steps of `DdpEngine`, taken by DeepSpeed on a copy of the model.

    DeepSpeed keeps parameters in a form of its own: they may be divided, have masters elsewhere, and listen to its engine for
    ever. The model itself gets their values after every step; it has a million numbers at most, and what fills the memory is
    the blocks.

    Parameters
    ----------
    objective, groups, clip
        As those of `Engine`.
    state
        As that of `hpcdeq.training.engines.new_engine`.
    team
        The processes; a single one needs a process group too.
    kind
        The stage, and whether Adam works on the CPU.

    Raises
    ------
    MissingExtraError
        If deepspeed is not installed.
    """

    def __init__(
        self,
        objective: Objective,
        groups: list[dict[str, Any]],
        clip: float,
        state: dict[str, Any] | None,
        team: Team,
        kind: DeepSpeedConfig,
    ) -> None:
        super().__init__(objective, groups, clip)
        self._deepspeed = _import_deepspeed(team.device)
        self._stage, self._team = kind.stage, team
        inner = copy.deepcopy(objective)
        for name, scalar in inner.model.scalars.items():  # it cannot broadcast tensors without dimensions
            setattr(inner.model, name, nn.Parameter(scalar.detach()[None], scalar.requires_grad))
        inner_by_name = dict(inner.model.named_parameters())
        self._inner = [(parameter, inner_by_name[name]) for parameter, name in self.names.items()]
        inner_of = dict(self._inner)
        self._adam = Adam(
            [group | {"params": [inner_of[p] for p in group["params"]]} for group in self.groups]
        )
        for parameter in inner.parameters():  # stage 3 sees modules called only, and this one's parts are not
            self._deepspeed.zero.register_external_parameter(inner, parameter)
        self._engine, *_ = self._deepspeed.initialize(
            model=inner,
            optimizer=self._adam,
            config=_settings(kind, clip),
            dist_init_required=False,
        )
        self._inner_model = inner.model
        self.objective = self._engine
        if state is not None and state["adam"]:
            self._recall(state["adam"])

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self._engine.backward(loss)

    def step(self) -> float:
        """See `Engine`."""
        if self._stage == 0:  # which would take the step, whatever the gradient is
            norm = torch.nn.utils.get_total_norm(p.grad for _, p in self._inner if p.grad is not None).item()
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return norm
            self._engine.step()
        else:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            if self._engine.optimizer.overflow:
                return float("nan")
        with torch.no_grad():
            with self._whole():
                for parameter, inner in self._inner:
                    parameter.copy_(inner.view_as(parameter))
            self.model.after_step()
            self._send()
        return norm

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """See `Engine`."""
        if not any(self._adam.state.values()):  # no step was taken yet
            return {}
        self._link()
        return {
            self.names[parameter]: {"step": self._remembered(inner, "step").clone()}
            | {key: self._remembered(inner, key).clone().view_as(parameter) for key in MOMENTS}
            for parameter, inner in self._inner
        }

    def _remembered(self, inner: Tensor, key: str) -> Tensor:
        """What Adam remembers of a parameter, whole."""
        state = self._adam.state
        if self._stage == 0 or key == "step":  # steps are the same for all
            found: Tensor = (state[inner] if self._stage == 0 else next(iter(state.values())))[key]
        else:
            found = self._deepspeed.utils.safe_get_full_optimizer_state(inner, key)
        return found

    def _recall(self, adam: dict[str, Any]) -> None:
        """Give Adam its memory back."""
        if self._stage == 0:
            for parameter, inner in self._inner:
                given = adam[self.names[parameter]]
                moments = {key: given[key].to(inner.device, copy=True).view_as(inner) for key in MOMENTS}
                self._adam.state[inner] = {"step": given["step"].clone(), **moments}
            return
        step = next(iter(adam.values()))["step"]
        for flat in self._flat():
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._adam.state[flat] = {"step": step.clone(), **zeros}
        self._link()
        for parameter, inner in self._inner:
            for key in MOMENTS:
                value = adam[self.names[parameter]][key].to(inner.device)
                self._give(inner, value, key)

    def _flat(self) -> list[Tensor]:
        """What Adam works on from stage 1 on: this process's part of the parameters, as long vectors."""
        if self._stage == _DIVIDES_PARAMETERS:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [group["params"][0] for group in self._adam.param_groups]

    def _link(self) -> None:
        """Tell each parameter of stages 1 and 2 where Adam's memory of it lies: DeepSpeed does so for the first group only."""
        if self._stage in (1, 2):
            for parameters, flat in zip(self._engine.optimizer.bit16_groups, self._flat(), strict=True):
                self._deepspeed.utils.lazy_init_hp_params_optimizer_state(parameters, flat, self._adam.state)

    def _send(self) -> None:
        """Give DeepSpeed's copy, and its masters, what `after_step` has changed in the model."""
        for name, value in self.model.named_buffers():
            self._inner_model.get_buffer(name).copy_(value)
        if self.model.constrained:
            with self._whole(modifier_rank=0):
                for parameter, inner in self._inner:
                    inner.copy_(parameter.view_as(inner))
            for parameter, inner in self._inner:
                self._give(inner, parameter.detach())

    def _give(self, inner: Tensor, value: Tensor, key: str | None = None) -> None:
        """Overwrite the master of a parameter, or what Adam remembers of it."""
        known = self._deepspeed.utils
        if self._stage == _DIVIDES_PARAMETERS:  # it refuses whole values that cannot be shared equally
            share = inner.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = nn.functional.pad(value.flatten(), (0, share * self._team.world_size - value.numel()))
            mine = padded[self._team.rank * share :][:share]
            if key is None:
                known.safe_set_local_fp32_param(inner, mine)
            else:
                known.safe_set_local_optimizer_state(inner, mine, key)
        elif key is None:
            known.safe_set_full_fp32_param(inner, value)
        else:
            known.safe_set_full_optimizer_state(inner, value, key)

    def _whole(self, modifier_rank: int | None = None) -> AbstractContextManager[None]:
        """In here all parameters are whole; those of one process may be changed for all."""
        inner = [inner for _, inner in self._inner]
        gathered: AbstractContextManager[None] = self._deepspeed.zero.GatheredParameters(inner, modifier_rank)
        return gathered


def _settings(kind: DeepSpeedConfig, clip: float) -> dict[str, Any]:
    """Everything that matters is written out, as DeepSpeed's defaults change gradients (it clips at 1) and take gigabytes."""
    zero: dict[str, Any] = {
        "stage": kind.stage,
        "overlap_comm": False,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 1,
    }
    if kind.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # For its records only: what a batch is, and when it ends, is said with every step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own has to be compiled on the machine
    }


def check_installed() -> None:
    """Raise MissingExtraError if deepspeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed", "training.engine.kind=deepspeed")


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it insists
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    check_installed()
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it speaks on stdout
    # Of its use of torch, which is no business of ours.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    # A module for shared memory would be compiled at first use, under a lock that a killed process leaves behind.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
