"""What tests of killed trainings share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def kill_at_step(patch: pytest.MonkeyPatch, kill_at: int) -> None:
    """Kill the training in the optimiser's step of this number, counted from 1."""
    steps = 0
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *args: object) -> object:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            raise Killed
        return original(self, *args)

    patch.setattr(torch.optim.Adam, "step", step)


def model_bytes(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "model.json").read_bytes()
