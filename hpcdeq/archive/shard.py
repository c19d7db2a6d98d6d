"""A stored array, read without Zarr: what its metadata claim is bounded first, and a missing file is an error, not zeros.

Training and bulk work read shard after shard, and most of Zarr's time goes into the bookkeeping of its event loop. This
verifies and decodes chunks one after the other, into memory whose size is known beforehand, and holds the interpreter's lock for
next to nothing. It knows the codecs that this package writes; arrays of any other are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.documents import read_json, shortened

_CRC = 4  # bytes of a crc32c, little-endian, behind what it covers
_EMPTY = 2**64 - 1  # offset and length of a chunk that was not written
_CHAINS = (["bytes"], ["bytes", "zstd"], ["bytes", "crc32c"], ["bytes", "zstd", "crc32c"])
_TYPES = frozenset(
    {*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
)

Slices = tuple[slice, ...]
Place = tuple[int, ...]


@dataclass(frozen=True)
class StoredArray:
    """An array on disk, as its metadata tell."""

    path: Path
    shape: Place
    dtype: np.dtype[Any]
    attributes: dict[str, Any]
    file_shape: Place
    """Of what one file holds: a shard, or a chunk."""
    chunk_shape: Place
    codecs: list[str]
    """Of a chunk, in the order of writing."""
    index: list[str] | None
    """Codecs of the index of a shard; None if a file is a chunk."""

    def files(self, where: Slices | None = None) -> Iterator[Path]:
        """All files that hold the array, or a part of it."""
        for place in _grid(where or self._whole(), self.file_shape):
            yield self.file(place)

    def file(self, place: Place) -> Path:
        """The file at a place of the grid of files."""
        return self.path.joinpath("c", *map(str, place))

    def read(self, where: Slices | None = None) -> NDArray[Any]:
        """Read the array, or a part of it.

        Raises
        ------
        ValueError, RuntimeError, OSError
            If a file is missing or too short, a checksum does not match, or a chunk cannot be decoded.
        """
        where = where or self._whole()
        for file in self.files(where):  # before memory is taken for what was only claimed
            if not file.is_file():
                raise FileNotFoundError(f"{file.relative_to(self.path.parent)} is missing: No such file")
        out = np.empty([part.stop - part.start for part in where], self.dtype)
        chunk = np.empty(self.chunk_shape, self.dtype.newbyteorder("<"))
        for place in _grid(where, self.file_shape):
            begin = [number * edge for number, edge in zip(place, self.file_shape, strict=True)]
            inside = _common(where, begin, self.file_shape)
            with self.file(place).open("rb") as opened:
                fill = self._opened(opened)
                for spot in _grid(_shift(inside, begin), self.chunk_shape):
                    fill(spot, chunk)
                    first = [b + n * edge for b, n, edge in zip(begin, spot, self.chunk_shape, strict=True)]
                    common = _common(inside, first, self.chunk_shape)
                    out[_shift(common, [part.start for part in where])] = chunk[_shift(common, first)]
        return out

    def _whole(self) -> Slices:
        return tuple(slice(0, size) for size in self.shape)

    def _opened(self, file: IO[bytes]) -> Callable[[Place, NDArray[Any]], None]:
        """Return what decodes a chunk of an open file into an array, by the chunk's place in the file."""
        size = file.seek(0, os.SEEK_END)

        def read(begin: int, end: int) -> bytes:
            if not 0 <= begin <= end <= size:
                raise ValueError(f"bytes {begin} to {end} lie outside the file of {size} bytes")
            file.seek(begin)
            return file.read(end - begin)

        if self.index is None:
            return lambda _, out: self._decode(read(0, size), out)
        counts = [edge // chunk for edge, chunk in zip(self.file_shape, self.chunk_shape, strict=True)]
        needed = 16 * math.prod(counts) + (_CRC if "crc32c" in self.index else 0)
        if size < needed:
            raise ValueError(f"the shard's file has {size} bytes, its index alone needs {needed}")
        content = read(size - needed, size)
        content = _verified(content) if "crc32c" in self.index else content
        entries = np.frombuffer(content, "<u8").reshape(*counts, 2)

        def fill(place: Place, out: NDArray[Any]) -> None:
            offset, length = entries[place].tolist()
            if offset == length == _EMPTY:
                out[...] = 0
            else:
                self._decode(read(offset, offset + length), out)

        return fill

    def _decode(self, content: bytes, out: NDArray[Any]) -> None:
        if "crc32c" in self.codecs:
            content = _verified(content)
        if "zstd" in self.codecs:
            decompress(content, out)  # refuses a frame of another size than this
        elif len(content) != out.nbytes:
            raise ValueError(f"a chunk has {len(content)} bytes, not {out.nbytes}")
        else:
            out[...] = np.frombuffer(content, out.dtype).reshape(out.shape)


def describe(path: Path) -> StoredArray:
    """Read the metadata of an array.

    Raises
    ------
    OSError, KeyError, ValueError, TypeError, AttributeError
        If they cannot be read, are none, or tell of an array that this package does not read: see docs/archive-format.md.
    """
    told = metadata(path, "array")
    shape, file_shape = _sizes(told["shape"]), _sizes(told["chunk_grid"]["configuration"]["chunk_shape"])
    if told["data_type"] not in _TYPES:
        raise ValueError(f"type {shortened(repr(told['data_type']))} is none of {', '.join(sorted(_TYPES))}")
    dtype = np.dtype(told["data_type"])
    key = told["chunk_key_encoding"]
    if key["name"] != "default" or (key.get("configuration") or {}).get("separator", "/") != "/":
        raise ValueError("its files must be named c/0/0 and so on")
    if told["fill_value"] != 0:
        raise ValueError(f"its fill value must be 0, got {shortened(repr(told['fill_value']))}")
    chunk_shape, codecs, index = file_shape, told["codecs"], None
    if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
        inner = codecs[0]["configuration"]
        if inner.get("index_location", "end") != "end":
            raise ValueError("the index of a shard must be at its end")
        chunk_shape, codecs, index = (
            _sizes(inner["chunk_shape"]),
            inner["codecs"],
            _chain(inner["index_codecs"]),
        )
        if "zstd" in index:
            raise ValueError("the index of a shard must not be compressed")
    found = StoredArray(
        path, shape, dtype, dict(told["attributes"]), file_shape, chunk_shape, _chain(codecs), index
    )
    _check(found)
    return found


def metadata(path: Path, kind: str) -> dict[str, Any]:
    """Read what Zarr says of a ``group`` or an ``array``; errors are those of `describe`."""
    told = read_json(path / "zarr.json")
    if told["node_type"] != kind or told["zarr_format"] != 3:
        raise ValueError(f"{path.name} is no {kind} of Zarr v3")
    checked: dict[str, Any] = told
    return checked


def _check(array: StoredArray) -> None:
    """Bound what the metadata claim."""
    if not array.shape or not len(array.shape) == len(array.file_shape) == len(array.chunk_shape):
        raise ValueError(
            f"shape {array.shape} does not go with chunks {array.file_shape} of {array.chunk_shape}"
        )
    if min(array.shape) < 1 or max(array.shape) > layout.MAX_EDGE:
        raise ValueError(f"shape {array.shape} is out of bounds: 1 to {layout.MAX_EDGE}")
    if min(array.file_shape) < 1 or min(array.chunk_shape) < 1:
        raise ValueError(f"chunks {array.file_shape} of {array.chunk_shape} are out of bounds")
    size = math.prod(array.file_shape) * array.dtype.itemsize
    if size > layout.MAX_CHUNK_BYTES:
        raise ValueError(f"a shard of {size} bytes is over the bound of {layout.MAX_CHUNK_BYTES}")
    if any(edge % chunk for edge, chunk in zip(array.file_shape, array.chunk_shape, strict=True)):
        raise ValueError(f"chunks {array.chunk_shape} do not divide a shard of {array.file_shape}")


def _sizes(told: Any) -> Place:
    if not isinstance(told, list) or not all(type(size) is int for size in told) or len(told) > 8:
        raise ValueError(f"{shortened(repr(told))} is no shape")
    return tuple(told)


def _chain(codecs: Any) -> list[str]:
    names = [codec["name"] for codec in codecs]
    if names not in _CHAINS:
        allowed = "; ".join(", ".join(chain) for chain in _CHAINS)
        raise ValueError(f"codecs {shortened(repr(names))} are not among those allowed: {allowed}")
    endian = (codecs[0].get("configuration") or {}).get("endian", "little")
    if endian not in ("little", None):
        raise ValueError(f"bytes must be little endian, got {shortened(repr(endian))}")
    return names


def _grid(where: Slices, edges: Sequence[int]) -> Iterator[Place]:
    """Places in a grid of cells that meet a part of an array."""
    return product(
        *(range(part.start // edge, -(-part.stop // edge)) for part, edge in zip(where, edges, strict=True))
    )


def _common(where: Slices, begin: Sequence[int], edges: Sequence[int]) -> Slices:
    """What a part of an array has in common with a cell that begins there."""
    cells = zip(where, begin, edges, strict=True)
    return tuple(slice(max(part.start, first), min(part.stop, first + edge)) for part, first, edge in cells)


def _shift(where: Slices, begin: Sequence[int]) -> Slices:
    return tuple(slice(p.start - first, p.stop - first) for p, first in zip(where, begin, strict=True))


def _verified(content: bytes) -> bytes:
    """Bytes less the crc32c behind them, which must match."""
    if len(content) < _CRC:
        raise ValueError(f"{len(content)} bytes have no crc32c behind them")
    body = content[:-_CRC]
    stored, found = int.from_bytes(content[-_CRC:], "little"), int(google_crc32c.value(body))
    if stored != found:
        raise ValueError(f"stored crc32c {stored:08x} does not match computed {found:08x}")
    return body
