"""The ledger: one small file for every finished unit, one for every complete scene, one for every scene that failed.

It alone says what is done. It lies beside the output archive, so that a copied archive carries no job state, and every file in
it is written in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

from hpcdeq.errors import ConfigError
from hpcdeq.inference.plan import ScenePlan, Unit
from hpcdeq.inference.tiles import DenoiseSettings, TileSolution


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a finished unit."""

    checksums: dict[str, int]
    """crc32c of every file that was written, by its path inside the scene."""
    tiles: list[TileSolution]
    """How each tile of the unit was solved."""


@dataclass(frozen=True)
class Job:
    """What is being done: enough to go on with it, or to repair what it made."""

    archive: Path
    """The archive that is denoised."""
    model: Path
    settings: DenoiseSettings


class Ledger:
    """What is done of an output archive.

    Parameters
    ----------
    out
        Path of the output archive.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.ledger")

    def begin(self, job: Job, scenes: Sequence[ScenePlan]) -> None:
        """Note what is being done, and the plan of it: the same by every worker."""
        stored = {
            "archive": str(job.archive.absolute()),
            "model": str(job.model.absolute()),
            "settings": asdict(job.settings),
            "scenes": [[s.name, s.fingerprint, sum(1 for _ in s.units())] for s in scenes],
        }
        if _read(self.folder / "job.json") != stored:
            _write(self.folder / "job.json", stored)

    def job(self) -> Job:
        """Return what is being, or was, done.

        Raises
        ------
        ConfigError
            If nothing was: there is no ledger beside the archive.
        """
        stored = _read(self.folder / "job.json")
        if stored is None:
            raise ConfigError(
                f"there is no {self.folder}: it lies beside an archive that hpcdeq denoise wrote, and says what was written"
            )
        return Job(Path(stored["archive"]), Path(stored["model"]), DenoiseSettings(**stored["settings"]))

    def scenes(self) -> list[tuple[str, str, int]]:
        """Name, fingerprint and number of units of every scene of the plan.

        Raises
        ------
        ConfigError
            As `job`.
        """
        self.job()
        return [
            (name, fingerprint, units)
            for name, fingerprint, units in _read(self.folder / "job.json")["scenes"]
        ]

    def times(self, name: str, fingerprint: str) -> list[float]:
        """When each finished unit of a scene was recorded, in seconds since 1970."""
        try:
            with os.scandir(self.folder / "units" / name / fingerprint) as files:
                return [file.stat().st_mtime for file in files if not file.name.startswith(".")]
        except FileNotFoundError:
            return []

    def failures(self) -> dict[str, str]:
        """Why scenes could not be finished, by name."""
        files = sorted((self.folder / "failed").glob("*.json"))
        return {file.stem: stored["reason"] for file in files if (stored := _read(file)) is not None}

    def completed(self) -> list[str]:
        """Names of all scenes that were completed."""
        return sorted(path.stem for path in (self.folder / "complete").glob("*.json"))

    def read(self, unit: Unit) -> Record | None:
        """Return the record of a unit, or None if it is not finished."""
        stored = _read(self._unit(unit))
        if stored is None:
            return None
        tiles = starmap(TileSolution, stored["tiles"])
        return Record(
            checksums=stored["checksums"],
            tiles=[replace(tile, support=tuple(tile.support)) for tile in tiles],
        )

    def write(self, unit: Unit, record: Record) -> None:
        """Record a finished unit; its shards must be on disk already."""
        stored = {"checksums": record.checksums, "tiles": [astuple(tile) for tile in record.tiles]}
        _write(self._unit(unit), stored)

    def finished(self, scene: ScenePlan) -> bool:
        """Whether all units of a scene have records."""
        return all(self._unit(unit).is_file() for unit in scene.units())

    def complete(self, scene: ScenePlan, checksums: dict[str, int]) -> None:
        """Record the crc32c of all files of a scene that is complete, by their paths inside it."""
        _write(self._complete(scene.name), {"fingerprint": scene.fingerprint, "checksums": checksums})
        with contextlib.suppress(FileNotFoundError):
            self._failed(scene.name).unlink()

    def checksums(self, name: str) -> tuple[str, dict[str, int]] | None:
        """Return the fingerprint of a complete scene, and the crc32c of all its files; None if there is no such scene."""
        stored = _read(self._complete(name))
        return None if stored is None else (stored["fingerprint"], stored["checksums"])

    def fail(self, name: str, reason: str) -> None:
        """Record why a scene could not be finished; forgotten when it is."""
        _write(self._failed(name), {"reason": reason})

    def forget(self, scene: ScenePlan) -> None:
        """Forget all records of a scene."""
        shutil.rmtree(self._units(scene), ignore_errors=True)
        self._complete(scene.name).unlink(missing_ok=True)

    def _units(self, scene: ScenePlan) -> Path:
        return self.folder / "units" / scene.name / scene.fingerprint

    def _unit(self, unit: Unit) -> Path:
        return self._units(unit.scene) / f"{unit.window.y0}-{unit.window.x0}.json"

    def _complete(self, name: str) -> Path:
        return self.folder / "complete" / f"{name}.json"

    def _failed(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with aside.open("w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
