"""Open and write archives: a root group, one group per scene, whole shards only, visible only when complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from hpcdeq.archive import layout
from hpcdeq.archive.layout import RADIANCE, SHARD_CHECKSUM, SceneHeader
from hpcdeq.errors import ArchiveError, ArchiveNotFoundError, SceneError
from hpcdeq.tiling import Window, partition

_STALE_SECONDS = 24 * 3600.0


class Scene:
    """A stored scene, opened for reading.

    Parameters
    ----------
    path
        Folder of the scene's Zarr group.

    Raises
    ------
    SceneError
        If its metadata is missing, of another schema, or outside the bounds of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            group = zarr.open_group(path, mode="r", zarr_format=3)
            array = group[RADIANCE]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise SceneError(f"scene {self.name}: not a readable Zarr v3 scene at {path}: {error}") from error
        if not isinstance(array, zarr.Array):
            raise SceneError(f"scene {self.name}: {RADIANCE!r} is a group, not an array")
        self._group = group
        self.radiance: zarr.Array[Any] = array
        _check_metadata(self.name, group, array)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the scene's group."""
        return dict(self._group.attrs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(band, y, x)."""
        return cast(tuple[int, int, int], tuple(self.radiance.shape))

    @property
    def scale_factor(self) -> float:
        """Stored value times this is what models see, nominally in [0, 1]."""
        return float(cast(float, self.radiance.attrs.get("scale_factor", 1.0)))

    @property
    def content_sha256(self) -> str:
        """Digest of the stored pixels: the checksums of all shards, in order."""
        return hashlib.sha256(self.shard_checksums.tobytes()).hexdigest()

    @cached_property
    def wavelengths(self) -> NDArray[np.float64] | None:
        """(band,) in nm, or None if the raw file told none."""
        return self._optional(layout.WAVELENGTH)

    @cached_property
    def fwhm(self) -> NDArray[np.float64] | None:
        """(band,) in nm, or None."""
        return self._optional(layout.FWHM)

    @cached_property
    def shard_checksums(self) -> NDArray[np.uint32]:
        """(shard_y, shard_x) crc32c of every shard's file, as written when the scene was complete."""
        stored = self._optional(SHARD_CHECKSUM)
        if stored is None:
            raise SceneError(f"scene {self.name}: no {SHARD_CHECKSUM!r} array; ingest the scene again")
        return stored.astype(np.uint32)

    @property
    def has_mask(self) -> bool:
        """Whether some pixels hold no data."""
        return layout.VALID_MASK in self._group

    def valid_mask(self, window: Window | None = None) -> NDArray[np.bool_]:
        """(y, x), False where a pixel holds no data."""
        window = window or self.extent
        if not self.has_mask:
            return np.ones((window.height, window.width), bool)
        mask = cast("zarr.Array[Any]", self._group[layout.VALID_MASK])
        return np.asarray(mask[window.slices]).astype(bool)

    @property
    def extent(self) -> Window:
        """The whole scene."""
        return Window(0, self.shape[1], 0, self.shape[2])

    @property
    def shard_shape(self) -> tuple[int, int]:
        """(y, x) size of a shard in pixels; the last of a row or column may be smaller."""
        _, y, x = self.radiance.shards or self.radiance.chunks
        return y, x

    def shards(self) -> Iterator[Window]:
        """Windows of all shards, row by row."""
        return partition(self.shape[1], self.shape[2], *self.shard_shape)

    def read(self, window: Window | None = None) -> NDArray[np.float32]:
        """Pixels ``(band, y, x)`` of a window as models see them: float32, scaled, 0 where masked.

        Raises
        ------
        SceneError
            If a chunk is damaged.
        """
        window = window or self.extent
        try:
            stored = np.asarray(self.radiance[(slice(None), *window.slices)])
        except Exception as error:  # codecs raise whatever they like
            raise SceneError(
                f"scene {self.name}: cannot read rows {window.y0}:{window.y1}, columns {window.x0}:{window.x1}: "
                f"{error}; `hpcdeq validate` names the damaged chunks"
            ) from error
        values: NDArray[np.float32] = np.multiply(stored, np.float32(self.scale_factor), dtype=np.float32)
        if self.has_mask:
            values[:, ~self.valid_mask(window)] = 0.0
        return values

    def shard_path(self, window: Window) -> Path:
        """File of the shard that holds ``window``."""
        edge_y, edge_x = self.shard_shape
        return shard_file(self.path, window.y0 // edge_y, window.x0 // edge_x)

    def header(self) -> SceneHeader:
        """All that is stored beside the pixels, to write a scene like this one."""
        return SceneHeader(
            shape=self.shape,
            dtype=np.dtype(self.radiance.dtype),
            scale_factor=self.scale_factor,
            wavelengths=self.wavelengths,
            fwhm=self.fwhm,
            has_mask=self.has_mask,
            attributes=self.attributes,
        )

    def _optional(self, name: str) -> NDArray[Any] | None:
        if name not in self._group:
            return None
        return np.asarray(cast("zarr.Array[Any]", self._group[name])[...])


def shard_file(scene: Path, row: int, column: int) -> Path:
    """File of shard (row, column) of a scene's radiance."""
    return scene / RADIANCE / "c" / "0" / str(row) / str(column)


def crc32c_of(path: Path) -> int:
    """crc32c of a file's bytes."""
    return int(google_crc32c.value(path.read_bytes()))


class Archive:
    """A folder of scenes. Iterating gives the scenes' names in order; ``archive[name]`` opens one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Names of all complete scenes, sorted."""
        return sorted(
            p.name
            for p in self.path.iterdir()
            if p.is_dir() and not p.name.startswith(".") and (p / "zarr.json").is_file()
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: str) -> bool:
        return (self.path / layout.check_name(name) / "zarr.json").is_file()

    def __getitem__(self, name: str) -> Scene:
        if name not in self:
            known = ", ".join(self.names()[:10]) or "none"
            raise ArchiveNotFoundError(f"no scene {name!r} in {self.path}; it holds: {known}")
        return Scene(self.path / name)

    def scenes(self) -> list[Scene]:
        """Open every scene."""
        return [self[name] for name in self]

    @property
    def staging(self) -> Path:
        """Folder beside the archive for scenes that are not complete yet."""
        return self.path.with_name(f"{self.path.name}.staging")

    def draft(self, name: str, header: SceneHeader) -> SceneDraft:
        """Begin a scene of your own: aside, under a name that no other process uses."""
        return SceneDraft(self, name, header, self.attempt(name))

    def shared_draft(self, name: str, header: SceneHeader, key: str) -> SceneDraft:
        """Begin, or go on with, a scene that is written over several runs: ``key`` tells what will be in it."""
        return SceneDraft(self, name, header, self.staging / f"{layout.check_name(name)}@{key}")

    def attempt(self, name: str) -> Path:
        """Path in the staging folder that no other process uses; it tells whose it is."""
        owner = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        return self.staging / f"{layout.check_name(name)}@{owner}"

    def sweep(self) -> None:
        """Remove attempts that killed runs left aside: those of dead processes of this host, of others after a day."""
        if not self.staging.is_dir():
            return
        for left in self.staging.iterdir():
            owner = left.name.partition("@")[2].rsplit(".", 2)
            if len(owner) != 3:
                continue  # a shared draft, which waits to be gone on with
            host, pid, _ = owner
            dead = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
            if dead or time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Remove the staging folder if nothing is left in it."""
        with contextlib.suppress(OSError):  # another process writes there, or it never existed
            self.staging.rmdir()


def open_archive(path: Path | str, *, create: bool = False) -> Archive:
    """Open an archive.

    Parameters
    ----------
    path
        Folder of the archive's root group.
    create
        Make an empty archive if there is nothing at ``path``.

    Raises
    ------
    ArchiveNotFoundError
        If there is nothing at ``path`` and ``create`` is False.
    ArchiveError
        If there is something else, or an archive of a newer schema.
    """
    path = Path(path)
    if create and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        zarr.create_group(path, zarr_format=3, attributes={"hpcdeq_schema": layout.SCHEMA})
    if not path.exists():
        raise ArchiveNotFoundError(
            f"no archive at {path}; make one with: hpcdeq ingest RAW... --archive {path}"
        )
    try:
        schema = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("hpcdeq_schema")
    except (OSError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} is not an hpcdeq archive: it has no Zarr v3 root group") from error
    if schema is None:
        raise ArchiveError(
            f"{path} is a Zarr group, but not an hpcdeq archive: it has no 'hpcdeq_schema' attribute"
        )
    if schema != layout.SCHEMA:
        raise ArchiveError(
            f"{path} has schema {schema}; this version reads schema {layout.SCHEMA}: update hpcdeq"
        )
    return Archive(path)


class SceneDraft:
    """A scene being written aside. Only whole shards can be written; `publish` makes it visible in one step."""

    def __init__(self, archive: Archive, name: str, header: SceneHeader, path: Path) -> None:
        self.archive = archive
        self.name = name
        self.path = path
        if not path.exists():
            making = archive.attempt(name)
            _create(making, header)
            making.rename(path)
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
        self._array(RADIANCE)[(slice(None), *window.slices)] = values

    def write_mask(self, window: Window, valid: NDArray[np.bool_]) -> None:
        """Write the validity (y, x) of a window of whole shards."""
        self._array(layout.VALID_MASK)[window.slices] = valid.astype(np.uint8)

    def publish(self) -> None:
        """Write the checksums of all shards and move the scene into the archive, in place of one of that name.

        Raises
        ------
        SceneError
            If a shard was never written.
        """
        edge_y, edge_x = self.scene.shard_shape
        sums = np.zeros(self._array(SHARD_CHECKSUM).shape, np.uint32)
        for window in self.scene.shards():
            file = self.scene.shard_path(window)
            if not file.is_file():
                raise SceneError(f"scene {self.name}: shard {file.relative_to(self.path)} was not written")
            sums[window.y0 // edge_y, window.x0 // edge_x] = crc32c_of(file)
        self._array(SHARD_CHECKSUM)[...] = sums
        target = self.archive.path / self.name
        replaced = self.archive.attempt(self.name)
        if target.exists():
            target.rename(replaced)
        self.path.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        self.archive.close()

    def discard(self) -> None:
        """Remove the draft."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.archive.close()

    def _array(self, name: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self._writable[name])


def _create(path: Path, header: SceneHeader) -> None:
    """Make a scene without pixels."""
    attributes = {**header.attributes, "Conventions": "CF-1.13", "hpcdeq_schema": layout.SCHEMA}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    bands, height, width = header.shape
    edge_y, edge_x = (layout.shard_edge(n, bands) for n in (height, width))
    # Every shard must exist as a file, even one of zeros: a missing file is a lost shard, never data.
    config: Any = {"write_empty_chunks": True}
    codecs: Any = [ZstdCodec(level=3), Crc32cCodec()]
    units: dict[str, Any] = {
        "scale_factor": header.scale_factor,
        "units": "1",
        "long_name": "scaled radiance",
    }
    if header.wavelengths is not None:
        units["coordinates"] = layout.WAVELENGTH
    group.create_array(
        RADIANCE,
        shape=header.shape,
        dtype=header.dtype,
        chunks=(bands, layout.CHUNK, layout.CHUNK),
        shards=(bands, edge_y, edge_x),
        compressors=codecs,
        fill_value=0,
        dimension_names=("band", "y", "x"),
        attributes=units,
        config=config,
    )
    for name, values in ((layout.WAVELENGTH, header.wavelengths), (layout.FWHM, header.fwhm)):
        if values is not None:
            array = group.create_array(
                name,
                shape=(bands,),
                dtype="float64",
                dimension_names=("band",),
                attributes={"units": "nm"},
                config=config,
            )
            array[...] = values
    if header.has_mask:
        group.create_array(
            layout.VALID_MASK,
            shape=(height, width),
            dtype="uint8",
            chunks=(edge_y, edge_x),
            compressors=codecs,
            fill_value=0,
            dimension_names=("y", "x"),
            attributes={"long_name": "1 where the pixel holds data"},
            config=config,
        )
    group.create_array(
        SHARD_CHECKSUM,
        shape=(-(-height // edge_y), -(-width // edge_x)),
        dtype="uint32",
        dimension_names=("shard_y", "shard_x"),
        attributes={"long_name": "crc32c of every shard file of radiance"},
        config=config,
    )


def _check_metadata(name: str, group: zarr.Group, array: zarr.Array[Any]) -> None:
    """Bound what the metadata claims before anything is allocated by it."""
    schema = group.attrs.get("hpcdeq_schema")
    if schema != layout.SCHEMA:
        raise SceneError(f"scene {name}: schema {schema!r}; this version reads schema {layout.SCHEMA}")
    if array.ndim != 3:
        raise SceneError(f"scene {name}: radiance must be (band, y, x), got shape {array.shape}")
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise SceneError(f"scene {name}: radiance must hold integers or floats, got {array.dtype}")
    bands, height, width = array.shape
    if not (
        1 <= bands <= layout.MAX_BANDS and 1 <= height <= layout.MAX_EDGE and 1 <= width <= layout.MAX_EDGE
    ):
        raise SceneError(
            f"scene {name}: shape {array.shape} is out of bounds: 1 to {layout.MAX_BANDS} bands, 1 to {layout.MAX_EDGE} pixels"
        )
    whole = array.shards or array.chunks
    size = int(np.prod([float(n) for n in whole])) * array.dtype.itemsize
    if size > layout.MAX_CHUNK_BYTES:
        raise SceneError(
            f"scene {name}: a shard of {size} bytes is over the bound of {layout.MAX_CHUNK_BYTES}"
        )
    unknown = _codec_names(array.metadata.to_dict()["codecs"]) - layout.CODECS
    if unknown:
        raise SceneError(
            f"scene {name}: codec {sorted(unknown)} is not among those allowed: {sorted(layout.CODECS)}"
        )


def _codec_names(codecs: Any) -> set[str]:
    names: set[str] = set()
    for codec in codecs:
        names.add(codec["name"])
        inner = codec.get("configuration", {}) or {}
        names |= _codec_names(inner.get("codecs", ())) | _codec_names(inner.get("index_codecs", ()))
    return names
