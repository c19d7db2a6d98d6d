"""A stored scene, opened for reading; what its metadata claims is bounded first."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.layout import RADIANCE, SHARD_CHECKSUM, SceneHeader
from hpcdeq.archive.shard import StoredArray, describe, metadata
from hpcdeq.documents import shortened
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window, partition


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
        # Read without Zarr, which takes ten times as long: archives have thousands of scenes.
        try:
            self._attributes: dict[str, Any] = dict(metadata(path, "group")["attributes"])
            layout.check_schema(self._attributes.get("hpcdeq_schema"), f"scene {self.name}")
            self._radiance = describe(path / RADIANCE)
            self._scale_factor = float(self._radiance.attributes.get("scale_factor", 1.0))
        except SceneError:
            raise
        except Exception as error:  # of all kinds, as anything may stand there
            raise SceneError(
                f"scene {self.name}: not a readable Zarr v3 scene at {path}: {type(error).__name__}: {shortened(str(error))}; "
                "docs/archive-format.md says what is read"
            ) from error
        self._check()

    @property
    def radiance(self) -> zarr.Array[Any]:
        """The stored pixels (band, y, x), as Zarr reads them: without checks of what is missing."""
        return zarr.open_array(self.path / RADIANCE, mode="r", zarr_format=3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored pixels."""
        return self._radiance.dtype

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the scene's group."""
        return dict(self._attributes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(band, y, x)."""
        return cast(tuple[int, int, int], self._radiance.shape)

    @property
    def scale_factor(self) -> float:
        """Stored value times this is what models see, nominally in [0, 1]."""
        return self._scale_factor

    @property
    def digest(self) -> str:
        """Changes when anything that is stored does: pixels, mask, coordinates, scale or attributes. No pixel is read for it.

        Raises
        ------
        SceneError
            If files of the checksums, the mask or the coordinates are missing.
        """
        shapes = self._radiance.shape, self._radiance.file_shape
        told = (*shapes, self.dtype.str, self.scale_factor, self._attributes)
        found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        try:
            for name in (SHARD_CHECKSUM, layout.VALID_MASK, layout.WAVELENGTH, layout.FWHM):
                if name == SHARD_CHECKSUM or self._has(name):
                    for file in (self.path / name / "zarr.json", *self._described(name).files()):
                        content = file.read_bytes()
                        found.update(f"{file.relative_to(self.path)} {len(content)} ".encode() + content)
        except (OSError, ValueError) as error:
            raise SceneError(
                f"scene {self.name}: cannot read {name}: {shortened(str(error))}; ingest the scene again"
            ) from error
        return found.hexdigest()

    @property
    def content_sha256(self) -> str:
        """Digest of the stored pixels: the checksums of all shards, in order."""
        return hashlib.sha256(self.shard_checksums.tobytes()).hexdigest()

    @property
    def identities(self) -> tuple[str, ...]:
        """What the scene is known by under any name: its pixels and, if it was ingested, its raw file, which copies of it share."""
        raw = self._attributes.get("source_sha256")
        variable = self._attributes.get("source_variable")
        of_raw = () if raw is None else (f"raw:{raw}" if variable is None else f"raw:{raw}:{variable}",)
        return (f"pixels:{self.content_sha256}", *of_raw)

    @cached_property
    def wavelengths(self) -> NDArray[np.float64] | None:
        """(band,) in nm, or None if the raw file told none; a `SceneError` if they are damaged."""
        return self._optional(layout.WAVELENGTH)

    @cached_property
    def fwhm(self) -> NDArray[np.float64] | None:
        """(band,) in nm, or None; a `SceneError` if they are damaged."""
        return self._optional(layout.FWHM)

    @cached_property
    def shard_checksums(self) -> NDArray[np.uint64]:
        """(shard_y, shard_x) checksum (`checksum_of`) of every shard's file, as written when the scene was complete."""
        stored = self._optional(SHARD_CHECKSUM)
        if stored is None:
            raise SceneError(f"scene {self.name}: no {SHARD_CHECKSUM!r} array; ingest the scene again")
        return stored.astype(np.uint64)

    @property
    def has_mask(self) -> bool:
        """Whether some pixels hold no data."""
        return self._has(layout.VALID_MASK)

    def valid_mask(self, window: Window | None = None) -> NDArray[np.bool_]:
        """(y, x), False where a pixel holds no data.

        Raises
        ------
        SceneError
            If it is damaged.
        """
        window = window or self.extent
        if not self.has_mask:
            return np.ones((window.height, window.width), bool)
        return self.beside(layout.VALID_MASK, window.slices).astype(bool)

    @property
    def extent(self) -> Window:
        """The whole scene."""
        return Window(0, self.shape[1], 0, self.shape[2])

    @property
    def shard_shape(self) -> tuple[int, int]:
        """(y, x) size of a shard in pixels; the last of a row or column may be smaller."""
        _, y, x = self._radiance.file_shape
        return y, x

    def shards(self, window: Window | None = None) -> Iterator[Window]:
        """Windows of all shards, row by row; or of those in a window that begins at one."""
        window = window or self.extent
        for shard_ in partition(window.height, window.width, *self.shard_shape):
            yield shard_.shift(window.y0, window.x0)

    def stored(self, window: Window | None = None) -> NDArray[Any]:
        """Pixels ``(band, y, x)`` of a window as they are stored: to be multiplied by `scale_factor`.

        Raises
        ------
        SceneError
            If a chunk is damaged, or a shard is missing.
        """
        window = window or self.extent
        try:
            return self._radiance.read((slice(0, self.shape[0]), *window.slices))
        except Exception as error:  # codecs raise whatever they like
            raise SceneError(
                f"scene {self.name}: cannot read rows {window.y0}:{window.y1}, columns {window.x0}:{window.x1}: "
                f"{error}; `hpcdeq validate` names the damaged chunks"
            ) from error

    def read(self, window: Window | None = None) -> NDArray[np.float32]:
        """Pixels ``(band, y, x)`` of a window as models see them: float32, scaled, 0 where masked.

        Raises
        ------
        SceneError
            If a chunk is damaged, or a shard is missing.
        """
        values: NDArray[np.float32] = np.multiply(
            self.stored(window), np.float32(self.scale_factor), dtype=np.float32
        )
        return values

    @property
    def code_count(self) -> int:
        """Sparse codes a pixel of a scene denoised with them; 0 of one without."""
        return self._described(layout.CODES).shape[0] if self._has(layout.CODES) else 0

    def codes(self, window: Window | None = None) -> NDArray[np.float16]:
        """Sparse codes (code, y, x) of a window of a scene denoised with them.

        Raises
        ------
        SceneError
            If it has none, or they are damaged.
        """
        where = (slice(0, self.code_count), *(window or self.extent).slices)
        return self.beside(layout.CODES, where)

    @property
    def code_bytes(self) -> int:
        """Size on disk of its sparse codes; 0 if it has none."""
        return sum(
            f.stat().st_size
            for n in (layout.CODES, layout.SUPPORT)
            for f in (self.path / n).rglob("*")
            if f.is_file()
        )

    def decode(self, window: Window | None = None) -> NDArray[np.float32]:
        """Rebuild the pixels ``(band, y, x)`` of a window from the sparse codes that the fast map left beside them.

        Where tiles do not overlap they are the denoised pixels, up to the rounding of the codes to 16 bits; elsewhere those of
        the tile that owns them, unblended.

        Raises
        ------
        SceneError
            If the scene has no codes, or those of the full map, which are no copy of the pixels.
        """
        if not self.code_count:
            raise SceneError(f"scene {self.name} has no codes; denoise it with --codes to keep them")
        supports = self._optional(layout.SUPPORT)
        if supports is None:
            raise SceneError(
                f"scene {self.name} has codes of a full map: they leave out what many small codes carry, and do not rebuild "
                "the pixels; read radiance, or use a fast model"
            )
        window = window or self.extent
        dictionary, rows, columns = (
            self._stored_beside(name) for name in (layout.DICTIONARY, layout.CELL_Y, layout.CELL_X)
        )
        codes = self.codes(window).astype(np.float32)
        pixels = np.zeros((len(dictionary), window.height, window.width), np.float32)
        try:
            for i, (y0, y1) in enumerate(pairwise([*rows.tolist(), self.shape[1]])):
                for j, (x0, x1) in enumerate(pairwise([*columns.tolist(), self.shape[2]])):
                    cell = Window(y0, y1, x0, x1).intersect(window)
                    if cell.height > 0 and cell.width > 0:
                        inside = (slice(None), *cell.shift(-window.y0, -window.x0).slices)
                        pixels[inside] = np.tensordot(dictionary[:, supports[i, j]], codes[inside], 1)
        except (IndexError, ValueError, TypeError) as error:
            raise SceneError(
                f"scene {self.name}: its codes, supports and dictionary do not go together ({error}); denoise it again"
            ) from error
        return pixels

    def _stored_beside(self, name: str) -> NDArray[Any]:
        stored = self._optional(name)
        if stored is None:
            raise SceneError(f"scene {self.name}: no {name!r} array beside its codes; denoise it again")
        return stored

    def shard_path(self, window: Window, array: str = RADIANCE) -> Path:
        """File of the shard of an array, ``radiance`` or ``codes``, that holds ``window``."""
        edge_y, edge_x = self.shard_shape
        return self.path / array / "c" / "0" / str(window.y0 // edge_y) / str(window.x0 // edge_x)

    def mask_path(self, window: Window) -> Path:
        """File of the validity of the shard that holds ``window``."""
        edge_y, edge_x = self.shard_shape
        return self.path / layout.VALID_MASK / "c" / str(window.y0 // edge_y) / str(window.x0 // edge_x)

    def header(self) -> SceneHeader:
        """All that is stored beside the pixels, to write a scene like this one."""
        return SceneHeader(
            shape=self.shape,
            dtype=self.dtype,
            scale_factor=self.scale_factor,
            wavelengths=self.wavelengths,
            fwhm=self.fwhm,
            has_mask=self.has_mask,
            attributes=self.attributes,
        )

    def _check(self) -> None:
        """Bound what the metadata claim of the pixels beyond what holds for any array."""
        name, array = self.name, self._radiance
        if len(array.shape) != 3:
            raise SceneError(f"scene {name}: radiance must be (band, y, x), got shape {array.shape}")
        if array.shape[0] > layout.MAX_BANDS:
            raise SceneError(f"scene {name}: {array.shape[0]} bands are over the bound of {layout.MAX_BANDS}")
        if array.file_shape[0] < array.shape[0]:
            raise SceneError(f"scene {name}: a shard must hold all bands, got shards of {array.file_shape}")
        if not (math.isfinite(self._scale_factor) and self._scale_factor > 0):
            raise SceneError(f"scene {name}: scale_factor must be positive, got {self._scale_factor}")

    def _optional(self, name: str) -> NDArray[Any] | None:
        return self.beside(name) if self._has(name) else None

    def _has(self, name: str) -> bool:
        return (self.path / name / "zarr.json").is_file()

    def _described(self, name: str) -> StoredArray:
        """What the metadata tell of an array beside the pixels, which must have the shape that goes with theirs."""
        try:
            found = describe(self.path / name)
        except Exception as error:  # of all kinds, as anything may stand there
            raise self._unreadable(name, error) from error
        bands, *pixels = self.shape
        shards = [-(-size // edge) for size, edge in zip(pixels, self.shard_shape, strict=True)]
        meant = {
            layout.WAVELENGTH: [bands],
            layout.FWHM: [bands],
            layout.VALID_MASK: pixels,
            SHARD_CHECKSUM: shards,
            layout.CODES: [found.shape[0], *pixels],
        }.get(name, found.shape)
        if found.shape != tuple(meant):
            raise self._unreadable(name, ValueError(f"shape {found.shape}, not {tuple(meant)}"))
        return found

    def beside(self, name: str, where: tuple[slice, ...] | None = None) -> NDArray[Any]:
        """Read an array beside the pixels, or a part of it.

        Raises
        ------
        SceneError
            If it is damaged, or a part of it is missing.
        """
        found = self._described(name)
        try:
            if where is None and math.prod(found.shape) * found.dtype.itemsize > layout.MAX_CHUNK_BYTES:
                raise ValueError(f"shape {found.shape} is over the bound of {layout.MAX_CHUNK_BYTES} bytes")
            return found.read(where)
        except Exception as error:  # codecs raise whatever they like
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> SceneError:
        return SceneError(
            f"scene {self.name}: cannot read {name}: {shortened(str(error))}; ingest the scene again"
        )


def checksum_of(path: Path) -> int:
    """Return the first 64 bits of the SHA-256 of a file, which need not fit in memory.

    Not crc32c, though it is quicker: a chunk ends in its own, and the crc32c of bytes with their crc32c behind them is always
    the same. That of a shard's file would say how long its chunks are, and nothing of the pixels in them.
    """
    with path.open("rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "big")
