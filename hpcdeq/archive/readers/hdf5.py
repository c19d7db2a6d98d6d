"""HDF5 and what is made of it: MATLAB v7.3 (ICVL), NetCDF4, and plain files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.readers.axes import cut, find_axes, shape_of
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
from hpcdeq.documents import shortened
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

_MATLAB_BLOCK = b"MATLAB 7.3 MAT-file"
_TRIAL = Path(__file__).with_name("hdf5_trial.py")
_TRIAL_SECONDS = 120.0
_CACHE_BYTES = 64 << 20  # chunks that neighbouring windows share are decoded once
_BAND = {*WAVELENGTH_NAMES, "band", "channel", "channels", "spectral"}
_ROW = {"y", "lat", "latitude", "row", "rows", "line", "lines", "northing", "downtrack"}
_COLUMN = {"x", "lon", "longitude", "column", "columns", "sample", "samples", "easting", "crosstrack"}


@contextmanager
def open_hdf5(source: Source, selection: Selection) -> Iterator[RawScene]:
    """Open an array of an HDF5 file.

    MATLAB stores its arrays by columns, so that HDF5 sees their axes reversed: shapes, and ``--axes``, are as
    MATLAB shows them. Other files are taken as they are.

    Raises
    ------
    SceneError
        If the file is damaged, refers to other files, or does not hold what was asked for.
    """
    check_it_comes_back(source.path)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(h5py.File(source.path, "r", rdcc_nbytes=_CACHE_BYTES, locking=False))
            scene = _open(file, source, selection)
        except SceneError:
            raise
        except Exception as error:  # h5py meets damage with whatever error comes first
            raise damaged("HDF5 file", error) from error
        yield scene


def check_it_comes_back(path: Path) -> None:
    """See in another process that the HDF5 library neither hangs nor crashes at a file: in this one nothing would help.

    Raises
    ------
    SceneError
        If it does.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_TRIAL), str(path.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise damaged(
            "HDF5 file", f"the HDF5 library does not come back from it in {_TRIAL_SECONDS:g} s"
        ) from error
    if done.returncode < 0:
        raise damaged("HDF5 file", f"the HDF5 library crashes at it, with signal {-done.returncode}")


def _open(file: h5py.File, source: Source, selection: Selection) -> RawScene:
    with source.path.open("rb") as start:
        matlab_file = start.read(len(_MATLAB_BLOCK)) == _MATLAB_BLOCK
    arrays = _arrays(file)
    reversed_axes = {n: matlab_file or "MATLAB_class" in a.attrs for n, a in arrays.items()}
    shapes = {n: a.shape[::-1] if reversed_axes[n] else a.shape for n, a in arrays.items()}
    variables = [Variable(n, shapes[n], str(a.dtype)) for n, a in arrays.items()]
    name = choose(variables, [n for n, a in arrays.items() if _is_scene(a)], selection.variable)
    return _scene(file, arrays, name, selection.axes, matlab=reversed_axes[name])


def _scene(
    file: h5py.File, arrays: dict[str, h5py.Dataset], name: str, axes: str | None, *, matlab: bool
) -> RawScene:
    data = arrays[name]
    _check_storage(data)
    small = {n: a for n, a in arrays.items() if a.dtype.kind in "uif" and a.size == max(a.shape, default=0)}
    counts = [a.size for n, a in small.items() if n.rpartition("/")[2].lower() in WAVELENGTH_NAMES]
    if matlab:
        stored = find_axes(data.shape[::-1], axes, usual="yxb", band_counts=counts)[::-1]
    else:
        stored = axes or _named_axes(data) or find_axes(data.shape, None, band_counts=counts)
    shape = check_shape(shape_of(data.shape, stored), data.dtype.itemsize)
    small = {n: a for n, a in small.items() if a.size == shape[0]}
    for array in small.values():
        _check_storage(array)
    told = spectral_among({n: Said(a[...], _text(a.attrs.get("units"))) for n, a in small.items()}, shape[0])
    notes = list(told.notes)
    if _single(data, "add_offset") not in (None, 0.0):
        raise SceneError(
            f"{name} is packed with an add_offset, which an archive cannot hold; unpack it first"
        )
    if _single(data, "scale_factor") not in (None, 1.0):
        notes.append("the scale_factor in the file is not used: the full scale says which value maps to 1")
    fill = _single(data, "_FillValue")
    return RawScene(
        format="MATLAB v7.3" if matlab else "NetCDF4" if "_NCProperties" in file.attrs else "HDF5",
        variable=name,
        shape=shape,
        dtype=data.dtype,
        read=lambda window: _read(data, stored, window),
        wavelengths=told.wavelengths,
        fwhm=told.fwhm,
        ignore_value=_single(data, "missing_value") if fill is None else fill,
        notes=tuple(notes),
    )


def _read(data: h5py.Dataset, axes: str, window: Window) -> NDArray[Any]:
    try:
        return cut(data, axes, window)
    except Exception as error:  # h5py meets damage with whatever error comes first
        raise SceneError(
            f"{data.name} cannot be read at rows {window.y0}:{window.y1}, columns {window.x0}:{window.x1} "
            f"({shortened(str(error))}); the file is truncated or damaged, or needs an HDF5 filter that is not installed"
        ) from error


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All arrays of a file by their names. A file that makes HDF5 open others is refused as a whole."""
    links: dict[str, Any] = {}

    def visit(name: str, link: Any) -> None:
        links[name] = link  # an exception in here would come out of h5py as another

    file.visititems_links(visit)
    arrays: dict[str, h5py.Dataset] = {}
    for name, link in links.items():
        if isinstance(link, h5py.ExternalLink):
            raise SceneError(
                f"{name} is a link to another file ({link.filename}), never followed; copy the data in"
            )
        if not isinstance(link, h5py.HardLink) or name.startswith("#"):
            continue
        item = file[name]
        if isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise SceneError(f"{name} keeps its data in other files, never opened; copy the data in")
            arrays[name] = item
    return arrays


def _is_scene(array: h5py.Dataset) -> bool:
    """Whether an array is numeric and 3-D; MATLAB's text and truth values are numbers to HDF5."""
    matlab_class = _text(array.attrs.get("MATLAB_class"))
    return (
        array.dtype.kind in "uif"
        and array.ndim == 3
        and matlab_class not in ("char", "logical", "cell", "struct")
    )


def _check_storage(array: h5py.Dataset) -> None:
    chunk = float(np.prod([float(n) for n in array.chunks or ()])) * array.dtype.itemsize
    if chunk > layout.MAX_CHUNK_BYTES:
        raise SceneError(
            f"{array.name} has chunks of {chunk:.0f} bytes, over the bound of {layout.MAX_CHUNK_BYTES}"
        )


def _named_axes(array: h5py.Dataset) -> str | None:
    """Read the order of the axes from the names of the dimensions, as NetCDF4 writes them."""
    letters = ""
    for dimension in array.dims:
        name = dimension.label or (str(dimension[0].name) if len(dimension) else "")
        word = name.rpartition("/")[2].lower()
        letters += "b" if word in _BAND else "y" if word in _ROW else "x" if word in _COLUMN else "?"
    if letters.count("b") == 1 and letters.count("?") == 2:
        return letters.replace("?", "y", 1).replace("?", "x", 1)
    return letters if sorted(letters) == ["b", "x", "y"] else None


def _single(array: h5py.Dataset, attribute: str) -> float | None:
    value = array.attrs.get(attribute)
    if value is None or np.size(value) != 1 or np.asarray(value).dtype.kind not in "uif":
        return None
    return float(np.asarray(value).ravel()[0])


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None
