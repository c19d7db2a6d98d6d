"""The ledger: what is to be done, one small file for every finished unit, every complete scene, every scene that failed.

It alone says what is done. It lies beside the output archive, so that a copied archive carries no job state, and every file in
it is written in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from hpcdeq.archive import Archive
from hpcdeq.archive.staging import beside, check_no_link
from hpcdeq.documents import read_json, shortened
from hpcdeq.errors import ConfigError
from hpcdeq.inference.applied import DenoiseSettings
from hpcdeq.inference.plan import LEDGER_FORMAT, ScenePlan, Unit
from hpcdeq.inference.tiles import Convergence, TileSolution

T = TypeVar("T")

# Beside units there may be what NFS keeps of a file that was replaced while somebody read it.
_UNIT = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.json")


@dataclass(frozen=True)
class Job:
    """What is being done: enough to go on with it, or to repair what it made."""

    archive: Path
    """The archive that is denoised."""
    model: Path
    settings: DenoiseSettings
    scenes: Sequence[ScenePlan]
    there: int = 0
    """How many of the scenes, the first ones, were in the archive when this was planned: the rest is shared out by itself."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a finished unit."""

    checksums: dict[str, int]
    """Checksum of every file that was written, by its path inside the scene."""
    tiles: list[TileSolution]
    """How each tile of the unit was solved."""
    masked: int = 0
    """Pixels without data."""
    noise: list[float] = field(default_factory=list)
    """Noise level of every band, of the unit in the middle of its scene; none for the others."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """What is known of a complete scene."""

    fingerprint: str
    checksums: dict[str, int]
    """Checksum of every file, by its path inside the scene."""
    convergence: Convergence
    masked: int
    """Pixels without data."""
    noise: float
    """Noise level of the input, the mean of its bands, in units of 1/255."""
    remarks: list[str]
    """What its user should know."""


def ledger_folder(out: Path) -> Path:
    """Return where the ledger of an output archive lies."""
    return beside(out, "ledger")


class Ledger:
    """What is done of an output archive.

    Parameters
    ----------
    out
        The output archive. Files of the ledger are begun in its staging folder, where those of killed runs are swept.
    """

    def __init__(self, out: Archive) -> None:
        self.out = out
        self.folder = ledger_folder(out.path)
        self._seen: tuple[int, int, set[tuple[str, str]]] | None = None

    def begin(self, job: Job) -> None:
        """Note what is to be done; units of scenes that are to be made otherwise, and all failures, are forgotten.

        What is known of a complete scene is kept until it is replaced.
        """
        check_no_link(self.folder)
        wanted = {scene.name: scene.fingerprint for scene in job.scenes}
        with contextlib.suppress(ConfigError):  # the first, or of another version
            for scene in self.job().scenes:
                fingerprint = wanted.get(scene.name)
                if fingerprint != scene.fingerprint and (fingerprint or not self.completed(scene.name)):
                    self.forget_units(scene)
        shutil.rmtree(self.folder / "failed", ignore_errors=True)
        self._write(
            self.folder / "job.json",
            {
                "format": LEDGER_FORMAT,
                "archive": str(job.archive.absolute()),
                "model": str(job.model.absolute()),
                "settings": asdict(job.settings),
                "scenes": [astuple(scene) for scene in job.scenes],
                "there": job.there,
            },
        )

    def job(self) -> Job:
        """Return what is being, or was, done.

        Raises
        ------
        ConfigError
            If nothing was: there is no ledger beside the archive, or one of another version.
        """
        stored = _read(self.folder / "job.json")
        if not isinstance(stored, dict):
            raise ConfigError(
                f"{self.out.path} is not an archive that hpcdeq denoise wrote: there is no readable {self.folder / 'job.json'}; "
                "name the --out of a denoise command"
            )
        if stored.get("format") != LEDGER_FORMAT:
            raise ConfigError(
                f"{self.folder} is of another version of hpcdeq; give the command that wrote it again, to go on with this one"
            )
        names = ScenePlan.__dataclass_fields__
        try:
            scenes = [dict(zip(names, values, strict=True)) for values in stored["scenes"]]
            return _as(Job, stored | {"scenes": scenes})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.folder / 'job.json'} is damaged ({shortened(str(error))}); give the command that wrote the archive again"
            ) from error

    def wants(self, scene: ScenePlan) -> bool:
        """Whether the scene is still to be made by this plan: a newer one may have come meanwhile."""
        told = (self.folder / "job.json").stat()
        if self._seen is None or self._seen[:2] != (told.st_ino, told.st_mtime_ns):
            self._seen = told.st_ino, told.st_mtime_ns, {(s.name, s.fingerprint) for s in self.job().scenes}
        return (scene.name, scene.fingerprint) in self._seen[2]

    # Units

    def read(self, unit: Unit) -> Record | None:
        """Return the record of a unit, or None if it is not finished."""
        stored = _read(self._unit(unit))
        names = TileSolution.__dataclass_fields__
        try:
            tiles = [dict(zip(names, values, strict=True)) for values in stored["tiles"]]
            return _as(Record, stored | {"tiles": tiles})
        except (ValueError, KeyError, TypeError):  # there is none, or it is damaged
            return None

    def write(self, unit: Unit, record: Record) -> None:
        """Record a finished unit; its shards must be on disk already."""
        self._write(self._unit(unit), vars(record) | {"tiles": [astuple(tile) for tile in record.tiles]})

    def finished(self, scene: ScenePlan) -> bool:
        """Whether all units of a scene have records."""
        return all(self._unit(unit).is_file() for unit in scene.units())

    def begun(self) -> set[str]:
        """Names of the scenes of which some unit is, or was, finished."""
        try:
            return {path.name for path in (self.folder / "units").iterdir()}
        except FileNotFoundError:
            return set()

    def times(self, scene: ScenePlan) -> dict[tuple[int, int], float]:
        """When each finished unit of a scene was recorded, in seconds since 1970, by the unit's first row and column."""
        times: dict[tuple[int, int], float] = {}
        try:
            with os.scandir(self._units(scene)) as files:
                for file in files:
                    if found := _UNIT.fullmatch(file.name):
                        times[int(found[1]), int(found[2])] = file.stat().st_mtime
        except FileNotFoundError:  # none, or they are being forgotten
            return {}
        return times

    # Scenes

    def complete(self, scene: str, what: Complete) -> None:
        """Record a scene that is complete."""
        self._write(self._complete(scene), asdict(what))
        self._failed(scene).unlink(missing_ok=True)

    def completed(self, scene: str) -> Complete | None:
        """Return what is known of a complete scene, None if it is not complete."""
        try:
            return _as(Complete, _read(self._complete(scene)))
        except ValueError:  # there is none, or it is damaged
            return None

    def completed_at(self, scene: str) -> float | None:
        """When a scene was recorded as complete, in seconds since 1970; None if it is not."""
        try:
            return self._complete(scene).stat().st_mtime
        except FileNotFoundError:
            return None

    def all_completed(self) -> Iterator[tuple[str, Complete]]:
        """All scenes that were completed, in the order of their names."""
        for name in self._names("complete"):
            if what := self.completed(name):
                yield name, what

    def fail(self, scene: str, reason: str) -> None:
        """Record why a scene could not be finished; forgotten when it is."""
        self._write(self._failed(scene), {"reason": reason})

    def failures(self) -> dict[str, str]:
        """Why scenes could not be finished, by name."""
        stored = {name: _read(self._failed(name)) for name in self._names("failed")}
        return {name: str(told.get("reason")) for name, told in stored.items() if isinstance(told, dict)}

    def forget(self, scene: ScenePlan) -> None:
        """Forget all records of a scene."""
        self.forget_units(scene)
        self._complete(scene.name).unlink(missing_ok=True)

    def forget_units(self, scene: ScenePlan) -> None:
        """Forget the units of a scene as this plan makes it."""
        shutil.rmtree(self._units(scene), ignore_errors=True)

    def _names(self, kind: str) -> list[str]:
        return sorted(
            path.name.removesuffix(".json")
            for path in (self.folder / kind).glob("*.json")
            if not path.name.startswith(".")
        )

    def _units(self, scene: ScenePlan) -> Path:
        return self.folder / "units" / scene.name / scene.fingerprint

    def _unit(self, unit: Unit) -> Path:
        return self._units(unit.scene) / f"{unit.window.y0}-{unit.window.x0}.json"

    def _complete(self, scene: str) -> Path:
        return self.folder / "complete" / f"{scene}.json"

    def _failed(self, scene: str) -> Path:
        return self.folder / "failed" / f"{scene}.json"

    def _write(self, path: Path, values: Any) -> None:
        """Write a file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.out.attempt("ledger")
        aside.parent.mkdir(exist_ok=True)
        with aside.open("w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def _as(kind: Callable[..., T], stored: Any) -> T:
    """Make an object of what is stored of it; a ValueError if it is not that."""
    found: T = _adapter(kind).validate_python(stored)
    return found


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _read(path: Path) -> Any:
    """Return what is in a file; None if there is none, or it is damaged: what it told of is done again."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None
