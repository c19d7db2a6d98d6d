"""A shard decoded at once: what Zarr does, without a task for every chunk, and a missing file is an error, not zeros.

Training and bulk work read shard after shard, and most of Zarr's time goes into the bookkeeping of its event loop. This
verifies and decodes chunks one after the other, and holds the interpreter's lock for next to nothing. It knows the one codec
chain that this package writes; arrays of any other are left to Zarr.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import decompress
from numpy.typing import NDArray

from hpcdeq.tiling import Window, partition

_CRC = 4  # bytes of a crc32c, little-endian, behind what it covers
_EMPTY = 2**64 - 1  # offset and length of a chunk that was not written


def readable(array: zarr.Array[Any]) -> bool:
    """Whether `read_shard` knows how the array's shards are encoded."""
    metadata: Any = array.metadata.to_dict()
    match metadata["codecs"]:
        case [{"name": "sharding_indexed", "configuration": outer}]:
            pass
        case _:
            return False
    chain = [codec["name"] for codec in outer["codecs"]]
    index = [codec["name"] for codec in outer["index_codecs"]]
    endian = [
        codec.get("configuration", {}).get("endian") for codec in outer["codecs"] if codec["name"] == "bytes"
    ]
    return (
        chain == ["bytes", "zstd", "crc32c"]
        and index == ["bytes", "crc32c"]
        and outer["index_location"] == "end"
        and set(endian) <= {"little", None}
        and array.chunks[0] == array.shape[0]
        and array.fill_value == 0
    )


def read_shard(
    path: Path, array: zarr.Array[Any], window: Window, part: Window | None = None
) -> NDArray[Any]:
    """Decode the shard whose file is ``path`` and whose pixels are ``window``; or a part of it, by the chunks that hold it.

    Returns
    -------
    pixels
        (band, y, x) as stored.

    Raises
    ------
    ValueError, RuntimeError, OSError
        If the file is missing or too short, a checksum does not match, or a chunk cannot be decoded.
    """
    part = (part or window).shift(-window.y0, -window.x0)
    edge_y, edge_x = array.chunks[1:]
    columns = _shards(array)[1] // edge_x
    out = np.empty((array.shape[0], part.height, part.width), array.dtype)
    chunk = np.empty((array.shape[0], edge_y, edge_x), array.dtype.newbyteorder("<"))
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)

        def read(begin: int, end: int) -> bytes:
            if not 0 <= begin <= end - _CRC <= size - _CRC:
                raise ValueError(f"bytes {begin} to {end} lie outside the shard's file of {size} bytes")
            file.seek(begin)
            return _verified(file.read(end - begin))

        index = _index(read, size, count=(_shards(array)[0] // edge_y) * columns)
        for whole in partition(window.height, window.width, edge_y, edge_x):
            common = whole.intersect(part)
            if common.height <= 0 or common.width <= 0:
                continue
            offset, length = index[whole.y0 // edge_y * columns + whole.x0 // edge_x]
            if offset == length == _EMPTY:
                chunk[...] = 0
            else:
                decompress(read(offset, offset + length), chunk)
            inside = common.shift(-whole.y0, -whole.x0).slices
            out[(slice(None), *common.shift(-part.y0, -part.x0).slices)] = chunk[(slice(None), *inside)]
    return out


def _shards(array: zarr.Array[Any]) -> tuple[int, int]:
    assert array.shards is not None
    return array.shards[1], array.shards[2]


def _index(read: Callable[[int, int], bytes], size: int, count: int) -> list[tuple[int, int]]:
    """(offset, length) of each chunk of a shard."""
    needed = 16 * count + _CRC
    if size < needed:
        raise ValueError(f"the shard's file has {size} bytes, its index alone needs {needed}")
    entries = np.frombuffer(read(size - needed, size), "<u8").reshape(count, 2)
    return [(int(offset), int(length)) for offset, length in entries]


def _verified(content: bytes) -> bytes:
    """Bytes less the crc32c behind them, which must match."""
    body = content[:-_CRC]
    stored, found = int.from_bytes(content[-_CRC:], "little"), int(google_crc32c.value(body))
    if stored != found:
        raise ValueError(f"stored crc32c {stored:08x} does not match computed {found:08x}")
    return body
