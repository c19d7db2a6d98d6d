"""What a notebook needs, as ``import hpcdeq`` offers it: scenes of an archive as xarray, models by name, denoising in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray
from numpy.typing import NDArray

from hpcdeq import archive, models, weights
from hpcdeq.archive.xarrays import SceneInMemory, dataset_of, take
from hpcdeq.console import Bar
from hpcdeq.errors import SceneError
from hpcdeq.inference import DenoiseSettings
from hpcdeq.inference.findings import noise_in_the_middle, noise_remarks, tile_maps
from hpcdeq.inference.whole import denoise_whole, tile_count
from hpcdeq.noise import sigma_range_of
from hpcdeq.tiling import Window

_OUTSIDE = 0.01  # share of values that may lie outside of [0, 1] by more than the noise explains


class Scenes:
    """The scenes of an archive, to be read. Iterating gives their names in order; ``scenes[name]`` is an ``xarray.Dataset``."""

    def __init__(self, stored: archive.Archive) -> None:
        self._stored = stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> xarray.Dataset:
        return dataset_of(self._stored[name])

    def __repr__(self) -> str:
        names = list(self)
        more = f", ... ({len(names)} in all)" if len(names) > 10 else ""
        return f"<hpcdeq archive {self._stored.path}: {', '.join(names[:10]) or 'no scenes'}{more}>"


def open_archive(path: Path | str) -> Scenes:
    """Open an archive, to read its scenes.

    Parameters
    ----------
    path
        Folder of the archive, as ``hpcdeq ingest`` and ``hpcdeq denoise`` write it.

    Returns
    -------
    Scenes
        Iterating gives the names. ``scenes[name]`` is an ``xarray.Dataset``: ``radiance (band, y, x)``, float32 and nominally in
        [0, 1], of which a shard is read when it is needed; coordinates ``wavelength (band)`` in nm and ``valid_mask (y, x)``, if
        there are any; and of a denoised scene its noise and the maps of its tiles, as `denoise` returns them.

    Raises
    ------
    ArchiveNotFoundError
        If there is no archive, or later no such scene.
    ArchiveError, SceneError
        If the archive, or later a scene, is damaged or of another schema.
    """
    return Scenes(archive.open_archive(path))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A trained model."""

    name: str
    """Name of its folder."""
    network: models.SparseDenoiser
    """The torch module, in evaluation mode, on the CPU."""
    weights_sha256: str
    """Digest of its numbers."""
    wavelengths: NDArray[np.float64] | None
    """(band,) in nm, of the scenes it was trained on, if they are known."""
    sigma_range: tuple[float, float] | None
    """Least and most standard deviation of the noise it was trained for, in units of 1/255, if they are known."""

    @property
    def bands(self) -> int:
        """Number of bands that a scene must have."""
        return self.network.bands

    def __repr__(self) -> str:
        settings, nm, sigma = self.network.settings, self.wavelengths, self.sigma_range
        parts = [
            f"map {settings.map}, {settings.adjoint.kind} adjoint, {self.network.parameter_count} parameters",
            f"{self.bands} bands" + ("" if nm is None else f" from {nm.min():g} to {nm.max():g} nm"),
            f"tiles of {settings.block} pixels",
        ]
        if sigma is not None:
            parts.append(f"noise of {sigma[0]:g}/255 to {sigma[1]:g}/255")
        return f"<hpcdeq model {self.name}: {'; '.join(parts)}>"


def load_model(name: Path | str) -> Model:
    """Read a model.

    Parameters
    ----------
    name
        ``du-fast``, ``deq-fast``, ``du-full`` or ``deq-full``, which come along; or a folder, as ``hpcdeq train`` writes it.

    Raises
    ------
    ModelFileError
        If there is no such model, or it is damaged.
    """
    folder = weights.find(Path(name))
    card = models.read_card(folder)
    provenance = card["provenance"]
    told = provenance.get("wavelengths") or weights.wavelengths_of(folder)
    return Model(
        name=folder.resolve().name,
        network=models.load_model(folder),
        weights_sha256=card["weights_sha256"],
        wavelengths=None if told is None else np.array(told, np.float64),
        sigma_range=sigma_range_of(provenance.get("config", {}).get("noise")),
    )


def denoise(
    scene: xarray.Dataset | xarray.DataArray | NDArray[Any],
    model: Model | Path | str,
    *,
    overlap: int | None = None,
    iterations: int | None = None,
    tolerance: float | None = None,
    batch: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    progress: bool = True,
) -> xarray.Dataset:
    """Denoise a scene in memory; the numbers are those of ``hpcdeq denoise``.

    Parameters
    ----------
    scene
        A scene of `open_archive`, or an array: of xarray with the dims band, y and x in any order, or of numpy ``(band, y, x)``.
        Values are nominally in [0, 1], plus noise; an attribute ``scale_factor`` is applied first. A coordinate
        ``wavelength (band)``, in nm unless its ``units`` say otherwise, must be that of the model. Pixels where a coordinate
        ``valid_mask (y, x)`` is False hold no data and become 0.
    model
        From `load_model`, or what that takes.
    overlap
        Pixels shared by neighbouring tiles; None is a third of a tile.
    iterations, tolerance
        Of the solver; None keeps those of the model.
    batch
        Tiles computed at once on a GPU, which rounds by it; None is 16 of 60 x 60 pixels, more if they are smaller.
    precision
        What the prior computes in.
    device
        ``auto``, ``cpu`` or ``cuda``.
    progress
        Whether a bar is shown.

    Returns
    -------
    xarray.Dataset
        ``radiance``: float32, with the axes, coordinates and attributes of the scene. ``noise_sigma (band)``: estimated standard
        deviation of the noise in the middle of the scene, in the units of the pixels. ``tile_residual``, ``tile_iterations`` and
        ``tile_converged (tile_y, tile_x)``: how each tile was solved, by its first row and column.

    Raises
    ------
    SceneError
        If the scene is none of these, does not fit the model, or holds values that are not finite.
    ModelFileError
        If there is no such model.
    ConfigError
        If an option is out of range.

    Warns
    -----
    UserWarning
        If many values are outside of [0, 1], or the model was trained for other noise.
    """
    settings = DenoiseSettings(
        overlap=overlap,
        iterations=iterations,
        tolerance=tolerance,
        batch=batch,
        precision=precision,
        device=device,
    )
    if not isinstance(model, Model):
        model = load_model(model)
    taken = take(scene)
    _check_fit(taken, model)
    _, height, width = taken.pixels.shape
    extent = Window(0, height, 0, width)
    noise = noise_in_the_middle(extent, extent, taken.pixels)
    for remark in _remarks(taken, noise, model):
        warnings.warn(remark, UserWarning, stacklevel=2)
    tiles = tile_count(model.network, taken.pixels.shape, settings)
    with Bar("denoise", tiles) if progress else nullcontext() as bar:
        found = denoise_whole(model.network, taken.pixels, settings, bar)
    if taken.valid is not None:
        found.values[:, ~taken.valid] = 0.0
    maps: dict[str, Any] = tile_maps(found.tiles)
    if noise:
        maps["noise_sigma"] = ("band",), np.array(noise, np.float32)
    denoised = xarray.Dataset({"radiance": taken.like(found.values), **maps}, attrs=taken.attributes)
    denoised["tile_converged"] = denoised.tile_converged.astype(bool)
    return denoised.assign_attrs(
        denoised_with=f"{model.name}, weights {model.weights_sha256}, overlap {settings.overlap_of(model.network)}, {precision}"
    )


def _check_fit(taken: SceneInMemory, model: Model) -> None:
    """See that the bands of a scene are those of a model."""
    shape, here, there = taken.pixels.shape, taken.wavelengths, model.wavelengths
    if shape[0] != model.bands:
        turned = (
            shape[2] == model.bands
            and "; is band its last axis? numpy.moveaxis(scene, -1, 0) makes it the first"
        )
        raise SceneError(
            f"{shape[0]} bands, but the model {model.name} knows {model.bands}{turned or '; train one for this sensor'}"
        )
    if here is None or there is None or model.bands == 1:
        return
    furthest = int(np.argmax(np.abs(here - there)))
    if abs(here[furthest] - there[furthest]) > 0.5 * float(np.median(np.abs(np.diff(there)))):
        raise SceneError(
            f"band {furthest + 1} is at {here[furthest]:g} nm, but the model {model.name} was trained on {there[furthest]:g} nm "
            f"there (all bands: {here[0]:g} to {here[-1]:g} nm, the model's: {there[0]:g} to {there[-1]:g} nm); train one for this "
            "sensor, or, to try this one nevertheless, leave the wavelengths out: scene.drop_vars('wavelength')"
        )


def _remarks(taken: SceneInMemory, noise: list[float], model: Model) -> list[str]:
    """What is to be said of the values of a scene and of its noise."""
    pixels, remarks = taken.pixels, []
    margin = 3.0 * np.array(noise or [0.0], np.float32)[:, None, None]
    outside = float(((pixels < -margin) | (pixels > 1.0 + margin)).mean())
    if outside > _OUTSIDE:
        low, high = float(pixels.min()), float(pixels.max())
        remarks.append(
            f"{100 * outside:.0f} % of the values are outside of [0, 1], from {low:.4g} to {high:.4g}: models know scenes from "
            f"0 to 1, plus noise; divide by the value that means white, such as scene / {high:.4g}"
        )
    elif noise:
        level = 255.0 * sum(noise) / len(noise)
        remarks += [f"of the scene: {remark}" for remark in noise_remarks(level, model.sigma_range)]
    return remarks
