"""Training as the work of a job: plain values in, so that a job's description holds no code of ours."""

from __future__ import annotations

from typing import Any

from hpcdeq.config import TrainConfig
from hpcdeq.console import say
from hpcdeq.training.loop import train


def train_job(config: dict[str, Any]) -> str:
    """Train with a configuration of plain values, as `TrainConfig.model_dump` gives them; the model's folder."""
    folder = train(TrainConfig.model_validate(config))
    say(f"the model is in {folder}")
    return str(folder)
