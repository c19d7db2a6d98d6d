"""The ledger: one small file for every finished unit. It alone says what is done."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import astuple, dataclass, replace
from itertools import starmap
from pathlib import Path

from hpcdeq.inference.tiles import TileSolution
from hpcdeq.tiling import Window


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a finished unit."""

    window: Window
    checksums: dict[str, int]
    """crc32c of every shard file of the unit, by its path inside the scene."""
    tiles: list[TileSolution]
    """How each tile of the unit was solved."""


class Ledger:
    """Finished units of one scene under one fingerprint.

    Parameters
    ----------
    folder
        Folder of the ledger, beside the output archive: a copied archive carries no job state.
    scene
        Name of the scene.
    fingerprint
        Digest of model, settings and input: units of another one do not count.
    """

    def __init__(self, folder: Path, scene: str, fingerprint: str) -> None:
        self.folder = folder / scene / fingerprint

    def read(self, window: Window) -> Record | None:
        """Return the record of a unit, or None if it is not finished."""
        try:
            stored = json.loads(self._path(window).read_text())
        except FileNotFoundError:
            return None
        return Record(
            window=window,
            checksums=stored["checksums"],
            tiles=[
                replace(tile, support=tuple(tile.support)) for tile in starmap(TileSolution, stored["tiles"])
            ],
        )

    def write(self, record: Record) -> None:
        """Record a finished unit, in one step; its shards must be on disk already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(record.window)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with aside.open("w") as file:
            json.dump(
                {"checksums": record.checksums, "tiles": [astuple(tile) for tile in record.tiles]}, file
            )
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def clear(self) -> None:
        """Forget all records."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, window: Window) -> Path:
        return self.folder / f"{window.y0}-{window.x0}.json"
