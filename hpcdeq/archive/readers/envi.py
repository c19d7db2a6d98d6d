"""ENVI: a text header and a flat binary file, in any of the three interleaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from spectral import settings
from spectral.io import envi

from hpcdeq.archive.readers.axes import FlatFile
from hpcdeq.archive.readers.base import RawScene, Said, Source, check_shape, spectral
from hpcdeq.documents import shortened
from hpcdeq.errors import SceneError

settings.envi_support_nonlowercase_params = True  # else SPy warns of them; we fold them ourselves
_MOST_HEADER_BYTES = 16 << 20
_AXES = {"bil": "ybx", "bip": "yxb", "bsq": "byx"}


@contextmanager
def open_envi(source: Source) -> Iterator[RawScene]:
    """Open an ENVI scene: SPy reads the header, windows come through a memory map.

    SPy's own images insist on keys that writers leave out (``byte order``), and look for files elsewhere.

    Raises
    ------
    SceneError
        If the header lacks something, the data file is shorter than it says, or the values are complex.
    """
    header_path, data = source.files
    if (size := header_path.stat().st_size) > _MOST_HEADER_BYTES:
        raise SceneError(
            f"ENVI header {header_path.name} has {size} bytes, over the bound of {_MOST_HEADER_BYTES}"
        )
    try:
        header = {key.lower(): value for key, value in envi.read_envi_header(str(header_path)).items()}
    except Exception as error:  # the parser raises its own and others
        raise SceneError(f"ENVI header {header_path.name} cannot be read: {shortened(str(error))}") from error
    _check_plain(header)
    bands, height, width = (_integer(header, key) for key in ("bands", "lines", "samples"))
    interleave = str(header.get("interleave", "")).lower()
    if interleave not in _AXES:
        raise SceneError(f"ENVI interleave {shortened(repr(interleave))} is none of {', '.join(_AXES)}")
    dtype = _dtype(header)
    shape = check_shape((bands, height, width), dtype.itemsize)
    offset = _integer(header, "header offset", 0)
    if offset < 0:
        raise SceneError(f"ENVI 'header offset' is {offset}; it is a number of bytes from 0")
    expected = offset + bands * height * width * dtype.itemsize
    size = data.stat().st_size
    if size < expected:
        raise SceneError(
            f"truncated: {data.name} has {size} bytes, its header tells of {expected}; "
            "copy it again from its source"
        )
    order = _AXES[interleave]
    stored = tuple({"b": bands, "y": height, "x": width}[a] for a in order)

    try:
        told = spectral(bands, _said(header, "wavelength"), _said(header, "fwhm"))
    except (ValueError, TypeError, OverflowError) as error:
        raise SceneError(
            f"ENVI header holds wavelengths or widths that are no numbers: {shortened(str(error))}"
        ) from error
    yield RawScene(
        format=f"ENVI {interleave.upper()}",
        shape=shape,
        dtype=dtype,
        read=FlatFile(path=data, dtype=dtype, offset=offset, shape=stored, axes=order).read,
        wavelengths=told.wavelengths,
        fwhm=told.fwhm,
        full_scale=_number(header, "reflectance scale factor"),
        full_scale_from="ENVI reflectance scale factor",
        ignore_value=_number(header, "data ignore value"),
        notes=told.notes,
    )


def _check_plain(header: dict[str, Any]) -> None:
    if "library" in str(header.get("file type", "")).lower():
        raise SceneError("an ENVI spectral library holds spectra, not a scene")
    if str(header.get("file compression", "0")).strip() not in ("", "0"):
        raise SceneError("compressed ENVI data; save it uncompressed")
    if any(str(v).strip(" {}") not in ("", "0", "0.0") for v in _list(header.get("major frame offsets", []))):
        raise SceneError("ENVI 'major frame offsets' are not supported; save the scene without them")


def _dtype(header: dict[str, Any]) -> np.dtype[Any]:
    code = str(header.get("data type", ""))
    if code not in envi.envi_to_dtype:
        raise SceneError(f"ENVI 'data type' {shortened(repr(code))} is not known")
    dtype: np.dtype[Any] = np.dtype(str(envi.envi_to_dtype[code]))
    if dtype.kind == "c":
        raise SceneError("complex values; a scene holds integers or real numbers")
    order: Literal[">", "<"] = ">" if _integer(header, "byte order", 0) == 1 else "<"
    return np.dtype(dtype.newbyteorder(order))


def _said(header: dict[str, Any], key: str) -> Said | None:
    if key not in header:
        return None
    return Said(np.array([float(v) for v in _list(header[key]) if v]), header.get("wavelength units"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _integer(header: dict[str, Any], key: str, default: int | None = None) -> int:
    try:
        return int(header[key]) if default is None or key in header else default
    except (KeyError, ValueError, TypeError) as error:
        raise SceneError(
            f"ENVI header tells no number for {key!r}: {shortened(repr(header.get(key)))}"
        ) from error


def _number(header: dict[str, Any], key: str) -> float | None:
    """Return a positive scale or an ignore value, or None where the header has none."""
    if key not in header:
        return None
    try:
        return float(header[key])
    except (ValueError, TypeError) as error:
        raise SceneError(
            f"ENVI header tells no number for {key!r}: {shortened(repr(header[key]))}"
        ) from error
