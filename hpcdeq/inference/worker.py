"""One worker of a bulk run: units are read ahead, computed in batches that run across them, and written behind."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Scene, open_archive
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.console import Bar, say
from hpcdeq.errors import ArchiveError, HpcdeqError, PreemptedError, SceneError
from hpcdeq.inference.applied import AppliedModel
from hpcdeq.inference.findings import noise_in_the_middle
from hpcdeq.inference.ledger import Complete, Ledger
from hpcdeq.inference.output import Output
from hpcdeq.inference.plan import ScenePlan, Unit, plan_of
from hpcdeq.inference.tiles import Convergence, DenoisedWindow, NoisyWindow, denoise_windows
from hpcdeq.timing import note, part

T = TypeVar("T")
U = TypeVar("U")

_MOST_THREADS = 8  # that read, and as many that write, for a GPU; a processor that computes has one of each
# Seconds before a failed read is tried again: file systems of clusters have hiccups.
_READ_PAUSES = (0.2, 1.0)
_SCENE_ERRORS = (SceneError, ArchiveError)  # of one scene: the others can be finished


@dataclass(kw_only=True)
class DenoiseReport:
    """What a run did."""

    done: list[str] = field(default_factory=list)
    """Scenes that are in the archive at the end of this run, and were not before."""
    skipped: list[str] = field(default_factory=list)
    """Scenes that were there already, with the same model, settings and input."""
    failed: dict[str, str] = field(default_factory=dict)
    """Scenes that could not be denoised, and why."""
    convergence: Convergence = field(default_factory=Convergence)
    """Of the scenes that this run made visible."""
    tolerance: float = 0.0
    """Of the solver; 0 is a fixed number of steps, of which nobody asks whether they converged."""
    code_bytes: int = 0
    """Size on disk of the codes of the scenes denoised, if codes are kept."""
    pixel_bytes: int = 0
    """Size of the same scenes' pixels as float32."""


@dataclass(frozen=True, kw_only=True)
class _Input:
    """What is read of a unit."""

    noisy: NoisyWindow
    valid: NDArray[np.bool_] | None
    """(y, x), False where there is no data; None if there is everywhere."""
    noise: list[float]
    """Noise level of every band, if the middle of the scene is in the unit."""


class Worker:
    """Denoises units of the plan of an output archive.

    Parameters
    ----------
    out
        The output archive.
    local_rank
        Which worker of its node this is, from 0: they take its GPUs in turn.
    """

    def __init__(self, out: Path, local_rank: int = 0) -> None:
        archive = open_archive(out)
        archive.sweep()
        self.ledger = Ledger(archive)
        self.job = job = self.ledger.job()
        self.archive = open_archive(job.archive)
        self.applied = AppliedModel.of(job.model, job.settings).on_device(local_rank)
        self.model = self.applied.model
        self.output = Output(archive, self.ledger, self.applied, self._scene)
        self.report = DenoiseReport(tolerance=self.model.settings.solver.tolerance)
        self._scenes: dict[str, Scene] = {}
        self._lock = threading.Lock()

    def denoise(self, units: list[Unit], stop: StopRequest) -> None:
        """Compute units until asked to stop: they are read ahead, computed, and written behind.

        A stop is seen between tiles: a unit that is not computed by then is dropped, as it may take longer than there is time.

        Raises
        ------
        PreemptedError
            If it was asked to stop, and units are left.
        """
        plans = list(dict.fromkeys(unit.scene for unit in units))
        visible = {plan.name for plan in plans if self.output.is_visible(plan)}
        self.report.skipped = [plan.name for plan in plans if plan.name in visible]
        with Bar("denoise", len(units)) as bar:
            if not self._compute(self._missing(units, visible, bar), bar, stop):
                raise PreemptedError("stopped; what is finished is written, and the same command goes on")
        for plan in plans:
            if plan.name not in visible:
                self._finish(plan)
        self._sweep()

    def _missing(self, units: list[Unit], visible: Collection[str], bar: Bar) -> Iterator[Unit]:
        """Those that are to be computed, found out when they are asked for."""
        for unit in units:
            name = unit.scene.name
            bar.note(f"{name} rows {unit.window.y0}:, columns {unit.window.x0}:")
            unopened = name in self.report.failed and name not in self._scenes
            if name in visible or unopened or self.output.is_written(unit):
                bar.advance()
            else:
                yield unit

    def _compute(self, units: Iterator[Unit], bar: Bar, stop: StopRequest) -> bool:
        """Read, denoise and write units; False if it was asked to stop and some are left."""
        begun: deque[tuple[Unit, _Input]] = deque()
        stopped = False
        threads = 1
        if self.model.device.type != "cpu":
            threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:

            def inputs() -> Iterator[NoisyWindow]:
                nonlocal stopped
                for unit, read in _ahead(readers, self._read, units, threads):
                    if stop:
                        stopped = True
                        return
                    try:
                        with part("reading"):
                            begun.append((unit, read.result()))
                    except _SCENE_ERRORS as error:
                        self._fail(unit.scene, error)
                        bar.advance()
                    else:
                        yield begun[-1][1].noisy

            def found() -> Iterator[tuple[Unit, _Input, DenoisedWindow]]:
                for window in denoise_windows(self.model, inputs(), self.job.settings, stop):
                    note("computed")
                    yield (*begun.popleft(), window)

            for (unit, _, _), written in _ahead(writers, lambda all_: self._write(*all_), found(), threads):
                try:
                    with part("writing"):
                        written.result()
                except _SCENE_ERRORS as error:
                    self._fail(unit.scene, error)
                bar.advance()
        return not (stopped or begun)

    def reopen(self, plan: ScenePlan, damaged: list[str]) -> None:
        """Take a scene out of the archive, to write it again where files are damaged; it stays if its input cannot be read."""
        try:
            self.output.reopen(plan, damaged)
        except _SCENE_ERRORS as error:
            self._fail(plan, error)

    def _finish(self, plan: ScenePlan) -> None:
        """Count a scene; one that was killed between its last record and the end is made visible."""
        try:
            self._count(plan, self.output.finish(plan))
        except _SCENE_ERRORS as error:
            self._fail(plan, error)
        if self.output.is_visible(plan):
            self.report.done.append(plan.name)

    def _sweep(self) -> None:
        """Remove all that is left aside when everything is done, also of a newer plan."""
        if all(map(self.output.is_visible, self.ledger.job().scenes)):
            shutil.rmtree(self.output.archive.staging, ignore_errors=True)

    def _read(self, unit: Unit) -> _Input:
        with part("read"):
            for pause in _READ_PAUSES:
                try:
                    return self._read_once(unit)
                except _SCENE_ERRORS:
                    time.sleep(pause)
            return self._read_once(unit)

    def _read_once(self, unit: Unit) -> _Input:
        scene, around = self._scene(unit.scene), unit.reach
        pixels = scene.read(around)
        if not np.isfinite(pixels).all():
            raise SceneError(
                f"scene {scene.name}: NaN or infinite values in rows {around.y0}:{around.y1}, columns {around.x0}:{around.x1} "
                "that no valid_mask marks; ingest it again"
            )
        return _Input(
            noisy=NoisyWindow(extent=unit.scene.extent, window=unit.window, pixels=pixels),
            valid=scene.valid_mask(unit.window) if scene.has_mask else None,
            noise=_noise_of(unit, pixels),
        )

    def _write(self, unit: Unit, read: _Input, found: DenoisedWindow) -> None:
        with part("write"):
            self._count(unit.scene, self.output.write(unit, found, read.valid, read.noise))

    def _count(self, plan: ScenePlan, complete: Complete | None) -> None:
        """Add a scene that was made visible to the report."""
        if complete is None:
            return
        with self._lock:
            for remark in complete.remarks:
                say(f"{plan.name}: {remark}")
            self.report.convergence += complete.convergence
            if self.job.settings.codes:
                self.report.code_bytes += self.output.archive[plan.name].code_bytes
                self.report.pixel_bytes += 4 * math.prod(self._scene(plan).shape)
        self._scenes.pop(plan.name, None)

    def _scene(self, plan: ScenePlan) -> Scene:
        """Open the noisy scene of a plan."""
        scene = self._scenes.get(plan.name)
        if scene is None:
            scene = self.archive[plan.name]
            now = plan_of(scene, self.applied)
            if now != plan:
                raise SceneError(
                    f"scene {plan.name}: the scene or the model {self.job.model} has changed since the work was planned; give the "
                    "command again"
                )
            self._scenes[plan.name] = scene
        return scene

    def _fail(self, plan: ScenePlan, error: HpcdeqError) -> None:
        if plan.name not in self.report.failed:
            say(f"{plan.name}: {error}")
        self.report.failed[plan.name] = str(error)
        if self.ledger.wants(plan):
            self.ledger.fail(plan.name, str(error))


def _noise_of(unit: Unit, pixels: NDArray[np.float32]) -> list[float]:
    """Estimate the noise of every band if the middle of the scene is in the unit; else nothing."""
    extent, window = unit.scene.extent, unit.window
    y, x = extent.height // 2, extent.width // 2
    if not (window.y0 <= y < window.y1 and window.x0 <= x < window.x1):
        return []
    return noise_in_the_middle(extent, unit.reach, pixels)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], most: int
) -> Iterator[tuple[T, Future[U]]]:
    """Work on items in a pool, at most some ahead of what is asked for; in their order."""
    begun: deque[tuple[T, Future[U]]] = deque()
    for item in items:
        begun.append((item, pool.submit(work, item)))
        if len(begun) > most:
            yield begun.popleft()
    yield from begun
