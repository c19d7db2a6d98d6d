"""Denoise an archive into another: unit by unit, each recorded when it is written, each scene visible when complete.

Any number of workers do it together without talking to each other: each computes its share of the plan, and whoever records
the last unit of a scene makes it visible. Two copies of one worker do no harm: they write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from hpcdeq.archive import Archive, Scene, SceneDraft, SceneHeader, open_archive
from hpcdeq.archive.layout import CELL_X, CELL_Y, CODES, DICTIONARY, SUPPORT
from hpcdeq.archive.scene import crc32c_of
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.console import Bar, say
from hpcdeq.errors import ConfigError, HpcdeqError, PreemptedError, SceneError
from hpcdeq.inference.ledger import Job, Ledger, Record
from hpcdeq.inference.plan import ScenePlan, Unit, share_of
from hpcdeq.inference.tiles import (
    Convergence,
    DenoisedWindow,
    DenoiseSettings,
    NoisyWindow,
    TileSolution,
    denoise_windows,
    prepare,
)
from hpcdeq.models import SparseDenoiser, load_model
from hpcdeq.models.files import read_card
from hpcdeq.tiling import cells_along

T = TypeVar("T")
U = TypeVar("U")

_AHEAD, _BEHIND = 2, 2  # units that are read ahead, and that wait to be written


@dataclass(kw_only=True)
class DenoiseReport:
    """What a run did."""

    done: list[str] = field(default_factory=list)
    """Scenes denoised by this run."""
    skipped: list[str] = field(default_factory=list)
    """Scenes that were there already, with the same model, settings and input."""
    failed: dict[str, str] = field(default_factory=dict)
    """Scenes that could not be denoised, and why."""
    convergence: Convergence = field(default_factory=Convergence)
    code_bytes: int = 0
    """Size on disk of the codes of the scenes denoised, if codes are kept."""
    pixel_bytes: int = 0
    """Size of the same scenes' pixels as float32."""


def denoise_archive(
    archive: Archive,
    model_folder: Path,
    out: Path,
    settings: DenoiseSettings,
    *,
    overwrite: bool = False,
    worker: int = 0,
    workers: int = 1,
) -> DenoiseReport:
    """Denoise every scene of an archive, or a worker's share of it.

    A run that was killed goes on where it stood when it is started again; it loses the units in flight.

    Parameters
    ----------
    archive
        Scenes to denoise.
    model_folder
        Model to use.
    out
        Archive to write; made if there is none.
    settings
        How to apply the model.
    overwrite
        Denoise also scenes that are there already; for a single worker.
    worker, workers
        Which of how many workers this is, from 0.

    Raises
    ------
    ConfigError
        If ``out`` is the input archive, or the settings do not fit the model.
    PreemptedError
        If a signal asked to stop (SIGUSR1, SIGUSR2, SIGTERM): when the units that were begun are written.
    """
    if out.resolve() == archive.path.resolve():
        raise ConfigError(f"--out {out} is the archive that is read; choose another folder")
    model = prepare(load_model(model_folder), settings)
    settings.overlap_of(model)
    if settings.codes and model.code_count == 0:
        raise ConfigError(
            f"--codes: {model_folder} is a prior alone and has no codes; use a fast or full model"
        )
    denoised = open_archive(out, create=True)
    denoised.sweep()
    run = _Run(archive, model, read_card(model_folder)["weights_sha256"], settings, denoised)
    run.plan()
    run.ledger.begin(Job(archive.path, model_folder, settings), run.plans)
    if overwrite:
        run.forget()
    with stop_requests() as stop:
        run.denoise(worker, workers, stop)
    denoised.close()
    if stop:
        raise PreemptedError("stopped; what was begun is written, and the same command goes on")
    return run.report


def repair_archive(out: Path) -> tuple[dict[str, list[str]], DenoiseReport]:
    """Denoise again what is damaged or missing in an output archive, and nothing else.

    A damaged scene is taken out of the archive until it is whole again.

    Parameters
    ----------
    out
        The output archive.

    Returns
    -------
    tuple
        What was damaged: files by scene, as `verify` finds them; and what the run did.

    Raises
    ------
    ConfigError
        If there is no ledger beside the archive.
    """
    ledger = Ledger(out)
    job = ledger.job()
    archive, denoised = open_archive(job.archive), open_archive(out, create=True)
    damaged = dict(verify(out))
    model = prepare(load_model(job.model), job.settings)
    run = _Run(archive, model, read_card(job.model)["weights_sha256"], job.settings, denoised)
    run.plan()
    for plan in run.plans:
        if plan.name in damaged:
            run.reopen(plan, damaged[plan.name])
    run.denoise()
    denoised.close()
    return damaged, run.report


def verify(out: Path) -> Iterator[tuple[str, list[str]]]:
    """Read back every file of every scene that was completed, against its checksum.

    Yields
    ------
    name, files
        For each scene that is not as it was written: the files that are missing or have other bytes.
    """
    ledger = Ledger(out)
    for name in ledger.completed():
        known = ledger.checksums(name)
        assert known is not None
        bad = [file for file, sum_ in known[1].items() if _crc32c(out / name / file) != sum_]
        if bad:
            yield name, bad


def _crc32c(file: Path) -> int | None:
    try:
        return crc32c_of(file)
    except OSError:
        return None


class _Run:
    """One worker's run: one model, one input and one output archive."""

    def __init__(
        self, archive: Archive, model: SparseDenoiser, weights: str, settings: DenoiseSettings, out: Archive
    ) -> None:
        self.archive, self.out = archive, out
        self.model, self.weights, self.settings = model, weights, settings
        self.ledger = Ledger(out.path)
        self.report = DenoiseReport()
        self.scenes: dict[str, Scene] = {}
        self.plans: list[ScenePlan] = []
        self._drafts: dict[str, SceneDraft] = {}
        self._lock = threading.RLock()

    def plan(self) -> None:
        """Open every scene; those that cannot be denoised are failures."""
        for name in self.archive:
            try:
                scene = self.archive[name]
                self.plans.append(self._plan_of(scene))
            except HpcdeqError as error:
                self._fail(name, error)
            else:
                self.scenes[name] = scene

    def forget(self) -> None:
        """Let all scenes be denoised again."""
        for plan in self.plans:
            self.ledger.forget(plan)
            self.out.remove(plan.name)

    def reopen(self, plan: ScenePlan, damaged: list[str]) -> None:
        """Make a draft of a scene again, without the damaged files."""
        header = self._header(self.scenes[plan.name])
        self._drafts[plan.name] = self.out.reopen(plan.name, header, plan.fingerprint, damaged)

    def denoise(self, worker: int = 0, workers: int = 1, stop: StopRequest | None = None) -> None:
        """Compute this worker's share until asked to stop: units are read ahead, computed, and written behind."""
        own = share_of(self.plans, worker, workers)
        visible = {plan.name: self._is_visible(plan) for plan in {unit.scene for unit in own}}
        self.report.skipped = [name for name in self.scenes if visible.get(name)]
        begun: deque[Unit] = deque()
        with (
            Bar("denoise", len(own)) as bar,
            ThreadPoolExecutor(_AHEAD) as readers,
            ThreadPoolExecutor(_BEHIND) as writers,
        ):

            def missing() -> Iterator[Unit]:
                for unit in own:
                    if stop:
                        return
                    bar.note(f"{unit.scene.name} rows {unit.window.y0}:, columns {unit.window.x0}:")
                    if visible[unit.scene.name] or self._is_written(unit):
                        bar.advance()
                    else:
                        yield unit

            def inputs() -> Iterator[NoisyWindow]:
                for unit, read in _ahead(readers, self._read, missing(), _AHEAD):
                    try:
                        noisy = read.result()
                    except SceneError as error:
                        self._fail(unit.scene.name, error)
                        bar.advance()
                    else:
                        begun.append(unit)
                        yield noisy

            found = (
                (begun.popleft(), window) for window in denoise_windows(self.model, inputs(), self.settings)
            )
            for _, written in _ahead(writers, lambda pair: self._write(*pair), found, _BEHIND):
                written.result()
                bar.advance()
        for plan in dict.fromkeys(unit.scene for unit in own):
            if not visible[plan.name]:
                with self._unless_visible(plan):
                    self._finish(plan)
                if self._is_visible(plan):
                    self.report.done.append(plan.name)

    def _plan_of(self, scene: Scene) -> ScenePlan:
        if scene.shape[0] != self.model.bands:
            raise SceneError(
                f"{scene.shape[0]} bands, but the model knows {self.model.bands}; train one for this sensor"
            )
        return ScenePlan(
            name=scene.name,
            fingerprint=self._fingerprint(scene),
            extent=scene.extent,
            shard_shape=scene.shard_shape,
            block=self.model.settings.block,
            overlap=self.settings.overlap_of(self.model),
        )

    def _fingerprint(self, scene: Scene) -> str:
        """Digest of all that decides the bytes of a denoised scene."""
        what = {
            "ledger": 4,
            "weights": self.weights,
            "solver": asdict(self.model.settings.solver),
            "precision": self.settings.precision,
            "overlap": self.settings.overlap_of(self.model),
            "codes": self.settings.codes,
            "batch": self.settings.batch if self.model.device.type != "cpu" else None,
            "input": scene.content_sha256,
            "scale_factor": scene.scale_factor,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def _is_visible(self, plan: ScenePlan) -> bool:
        return self.out.fingerprint(plan.name) == plan.fingerprint

    def _is_written(self, unit: Unit) -> bool:
        """Whether a unit is recorded, and its files are on disk as they were written."""
        record = self.ledger.read(unit)
        if record is None:
            return False
        files = {self._draft(unit.scene).path / name: sum_ for name, sum_ in record.checksums.items()}
        return all(file.is_file() and crc32c_of(file) == sum_ for file, sum_ in files.items())

    def _read(self, unit: Unit) -> NoisyWindow:
        pixels = self.scenes[unit.scene.name].read(unit.reach)
        return NoisyWindow(extent=unit.scene.extent, window=unit.window, pixels=pixels)

    def _write(self, unit: Unit, found: DenoisedWindow) -> None:
        """Write and record a unit, and make its scene visible if it was the last."""
        with self._unless_visible(unit.scene):
            self._write_unit(unit, found)
            self._finish(unit.scene)

    @contextlib.contextmanager
    def _unless_visible(self, plan: ScenePlan) -> Iterator[None]:
        """In here a draft may be taken away at any moment, as another copy of this worker makes the scene visible."""
        try:
            yield
        except Exception:
            if not self._is_visible(plan):
                raise
        if self._is_visible(plan) and (draft := self._drafts.pop(plan.name, None)):
            draft.discard()  # what was written since then

    def _write_unit(self, unit: Unit, found: DenoisedWindow) -> None:
        scene, draft, window = self.scenes[unit.scene.name], self._draft(unit.scene), unit.window
        shards = list(draft.scene.shards(window))
        files = [draft.scene.shard_path(shard) for shard in shards]
        if scene.has_mask:
            valid = scene.valid_mask(window)
            found.values[:, ~valid] = 0.0
            draft.write_mask(window, valid)
            files += [draft.scene.mask_path(shard) for shard in shards]
        draft.write(window, found.values)
        if found.codes is not None:
            draft.write_codes(window, found.codes)
            files += [draft.scene.shard_path(shard, CODES) for shard in shards]
        sums = {str(file.relative_to(draft.path)): crc32c_of(file) for file in files}
        self.ledger.write(unit, Record(checksums=sums, tiles=found.tiles))

    def _finish(self, plan: ScenePlan) -> None:
        """Make a scene visible if all of its units are recorded and nobody has done so."""
        with self._lock:
            if not self.ledger.finished(plan) or self._is_visible(plan):
                return
            records = [self.ledger.read(unit) for unit in plan.units()]
            # Units share the tiles at their borders.
            tiles = {(tile.y0, tile.x0): tile for record in records if record for tile in record.tiles}
            draft = self._draft(plan)
            self._attach(draft, plan, tiles)
            draft.publish(lambda: self._complete(draft, plan, records))
            self.report.convergence += Convergence.of(tiles.values())
            if self.settings.codes:
                self.report.code_bytes += self.out[plan.name].code_bytes
                self.report.pixel_bytes += 4 * math.prod(self.scenes[plan.name].shape)

    def _complete(self, draft: SceneDraft, plan: ScenePlan, records: list[Record | None]) -> None:
        """Record what a scene holds that is about to become visible."""
        files = (file for file in draft.path.rglob("*") if file.is_file())
        sums = {str(file.relative_to(draft.path)): crc32c_of(file) for file in files}
        if not draft.path.exists():
            raise SceneError(f"{draft.path} was taken away")
        for record in records:
            for name, sum_ in record.checksums.items() if record else ():
                if sums.get(name) != sum_:
                    raise SceneError(f"{name} is not on disk as it was written; run the same command again")
        self.ledger.complete(plan, sums)

    def _draft(self, plan: ScenePlan) -> SceneDraft:
        with self._lock:
            if plan.name not in self._drafts:
                if self.out.fingerprint(plan.name) not in (None, plan.fingerprint):
                    say(
                        f"{plan.name}: denoised before with another model, settings or input; denoising it again"
                    )
                header = self._header(self.scenes[plan.name])
                self._drafts[plan.name] = self.out.shared_draft(plan.name, header, plan.fingerprint)
            return self._drafts[plan.name]

    def _fail(self, name: str, error: HpcdeqError) -> None:
        if name not in self.report.failed:
            say(f"{name}: {error}")
        self.report.failed[name] = str(error)
        self.ledger.fail(name, str(error))

    def _attach(self, draft: SceneDraft, plan: ScenePlan, tiles: dict[tuple[int, int], TileSolution]) -> None:
        """Keep beside the pixels how each tile was solved, for people to look at, and what its codes mean."""
        rows, columns = (sorted({place[axis] for place in tiles}) for axis in (0, 1))
        grid = [[tiles[y, x] for x in columns] for y in rows]
        places = ("tile_y", "tile_x")
        draft.attach("tile_y", places[:1], np.array(rows))
        draft.attach("tile_x", places[1:], np.array(columns))
        for name, dtype in (("residual", np.float32), ("iterations", np.int32), ("converged", np.uint8)):
            values = np.array([[getattr(tile, name) for tile in row] for row in grid], dtype)
            draft.attach(f"tile_{name}", places, values)
        if not self.settings.codes:
            return
        size = (plan.extent.height, plan.extent.width)
        for name, place, length in zip((CELL_Y, CELL_X), places, size, strict=True):
            firsts = [first for first, _ in cells_along(length, plan.block, plan.overlap).values()]
            draft.attach(name, (place,), np.array(firsts))
        draft.attach(DICTIONARY, ("band", "atom"), self.model.atoms.detach().cpu().numpy())
        if grid[0][0].support:
            supports = np.array([[tile.support for tile in row] for row in grid], np.int32)
            draft.attach(SUPPORT, (*places, "code"), supports)

    def _header(self, scene: Scene) -> SceneHeader:
        return SceneHeader(
            shape=scene.shape,
            dtype=np.dtype(np.float32),
            wavelengths=scene.wavelengths,
            fwhm=scene.fwhm,
            has_mask=scene.has_mask,
            codes=self.model.code_count if self.settings.codes else 0,
            attributes={
                **scene.attributes,
                "denoised_with": {
                    "weights_sha256": self.weights,
                    "overlap": self.settings.overlap_of(self.model),
                    "precision": self.settings.precision,
                },
            },
        )


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
