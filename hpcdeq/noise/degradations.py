"""Noise added to clean scenes: i.i.d. Gaussian, and the complex cases of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hpcdeq.noise.keyed import fill_normal, generator, stable_hash

_UNIT = 255.0
_STRUCTURE = stable_hash("hpcdeq.noise.structure")
_PIXELS = stable_hash("hpcdeq.noise.pixels")

# QRNN3D's constants: matlab/generate_dataset_mixture.m and utility/dataset.py of Vandermode/QRNN3D on GitHub,
# the code of Wei, Fu, Huang, IEEE TNNLS 2021, doi:10.1109/TNNLS.2020.2978756.
_BAND_SHARE = 3
_COLUMN_SHARE = (0.05, 0.15)
_STRIPE_AMPLITUDE = 0.25
_IMPULSE_RATIOS = (0.1, 0.3, 0.5, 0.7)

Case: TypeAlias = Literal["non_iid", "stripe", "deadline", "impulse", "mixture"]


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian noise, independent and of one standard deviation in all pixels and bands.

    Give ``sigma`` or ``sigma_range``, not both.

    Raises
    ------
    ValueError
        If both or neither is given, or a value is out of range.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: float | tuple[float, ...] | None = None
    """Standard deviation in units of 1/255, from 0 to 255; of several, one is drawn for each block."""
    sigma_range: tuple[float, float] | None = None
    """(least, most) in units of 1/255: drawn uniformly for each block."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_kind(self.kind, "gaussian")
        if (self.sigma is None) == (self.sigma_range is None):
            raise ValueError(
                f"give either sigma or sigma_range and set the other to null, got sigma={self.sigma}, "
                f"sigma_range={self.sigma_range}"
            )
        if self.sigma_range is not None:
            _check_range(self.sigma_range)
        if self.sigma is not None:
            levels = self.levels
            if not levels:
                raise ValueError("sigma must name at least one level, got an empty list")
            for level in levels:
                _check_level("sigma", level)

    @property
    def levels(self) -> tuple[float, ...]:
        """The values of ``sigma`` to draw from; none if a range is given."""
        if self.sigma is None:
            return ()
        return tuple(self.sigma) if isinstance(self.sigma, (tuple, list)) else (self.sigma,)


@dataclass(frozen=True, kw_only=True)
class Complex:
    """Gaussian noise of another standard deviation in every band, and what else fails in real sensors.

    Cases 1 to 5 of QRNN3D. A third of the bands (floor(d/3), at least one) is hit by each of:

    - ``stripe``: 5 to 15 % of the columns are shifted by a constant in [-0.25, 0.25];
    - ``deadline``: 5 to 15 % of the columns are 0;
    - ``impulse``: 10, 30, 50 or 70 % of the pixels are 0 or 1, equally often.

    ``non_iid`` has none of them, ``mixture`` each on its own third.

    Raises
    ------
    ValueError
        If the case is unknown or a value is out of range.

    References
    ----------
    Wei, Fu, Huang: *3-D Quasi-Recurrent Neural Network for Hyperspectral Image Denoising*, IEEE TNNLS 2021,
    doi:10.1109/TNNLS.2020.2978756.
    """

    kind: Literal["complex"] = "complex"
    case: Case
    """What comes on top of the non-i.i.d. Gaussian noise."""
    sigma_range: tuple[float, float] = (10.0, 70.0)
    """(least, most) standard deviation in units of 1/255: drawn uniformly for each band."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_kind(self.kind, "complex")
        if self.case not in get_args(Case):
            raise ValueError(f"case must be one of {', '.join(get_args(Case))}, got {self.case!r}")
        _check_range(self.sigma_range)


Degradation: TypeAlias = Gaussian | Complex


def sigma_range_of(told: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Return the least and the most standard deviation, in units of 1/255, of a degradation as a model's card tells it.

    None if it tells none.
    """
    if not told:
        return None
    levels = told.get("sigma_range") or told.get("sigma")
    levels = levels if isinstance(levels, (list, tuple)) else [levels]
    return (min(levels), max(levels)) if all(isinstance(x, (int, float)) for x in levels) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """What a degradation draws once for a whole scene or block."""

    sigmas: NDArray[np.float32]
    stripes: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]
    dead: dict[int, NDArray[np.int64]]
    impulses: dict[int, float]


def add_noise(
    clean: NDArray[np.float32],
    degradation: Degradation,
    key: tuple[int, ...],
    strip: int = 0,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Degrade a block, a scene, or one strip of a scene.

    Two calls with the same key draw the same structure (levels, bands, columns); with the same strip, the
    same noise in every pixel too. A scene too large for memory is degraded strip by strip (whole rows), each
    under its own number. The result is not clipped.

    Parameters
    ----------
    clean
        (d, h, w) float32, nominally in [0, 1].
    degradation
        What to add.
    key
        Integers that name the block or scene, and the seed, always in the same number.
    strip
        Number of the strip.
    out
        C-contiguous array for the noisy block; a new one is made if there is none.

    Returns
    -------
    noisy, sigma
        (d, h, w) float32; and (d,) float32, the standard deviation of the Gaussian part in each band, in
        units of ``clean``.

    Raises
    ------
    ValueError
        If ``clean`` is not float32 (d, h, w).
    """
    if clean.ndim != 3 or clean.dtype != np.float32:
        raise ValueError(f"clean must be (d, h, w) float32, got shape {clean.shape} of {clean.dtype}")
    bands, _, width = clean.shape
    structure = _draw_structure(degradation, generator(_STRUCTURE, *key), bands, width)
    pixels = generator(_PIXELS, *key, strip)
    noisy = np.empty(clean.shape, np.float32) if out is None else out
    fill_normal(pixels, noisy)
    noisy *= structure.sigmas[:, None, None]
    noisy += clean
    for band, (columns, shifts) in structure.stripes.items():
        noisy[band][:, columns] -= shifts
    for band, columns in structure.dead.items():
        noisy[band][:, columns] = 0.0
    for band, ratio in structure.impulses.items():
        draw = pixels.random(noisy[band].shape, dtype=np.float32)
        noisy[band][draw < ratio] = 0.0
        noisy[band][draw < ratio / 2] = 1.0
    return noisy, structure.sigmas


def _draw_structure(degradation: Degradation, rng: np.random.Generator, bands: int, width: int) -> _Structure:
    """Draw what all strips share."""
    if isinstance(degradation, Gaussian):
        if degradation.sigma_range is not None:
            level = rng.uniform(*degradation.sigma_range)
        else:
            level = degradation.levels[rng.integers(len(degradation.levels))]
        return _Structure(sigmas=np.full(bands, level / _UNIT, np.float32), stripes={}, dead={}, impulses={})
    sigmas = (rng.uniform(*degradation.sigma_range, bands) / _UNIT).astype(np.float32)
    share = max(1, bands // _BAND_SHARE)
    order = rng.permutation(bands)
    thirds = [order[i * share : (i + 1) * share].tolist() for i in range(_BAND_SHARE)]
    if degradation.case != "mixture":
        # One kind alone takes the first third, whichever it is.
        thirds = [thirds[0] if degradation.case == kind else [] for kind in ("stripe", "deadline", "impulse")]
    stripes = {}
    for band in thirds[0]:
        columns = _draw_columns(rng, width)
        shifts = rng.uniform(-_STRIPE_AMPLITUDE, _STRIPE_AMPLITUDE, len(columns)).astype(np.float32)
        stripes[band] = (columns, shifts)
    return _Structure(
        sigmas=sigmas,
        stripes=stripes,
        dead={band: _draw_columns(rng, width) for band in thirds[1]},
        impulses={band: float(rng.choice(_IMPULSE_RATIOS)) for band in thirds[2]},
    )


def _draw_columns(rng: np.random.Generator, width: int) -> NDArray[np.int64]:
    least, most = (math.ceil(share * width) for share in _COLUMN_SHARE)
    return rng.permutation(width)[: rng.integers(least, most, endpoint=True)]


def _check_kind(kind: str, expected: str) -> None:
    if kind != expected:
        raise ValueError(f"kind must be {expected!r} here, got {kind!r}")


def _check_level(name: str, level: float) -> None:
    if not 0 <= level <= _UNIT:
        raise ValueError(f"{name} must be from 0 to 255 (units of 1/255 of the data range), got {level}")


def _check_range(sigma_range: tuple[float, float]) -> None:
    if len(sigma_range) != 2 or not sigma_range[0] <= sigma_range[1]:
        raise ValueError(f"sigma_range must be (least, most), got {sigma_range!r}")
    for level in sigma_range:
        _check_level("sigma_range", level)
