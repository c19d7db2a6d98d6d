"""The record of a run: metrics.jsonl is the truth, TensorBoard a copy on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcdeq.errors import MissingExtraError
from hpcdeq.training.checkpoints import check_attempt

RECORD = "metrics.jsonl"  # in the folder of a run


class RunLog:
    """Appends one JSON object a line to ``metrics.jsonl``.

    Parameters
    ----------
    run
        Folder of the run.
    attempt
        Where this attempt writes aside, from `hpcdeq.training.checkpoints.take_over`.
    after
        Lines of later batches than this are dropped: they are about to be computed again.
    tensorboard
        Also write TensorBoard files.

    Raises
    ------
    FencedError
        If another attempt has taken over: it has opened the record, or is about to.
    """

    def __init__(self, run: Path, attempt: Path, after: int, tensorboard: bool) -> None:
        path = run / RECORD
        kept = [line for line in whole_lines(path) if json.loads(line)["batches"] <= after]
        # A phase begins with a validation, in a line that has as many batches as the checkpoint of the phase before.
        self._there = {_subject(json.loads(line)) for line in kept}
        aside = attempt / path.name
        try:
            aside.write_text("".join(kept))
            aside.replace(path)
        except FileNotFoundError as error:
            check_attempt(attempt, error)
            raise
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(run) if tensorboard else None

    def write(self, batches: int, values: dict[str, Any]) -> None:
        """Append the values after ``batches`` batches of the run, unless the record had them when it was opened."""
        line = {"batches": batches, **values}
        if _subject(line) in self._there:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, batches)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _subject(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a line is about: the instant of the run, and which values."""
    return line["batches"], line.get("phase"), line.get("step"), "loss" in line


def whole_lines(path: Path) -> list[str]:
    """Lines of a record, none if there is none; a kill may have cut the last one."""
    if not path.exists():
        return []
    return [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "track", "training.tensorboard=true") from error
    return SummaryWriter(str(run / "tensorboard"))
