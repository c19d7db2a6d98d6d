"""A whole shard decoded at once: what Zarr does, without a task for every chunk.

Training and bulk work read shard after shard, and most of Zarr's time goes into the bookkeeping of its event loop. This
reads the file once, verifies and decodes its chunks in place, and holds the interpreter's lock for next to nothing. It knows
the one codec chain that this package writes; arrays of any other are left to Zarr.
"""

from __future__ import annotations

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


def read_shard(path: Path, array: zarr.Array[Any], window: Window) -> NDArray[Any]:
    """Decode the shard whose file is ``path`` and whose pixels are ``window``.

    Returns
    -------
    pixels
        (band, y, x) as stored.

    Raises
    ------
    ValueError, RuntimeError, OSError
        If the file is missing or too short, a checksum does not match, or a chunk cannot be decoded.
    """
    edge_y, edge_x = array.chunks[1:]
    columns = _shards(array)[1] // edge_x
    content = path.read_bytes()
    index = _index(content, count=(_shards(array)[0] // edge_y) * columns)
    out = np.empty((array.shape[0], window.height, window.width), array.dtype)
    chunk = np.empty((array.shape[0], edge_y, edge_x), array.dtype.newbyteorder("<"))
    for part in partition(window.height, window.width, edge_y, edge_x):
        offset, length = index[part.y0 // edge_y * columns + part.x0 // edge_x]
        if offset == length == _EMPTY:
            chunk[...] = 0
        else:
            decompress(_verified(content, offset, offset + length), chunk)
        out[(slice(None), *part.slices)] = chunk[:, : part.height, : part.width]
    return out


def _shards(array: zarr.Array[Any]) -> tuple[int, int]:
    assert array.shards is not None
    return array.shards[1], array.shards[2]


def _index(content: bytes, count: int) -> list[tuple[int, int]]:
    """(offset, length) of each chunk of a shard."""
    size = 16 * count + _CRC
    if len(content) < size:
        raise ValueError(f"the shard's file has {len(content)} bytes, its index alone needs {size}")
    entries = np.frombuffer(_verified(content, len(content) - size, len(content)), "<u8").reshape(count, 2)
    return [(int(offset), int(length)) for offset, length in entries]


def _verified(content: bytes, begin: int, end: int) -> bytes:
    """Bytes of a range less the crc32c behind them, which must match."""
    if not 0 <= begin <= end - _CRC <= len(content) - _CRC:
        raise ValueError(f"bytes {begin} to {end} lie outside the shard's file of {len(content)} bytes")
    body = content[begin : end - _CRC]
    stored, found = int.from_bytes(content[end - _CRC : end], "little"), int(google_crc32c.value(body))
    if stored != found:
        raise ValueError(f"stored crc32c {stored:08x} does not match computed {found:08x}")
    return body
