"""A stored scene, opened for reading; what its metadata claims is bounded first."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from hpcdeq.archive import layout, shard
from hpcdeq.archive.layout import RADIANCE, SHARD_CHECKSUM, SceneHeader
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
            group, array = _metadata(path, "group"), _metadata(path / RADIANCE, "array")
            self._attributes: dict[str, Any] = group["attributes"]
            self._scale_factor = float(array["attributes"].get("scale_factor", 1.0))
            self._shape = tuple(int(n) for n in array["shape"])
            self._shard_shape = tuple(int(n) for n in array["chunk_grid"]["configuration"]["chunk_shape"])
            self.dtype = np.dtype(array["data_type"])
            codecs = _codec_names(array["codecs"])
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise SceneError(
                f"scene {self.name}: not a readable Zarr v3 scene at {path}: {type(error).__name__}: {error}"
            ) from error
        self._check(codecs)

    @cached_property
    def radiance(self) -> zarr.Array[Any]:
        """The stored pixels (band, y, x)."""
        return zarr.open_array(self.path / RADIANCE, mode="r", zarr_format=3)

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r", zarr_format=3)

    @cached_property
    def _decodable(self) -> bool:
        return shard.readable(self.radiance)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the scene's group."""
        return dict(self._attributes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(band, y, x)."""
        return cast(tuple[int, int, int], self._shape)

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
        told = (self._shape, self._shard_shape, self.dtype.str, self.scale_factor, self._attributes)
        found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        try:
            for name in (SHARD_CHECKSUM, layout.VALID_MASK, layout.WAVELENGTH, layout.FWHM):
                if name == SHARD_CHECKSUM or self._has(name):
                    for file in (self.path / name / "zarr.json", *self._files(name)):
                        content = file.read_bytes()
                        found.update(f"{file.relative_to(self.path)} {len(content)} ".encode() + content)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise SceneError(
                f"scene {self.name}: cannot read {name}: {error}; ingest the scene again"
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
        return self._beside(layout.VALID_MASK, window.slices).astype(bool)

    @property
    def extent(self) -> Window:
        """The whole scene."""
        return Window(0, self.shape[1], 0, self.shape[2])

    @property
    def shard_shape(self) -> tuple[int, int]:
        """(y, x) size of a shard in pixels; the last of a row or column may be smaller."""
        _, y, x = self._shard_shape
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
            if not self._decodable:
                return self._through_zarr(RADIANCE, (slice(0, self.shape[0]), *window.slices))
            if window == self._shard_at(window.y0, window.x0):
                return shard.read_shard(self.shard_path(window), self.radiance, window)
            values = np.empty((self.shape[0], window.height, window.width), self.radiance.dtype)
            for whole in self._shards_that_meet(window):
                part = whole.intersect(window)
                inside = (slice(None), *part.shift(-window.y0, -window.x0).slices)
                values[inside] = shard.read_shard(self.shard_path(whole), self.radiance, whole, part)
            return values
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
    def codes(self) -> zarr.Array[Any] | None:
        """Sparse codes (code, y, x) of a scene denoised with them, or None."""
        return cast("zarr.Array[Any]", self._group[layout.CODES]) if layout.CODES in self._group else None

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
        stored = self.codes
        if stored is None:
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
        codes = self._beside(layout.CODES, (slice(0, stored.shape[0]), *window.slices)).astype(np.float32)
        pixels = np.empty((len(dictionary), window.height, window.width), np.float32)
        for i, (y0, y1) in enumerate(pairwise([*rows.tolist(), self.shape[1]])):
            for j, (x0, x1) in enumerate(pairwise([*columns.tolist(), self.shape[2]])):
                cell = Window(y0, y1, x0, x1).intersect(window)
                if cell.height > 0 and cell.width > 0:
                    inside = (slice(None), *cell.shift(-window.y0, -window.x0).slices)
                    pixels[inside] = np.tensordot(dictionary[:, supports[i, j]], codes[inside], 1)
        return pixels

    def _stored_beside(self, name: str) -> NDArray[Any]:
        stored = self._optional(name)
        if stored is None:
            raise SceneError(f"scene {self.name}: no {name!r} array beside its codes; denoise it again")
        return stored

    def _shard_at(self, y: int, x: int) -> Window:
        (edge_y, edge_x), (_, height, width) = self.shard_shape, self.shape
        y0, x0 = y // edge_y * edge_y, x // edge_x * edge_x
        return Window(y0, min(y0 + edge_y, height), x0, min(x0 + edge_x, width))

    def _shards_that_meet(self, window: Window) -> Iterator[Window]:
        edge_y, edge_x = self.shard_shape
        for y in range(window.y0 // edge_y * edge_y, window.y1, edge_y):
            for x in range(window.x0 // edge_x * edge_x, window.x1, edge_x):
                yield self._shard_at(y, x)

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

    def _check(self, codecs: set[str]) -> None:
        """Bound what the metadata claims before anything is allocated by it."""
        name, dtype = self.name, self.dtype
        schema = self._attributes.get("hpcdeq_schema")
        layout.check_schema(schema, f"scene {name}")
        if len(self._shape) != 3 or len(self._shard_shape) != 3:
            raise SceneError(f"scene {name}: radiance must be (band, y, x), got shape {self._shape}")
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise SceneError(f"scene {name}: radiance must hold integers or floats, got {dtype}")
        bands, height, width = self._shape
        if not (
            1 <= bands <= layout.MAX_BANDS
            and 1 <= height <= layout.MAX_EDGE
            and 1 <= width <= layout.MAX_EDGE
        ):
            raise SceneError(
                f"scene {name}: shape {self._shape} is out of bounds: 1 to {layout.MAX_BANDS} bands, 1 to {layout.MAX_EDGE} pixels"
            )
        size = math.prod(self._shard_shape) * dtype.itemsize
        if min(self._shard_shape) < 1 or size > layout.MAX_CHUNK_BYTES:
            raise SceneError(
                f"scene {name}: a shard of {size} bytes is over the bound of {layout.MAX_CHUNK_BYTES}"
            )
        if unknown := codecs - layout.CODECS:
            raise SceneError(
                f"scene {name}: codec {sorted(unknown)} is not among those allowed: {sorted(layout.CODECS)}"
            )

    def _optional(self, name: str) -> NDArray[Any] | None:
        return self._beside(name) if self._has(name) else None

    def _has(self, name: str) -> bool:
        return (self.path / name / "zarr.json").is_file()

    def _beside(self, name: str, where: tuple[slice, ...] | None = None) -> NDArray[Any]:
        """Read an array beside the pixels, or a part of it."""
        try:
            return self._through_zarr(name, where)
        except Exception as error:  # codecs raise whatever they like
            raise SceneError(
                f"scene {self.name}: cannot read {name}: {error}; ingest the scene again"
            ) from error

    def _through_zarr(self, name: str, where: tuple[slice, ...] | None = None) -> NDArray[Any]:
        """Read an array, or a part of it, of which all files are there: Zarr takes one that is missing for zeros."""
        for file in self._files(name, where):
            if not file.is_file():
                raise FileNotFoundError(f"{file.relative_to(self.path)} is missing")
        return np.asarray(cast("zarr.Array[Any]", self._group[name])[where or ...])

    def _files(self, name: str, where: tuple[slice, ...] | None = None) -> Iterator[Path]:
        """Files that hold an array, or a part of it."""
        told = _metadata(self.path / name, "array")
        edges = told["chunk_grid"]["configuration"]["chunk_shape"]
        where = where or tuple(slice(0, size) for size in told["shape"])
        numbers = (
            range(part.start // edge, -(-part.stop // edge)) for part, edge in zip(where, edges, strict=True)
        )
        for place in product(*numbers):
            yield self.path.joinpath(name, "c", *map(str, place))


def checksum_of(path: Path) -> int:
    """Return the first 64 bits of the SHA-256 of a file, which need not fit in memory.

    Not crc32c, though it is quicker: a chunk ends in its own, and the crc32c of bytes with their crc32c behind them is always
    the same. That of a shard's file would say how long its chunks are, and nothing of the pixels in them.
    """
    with path.open("rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "big")


def _metadata(path: Path, kind: str) -> dict[str, Any]:
    """Read what Zarr says of a group or an array."""
    told = json.loads((path / "zarr.json").read_text())
    if told["node_type"] != kind or told["zarr_format"] != 3:
        raise ValueError(f"{path.name} is no {kind} of Zarr v3")
    return cast("dict[str, Any]", told)


def _codec_names(codecs: Any) -> set[str]:
    names: set[str] = set()
    for codec in codecs:
        names.add(codec["name"])
        inner = codec.get("configuration", {}) or {}
        names |= _codec_names(inner.get("codecs", ())) | _codec_names(inner.get("index_codecs", ()))
    return names
