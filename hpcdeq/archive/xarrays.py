"""Scenes as xarray knows them: stored ones, read when they are needed, and those that a user has in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import dask.array
import numpy as np
import xarray
import zarr
from numpy.typing import NDArray
from zarr.core.metadata import ArrayV3Metadata

from hpcdeq.archive.layout import CELL_X, CELL_Y, FWHM, RADIANCE, SHARD_CHECKSUM, VALID_MASK, WAVELENGTH
from hpcdeq.archive.readers.base import Said, spectral
from hpcdeq.archive.scene import Scene
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

DIMS = ("band", "y", "x")

_COORDINATES = (WAVELENGTH, FWHM, VALID_MASK, CELL_Y, CELL_X)
_FLAGS = (VALID_MASK, "tile_converged")  # 0 and 1 on disk
_UNDECODED = ("add_offset", "_FillValue", "missing_value")  # attributes whose meaning nobody has applied yet

Floats = NDArray[np.float32]


def dataset_of(scene: Scene) -> xarray.Dataset:
    """Return a stored scene as a dataset; what has pixels is read by shards, when it is needed.

    Returns
    -------
    xarray.Dataset
        ``radiance (band, y, x)`` as models see it: float32, scaled, 0 where masked; and what lies beside it, such as
        ``wavelength (band)`` in nm and ``valid_mask (y, x)``. Attributes are numbers and text, as netCDF can hold them: others are
        JSON.

    Raises
    ------
    SceneError
        If something of it is damaged or missing; of what is read later, when it is read.
    """
    group = zarr.open_group(scene.path, mode="r", zarr_format=3)
    stored = {name: array for name, array in sorted(group.arrays()) if name != SHARD_CHECKSUM}
    variables = {name: _variable(scene, name, array) for name, array in stored.items()}
    attributes = {name: _plain(value) for name, value in scene.attributes.items()}
    dataset = xarray.Dataset(variables, attrs=attributes)
    return dataset.set_coords([name for name in _COORDINATES if name in variables])


def _variable(scene: Scene, name: str, stored: zarr.Array[Any]) -> xarray.Variable:
    dims = tuple(map(str, cast(ArrayV3Metadata, stored.metadata).dimension_names or ()))
    dtype = np.dtype(np.float32) if name == RADIANCE else np.dtype(bool) if name in _FLAGS else stored.dtype
    attributes = {k: v for k, v in stored.attrs.items() if k not in ("scale_factor", "coordinates")}
    if dims[-2:] != ("y", "x"):
        return xarray.Variable(dims, scene.beside(name).astype(dtype), attributes)

    def read(window: Window) -> NDArray[Any]:
        if name == RADIANCE:
            return scene.read(window)
        channels = tuple(slice(0, size) for size in stored.shape[:-2])
        return scene.beside(name, (*channels, *window.slices)).astype(dtype)

    return xarray.Variable(dims, _by_shards(scene, name, stored.shape[:-2], dtype, read), attributes)


def _by_shards(
    scene: Scene,
    name: str,
    channels: tuple[int, ...],
    dtype: np.dtype[Any],
    read: Callable[[Window], NDArray[Any]],
) -> Any:
    """A dask array ``(..., y, x)`` of which each chunk is a shard."""

    def shard(block_info: Any = None) -> NDArray[Any]:
        *_, (y0, y1), (x0, x1) = block_info[None]["array-location"]
        return read(Window(y0, y1, x0, x1))

    edges = dask.array.core.normalize_chunks(scene.shard_shape, scene.shape[1:])
    return dask.array.map_blocks(
        shard,
        chunks=(*((n,) for n in channels), *edges),
        dtype=dtype,
        meta=np.empty((0,) * (len(channels) + 2), dtype),
        name=f"{scene.name}-{name}-{uuid.uuid4().hex}",
    )


def _plain(value: Any) -> Any:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return value if numbers or type(value) in (str, int, float) else json.dumps(value)


@dataclass(frozen=True, kw_only=True)
class SceneInMemory:
    """A scene that a user has in memory."""

    array: xarray.DataArray
    """As it was given, whatever the order of its axes."""
    attributes: dict[str, Any]
    """Of the dataset that it came in."""
    pixels: Floats
    """(band, y, x) as models see them: scaled, 0 where masked."""
    valid: NDArray[np.bool_] | None
    """(y, x), False where a pixel holds no data; None if all do."""
    wavelengths: NDArray[np.float64] | None
    """(band,) in nm, if they are told."""

    def like(self, values: Floats) -> xarray.DataArray:
        """Put other pixels ``(band, y, x)`` into the array: its axes, coordinates and attributes, but the scale, are kept."""
        array = self.array.transpose(*DIMS).copy(data=values).transpose(*self.array.dims)
        array.attrs.pop("scale_factor", None)
        return array.drop_encoding()


def take(scene: xarray.Dataset | xarray.DataArray | NDArray[Any]) -> SceneInMemory:
    """Take a scene as a user has it.

    Parameters
    ----------
    scene
        A dataset with a variable ``radiance``, or an array of the axes band, y and x, in any order if they are named, else in this
        one. A coordinate ``wavelength`` of the bands, and ``valid_mask (y, x)``, False where a pixel holds no data, are looked at.
        Integers are to have an attribute ``scale_factor``.

    Raises
    ------
    SceneError
        If it is none of these, or holds values that are not finite and not masked.
    """
    array, attributes = _array_of(scene)
    if sorted(map(str, array.dims)) != sorted(DIMS):
        raise SceneError(_about_dims(array))
    if array.size == 0:
        raise SceneError(f"the scene is empty: {dict(array.sizes)}")
    given = array.transpose(*DIMS)
    pixels = np.multiply(given.values, np.float32(_scale_of(given)), dtype=np.float32)
    valid = None
    if VALID_MASK in given.coords:
        valid = given[VALID_MASK].transpose("y", "x").values.astype(bool)
        pixels[:, ~valid] = 0.0
    finite = np.isfinite(pixels)
    if not finite.all():
        raise SceneError(
            f"{finite.size - int(finite.sum())} of {finite.size} values are NaN or infinite; "
            "mark the pixels without data, which are then left out: "
            "scene.assign_coords(valid_mask=numpy.isfinite(scene).all('band'))"
        )
    return SceneInMemory(
        array=array,
        attributes=attributes,
        pixels=pixels,
        valid=valid,
        wavelengths=_wavelengths_of(given),
    )


def _array_of(scene: Any) -> tuple[xarray.DataArray, dict[str, Any]]:
    if isinstance(scene, xarray.DataArray):
        return scene, {}
    if isinstance(scene, xarray.Dataset):
        if RADIANCE not in scene:
            held = ", ".join(map(str, scene.data_vars)) or "none"
            raise SceneError(f"the dataset has no variable {RADIANCE!r}; give one of its arrays: {held}")
        beside = {name: scene[name] for name in (WAVELENGTH, VALID_MASK) if name in scene}
        return scene[RADIANCE].assign_coords(beside), dict(scene.attrs)
    values = np.asarray(scene)
    if values.ndim != len(DIMS):
        raise SceneError(f"a scene is (band, y, x), got an array of shape {values.shape}")
    return xarray.DataArray(values, dims=DIMS), {}


def _about_dims(array: xarray.DataArray) -> str:
    dims = tuple(map(str, array.dims))
    about = f"a scene has the dims band, y and x, in any order, got {dims}"
    strange, missing = ([d for d in a if d not in b] for a, b in ((dims, DIMS), (DIMS, dims)))
    if WAVELENGTH in strange and "band" in missing:
        return f"{about}; make the wavelengths a coordinate of the bands: scene.swap_dims(wavelength='band')"
    if len(strange) == len(missing):
        renamed = ", ".join(f"{old!r}: ..." for old in strange)
        return f"{about}; rename those that are called otherwise, to {', '.join(missing)}: scene.rename({{{renamed}}})"
    return f"{about}; choose one scene of {len(DIMS)} dims, such as scene.isel({(strange or ['time'])[0]}=0)"


def _scale_of(given: xarray.DataArray) -> float:
    """Return what values are to be multiplied by."""
    if given.dtype.kind not in "uif":
        raise SceneError(f"a scene holds integers or floats, got {given.dtype}")
    if undecoded := [name for name in _UNDECODED if name in given.attrs]:
        raise SceneError(
            f"the scene has the attribute {undecoded[0]!r}, which is not applied to its values; "
            "open it by xarray with mask_and_scale=True, its default"
        )
    scale = given.attrs.get("scale_factor", 1.0 if given.dtype.kind == "f" else None)
    if scale is None:
        low, high = given.min().item(), given.max().item()
        raise SceneError(
            f"the scene holds {given.dtype} from {low} to {high}, and nothing says which value means 1.0; divide by that value, "
            f"such as scene / {max(high, 1)}, or set scene.attrs['scale_factor'] = 1 / {max(high, 1)}"
        )
    return float(scale)


def _wavelengths_of(given: xarray.DataArray) -> NDArray[np.float64] | None:
    if WAVELENGTH not in given.coords or given[WAVELENGTH].dims != ("band",):
        return None
    told = given[WAVELENGTH]
    units = told.attrs.get("units")
    try:
        said = Said(told.values.astype(np.float64), None if units is None else str(units))
    except (TypeError, ValueError):
        return None
    return spectral(given.sizes["band"], said, None).wavelengths
