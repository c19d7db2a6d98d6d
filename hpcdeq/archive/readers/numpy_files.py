""".npy and .npz. Pickled objects are never read."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.readers.axes import FlatFile, find_axes, shape_of
from hpcdeq.archive.readers.base import (
    WAVELENGTH_NAMES,
    RawScene,
    Said,
    Selection,
    Source,
    Variable,
    check_shape,
    choose,
    damaged,
    spectral_among,
)
from hpcdeq.errors import SceneError


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def end(self) -> int:
        """Size in bytes that the file must have."""
        return self.offset + int(np.prod([int(n) for n in self.shape], dtype=object)) * self.dtype.itemsize


def _header(file: IO[bytes]) -> _Header:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # NumPy parses it as Python, which has many kinds of errors
        raise damaged(".npy header", error) from error
    return _Header(shape, fortran, dtype, file.tell())


@contextmanager
def open_npy(source: Source, selection: Selection) -> Iterator[RawScene]:
    """Open a .npy file; windows are read through a memory map.

    Raises
    ------
    SceneError
        If the file is truncated, holds Python objects, or is not a numeric 3-D array.
    """
    with source.path.open("rb") as file:
        header = _header(file)
    if header.dtype.kind not in "uif" or len(header.shape) != 3:
        raise SceneError(
            f"{_objects(header)}holds {header.dtype} {header.shape}; a scene is a numeric 3-D array"
        )
    size = source.path.stat().st_size
    if size < header.end:
        raise SceneError(
            f"truncated: {size} bytes, its header tells of {header.end}; copy it again from its source"
        )
    axes = find_axes(header.shape, selection.axes)
    yield _scene("NumPy .npy", None, source.path, header, axes, {})


@contextmanager
def open_npz(source: Source, selection: Selection, spool: Path) -> Iterator[RawScene]:
    """Open an array of a .npz file, unpacked into ``spool`` and read from there through a memory map.

    Raises
    ------
    SceneError
        If the file is damaged, or does not hold what was asked for.
    """
    try:
        with zipfile.ZipFile(source.path) as archive:
            headers = {}
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        headers[member.removesuffix(".npy")] = _header(file)
            variables = [Variable(n, h.shape, str(h.dtype)) for n, h in headers.items()]
            candidates = [n for n, h in headers.items() if h.dtype.kind in "uif" and len(h.shape) == 3]
            name = choose(variables, candidates, selection.variable)
            small = {
                n: _load(archive, n)
                for n, h in headers.items()
                if len(h.shape) == 1 and h.dtype.kind in "uif" and 0 < h.shape[0] <= layout.MAX_BANDS
            }
            counts = [a.size for n, a in small.items() if n.lower() in WAVELENGTH_NAMES]
            header = headers[name]
            axes = find_axes(header.shape, selection.axes, band_counts=counts)
            check_shape(shape_of(header.shape, axes), header.dtype.itemsize)
            unpacked = spool / "array.npy"
            _unpack(archive, name, header, unpacked)
    except SceneError:
        raise
    except Exception as error:  # the parsers raise whatever they like at damaged data
        raise damaged(".npz file", error) from error
    yield _scene("NumPy .npz", name, unpacked, header, axes, small)


def _scene(
    kind: str, name: str | None, file: Path, header: _Header, axes: str, small: dict[str, NDArray[Any]]
) -> RawScene:
    shape = check_shape(shape_of(header.shape, axes), header.dtype.itemsize)
    told = spectral_among({n: Said(a) for n, a in small.items()}, shape[0])

    turn = -1 if header.fortran else 1  # columns first is rows first with the axes reversed
    flat = FlatFile(
        path=file, dtype=header.dtype, offset=header.offset, shape=header.shape[::turn], axes=axes[::turn]
    )
    return RawScene(
        format=kind,
        variable=name,
        shape=shape,
        dtype=header.dtype,
        read=flat.read,
        wavelengths=told.wavelengths,
        fwhm=told.fwhm,
        notes=told.notes,
    )


def _objects(header: _Header) -> str:
    return "Python objects (a pickle) are never read: " if header.dtype.hasobject else ""


def _load(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def _unpack(archive: zipfile.ZipFile, name: str, header: _Header, target: Path) -> None:
    with archive.open(f"{name}.npy") as packed, target.open("wb") as file:
        if archive.getinfo(f"{name}.npy").file_size != header.end:
            raise SceneError(
                f"array {name!r} is not as long as its header tells; copy the file again from its source"
            )
        shutil.copyfileobj(packed, file, 1 << 20)
