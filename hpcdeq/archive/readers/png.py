"""CAVE and its like: a folder of numbered PNGs, one a band."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcdeq.archive.readers.axes import FlatFile
from hpcdeq.archive.readers.base import RawScene, Source, check_shape, damaged
from hpcdeq.errors import MissingExtraError, SceneError

MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 256 << 20  # of one band, which is decoded at once, whatever its header claims
_CAVE_BANDS = 31
_CAVE_FIRST_NM, _CAVE_STEP_NM = 400.0, 10.0
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _COLOUR: 3, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}
_NUMBERED = re.compile(r"(.*?)(\d+)\.[^.]+")

# Our own bound on the size in the header, above, stands in for Pillow's warning at 89 million pixels.
Image.MAX_IMAGE_PIXELS = None


def band_number(file: Path) -> int | None:
    """Return the number at the end of a band's file name, or None if it has none."""
    match = _NUMBERED.fullmatch(file.name)
    return int(match[2]) if match else None


@contextmanager
def open_png(source: Source, spool: Path) -> Iterator[RawScene]:
    """Open a folder of PNG bands.

    A PNG can only be decoded whole, so the bands are decoded one at a time into a file in ``spool`` and
    windows are read from there: memory stays at one band.

    Raises
    ------
    SceneError
        If a band is missing, damaged, coloured or of another size than the first.
    """
    _check_numbers(source)
    height, width, depth, _ = _header(source.files[0])
    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    shape = check_shape((len(source.files), height, width), dtype.itemsize)
    raw = spool / "bands.raw"
    with raw.open("wb") as file:
        for path in source.files:
            size = _header(path)[:3]
            if size != (height, width, depth):
                raise SceneError(
                    f"band {path.name} is {size[0]} x {size[1]} pixels of {size[2]} bits, but "
                    f"{source.files[0].name} is {height} x {width} of {depth} bits; all bands must be alike"
                )
            file.write(_decode(path).tobytes())

    cave = len(source.files) == _CAVE_BANDS
    yield RawScene(
        format="PNG band folder",
        shape=shape,
        dtype=dtype,
        read=FlatFile(path=raw, dtype=dtype, offset=0, shape=shape, axes="byx").read,
        wavelengths=np.arange(_CAVE_BANDS, dtype=np.float64) * _CAVE_STEP_NM + _CAVE_FIRST_NM
        if cave
        else None,
        full_scale=float(2**depth - 1),
        full_scale_from=f"PNG bit depth {depth}",
        notes=()
        if cave
        else (f"{len(source.files)} bands, not the {_CAVE_BANDS} of CAVE: wavelengths unknown",),
    )


def _check_numbers(source: Source) -> None:
    numbers = [band_number(f) for f in source.files]
    prefixes = sorted(
        {f.name[: match.end(1)] for f in source.files if (match := _NUMBERED.fullmatch(f.name))}
    )
    if len(prefixes) > 1:
        raise SceneError(
            f"more than one series of bands in one folder: {', '.join(prefixes)}; give each its own folder"
        )
    twice = sorted({n for n in numbers if n is not None and numbers.count(n) > 1})
    if twice:
        raise SceneError(f"more than one file for band {_join(twice)}; remove the wrong one")
    present = {n for n in numbers if n is not None}
    missing = sorted(set(range(min(min(present), 1), max(present) + 1)) - present)
    if missing:
        raise SceneError(
            f"band {_join(missing)} is missing of {min(min(present), 1)} to {max(present)}; "
            "copy the folder again from its source"
        )


def _join(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers[:10]) + (", ..." if len(numbers) > 10 else "")


def _header(path: Path) -> tuple[int, int, int, int]:
    """Return (height, width, bit depth, colour type) from the IHDR chunk, which always comes first."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(MAGIC) or head[12:16] != b"IHDR":
        raise SceneError(f"band {path.name} is truncated or not a PNG; copy it again from its source")
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    depth, colour = head[24], head[25]
    if depth not in (8, 16) or colour == _PALETTE:
        raise SceneError(
            f"band {path.name} is a {depth}-bit or palette PNG; save it as 8 or 16-bit greyscale"
        )
    size = width * height * _CHANNELS.get(colour, 4) * depth // 8
    if size > _MAX_BYTES:
        raise SceneError(
            f"band {path.name} claims {height} x {width} pixels, {size} bytes, over the bound of {_MAX_BYTES}"
        )
    return height, width, depth, colour


def _decode(path: Path) -> NDArray[Any]:
    """Return the pixels (y, x) of a band, uint8 or uint16."""
    height, width, depth, colour = _header(path)
    try:
        if depth == 16 and colour != _GREY:
            pixels = _decode_colour16(path)
        else:
            with Image.open(path, formats=("PNG",)) as image:
                if image.size != (width, height):  # a second header, with another size than was checked
                    raise ValueError(f"{image.size[1]} x {image.size[0]} pixels, not those of its header")
                pixels = np.asarray(image)
        if pixels.ndim not in (2, 3) or pixels.shape[:2] != (height, width):
            raise ValueError(f"pixels of shape {pixels.shape}")
    except MissingExtraError:
        raise
    except Exception as error:  # decoders raise whatever they like at damaged data
        raise damaged(f"band {path.name}", error) from error
    if pixels.ndim == 3:
        colours = pixels[..., : 3 if colour in (_COLOUR, _COLOUR_ALPHA) else 1]
        if not (colours == colours[..., :1]).all():
            raise SceneError(
                f"band {path.name} is a colour picture: its channels differ; a band has one value a pixel"
            )
        pixels = colours[..., 0]
    return pixels.astype(np.uint16 if depth == 16 else np.uint8)


def _decode_colour16(path: Path) -> NDArray[Any]:
    """Read 16-bit colour through GDAL: Pillow would keep the upper 8 bits only, without a word."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtraError("rasterio", "geo", f"16-bit colour PNG {path.name}") from error

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(path, driver="PNG") as picture:
        return np.moveaxis(picture.read(), 0, -1)
