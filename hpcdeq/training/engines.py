"""The engine that a configuration asks for."""

from __future__ import annotations

from typing import Any

from hpcdeq.cluster.group import Team
from hpcdeq.config import DeepSpeedConfig, EngineConfig
from hpcdeq.training.ddp_engine import DdpEngine
from hpcdeq.training.deepspeed_engine import DeepSpeedEngine
from hpcdeq.training.engine import Engine
from hpcdeq.training.objective import Objective


def new_engine(
    kind: EngineConfig,
    objective: Objective,
    groups: list[dict[str, Any]],
    clip: float,
    state: dict[str, Any] | None,
    team: Team,
) -> Engine:
    """Make the engine that a configuration asks for.

    Parameters
    ----------
    kind
        Which engine, and its settings.
    objective, groups, clip
        As those of `Engine`.
    state
        Of an engine of any kind and any number of processes, to go on from; its weights must be in the model already.
    team
        The processes.

    Raises
    ------
    MissingExtraError
        If it is DeepSpeed's and deepspeed is not installed.
    """
    if isinstance(kind, DeepSpeedConfig):
        return DeepSpeedEngine(objective, groups, clip, state, team, kind)
    return DdpEngine(objective, groups, clip, state, team)
