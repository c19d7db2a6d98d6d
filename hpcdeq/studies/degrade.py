"""Noisy copies of clean archives, for studies."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from hpcdeq.archive import Archive, Scene, open_archive
from hpcdeq.console import progress
from hpcdeq.errors import ArchiveError, ConfigError
from hpcdeq.noise import Degradation, add_noise, stable_hash
from hpcdeq.tiling import partition


def degrade_archive(clean: Archive, out: Path, degradation: Degradation, seed: int) -> None:
    """Write a noisy copy of every scene; scenes that are there already with the same noise are kept.

    The noise of a scene is a function of (seed, name of the scene): the same as `hpcdeq.noise.add_noise` gives with
    that key, strip by strip of the scene's shard rows.

    Raises
    ------
    ConfigError
        If ``out`` is the archive that is read.
    ArchiveError
        If a scene is there already with other noise or from another scene.
    """
    if out.resolve() == clean.path.resolve():
        raise ConfigError(f"--out {out} is the archive that is read; choose another folder")
    noisy = open_archive(out, create=True)
    noisy.sweep()
    names = clean.names()
    for name in progress(names, len(names), "degrade"):
        scene = clean[name]
        how = json.dumps({**asdict(degradation), "seed": seed, "clean": scene.content_sha256}, sort_keys=True)
        if name not in noisy:
            _degrade(scene, noisy, degradation, seed, how)
        elif noisy[name].attributes.get("degradation") != how:
            raise ArchiveError(
                f"{name} is in {out} already, with other noise or from another scene; choose another folder"
            )


def _degrade(scene: Scene, noisy: Archive, degradation: Degradation, seed: int, how: str) -> None:
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
        valid = scene.valid_mask(rows)
        values[:, ~valid] = 0.0
        draft.write(rows, values)
        if scene.has_mask:
            draft.write_mask(rows, valid)
    draft.publish()


def noisy_copy(
    scene: Scene, degradation: Degradation, seed: int
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """Noisy pixels ``(band, y, x)`` of a whole scene, as `degrade_archive` would write them."""
    edge_y, _ = scene.shard_shape
    strips = partition(scene.shape[1], scene.shape[2], edge_y, scene.shape[2])
    key = (seed, stable_hash(scene.name))
    return np.concatenate(
        [add_noise(scene.read(w), degradation, key, i)[0] for i, w in enumerate(strips)], axis=1
    )
