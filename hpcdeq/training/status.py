"""How far a training run is, as its folder tells it; nothing is asked of its processes or of SLURM, and nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdeq.config import load_train_config
from hpcdeq.console import duration
from hpcdeq.training.log import RECORD, whole_lines

_RECENT_LINES = 20  # which a step's time is the median of


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """How far a training run is. What the record does not tell yet is None."""

    finished: bool
    """Whether its model is written."""
    phase: str | None = None
    """``pretrain`` or ``train``."""
    step: int | None = None
    """Of the phase."""
    steps: int | None = None
    """Of the phase in all; None if they are told in epochs."""
    loss: float | None = None
    step_seconds: float | None = None
    """Median of the last ones recorded."""
    validation_psnr: float | None = None
    """In dB, the last one of the phase."""
    validation_step: int | None = None
    best_psnr: float | None = None
    """In dB, of the phase."""
    written_seconds_ago: float | None = None
    """Since the last line of the record."""

    @property
    def seconds_left(self) -> float | None:
        """Of this phase, at the rate of the last steps; None if that is not known."""
        if self.finished:
            return 0.0
        if self.steps is None or self.step is None or self.step_seconds is None:
            return None
        return (self.steps - self.step) * self.step_seconds

    def __str__(self) -> str:
        if self.phase is None:
            return "finished" if self.finished else "no step is recorded yet"
        total = "" if self.steps is None else f" of {self.steps}"
        parts = [f"{self.phase} step {self.step}{total}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3e}")
        if self.validation_psnr is not None:
            parts.append(
                f"validation {self.validation_psnr:.2f} dB at step {self.validation_step} (best {self.best_psnr:.2f})"
            )
        if self.finished:
            return ", ".join([*parts, "finished"])
        if self.step_seconds is not None:
            parts.append(f"{self.step_seconds:.2g} s a step")
        if (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} of {self.phase} left")
        return ", ".join([*parts, f"last heard of {self.written_seconds_ago:.0f} s ago"])


def is_training_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / "config.yaml").is_file()


def training_status(run: Path) -> TrainingStatus:
    """Read how far a training run is.

    Parameters
    ----------
    run
        Its folder.

    Raises
    ------
    ConfigError
        If its configuration cannot be read.
    """
    settings = load_train_config(run / "config.yaml", []).training
    finished = (run / "model" / "model.json").is_file()
    record = run / RECORD
    lines = [json.loads(line) for line in whole_lines(record)]
    if not lines:
        return TrainingStatus(finished=finished)
    phase, step = lines[-1]["phase"], lines[-1]["step"]
    last = phase == "train" or settings.steps == 0
    steps = settings.steps if phase == "train" else settings.pretrain_steps
    of_phase = [line for line in lines if line["phase"] == phase]
    taken = [line for line in of_phase if "loss" in line]
    scored = [line for line in of_phase if "validation_psnr" in line]
    times = sorted(line["step_seconds"] for line in taken[-_RECENT_LINES:])
    return TrainingStatus(
        finished=finished and last and (not isinstance(steps, int) or step >= steps),
        phase=phase,
        step=step,
        steps=steps if isinstance(steps, int) else None,
        loss=_last(taken, "loss"),
        step_seconds=times[len(times) // 2] if times else None,
        validation_psnr=_last(scored, "validation_psnr"),
        validation_step=_last(scored, "step"),
        best_psnr=max((line["validation_psnr"] for line in scored), default=None),
        written_seconds_ago=max(0.0, time.time() - record.stat().st_mtime),
    )


def _last(lines: list[Mapping[str, Any]], key: str) -> Any:
    return lines[-1][key] if lines else None
