"""What every reader gives: a raw scene with its facts, and ``read(window)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.documents import shortened
from hpcdeq.errors import SceneError
from hpcdeq.tiling import Window

WAVELENGTH_NAMES = (
    "wavelength",
    "wavelengths",
    "bands",
    "wl",
    "wave",
    "lambda",
    "lambdas",
    "centers",
    "centerwavelength",
)
_SHORTEST_NM = 100.0
_NANOMETRES = {"nm": 1.0, "nanometers": 1.0, "nanometres": 1.0, "nanometer": 1.0, "nanometre": 1.0}
_MICROMETRES = dict.fromkeys(
    ("um", "µm", "μm", "micrometers", "micrometres", "micrometer", "micrometre", "microns", "micron"), 1000.0
)
_UNITS = _NANOMETRES | _MICROMETRES


@dataclass(frozen=True)
class Source:
    """A raw scene that was found and not opened yet."""

    name: str
    """Name of the scene: of the folder for PNG bands, else of the file without its ending."""
    kind: str
    """Which reader opens it: png, envi, hdf5, matlab5, npy, npz, geotiff."""
    path: Path
    """The file or folder the user knows it by."""
    files: tuple[Path, ...]
    """All files that make it up, in the order in which they are checksummed."""


@dataclass(frozen=True)
class Selection:
    """What to take from a file that holds more than one array, or does not tell its axes."""

    variable: str | None = None
    axes: str | None = None
    """Order of the axes as the file stores them, such as ``yxb``; for MATLAB files as MATLAB shows them."""


@dataclass(frozen=True, kw_only=True)
class RawScene:
    """A raw scene, opened for reading."""

    format: str
    """For people: "CAVE PNG folder", "ENVI BIL", ..."""
    shape: tuple[int, int, int]
    """(band, y, x)."""
    dtype: np.dtype[Any]
    read: Callable[[Window], NDArray[Any]]
    """Pixels (band, y, x) of a window, in the file's own type and units."""
    variable: str | None = None
    wavelengths: NDArray[np.float64] | None = None
    """(band,) in nm."""
    fwhm: NDArray[np.float64] | None = None
    """(band,) in nm."""
    full_scale: float | None = None
    """The value that maps to 1.0, if the format tells."""
    full_scale_from: str = ""
    ignore_value: float | None = None
    """A pixel all of whose bands equal this holds no data."""
    notes: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    """Further attributes of the stored scene, such as its map projection."""


class Said(NamedTuple):
    """Numbers as a file tells them."""

    values: NDArray[Any]
    units: str | None = None


class Variable(NamedTuple):
    """An array in a file, as its error lines list it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def listing(variables: Sequence[Variable]) -> str:
    """Name all arrays of a file with their shapes and types."""
    return ", ".join(f"{v.name} {v.shape} {v.dtype}" for v in variables) or "no arrays"


def choose(variables: Sequence[Variable], candidates: Sequence[str], wanted: str | None) -> str:
    """Return the name of the one array to read.

    Parameters
    ----------
    variables
        All arrays of the file.
    candidates
        Names of those that can be scenes.
    wanted
        The user's ``--variable``, if any.

    Raises
    ------
    SceneError
        If the wanted one does not exist or is no scene; if none is wanted and there is not one candidate.
    """
    if wanted is not None:
        if wanted in candidates:
            return wanted
        what = (
            "cannot be a scene (numeric, 3-D)" if wanted in {v.name for v in variables} else "does not exist"
        )
        raise SceneError(f"variable {wanted!r} {what}; the file holds: {listing(variables)}")
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise SceneError(f"no numeric 3-D array in it; the file holds: {listing(variables)}")
    raise SceneError(
        f"{len(candidates)} arrays could be the scene; choose one with --variable NAME; "
        f"the file holds: {listing(variables)}"
    )


def damaged(what: str, error: Exception | str) -> SceneError:
    """Return the error of a file, or a part of it, that its parser makes nothing of."""
    return SceneError(f"truncated or damaged {what} ({shortened(str(error))}); copy it again from its source")


def check_shape(shape: Sequence[int], itemsize: int) -> tuple[int, int, int]:
    """Return (band, y, x) if an archive can hold it; headers can lie, so this comes before any allocation."""
    bands, height, width = (int(n) for n in shape)
    if not (
        1 <= bands <= layout.MAX_BANDS and 1 <= height <= layout.MAX_EDGE and 1 <= width <= layout.MAX_EDGE
    ):
        raise SceneError(
            f"{bands} bands of {height} x {width} pixels are out of bounds: 1 to {layout.MAX_BANDS} bands, "
            f"1 to {layout.MAX_EDGE} pixels an edge"
        )
    if bands * layout.CHUNK**2 * itemsize > layout.MAX_CHUNK_BYTES:
        raise SceneError(
            f"{bands} bands of {itemsize} bytes are too many for one chunk of {layout.CHUNK} pixels"
        )
    return bands, height, width


class Spectral(NamedTuple):
    """Where the bands of a scene lie, as far as its file tells."""

    wavelengths: NDArray[np.float64] | None
    """(band,) in nm."""
    fwhm: NDArray[np.float64] | None
    """(band,) in nm."""
    notes: tuple[str, ...]
    """What was assumed, or why they are not used."""


def spectral(bands: int, wavelengths: Said | None, fwhm: Said | None) -> Spectral:
    """Convert wavelengths and widths to nm.

    Parameters
    ----------
    bands
        Number of bands, which both must match.
    wavelengths, fwhm
        Values and their units. Wavelengths without units that are all below 100 are micrometres; widths without
        units are in those of the wavelengths.
    """
    notes: list[str] = []
    converted: dict[str, NDArray[np.float64] | None] = {}
    unit_of_wavelengths = ""
    for what, said in (("wavelengths", wavelengths), ("fwhm", fwhm)):
        if said is None:
            continue
        values, unit = said.values.astype(np.float64).ravel(), (said.units or "").strip().lower()
        # All 0 is what NetCDF4 leaves in place of a dimension that has no coordinates.
        if values.size != bands or not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
            notes.append(f"{what} not used: not one positive number for each of {bands} bands")
            continue
        if unit in ("", "unknown"):
            unit = unit_of_wavelengths or ("um" if values.max() < _SHORTEST_NM else "nm")
            if what == "wavelengths" and unit == "um":
                notes.append("wavelengths without units, all below 100: taken as micrometres")
        if unit not in _UNITS:
            notes.append(f"{what} not used: in {said.units!r}, which is no length known here")
            continue
        unit_of_wavelengths = unit_of_wavelengths or unit
        converted[what] = values * _UNITS[unit]
    return Spectral(converted.get("wavelengths"), converted.get("fwhm"), tuple(notes))


def spectral_among(arrays: Mapping[str, Said], bands: int) -> Spectral:
    """Pick wavelengths and widths out of a file's small arrays by their names, before which there may be a path."""
    found: dict[str, Said] = {}
    for path, said in arrays.items():
        name = path.rpartition("/")[2].lower()
        if name == "bands" and not said.units and said.values.size and said.values.min() < _SHORTEST_NM:
            continue  # numbers of bands, not wavelengths
        if said.values.size == bands:
            found.setdefault("wavelengths" if name in WAVELENGTH_NAMES else name, said)
    return spectral(bands, found.get("wavelengths"), found.get("fwhm"))
