"""Checkpoints: written aside, flushed, and made visible by one rename; never a partial or a damaged one.

A checkpoint is a folder. Its last file, the manifest, lists the others with their checksums.

SLURM may run two live copies of a job. Each attempt writes aside in a folder of its own, and begins by taking those of all
others away: an old copy cannot rename what is no longer there, so that it cannot commit, at whatever instant it tries.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpcdeq.archive.scene import checksum_of
from hpcdeq.console import say
from hpcdeq.documents import read_json, shortened
from hpcdeq.errors import FencedError, TrainingError

_ATTEMPT = ".attempt-"
_NAME = re.compile(r"\d-\d{2}-\d{8}")
STATE = "state.pt"
MANIFEST = "manifest.json"


def name_of(phase: int, rollbacks: int, step: int) -> str:
    """Name of a checkpoint; names sort in the order of writing, and none is ever written twice."""
    return f"{phase}-{rollbacks:02d}-{step:08d}"


def take_over(folder: Path, environ: Mapping[str, str]) -> Path:
    """Make this attempt the only one that can commit to ``folder``; return its own folder to write aside in.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    environ
        Says which attempt of which SLURM job this is, if it is one: an older attempt does not take over from a newer one.

    Raises
    ------
    FencedError
        If a newer attempt of the same job is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job, attempt = environ.get("SLURM_JOB_ID", "none"), int(environ.get("SLURM_RESTART_COUNT", "0"))
    own = folder / f"{_ATTEMPT}{job}-{attempt}-{uuid.uuid4().hex[:8]}"
    for other in folder.glob(f"{_ATTEMPT}*"):
        their_job, their_attempt = other.name.removeprefix(_ATTEMPT).split("-")[:2]
        if job != "none" and their_job == job and int(their_attempt) > attempt:
            raise FencedError(
                f"{folder.parent}: attempt {their_attempt} of job {job} has taken over this run; attempt {attempt} ends"
            )
    own.mkdir()
    for left in folder.glob(".*"):  # of others, and of killed runs
        if left != own:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(left.rename(folder / f".old-{uuid.uuid4().hex}"), ignore_errors=True)
    return own


def commit(attempt: Path, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint; after a kill at any instant it is there whole, or not at all.

    Parameters
    ----------
    attempt
        From `take_over`.
    name
        From `name_of`.
    state
        What `load` is to return.

    Raises
    ------
    FencedError
        If another attempt has taken over.
    """
    aside = attempt / name
    try:
        aside.mkdir()
        with (aside / STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        with (aside / MANIFEST).open("w") as manifest:
            json.dump({"checksums": {path.name: checksum_of(path) for path in _files(aside)}}, manifest)
            manifest.flush()
            os.fsync(manifest.fileno())
        _sync(aside)
        aside.rename(attempt.parent / name)
    except (FileNotFoundError, RuntimeError) as error:  # torch turns a lost file into its own kind
        check_attempt(attempt, error)
        raise
    _sync(attempt.parent)


def check_attempt(attempt: Path, cause: Exception | None = None) -> None:
    """Raise a `FencedError` if another attempt has taken over."""
    if not attempt.is_dir():
        raise FencedError(
            f"{attempt.parent.parent}: another copy of this run has taken over; this one wrote nothing more and ends"
        ) from cause


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
    try:
        state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser raises whatever it likes
        raise TrainingError(
            f"checkpoint {checkpoint} cannot be read, though it is as it was written: it holds more than numbers and plain values, "
            f"which are never loaded, or another version of torch wrote it ({shortened(str(error))})"
        ) from error
    if not isinstance(state, dict):
        raise TrainingError(
            f"checkpoint {checkpoint} holds no state of a training, but a {type(state).__name__}"
        )
    return state


def prune(attempt: Path, keep: int, best: str | None) -> None:
    """Remove all checkpoints but the ``keep`` latest and the best.

    Raises
    ------
    FencedError
        If another attempt has taken over; then the checkpoints are its own affair.
    """
    for old in committed(attempt.parent)[:-keep]:
        if old.name != best:
            # Moved first, to where only this attempt's are: a kill meanwhile must not leave half a checkpoint under its name.
            shutil.rmtree(_move(attempt, old, attempt / f".{old.name}"))


def publish(attempt: Path, name: str) -> None:
    """Move a folder that was made in the attempt's own to the run's folder, in place of one of this name that is there.

    Raises
    ------
    FencedError
        If another attempt has taken over.
    """
    final = attempt.parent.parent / name
    if final.exists():
        _move(attempt, final, attempt / f".{name}")
    _move(attempt, attempt / name, final)


def _move(attempt: Path, source: Path, target: Path) -> Path:
    """Rename something into or out of an attempt's folder, which fails where another one has taken over."""
    try:
        return source.rename(target)
    except FileNotFoundError as error:
        check_attempt(attempt, error)
        raise


def _damage(checkpoint: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, or None."""
    try:
        sums = {**read_json(checkpoint / MANIFEST)["checksums"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, expected in sums.items():
        if Path(name).name != name or len(name) > 200:
            return f"{MANIFEST} lists {shortened(name)}, which is outside of it"
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if checksum_of(checkpoint / name) != expected:
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
