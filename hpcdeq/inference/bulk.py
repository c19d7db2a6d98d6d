"""Denoise an archive into another: unit by unit, each recorded when it is written, each scene visible when complete."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from hpcdeq.archive import Archive, Scene, SceneDraft, SceneHeader, open_archive
from hpcdeq.archive.layout import CELL_X, CELL_Y, CODES, DICTIONARY, RADIANCE, SUPPORT
from hpcdeq.archive.scene import crc32c_of
from hpcdeq.console import Bar, say
from hpcdeq.errors import ConfigError, HpcdeqError, SceneError
from hpcdeq.inference.ledger import Ledger, Record
from hpcdeq.inference.tiles import Convergence, DenoiseSettings, TileSolution, denoise_window, prepare
from hpcdeq.models import SparseDenoiser, load_model
from hpcdeq.models.files import read_card
from hpcdeq.tiling import Window, cells_along, partition

_UNIT_SHARDS = (
    2  # edge of a unit: fewer tiles cross unit borders, and are computed twice, than with single shards
)
FINGERPRINT = "hpcdeq_fingerprint"


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
    archive: Archive, model_folder: Path, out: Path, settings: DenoiseSettings, *, overwrite: bool = False
) -> DenoiseReport:
    """Denoise every scene of an archive.

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
        Denoise also scenes that are there already.

    Raises
    ------
    ConfigError
        If ``out`` is the input archive, or the settings do not fit the model.
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
    job = _Job(model, read_card(model_folder)["weights_sha256"], settings, denoised, overwrite)
    report = DenoiseReport()
    names = archive.names()
    with Bar("denoise", len(names)) as bar:
        for name in names:
            try:
                scene = archive[name]
                convergence = job.denoise(scene, bar.note)
            except HpcdeqError as error:
                report.failed[name] = str(error)
                say(f"{name}: {error}")
            else:
                (report.skipped if convergence is None else report.done).append(name)
                report.convergence += convergence or Convergence()
                if settings.codes and convergence is not None:
                    report.code_bytes += denoised[name].code_bytes
                    report.pixel_bytes += 4 * math.prod(scene.shape)
            bar.advance()
    denoised.close()
    return report


class _Job:
    """One model and one output archive."""

    def __init__(
        self, model: SparseDenoiser, weights: str, settings: DenoiseSettings, out: Archive, overwrite: bool
    ) -> None:
        self.model, self.weights, self.settings = model, weights, settings
        self.out, self.overwrite = out, overwrite
        self.ledger = out.path.with_name(f"{out.path.name}.ledger")

    def denoise(self, scene: Scene, note: Callable[[str], None]) -> Convergence | None:
        """Denoise one scene; None if it was there already."""
        if scene.shape[0] != self.model.bands:
            raise SceneError(
                f"{scene.shape[0]} bands, but the model knows {self.model.bands}; train one for this sensor"
            )
        fingerprint = self.fingerprint(scene)
        ledger = Ledger(self.ledger, scene.name, fingerprint)
        if self.overwrite:
            ledger.clear()
        elif scene.name in self.out:
            if self.out[scene.name].attributes.get(FINGERPRINT) == fingerprint:
                return None
            say(f"{scene.name}: denoised before with another model, settings or input; denoising it again")
        draft = self.out.shared_draft(scene.name, self._header(scene, fingerprint), fingerprint)
        tiles: dict[tuple[int, int], TileSolution] = {}  # units share those at their borders
        units = list(_units(scene))
        for i, unit in enumerate(units, start=1):
            record = ledger.read(unit)
            if record is None or not _intact(draft, record):
                record = self._compute(scene, unit, draft)
                ledger.write(record)
            tiles |= {(tile.y0, tile.x0): tile for tile in record.tiles}
            note(f"{scene.name} unit {i}/{len(units)}")
        self._attach(draft, scene, tiles)
        draft.publish()
        return Convergence.of(tiles.values())

    def fingerprint(self, scene: Scene) -> str:
        """Digest of all that decides the bytes of a denoised scene."""
        solver = self.model.settings.solver
        what = {
            "ledger": 3,
            "weights": self.weights,
            "solver": asdict(solver),
            "precision": self.settings.precision,
            "overlap": self.settings.overlap_of(self.model),
            "codes": self.settings.codes,
            "batch": self.settings.batch if self.model.device.type != "cpu" else None,
            "input": scene.content_sha256,
            "scale_factor": scene.scale_factor,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def _compute(self, scene: Scene, unit: Window, draft: SceneDraft) -> Record:
        found = denoise_window(self.model, scene.read, scene.extent, unit, self.settings)
        if scene.has_mask:
            valid = scene.valid_mask(unit)
            found.values[:, ~valid] = 0.0
            draft.write_mask(unit, valid)
        draft.write(unit, found.values)
        arrays = [RADIANCE]
        if found.codes is not None:
            draft.write_codes(unit, found.codes)
            arrays.append(CODES)
        files = [file for array in arrays for file in _files(draft, unit, array)]
        sums = {str(file.relative_to(draft.path)): crc32c_of(file) for file in files}
        return Record(window=unit, checksums=sums, tiles=found.tiles)

    def _attach(self, draft: SceneDraft, scene: Scene, tiles: dict[tuple[int, int], TileSolution]) -> None:
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
        block, overlap = self.model.settings.block, self.settings.overlap_of(self.model)
        for name, place, size in zip((CELL_Y, CELL_X), places, scene.shape[1:], strict=True):
            firsts = [first for first, _ in cells_along(size, block, overlap).values()]
            draft.attach(name, (place,), np.array(firsts))
        draft.attach(DICTIONARY, ("band", "atom"), self.model.atoms.detach().cpu().numpy())
        if grid[0][0].support:
            supports = np.array([[tile.support for tile in row] for row in grid], np.int32)
            draft.attach(SUPPORT, (*places, "code"), supports)

    def _header(self, scene: Scene, fingerprint: str) -> SceneHeader:
        return SceneHeader(
            shape=scene.shape,
            dtype=np.dtype(np.float32),
            wavelengths=scene.wavelengths,
            fwhm=scene.fwhm,
            has_mask=scene.has_mask,
            codes=self.model.code_count if self.settings.codes else 0,
            attributes={
                **scene.attributes,
                FINGERPRINT: fingerprint,
                "denoised_with": {
                    "weights_sha256": self.weights,
                    "overlap": self.settings.overlap_of(self.model),
                    "precision": self.settings.precision,
                },
            },
        )


def _units(scene: Scene) -> Iterator[Window]:
    """Cut a scene into units of whole shards."""
    edge_y, edge_x = scene.shard_shape
    return partition(scene.shape[1], scene.shape[2], _UNIT_SHARDS * edge_y, _UNIT_SHARDS * edge_x)


def _files(draft: SceneDraft, unit: Window, array: str) -> list[Path]:
    """Shard files of a unit of an array."""
    shards = partition(unit.height, unit.width, *draft.scene.shard_shape)
    return [draft.scene.shard_path(shard.shift(unit.y0, unit.x0), array) for shard in shards]


def _intact(draft: SceneDraft, record: Record) -> bool:
    """Whether the shards of a finished unit are on disk as they were written."""
    files = {draft.path / name: checksum for name, checksum in record.checksums.items()}
    return all(file.is_file() and crc32c_of(file) == checksum for file, checksum in files.items())
