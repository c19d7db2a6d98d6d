"""Checkpoints: written aside, flushed, and made visible by one rename; never a partial one."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from hpcdeq.errors import TrainingError

_NAME = re.compile(r"\d-\d{2}-\d{8}")
STATE = "state.pt"


def name_of(phase: int, rollbacks: int, step: int) -> str:
    """Name of a checkpoint; names sort in the order of writing, and none is ever written twice."""
    return f"{phase}-{rollbacks:02d}-{step:08d}"


def commit(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint ``folder/name``; after a kill at any instant it is there whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    with (aside / STATE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / name)
    _sync(folder)
    for left in folder.glob(".*"):  # of killed runs
        shutil.rmtree(left, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint, or None."""
    found = committed(folder)
    return found[-1] if found else None


def committed(folder: Path) -> list[Path]:
    """Return all checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / STATE).is_file())


def load(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    TrainingError
        If it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise TrainingError(
            f"checkpoint {checkpoint} cannot be read ({error}); remove it to go on from the one before"
        ) from error
    return state


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Remove all checkpoints but the ``keep`` latest and the best."""
    for old in committed(folder)[:-keep]:
        if old.name != best:
            shutil.rmtree(old)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
