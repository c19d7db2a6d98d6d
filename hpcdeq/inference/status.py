"""How far a bulk run is, as the ledger tells it; nothing is asked of the workers or of SLURM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdeq.archive import Archive
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
    tiles: int | None = None
    converged: int | None = None
    """Tiles, and those of them that converged; of a scene that is done."""
    masked: int | None = None
    """Pixels without data; of a scene that is done."""
    noise: float | None = None
    """Noise level of the input in units of 1/255, the mean of its bands; of a scene that is done."""
    remarks: Sequence[str] = ()
    """What its user should know; of a scene that is done."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a bulk run is."""

    scenes: Sequence[SceneStatus]
    """In the order of their names."""
    pixels_per_second: float
    """Written in the last ten minutes."""
    pixels_left: int
    """To be written, but for scenes that failed."""

    @property
    def units(self) -> int:
        """Units in all."""
        return sum(scene.units for scene in self.scenes)

    @property
    def finished(self) -> int:
        """Units that are finished."""
        return sum(scene.finished for scene in self.scenes)

    @property
    def left(self) -> int:
        """Scenes that are neither done nor failed."""
        return sum(scene.state in ("running", "pending") for scene in self.scenes)

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the last ten minutes; None if nothing was finished in them."""
        if self.left == 0:
            return 0.0
        return self.pixels_left / self.pixels_per_second if self.pixels_per_second > 0 else None

    def names(self, state: str) -> list[str]:
        """Names of the scenes in a state."""
        return [scene.name for scene in self.scenes if scene.state == state]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.names(s))} {s}" for s in ("done", "running", "pending", "failed"))
        seconds = self.seconds_left
        eta = "time left unknown" if seconds is None else f"{seconds / 60:.0f} min left"
        rate = f"{self.pixels_per_second / 1e6:.2f} Mpixel/s"
        return f"{len(self.scenes)} scenes: {counts}; {self.finished} of {self.units} units, {rate}, {eta}"


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
    archive = Archive(out)
    ledger = Ledger(archive)
    failures = ledger.failures()
    scenes: list[SceneStatus] = []
    now = time.time()
    written, since, left = 0.0, now, 0.0
    for plan in ledger.job().scenes:
        times = list(ledger.times(plan).values())
        pixels = plan.height * plan.width / plan.unit_count  # of a unit, more or less
        recent = [t for t in times if now - t < _RECENT_SECONDS]
        written += pixels * len(recent)
        since = min([since, *recent])
        complete = ledger.completed(plan.name)
        if complete and archive.fingerprint(plan.name) == plan.fingerprint:
            solved = complete.convergence
            scene = SceneStatus(
                name=plan.name,
                state="done",
                units=plan.unit_count,
                finished=plan.unit_count,
                tiles=solved.tiles,
                converged=solved.converged,
                masked=complete.masked,
                noise=complete.noise,
                remarks=complete.remarks,
            )
        else:
            reason = failures.pop(plan.name, None)
            scene = SceneStatus(
                name=plan.name,
                state="failed" if reason else "running" if times else "pending",
                units=plan.unit_count,
                finished=len(times),
                reason=reason,
            )
            left += 0 if reason else pixels * (plan.unit_count - len(times))
        scenes.append(scene)
    scenes += [  # those that could not even be planned
        SceneStatus(name=name, state="failed", units=0, finished=0, reason=reason)
        for name, reason in failures.items()
        if name not in {scene.name for scene in scenes}
    ]
    return Status(
        scenes=sorted(scenes, key=lambda scene: scene.name),
        pixels_per_second=written / max(now - since, 1.0),
        pixels_left=round(left),
    )
