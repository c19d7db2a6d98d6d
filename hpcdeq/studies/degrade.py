"""Noisy copies of clean archives, for studies."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Archive, Scene, open_archive
from hpcdeq.console import progress, say
from hpcdeq.errors import ArchiveError, ConfigError, HpcdeqError
from hpcdeq.noise import Degradation, add_noise, stable_hash
from hpcdeq.tiling import partition


def degrade_archive(clean: Archive, out: Path, degradation: Degradation, seed: int) -> dict[str, str]:
    """Write a noisy copy of every scene; scenes that are there already with the same noise are kept.

    The noise of a scene is a function of (seed, name of the scene): the same as `hpcdeq.noise.add_noise` gives with
    that key, strip by strip of the scene's shard rows.

    Returns
    -------
    dict
        Scenes that could not be degraded, and why: damaged, or in ``out`` already with other noise or from another scene.

    Raises
    ------
    ConfigError
        If ``out`` is the archive that is read.
    """
    if out.resolve() == clean.path.resolve():
        raise ConfigError(f"--out {out} is the archive that is read; choose another folder")
    noisy = open_archive(out, create=True)
    noisy.sweep()
    names = clean.names()
    failed: dict[str, str] = {}
    for name in progress(names, len(names), "degrade"):
        try:
            _degrade(clean[name], noisy, degradation, seed)
        except HpcdeqError as error:
            failed[name] = str(error)
            say(f"{name}: {error}")
    noisy.close()
    return failed


def _degrade(scene: Scene, noisy: Archive, degradation: Degradation, seed: int) -> None:
    how = json.dumps({**asdict(degradation), "seed": seed, "clean": scene.content_sha256}, sort_keys=True)
    if scene.name in noisy:
        if noisy[scene.name].attributes.get("degradation") != how:
            raise ArchiveError(
                f"is in {noisy.path} already, with other noise or from another scene; choose another folder"
            )
        return
    header = scene.header()
    header = replace(
        header,
        dtype=np.dtype(np.float32),
        scale_factor=1.0,
        attributes={**header.attributes, "degradation": how},
    )
    draft = noisy.draft(scene.name, header)
    edge_y, _ = draft.scene.shard_shape
    _, height, width = scene.shape
    for strip, rows in enumerate(partition(height, width, edge_y, width)):
        values, _ = add_noise(scene.read(rows), degradation, (seed, stable_hash(scene.name)), strip)
        if scene.has_mask:
            valid = scene.valid_mask(rows)
            values[:, ~valid] = 0.0
            draft.write_mask(rows, valid)
        draft.write(rows, values)
    draft.publish()


def noisy_copy(scene: Scene, degradation: Degradation, seed: int) -> NDArray[np.float32]:
    """Noisy pixels ``(band, y, x)`` of a whole scene, as `degrade_archive` would write them."""
    return noisy_pixels(scene.read(), scene.name, degradation, seed, scene.shard_shape[0])


def noisy_pixels(
    clean: NDArray[np.float32], name: str, degradation: Degradation, seed: int, rows: int
) -> NDArray[np.float32]:
    """Noisy copy of pixels ``(band, y, x)`` of a scene of this name; noise is drawn for so many rows at a time."""
    key = (seed, stable_hash(name))
    strips = enumerate(range(0, clean.shape[1], rows))
    return np.concatenate(
        [add_noise(clean[:, y : y + rows], degradation, key, i)[0] for i, y in strips], axis=1
    )
