"""Scenes being written: aside, whole shards only, visible in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from hpcdeq.archive import layout
from hpcdeq.archive.layout import FINGERPRINT, RADIANCE, SHARD_CHECKSUM, SceneHeader
from hpcdeq.archive.scene import Scene, checksum_of
from hpcdeq.archive.staging import StagedFolder
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

# Every shard must exist as a file, even one of zeros: a missing file is a lost shard, never data.
_WRITE_ZEROS: Any = {"write_empty_chunks": True}


class SceneDraft:
    """A scene being written aside. Only whole shards can be written; `publish` makes it visible in one step."""

    def __init__(
        self,
        archive: StagedFolder,
        name: str,
        header: SceneHeader,
        path: Path,
        fingerprint: str | None = None,
        damaged: Collection[str] = (),
    ) -> None:
        self.archive = archive
        self.name = name
        self.path = path
        self.fingerprint = fingerprint
        if fingerprint is not None:
            header = replace(header, attributes={**header.attributes, FINGERPRINT: fingerprint})
        making = archive.attempt(name)
        _create(making, header)
        try:
            making.rename(path)
        except OSError:  # begun before, or another process was faster
            if not path.is_dir() or path.is_symlink():
                raise
            self._mend(making, damaged)
            shutil.rmtree(making)
        self.scene = Scene(path)
        self.scene.name = name
        self._writable = zarr.open_group(path, mode="r+", zarr_format=3)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write the stored values ``(band, y, x)`` of a window of whole shards.

        Two writers must not share a shard (unaligned writes lose data without an error), so the alignment is asserted.
        """
        _, height, width = self.scene.shape
        edge_y, edge_x = self.scene.shard_shape
        begins = window.y0 % edge_y == 0 and window.x0 % edge_x == 0
        ends = window.y1 in (height, window.y1 // edge_y * edge_y) and window.x1 in (
            width,
            window.x1 // edge_x * edge_x,
        )
        assert begins, f"{window} does not begin at a shard"
        assert ends, f"{window} does not end at a shard"
        files = [self.scene.shard_path(shard) for shard in self.scene.shards(window)]
        self._write(RADIANCE, (slice(None), *window.slices), values, files)

    def write_codes(self, window: Window, codes: NDArray[np.float16]) -> None:
        """Write the sparse codes (code, y, x) of a window of whole shards."""
        files = [self.scene.shard_path(shard, layout.CODES) for shard in self.scene.shards(window)]
        self._write(layout.CODES, (slice(None), *window.slices), codes, files)

    def write_mask(self, window: Window, valid: NDArray[np.bool_]) -> None:
        """Write the validity (y, x) of a window of whole shards."""
        files = [self.scene.mask_path(shard) for shard in self.scene.shards(window)]
        self._write(layout.VALID_MASK, window.slices, valid.astype(np.uint8), files)

    def attach(self, name: str, dimensions: tuple[str, ...], values: NDArray[Any]) -> None:
        """Put a small array beside the pixels, in one step; one that is there already stays."""
        aside = self.archive.attempt(self.name)
        zarr.create_group(aside, zarr_format=3).create_array(
            name, data=values, dimension_names=dimensions, config=_WRITE_ZEROS
        )
        try:
            (aside / name).rename(self.path / name)
        except OSError:
            if not (self.path / name).exists():
                raise
        finally:
            shutil.rmtree(aside)

    def secure(self, files: Iterable[Path]) -> dict[str, int]:
        """Make files that were written outlast a loss of power, and return the checksum of each by its path inside the scene."""
        sums = {}
        folders = set()
        for path in files:
            _sync(path)
            folders.add(path.parent)
            sums[str(path.relative_to(self.path))] = checksum_of(path)
        for folder in folders:
            _sync(folder)
        return sums

    def publish(
        self, last: Callable[[], None] = lambda: None, known: Mapping[str, int] | None = None
    ) -> None:
        """Write the checksums of all shards and move the scene into the archive, in place of one of that name.

        Several processes that write one scene may all do so: the first makes it visible, the others find it done.

        Parameters
        ----------
        last
            Done when everything is written, before the scene is moved.
        known
            Checksums of files, as `secure` told them: these are not read again.

        Raises
        ------
        SceneError
            If a shard was never written.
        """
        if self._is_visible():
            return
        edge_y, edge_x = self.scene.shard_shape
        sums = np.zeros(self._array(SHARD_CHECKSUM).shape, np.uint64)
        for window in self.scene.shards():
            file = self.scene.shard_path(window)
            if not file.is_file():
                if self._is_visible():
                    return
                raise SceneError(f"scene {self.name}: shard {file.relative_to(self.path)} was not written")
            sum_ = (known or {}).get(str(file.relative_to(self.path)))
            sums[window.y0 // edge_y, window.x0 // edge_x] = checksum_of(file) if sum_ is None else sum_
        self._write_checksums(sums)
        last()
        if self._is_visible():
            return
        target = self.archive.path / self.name
        replaced = self.archive.attempt(self.name)
        if target.exists():
            target.rename(replaced)
        try:
            self.path.rename(target)
        except FileNotFoundError:
            if self.fingerprint is None:
                raise
            if not target.exists() and replaced.exists():  # it was what the other had just made visible
                replaced.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    def _is_visible(self) -> bool:
        """Whether another process has made the scene visible; what this one wrote here since then goes."""
        visible = self.fingerprint is not None and self.archive.fingerprint(self.name) == self.fingerprint
        if visible:
            self.discard()
        return visible

    def _write_checksums(self, sums: NDArray[np.uint64]) -> None:
        """Aside, and each file moved here in one step: what lies half written in a scene is removed when it is complete."""
        aside = self.archive.attempt(self.name)
        zarr.create_group(aside, zarr_format=3).create_array(
            SHARD_CHECKSUM, data=sums, chunks=self._array(SHARD_CHECKSUM).chunks, config=_WRITE_ZEROS
        )
        _move(aside / SHARD_CHECKSUM / "c", self.path / SHARD_CHECKSUM / "c")
        shutil.rmtree(aside)

    def _mend(self, new: Path, damaged: Collection[str]) -> None:
        """Put right what every new draft has, as a loss of power may have torn it; remove what is damaged of what `attach` made."""
        for name in damaged:
            if not (new / Path(name).parts[0]).exists():
                shutil.rmtree(self.path / Path(name).parts[0], ignore_errors=True)
        _move(new, self.path)

    def discard(self) -> None:
        """Remove the draft."""
        self.archive.discard(self.path)

    def _write(self, name: str, where: Any, values: NDArray[Any], files: list[Path]) -> None:
        try:
            self._array(name)[where] = values
        except (ValueError, RuntimeError):
            # Zarr reads the shards at a scene's border before it writes them; those that a crash has cut off cannot be read.
            for file in files:
                file.unlink(missing_ok=True)
            self._array(name)[where] = values

    def _array(self, name: str) -> zarr.Array[Any]:
        array = cast("zarr.Array[Any]", self._writable[name])
        return array.with_config(_WRITE_ZEROS)  # an array that is opened again forgets it


def _move(source: Path, target: Path) -> None:
    """Move the files of a folder into another, each in one step, but those that are there with the same bytes."""
    for file in [file for file in source.rglob("*") if file.is_file()]:
        there = target / file.relative_to(source)
        if not there.is_file() or there.read_bytes() != file.read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            file.replace(there)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _create(path: Path, header: SceneHeader) -> None:
    """Make a scene without pixels."""
    attributes = {**header.attributes, "Conventions": "CF-1.13", "hpcdeq_schema": layout.SCHEMA}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    create = partial(group.create_array, config=_WRITE_ZEROS)
    bands, height, width = header.shape
    edge_y, edge_x = (layout.shard_edge(n, bands) for n in (height, width))
    codecs: Any = [ZstdCodec(level=3), Crc32cCodec()]
    units: dict[str, Any] = {
        "scale_factor": header.scale_factor,
        "units": "1",
        "long_name": "scaled radiance",
    }
    if header.wavelengths is not None:
        units["coordinates"] = layout.WAVELENGTH

    def create_sharded(
        name: str, channel: str, channels: int, dtype: Any, attributes: dict[str, Any]
    ) -> None:
        create(
            name,
            shape=(channels, height, width),
            dtype=dtype,
            chunks=(channels, layout.CHUNK, layout.CHUNK),
            shards=(channels, edge_y, edge_x),
            compressors=codecs,
            fill_value=0,
            dimension_names=(channel, "y", "x"),
            attributes=attributes,
        )

    create_sharded(RADIANCE, "band", bands, header.dtype, units)
    if header.codes:
        create_sharded(layout.CODES, "code", header.codes, "float16", {"long_name": "sparse codes"})
    for name, values in ((layout.WAVELENGTH, header.wavelengths), (layout.FWHM, header.fwhm)):
        if values is not None:
            create(
                name,
                data=np.asarray(values, np.float64),
                dimension_names=("band",),
                attributes={"units": "nm"},
            )
    if header.has_mask:
        create(
            layout.VALID_MASK,
            shape=(height, width),
            dtype="uint8",
            chunks=(edge_y, edge_x),
            compressors=codecs,
            fill_value=0,
            dimension_names=("y", "x"),
            attributes={"long_name": "1 where the pixel holds data"},
        )
    create(
        SHARD_CHECKSUM,
        shape=(-(-height // edge_y), -(-width // edge_x)),
        dtype="uint64",
        dimension_names=("shard_y", "shard_x"),
        attributes={"long_name": "first 64 bits of the SHA-256 of every shard file of radiance"},
    )
