"""The output archive of a bulk run: units written and recorded, each scene made visible by whoever records its last unit.

Two copies of one worker do no harm: they write the same bytes, and what one finds done it leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Archive, Scene, SceneDraft, SceneHeader
from hpcdeq.archive.layout import CELL_X, CELL_Y, CODES, DICTIONARY, NOISE, SUPPORT
from hpcdeq.archive.scene import checksum_of
from hpcdeq.errors import FencedError, HpcdeqError, SceneError, StorageError
from hpcdeq.inference.applied import AppliedModel
from hpcdeq.inference.findings import noise_remarks, tile_maps
from hpcdeq.inference.ledger import Complete, Ledger, Record
from hpcdeq.inference.plan import ScenePlan, Unit
from hpcdeq.inference.tiles import Convergence, DenoisedWindow, TileSolution
from hpcdeq.tiling import cells_along

T = TypeVar("T")


class Output:
    """Where a worker writes.

    Parameters
    ----------
    archive
        The output archive.
    ledger
        Its ledger.
    applied
        What denoises.
    source
        Opens the noisy scene of a plan.
    """

    def __init__(
        self,
        archive: Archive,
        ledger: Ledger,
        applied: AppliedModel,
        source: Callable[[ScenePlan], Scene],
    ) -> None:
        self.archive, self.ledger = archive, ledger
        self.applied, self.source = applied, source
        self._drafts: dict[str, SceneDraft] = {}
        self._lock = threading.RLock()

    def is_visible(self, plan: ScenePlan) -> bool:
        """Whether a scene is in the archive, made by this plan."""
        return self.archive.fingerprint(plan.name) == plan.fingerprint

    def is_written(self, unit: Unit) -> bool:
        """Whether a unit is recorded, and its files are on disk as they were written."""
        record = self.ledger.read(unit)
        if record is None:
            return False
        folder = self.archive.shared_path(unit.scene.name, unit.scene.fingerprint)
        return _are_intact(folder, [folder / name for name in record.checksums], record)

    def write(
        self, unit: Unit, found: DenoisedWindow, valid: NDArray[np.bool_] | None, noise: list[float]
    ) -> Complete | None:
        """Write and record a unit, and make its scene visible if it was the last.

        Parameters
        ----------
        unit, found
            What was computed.
        valid
            (y, x), False where the input holds no data; None if it does everywhere.
        noise
            Noise level of every band, of the unit in the middle of the scene.

        Returns
        -------
        Complete
            What is known of the scene if this made it visible.

        Raises
        ------
        StorageError
            If the disk is full, or cannot be written for another reason.
        """

        def work() -> None:
            self._write(unit, found, valid, noise)

        self._unless_done(unit.scene, work, unit)
        return self.finish(unit.scene)

    def finish(self, plan: ScenePlan) -> Complete | None:
        """Make a scene visible if all of its units are recorded and nobody has done so.

        Returns
        -------
        Complete
            What is known of the scene if this made it visible.
        """
        with self._lock:
            return self._unless_done(plan, lambda: self._finish(plan))

    def _finish(self, plan: ScenePlan) -> Complete | None:
        if not self.ledger.finished(plan) or self.is_visible(plan):
            return None
        self._check_wanted(plan)
        records = [record for unit in plan.units() if (record := self.ledger.read(unit))]
        # Units share the tiles at their borders.
        tiles = {(tile.y0, tile.x0): tile for record in records for tile in record.tiles}
        noise = next((record.noise for record in records if record.noise), [])
        draft = self._draft(plan)
        self._attach(draft, plan, tiles, noise)
        level = 255.0 * sum(noise) / max(1, len(noise))
        complete = Complete(
            fingerprint=plan.fingerprint,
            checksums={},
            convergence=Convergence.of(tiles.values()),
            masked=sum(record.masked for record in records),
            noise=level,
            remarks=noise_remarks(level, self.applied.trained),
        )
        written = {name: sum_ for record in records for name, sum_ in record.checksums.items()}
        draft.publish(lambda: self._record_complete(draft, plan, complete, written), written)
        return complete if self.is_visible(plan) else None

    def reopen(self, plan: ScenePlan, damaged: list[str]) -> None:
        """Take a scene out of the archive, to write it again where files are damaged."""
        header = self._header(self.source(plan))
        self._drafts[plan.name] = self.archive.reopen(plan.name, header, plan.fingerprint, damaged)

    def _unless_done(self, plan: ScenePlan, work: Callable[[], T], unit: Unit | None = None) -> T | None:
        """Work on a draft, which may be taken away at any moment, as another copy of this worker makes the scene visible.

        Whatever that breaks is no error, nor if the other has finished the unit.
        """
        done = None
        try:
            done = work()
        except FencedError:
            raise
        except Exception as error:
            # In this order: the other may make it visible in between.
            if not (unit and self.is_written(unit)) and not self.is_visible(plan):
                self._check_wanted(plan)
                if isinstance(error, OSError) and not isinstance(error, HpcdeqError):
                    raise StorageError(
                        f"{self.archive.path} cannot be written: {error}; what is finished stays, and the same command goes on"
                    ) from error
                raise
        with self._lock:
            if self.is_visible(plan):
                self._drafts.pop(plan.name, None)
                self._discard(plan)  # what was written since then
        return done

    def _check_wanted(self, plan: ScenePlan) -> None:
        if not self.ledger.wants(plan):
            self._discard(plan)
            self.ledger.forget_units(plan)  # those recorded since the new plan forgot them
            raise FencedError(
                f"{plan.name}: another plan was made for {self.archive.path} meanwhile; this one ends"
            )

    def _discard(self, plan: ScenePlan) -> None:
        self.archive.discard(self.archive.shared_path(plan.name, plan.fingerprint))

    def _write(
        self, unit: Unit, found: DenoisedWindow, valid: NDArray[np.bool_] | None, noise: list[float]
    ) -> None:
        draft, before = self._draft(unit.scene), self.ledger.read(unit)
        if valid is not None:
            found.values[:, ~valid] = 0.0
        values = self._stored(draft.scene, found.values)
        sums: dict[str, int] = {}
        for shard in draft.scene.shards(unit.window):
            inside = shard.shift(-unit.window.y0, -unit.window.x0).slices
            files: dict[Path, Callable[[], None]] = {
                draft.scene.shard_path(shard): partial(draft.write, shard, values[(slice(None), *inside)])
            }
            if valid is not None:
                files[draft.scene.mask_path(shard)] = partial(draft.write_mask, shard, valid[inside])
            if found.codes is not None:
                codes = found.codes[(slice(None), *inside)]
                files[draft.scene.shard_path(shard, CODES)] = partial(draft.write_codes, shard, codes)
            for file, write in files.items():
                if before is None or not _are_intact(draft.path, [file], before):  # of a repair some are
                    write()
            sums |= draft.secure(files)
        masked = 0 if valid is None else int((~valid).sum())
        self.ledger.write(unit, Record(checksums=sums, tiles=found.tiles, masked=masked, noise=noise))

    @staticmethod
    def _stored(scene: Scene, values: NDArray[np.float32]) -> NDArray[Any]:
        """Values as the scene stores them: rounded, and cut off at the bounds, if it stores integers."""
        dtype = scene.dtype
        if dtype.kind == "f":
            return values
        least, most = (np.float32(bound) for bound in (np.iinfo(dtype).min, np.iinfo(dtype).max))
        # Rounded up, as float32 has 24 bits, it would overflow to the least.
        if int(most) > np.iinfo(dtype).max:
            most = np.nextafter(most, np.float32(0))
        whole = np.rint(values / np.float32(scene.scale_factor))
        stored: NDArray[Any] = np.clip(whole, least, most).astype(dtype)
        return stored

    def _record_complete(
        self, draft: SceneDraft, plan: ScenePlan, complete: Complete, written: dict[str, int]
    ) -> None:
        """Record what a scene holds that is about to become visible."""
        for left in draft.path.rglob("*.partial"):  # of killed writers; a living one finds its unit recorded
            left.unlink(missing_ok=True)
        files = {str(file.relative_to(draft.path)): file for file in draft.path.rglob("*") if file.is_file()}
        sums = {name: checksum_of(file) for name, file in files.items() if name in written}
        sums |= draft.secure(file for name, file in files.items() if name not in written)
        if not draft.path.exists():
            raise SceneError(f"{draft.path} was taken away")
        for name, sum_ in written.items():
            if sums.get(name) != sum_:
                raise SceneError(f"{name} is not on disk as it was written; run the same command again")
        self.ledger.complete(plan.name, replace(complete, checksums=sums))

    def _draft(self, plan: ScenePlan) -> SceneDraft:
        with self._lock:
            if plan.name not in self._drafts:
                header = self._header(self.source(plan))
                self._drafts[plan.name] = self.archive.shared_draft(plan.name, header, plan.fingerprint)
            return self._drafts[plan.name]

    def _attach(
        self,
        draft: SceneDraft,
        plan: ScenePlan,
        tiles: dict[tuple[int, int], TileSolution],
        noise: list[float],
    ) -> None:
        """Keep beside the pixels how each tile was solved and how noisy the input was, and what codes mean."""
        for name, (axes, values) in tile_maps(tiles.values()).items():
            draft.attach(name, axes, values)
        if noise:  # of a single row or column none can be estimated
            draft.attach(NOISE, ("band",), np.array(noise, np.float32))
        if not self.applied.settings.codes:
            return
        for name, place, length in (
            (CELL_Y, "tile_y", plan.height),
            (CELL_X, "tile_x", plan.width),
        ):
            firsts = [first for first, _ in cells_along(length, plan.block, plan.overlap).values()]
            draft.attach(name, (place,), np.array(firsts))
        draft.attach(DICTIONARY, ("band", "atom"), self.applied.model.atoms.detach().cpu().numpy())
        rows, columns = (sorted({place[axis] for place in tiles}) for axis in (0, 1))
        if tiles[0, 0].support:
            supports = np.array([[tiles[y, x].support for x in columns] for y in rows], np.int32)
            draft.attach(SUPPORT, ("tile_y", "tile_x", "code"), supports)

    def _header(self, scene: Scene) -> SceneHeader:
        whole = self.applied.settings.dtype == "input" and scene.dtype.kind in "ui"
        return SceneHeader(
            shape=scene.shape,
            dtype=np.dtype(scene.dtype if whole else np.float32),
            scale_factor=scene.scale_factor if whole else 1.0,
            wavelengths=scene.wavelengths,
            fwhm=scene.fwhm,
            has_mask=scene.has_mask,
            codes=self.applied.model.code_count if self.applied.settings.codes else 0,
            attributes={
                **scene.attributes,
                "denoised_with": {
                    "weights_sha256": self.applied.weights,
                    "overlap": self.applied.overlap,
                    "precision": self.applied.settings.precision,
                },
            },
        )


def _are_intact(folder: Path, files: list[Path], record: Record) -> bool:
    """Whether files are on disk as they were written."""
    try:
        return all(checksum_of(file) == record.checksums.get(str(file.relative_to(folder))) for file in files)
    except FileNotFoundError:
        return False
