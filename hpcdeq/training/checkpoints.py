"""Checkpoints: written aside, flushed, and made visible by one rename; never a partial or a damaged one.

A checkpoint is a folder. Its last file, the manifest, lists the others with their checksums.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from hpcdeq.archive.scene import crc32c_of
from hpcdeq.console import say
from hpcdeq.errors import TrainingError

_NAME = re.compile(r"\d-\d{2}-\d{8}")
STATE = "state.pt"
MANIFEST = "manifest.json"


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
    with (aside / MANIFEST).open("w") as manifest:
        json.dump({"crc32c": {path.name: crc32c_of(path) for path in _files(aside)}}, manifest)
        manifest.flush()
        os.fsync(manifest.fileno())
    _sync(aside)
    aside.rename(folder / name)
    _sync(folder)
    for left in folder.glob(".*"):  # of killed runs
        shutil.rmtree(left, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the newest sound checkpoint, or None. Damaged ones are renamed, so that they are not met again, and named."""
    for checkpoint in reversed(committed(folder)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        kept = checkpoint.rename(folder / f"damaged-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        say(
            f"checkpoint {checkpoint.name} is damaged ({damage}); kept as {kept}, going on from the one before"
        )
    return None


def committed(folder: Path) -> list[Path]:
    """Return all checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def load(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    TrainingError
        If it is damaged.
    """
    damage = _damage(checkpoint)
    if damage is not None:
        raise TrainingError(
            f"checkpoint {checkpoint} is damaged ({damage}); remove it and run the same command again to go on from an older one"
        )
    state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    return state


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Remove all checkpoints but the ``keep`` latest and the best."""
    for old in committed(folder)[:-keep]:
        if old.name != best:
            # Hidden first: a kill meanwhile must not leave half a checkpoint under its name.
            shutil.rmtree(old.rename(folder / f".{old.name}.{uuid.uuid4().hex[:8]}"))


def _damage(checkpoint: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, or None."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())["crc32c"]
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if crc32c_of(checkpoint / name) != expected:
            return f"{name} is not as it was written"
    return None if STATE in sums else f"{MANIFEST} does not list {STATE}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
