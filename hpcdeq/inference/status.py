"""How far a bulk run is, as the ledger tells it; nothing is asked of the workers or of SLURM, and nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hpcdeq.archive import Archive
from hpcdeq.console import duration
from hpcdeq.errors import ModelFileError
from hpcdeq.inference.ledger import Job, Ledger
from hpcdeq.inference.plan import ScenePlan
from hpcdeq.models.files import read_settings
from hpcdeq.tiling import cells_along

STATES = ("done", "running", "pending", "failed")
LISTED = 20  # scenes that are listed for each reason
_RECENT_SECONDS = 600.0
_READERS = 16  # threads: they wait for a network's file system, not for each other
_LOST_SECONDS = 60.0  # a scene is moved into the archive right after it is recorded


@dataclass(frozen=True, kw_only=True)
class SceneStatus:
    """How far a scene is."""

    name: str
    state: str
    """``done``, ``failed``, ``running`` (some units are finished) or ``pending``."""
    pixels: int
    """Rows times columns; 0 if the scene could not even be planned."""
    units: int
    finished: int
    """Units that are finished."""
    reason: str | None = None
    """Why it failed."""
    tiles: int | None = None
    """Tiles; of a scene that is done."""
    converged: int | None = None
    """Tiles that converged; of a scene that is done, unless the model takes a fixed number of steps."""
    worst: float | None = None
    """Largest residual of its tiles; where `converged` is told."""
    masked: int | None = None
    """Pixels without data; of a scene that is done."""
    noise: float | None = None
    """Noise level of the input in units of 1/255, the mean of its bands; of a scene that is done."""
    remarks: Sequence[str] = ()
    """What its user should know."""

    @property
    def unconverged(self) -> int:
        """Tiles that are known not to have converged."""
        return 0 if self.tiles is None or self.converged is None else self.tiles - self.converged

    @property
    def unconverged_share(self) -> float:
        """Share of the tiles that are known not to have converged."""
        return self.unconverged / (self.tiles or 1)

    @property
    def masked_share(self) -> float:
        """Share of the pixels that are known to hold no data."""
        return (self.masked or 0) / (self.pixels or 1)


@dataclass(frozen=True, kw_only=True)
class Concerns:
    """Scenes that someone should look at, for one reason."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """For each scene, the worst first; its name first."""

    @property
    def scenes(self) -> int:
        """How many there are."""
        return len({row[0] for row in self.rows})


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a bulk run is."""

    scenes: Sequence[SceneStatus]
    """In the order of their names."""
    tiles_per_second: float
    """Written in the last ten minutes, each tile counted once; 0 if that is not known."""
    pixels_per_second: float
    """Likewise."""
    tiles_left: int
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
        """At the rate of the last ten minutes; None if that is not known."""
        if self.left == 0:
            return 0.0
        return self.tiles_left / self.tiles_per_second if self.tiles_per_second > 0 else None

    @property
    def states(self) -> dict[str, int]:
        """How many scenes are in each state."""
        return {state: len(self.names(state)) for state in STATES}

    def names(self, state: str) -> list[str]:
        """Names of the scenes in a state."""
        return [scene.name for scene in self.scenes if scene.state == state]

    def concerns(self) -> list[Concerns]:
        """Scenes that someone should look at, by the reason for it; reasons without scenes are left out."""
        of = self.scenes
        loose = sorted((s for s in of if s.unconverged), key=lambda s: -s.unconverged_share)
        holed = sorted((s for s in of if s.masked), key=lambda s: -s.masked_share)
        found = [
            Concerns(
                title="failed",
                columns=("scene", "units finished", "why"),
                rows=[
                    (s.name, f"{s.finished} of {s.units}", s.reason or "") for s in of if s.state == "failed"
                ],
            ),
            Concerns(
                title="with tiles that did not converge",
                columns=("scene", "tiles", "of all", "worst residual"),
                rows=[
                    (s.name, f"{s.unconverged} of {s.tiles}", _percent(s.unconverged_share), f"{s.worst:.1e}")
                    for s in loose
                ],
            ),
            Concerns(
                title="with remarks",
                columns=("scene", "remark"),
                rows=[(s.name, remark) for s in of for remark in s.remarks],
            ),
            Concerns(
                title="with pixels that hold no data",
                columns=("scene", "pixels", "of all"),
                rows=[(s.name, str(s.masked), _percent(s.masked_share)) for s in holed],
            ),
        ]
        return [concerns for concerns in found if concerns.rows]

    @property
    def outlook(self) -> str:
        """How long the rest will take, in words."""
        seconds = self.seconds_left
        if self.left == 0:
            return "nothing left to do"
        if seconds is None:
            return "time left unknown"
        return f"{duration(seconds)} left"

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.states.items())
        rate = ""
        if self.left and self.tiles_per_second > 0:
            rate = f"{self.tiles_per_second:.4g} tiles/s ({self.pixels_per_second / 1e6:.3g} Mpixel/s), "
        return f"{len(self.scenes)} scenes: {counts}; {self.finished} of {self.units} units, {rate}{self.outlook}"


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
    return Watch(out).look()


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A scene as it was found."""

    plan: ScenePlan
    scene: SceneStatus
    times: Mapping[tuple[int, int], float]
    """When its units were recorded; of a scene that was done long ago, none."""


class Watch:
    """Looks at a run again and again; a scene that is done is read once.

    Workers may write, and move scenes into the archive, at any moment: what vanishes between listing and reading is taken as not
    there, and the next look finds where it went.

    Parameters
    ----------
    out
        The output archive.
    """

    def __init__(self, out: Path) -> None:
        self._archive = Archive(out)
        self._ledger = Ledger(self._archive)
        self._done: dict[ScenePlan, _Seen] = {}

    def look(self) -> Status:
        """Read how far the run is.

        Raises
        ------
        ConfigError
            If there is no ledger beside the archive.
        """
        now = time.time()
        job = self._ledger.job()
        judged = _is_convergence_judged(job)
        failures = self._ledger.failures()
        begun, there = self._ledger.begun(), self._there()

        def see(plan: ScenePlan) -> _Seen:
            if plan.name in there and (done := self._see_done(plan, judged, now)):
                return done
            times = self._ledger.times(plan) if plan.name in begun else {}
            return self._see_unfinished(plan, times, failures.get(plan.name), now)

        known = {p: self._done[p] for p in job.scenes if p in self._done and p.name in there}
        with ThreadPoolExecutor(_READERS) as pool:
            unread = [plan for plan in job.scenes if plan not in known]
            parts = [unread[i::_READERS] for i in range(_READERS)]
            found = pool.map(lambda part: [see(plan) for plan in part], parts)
            seen = known | {one.plan: one for part in found for one in part}
        self._done = {plan: found for plan, found in seen.items() if found.scene.state == "done"}
        planned = {plan.name for plan in job.scenes}
        unplanned = [
            SceneStatus(name=name, state="failed", pixels=0, units=0, finished=0, reason=reason)
            for name, reason in failures.items()
            if name not in planned
        ]
        scenes = [found.scene for found in seen.values()] + unplanned
        tiles, pixels = _rates(seen.values(), now)
        return Status(
            scenes=sorted(scenes, key=lambda scene: scene.name),
            tiles_per_second=tiles,
            pixels_per_second=pixels,
            tiles_left=round(sum(map(_tiles_left, seen.values()))),
        )

    def _there(self) -> set[str]:
        """Names of what is in the archive."""
        try:
            return {path.name for path in self._archive.path.iterdir()}
        except FileNotFoundError:
            return set()

    def _see_done(self, plan: ScenePlan, judged: bool, now: float) -> _Seen | None:
        """Read what is known of a scene in the archive; None if it is not the one that was planned."""
        complete = self._ledger.completed(plan.name)
        fingerprints = {complete and complete.fingerprint, self._archive.fingerprint(plan.name)}
        if complete is None or fingerprints != {plan.fingerprint}:
            return None
        solved = complete.convergence
        scene = SceneStatus(
            name=plan.name,
            state="done",
            pixels=plan.height * plan.width,
            units=plan.unit_count,
            finished=plan.unit_count,
            tiles=solved.tiles,
            converged=solved.converged if judged else None,
            worst=solved.worst_residual if judged else None,
            masked=complete.masked,
            noise=complete.noise,
            remarks=tuple(complete.remarks),
        )
        at = self._ledger.completed_at(plan.name)
        late = at is not None and now - at < _RECENT_SECONDS
        return _Seen(plan=plan, scene=scene, times=self._ledger.times(plan) if late else {})

    def _see_unfinished(
        self, plan: ScenePlan, times: Mapping[tuple[int, int], float], reason: str | None, now: float
    ) -> _Seen:
        remarks = []
        if reason is None and len(times) == plan.unit_count:
            complete, at = self._ledger.completed(plan.name), self._ledger.completed_at(plan.name)
            ours = complete is not None and complete.fingerprint == plan.fingerprint
            if ours and at is not None and now - at > _LOST_SECONDS:
                remarks.append(
                    "was complete, but is not in the archive now: hpcdeq repair mends it, or is at it"
                )
        scene = SceneStatus(
            name=plan.name,
            state="failed" if reason is not None else "running" if times else "pending",
            pixels=plan.height * plan.width,
            units=plan.unit_count,
            finished=len(times),
            reason=reason,
            remarks=tuple(remarks),
        )
        return _Seen(plan=plan, scene=scene, times=times)


def _is_convergence_judged(job: Job) -> bool:
    """Whether tiles are solved to a tolerance: a model that takes a fixed number of steps has none."""
    tolerance = job.settings.tolerance
    if tolerance is None:
        try:
            tolerance = read_settings(job.model).solver.tolerance
        except ModelFileError:  # it is gone
            return True
    return tolerance > 0


def _rates(seen: Iterable[_Seen], now: float) -> tuple[float, float]:
    """Tiles and pixels that were written in a second of the last minutes.

    Counted from the first record in them on, without the unit that it tells of: when that was begun is not known.
    """
    recent = [
        (when, found, area)
        for found in seen
        if any(now - when < _RECENT_SECONDS for when in found.times.values())
        for where, area in _areas(found.plan).items()
        if (when := found.times.get(where)) is not None and now - when < _RECENT_SECONDS
    ]
    recent.sort(key=lambda record: record[0])
    if len(recent) < 2:
        return 0.0, 0.0
    seconds = max(now, recent[-1][0]) - recent[0][0]  # clocks of nodes differ
    pixels = sum(area for _, _, area in recent[1:])
    tiles = sum(area * _tiles_per_pixel(found.plan) for _, found, area in recent[1:])
    return tiles / max(seconds, 1.0), pixels / max(seconds, 1.0)


def _tiles_left(seen: _Seen) -> float:
    """Tiles that are still to be written of a scene."""
    if seen.scene.state not in ("running", "pending"):
        return 0.0
    left = seen.scene.pixels
    if seen.times:
        left = sum(area for where, area in _areas(seen.plan).items() if where not in seen.times)
    return left * _tiles_per_pixel(seen.plan)


def _areas(plan: ScenePlan) -> dict[tuple[int, int], int]:
    """Pixels of each unit, by its first row and column."""
    windows = [unit.window for unit in plan.units()]
    return {(window.y0, window.x0): window.height * window.width for window in windows}


def _tiles_per_pixel(plan: ScenePlan) -> float:
    tiles = math.prod(_tiles_along(n, plan.block, plan.overlap) for n in (plan.height, plan.width))
    return tiles / (plan.height * plan.width)


@lru_cache
def _tiles_along(size: int, block: int, overlap: int) -> int:
    return len(cells_along(size, block, overlap))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share > 0.001 else "below 0.1 %"
