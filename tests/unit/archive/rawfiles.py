"""Raw scenes in every format, made from a cube (band, y, x), for the tests of this folder."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

ENVI_TYPES = {
    "uint8": 1,
    "int16": 2,
    "int32": 3,
    "float32": 4,
    "float64": 5,
    "uint16": 12,
    "uint32": 13,
    "int64": 14,
}
ENVI_ORDERS = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def cube(bands=5, height=70, width=90, dtype="uint16", seed=0):
    """Values that differ in every place, none zero, so that a wrong order of axes cannot pass."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(0.1, 0.9, (bands, height, width)).astype(dtype)
    top = min(np.iinfo(dtype).max, 60000)
    return rng.integers(1, top, (bands, height, width)).astype(dtype)


def png_folder(folder: Path, values, first=1, pattern="{name}_{n:02d}.png"):
    folder.mkdir(parents=True)
    for n, band in enumerate(values, start=first):
        Image.fromarray(band).save(folder / pattern.format(name=folder.name, n=n))
    return folder


def png16_colour(path: Path, channels):
    """Write a 16-bit RGB(A) PNG, which Pillow cannot."""
    height, width, count = channels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[count], 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(magic + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def envi(path: Path, values, interleave="bsq", order="little", offset=0, name_header=None, drop=(), **keys):
    """Write ``path`` and its header; further keys of the header as keywords with ``_`` for spaces."""
    stored = values.transpose(ENVI_ORDERS[interleave]).astype(
        values.dtype.newbyteorder("<" if order == "little" else ">")
    )
    path.write_bytes(b"\xff" * offset + stored.tobytes())
    bands, height, width = values.shape
    header = {
        "samples": width,
        "lines": height,
        "bands": bands,
        "header offset": offset,
        "data type": ENVI_TYPES[values.dtype.name],
        "interleave": interleave,
        "byte order": 0 if order == "little" else 1,
        **{k.replace("_", " "): v for k, v in keys.items()},
    }
    lines = [f"{k} = {v}" for k, v in header.items() if k not in drop]
    (name_header or path.with_suffix(".hdr")).write_text("ENVI\n" + "\n".join(lines) + "\n")
    return path


def matlab73(path: Path, values, name="rad", wavelengths=None, block=True, **others):
    """Write what MATLAB's ``save -v7.3`` would of a (y, x, band) array: axes reversed, 512 bytes in front."""
    with h5py.File(path, "w", userblock_size=512 if block else 0) as file:
        arrays = {name: values.transpose(0, 2, 1), **others}
        if wavelengths is not None:
            arrays["bands"] = np.asarray(wavelengths, float).reshape(-1, 1)
        for key, array in arrays.items():
            data = file.create_dataset(key, data=array, chunks=True, compression="gzip")
            data.attrs["MATLAB_class"] = np.bytes_(
                {"float64": "double"}.get(array.dtype.name, array.dtype.name)
            )
    if block:
        text = (
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2018 HDF5 schema 1.00 ."
        )
        with path.open("r+b") as file:
            file.write(text.ljust(124) + b"\x00\x02IM")
    return path


def matlab5(path: Path, values, name="cube", **others):
    scipy.io.savemat(path, {name: values.transpose(1, 2, 0), **others}, do_compression=True)
    return path


def flat_matlab5(path: Path, values, name="Y", transposed=False, **others):
    """Pixels down the columns: pixel = row + rows x column."""
    bands, height, width = values.shape
    flat = values.transpose(0, 2, 1).reshape(bands, -1)
    facts = {"nRow": height, "nCol": width, "nBand": bands}
    scipy.io.savemat(path, {name: flat.T if transposed else flat, **facts, **others})
    return path


def netcdf4(path: Path, values, dims=("band", "y", "x"), fill=None, wavelengths=None, attributes=None):
    """Write with h5netcdf, as xarray would."""
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.dimensions = dict(zip(dims, values.shape, strict=True))
        data = file.create_variable("reflectance", dims, values.dtype, fillvalue=fill)
        data[...] = values
        for key, value in (attributes or {}).items():
            data.attrs[key] = value
        if wavelengths is not None:
            told = file.create_group("sensor").create_variable("wavelengths", (dims[0],), "f8")
            told[...] = wavelengths
            told.attrs["units"] = "nm"
    return path


def geotiff(path: Path, values, nodata=None, wavelengths=None, **profile):
    import rasterio

    bands, height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=values.dtype,
        nodata=nodata,
        **profile,
    ) as image:
        image.write(values)
        for band, nm in enumerate(wavelengths if wavelengths is not None else (), start=1):
            image.update_tags(band, wavelength=f"{nm}", wavelength_units="Nanometers")
    return path
