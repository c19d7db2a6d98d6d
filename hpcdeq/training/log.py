"""The record of a run: metrics.jsonl is the truth, TensorBoard a copy on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcdeq.errors import MissingExtraError


class RunLog:
    """Appends one JSON object a line to ``metrics.jsonl``.

    Parameters
    ----------
    run
        Folder of the run.
    after
        Lines of later batches than this are dropped: they are about to be computed again.
    tensorboard
        Also write TensorBoard files.
    """

    def __init__(self, run: Path, after: int, tensorboard: bool) -> None:
        path = run / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["batches"] <= after]
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(kept))
        aside.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(run) if tensorboard else None

    def write(self, batches: int, values: dict[str, Any]) -> None:
        """Append the values after ``batches`` batches of the run."""
        self._file.write(json.dumps({"batches": batches, **values}) + "\n")
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


def _whole_lines(path: Path) -> list[str]:
    """Lines of the file; a kill may have cut the last one."""
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
