"""GeoTIFF through rasterio, behind the extra ``geo``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.readers.base import RawScene, Said, Source, Spectral, check_shape, damaged, spectral
from hpcdeq.errors import MissingExtraError, SceneError
from hpcdeq.tiling import Window

_TYPES = {*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64"}


@contextmanager
def open_geotiff(source: Source) -> Iterator[RawScene]:
    """Open a GeoTIFF: its bands, their wavelengths where they are tagged, and its map projection.

    Raises
    ------
    MissingExtraError
        If rasterio is not installed.
    SceneError
        If the file is damaged, or its bands differ in type.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise MissingExtraError("rasterio", "geo", "reading GeoTIFF") from error
    with ExitStack() as opened:
        try:
            # Laboratory scenes have no place on the map. Not catch_warnings: scenes are read in several threads.
            warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
            # Only this driver: others would open further files that the content names.
            scene = _open(opened.enter_context(rasterio.open(source.path, driver="GTiff")))
        except SceneError:
            raise
        except Exception as error:  # GDAL's errors are of many kinds
            raise damaged("TIFF file", error) from error
        yield scene


def _open(image: Any) -> RawScene:
    from rasterio.windows import Window as RasterWindow

    if len(set(image.dtypes)) != 1 or image.dtypes[0] not in _TYPES:
        raise SceneError(
            f"bands of types {sorted(map(str, set(image.dtypes)))}; a scene has one type, integer or real"
        )
    dtype = np.dtype(image.dtypes[0])
    shape = check_shape((image.count, image.height, image.width), dtype.itemsize)
    block = max(height * width for height, width in image.block_shapes)
    if (size := block * shape[0] * dtype.itemsize) > layout.MAX_CHUNK_BYTES:
        raise SceneError(f"tiles or strips of {size} bytes, over the bound of {layout.MAX_CHUNK_BYTES}")

    def read(window: Window) -> NDArray[Any]:
        try:
            return np.asarray(
                image.read(window=RasterWindow(window.x0, window.y0, window.width, window.height))
            )
        except Exception as error:  # GDAL's errors are of many kinds
            raise damaged("TIFF file", error) from error

    told = _spectral(image)
    return RawScene(
        format="GeoTIFF",
        shape=shape,
        dtype=dtype,
        read=read,
        wavelengths=told.wavelengths,
        ignore_value=None if image.nodata is None else float(image.nodata),
        notes=told.notes,
        attributes=_projection(image),
    )


def _spectral(image: Any) -> Spectral:
    """Read GDAL's own tag (micrometres), or the pair that its ENVI driver leaves behind."""
    bands = range(1, image.count + 1)
    own = [image.tags(b, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM") for b in bands]
    tagged = [image.tags(b).get("wavelength") for b in bands]
    values, units = (own, "um") if all(own) else (tagged, image.tags(1).get("wavelength_units"))
    if not all(values):
        return Spectral(None, None, ())
    try:
        return spectral(image.count, Said(np.array([float(str(v)) for v in values]), units), None)
    except ValueError as error:
        return Spectral(None, None, (f"wavelengths not used: {error}",))


def _projection(image: Any) -> dict[str, Any]:
    """Name the map projection by the keys of the GeoZarr conventions, where there is one."""
    if image.crs is None:
        return {}
    return {
        "proj:wkt2": image.crs.to_wkt(version="WKT2_2019"),
        "spatial:transform": list(image.transform)[:6],
    }
