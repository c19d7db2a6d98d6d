"""Read everything an archive holds and name what is damaged, down to the chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcdeq.archive.layout import CHUNK, CODES
from hpcdeq.archive.scene import Scene, checksum_of
from hpcdeq.archive.store import Archive
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window, partition

_MOST_MISSING = 10  # that are named, of a scene: metadata can claim millions of shards


@dataclass(frozen=True)
class Problem:
    """Something damaged in a scene."""

    scene: str
    message: str
    window: Window | None = None
    """The pixels it is about; None if it is the whole scene."""

    def __str__(self) -> str:
        w = self.window
        where = f", rows {w.y0}:{w.y1}, columns {w.x0}:{w.x1}" if w else ""
        return f"scene {self.scene}{where}: {self.message}"


def validate(archive: Archive) -> Iterator[tuple[str, list[Problem]]]:
    """Check every scene of an archive; a bad one does not end the others.

    Yields
    ------
    name, problems
        For every scene in the order of their names; no problems if it is sound.
    """
    for name in archive:
        try:
            yield name, list(check_scene(archive[name]))
        except SceneError as error:
            yield name, [Problem(name, _message(error, name))]
        except Exception as error:  # codecs raise whatever they like
            yield name, [Problem(name, f"cannot be read ({type(error).__name__}: {error}); ingest it again")]


def check_scene(scene: Scene) -> Iterator[Problem]:
    """Read every chunk of a scene: shard files against their checksums, then every pixel.

    Yields
    ------
    problem
        One for every damaged chunk; one for a shard that is missing, or changed where no chunk shows why. Of many missing ones
        the first are named, and the last problem tells how many more there are.

    Raises
    ------
    SceneError
        If its checksums cannot be read at all.
    """
    yield from _check_coordinates(scene)
    sums = scene.shard_checksums
    edge_y, edge_x = scene.shard_shape
    grid = (-(-scene.shape[1] // edge_y), -(-scene.shape[2] // edge_x))
    if sums.shape != grid:
        raise SceneError(
            f"scene {scene.name}: {sums.shape} checksums for {grid} shards; ingest the scene again"
        )
    missing = 0
    for window in scene.shards():
        file = scene.shard_path(window)
        shown = file.relative_to(scene.path)
        if not file.is_file():
            missing += 1
            if missing <= _MOST_MISSING:
                yield Problem(scene.name, f"shard {shown} is missing; ingest the scene again", window)
            continue
        stored = int(sums[window.y0 // edge_y, window.x0 // edge_x])
        found = checksum_of(file)
        try:
            scene.valid_mask(window)
        except SceneError as error:
            yield Problem(scene.name, _message(error, scene.name), window)
        codes = scene.shard_path(window, CODES)
        if scene.code_count and not codes.is_file():
            yield Problem(
                scene.name, f"shard {codes.relative_to(scene.path)} is missing; denoise it again", window
            )
        chunks = list(_check_chunks(scene, window))
        yield from chunks
        if found != stored and not chunks:
            message = f"shard {shown} has checksum {found:016x}, not {stored:016x} as written; ingest the scene again"
            yield Problem(scene.name, message, window)
    if missing > _MOST_MISSING:
        yield Problem(scene.name, f"other missing shards: {missing - _MOST_MISSING}; ingest the scene again")


def _message(error: SceneError, name: str) -> str:
    return str(error).removeprefix(f"scene {name}: ")


def _check_coordinates(scene: Scene) -> Iterator[Problem]:
    for name, stored in (("wavelength", lambda: scene.wavelengths), ("fwhm", lambda: scene.fwhm)):
        try:
            values = stored()
        except SceneError as error:
            yield Problem(scene.name, _message(error, scene.name))
            continue
        if values is not None and not (
            values.shape == scene.shape[:1] and np.isfinite(values).all() and values.any()
        ):
            yield Problem(scene.name, f"{name} is not one number in nm a band; ingest the scene again")


def _check_chunks(scene: Scene, shard: Window) -> Iterator[Problem]:
    """Decode a shard at once; only where that fails, its chunks one by one."""
    problem = _decode(scene, shard)
    if problem is None:
        return
    for inner in partition(shard.height, shard.width, CHUNK, CHUNK):
        chunk = inner.shift(shard.y0, shard.x0)
        message = _decode(scene, chunk)
        if message is not None:
            yield Problem(scene.name, f"{message}; ingest the scene again", chunk)


def _decode(scene: Scene, window: Window) -> str | None:
    """Say what is wrong with the pixels of a window, or None."""
    try:
        values = scene.stored(window)
        if scene.code_count:
            scene.codes(window)
    except SceneError as error:
        return f"chunk cannot be decoded ({error.__cause__ or error})"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"chunk holds {int((~np.isfinite(values)).sum())} NaN or infinite values"
    return None
