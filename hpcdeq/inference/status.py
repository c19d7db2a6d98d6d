"""How far a bulk run is, as the ledger tells it; nothing is asked of the workers or of SLURM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdeq.archive import open_archive
from hpcdeq.inference.ledger import Ledger

_RECENT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class SceneStatus:
    """How far a scene is."""

    name: str
    state: str
    """``done``, ``failed``, ``running`` (some units are finished) or ``pending``."""
    units: int
    finished: int
    """Units that are finished."""
    reason: str | None = None
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a bulk run is."""

    scenes: Sequence[SceneStatus]
    units_per_second: float
    """Of the last ten minutes."""

    @property
    def units(self) -> int:
        """Units in all."""
        return sum(scene.units for scene in self.scenes)

    @property
    def finished(self) -> int:
        """Units that are finished."""
        return sum(scene.finished for scene in self.scenes)

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the last ten minutes; None if nothing was finished in them."""
        left = sum(scene.units - scene.finished for scene in self.scenes if scene.state != "failed")
        if left == 0:
            return 0.0
        return left / self.units_per_second if self.units_per_second > 0 else None

    def count(self, state: str) -> int:
        """How many scenes are in a state."""
        return sum(scene.state == state for scene in self.scenes)


def status_of(out: Path) -> Status:
    """Read how far the run is that writes an archive.

    Parameters
    ----------
    out
        The output archive.

    Raises
    ------
    ConfigError
        If there is no ledger beside it.
    """
    ledger = Ledger(out)
    archive = open_archive(out)
    failures = ledger.failures()
    now, scenes, times = time.time(), [], []
    for name, fingerprint, units in ledger.scenes():
        written = ledger.times(name, fingerprint)
        times += written
        if archive.fingerprint(name) == fingerprint:
            state = "done"
        elif name in failures:
            state = "failed"
        else:
            state = "running" if written else "pending"
        finished = units if state == "done" else len(written)
        scenes.append(
            SceneStatus(name=name, state=state, units=units, finished=finished, reason=failures.get(name))
        )
    known = {scene.name for scene in scenes}
    scenes += [
        SceneStatus(name=name, state="failed", units=0, finished=0, reason=reason)
        for name, reason in failures.items()
        if name not in known
    ]
    recent = [t for t in times if now - t < _RECENT_SECONDS]
    span = min(_RECENT_SECONDS, now - min(recent)) if recent else 1.0
    return Status(scenes=sorted(scenes, key=lambda s: s.name), units_per_second=len(recent) / max(span, 1.0))
