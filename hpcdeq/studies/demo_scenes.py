"""Generated hyperspectral scenes, written as the raw files of a camera: for the demo and for tests.

A table top: balls, boxes and striped surfaces under a lamp, before a dark background. Every surface mixes
three materials with smooth reflectances, by fractal noise. So bands are strongly correlated, as in real ones,
and edges and textures are there to be lost. No substitute for real scenes in a comparison.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

WAVELENGTHS: Floats = np.arange(400.0, 701.0, 10.0)
"""(31,) band centres in nm: the bands of the CAVE camera."""

_MATERIALS = 24
_WHITE = 0.92 * 65535  # the brightest pixel: as a careful photographer exposes, nothing is clipped


def make_scene(seed: int, size: int = 260) -> NDArray[np.uint16]:
    """Generate a scene ``(31, size, size)`` of raw counts, the same for the same seed.

    Parameters
    ----------
    seed
        Another seed is another arrangement, of the same stock of materials.
    size
        Edge in pixels.
    """
    rng = np.random.default_rng((seed, size))
    stock = _reflectances(np.random.default_rng(0))
    light = _lamp(kelvin=rng.uniform(3500.0, 6500.0))

    image = 0.03 * _mixture(rng, stock, size)  # the dark cloth behind everything
    for _ in range(14):
        shape = (_ball, _box, _band)[rng.integers(3)]
        covered, shading = shape(rng, size)
        surface = _mixture(rng, stock, size) * rng.uniform(0.35, 1.0)
        image = np.where(covered, surface * shading, image)
    image *= 0.75 + 0.25 * _fractal(rng, size, exponent=1.8)  # uneven light
    image = gaussian_filter(image * light[:, None, None], sigma=(0.0, 0.6, 0.6))  # the lens
    counts: NDArray[np.uint16] = np.round(image * (_WHITE / image.max())).astype(np.uint16)
    return counts


def write_raw(folder: Path, scene: NDArray[np.uint16]) -> Path:
    """Write a scene as a folder of 16-bit PNGs, one a band, named as the CAVE database names them.

    Returns
    -------
    Path
        ``folder``; its name becomes the scene's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, band in enumerate(scene, start=1):
        Image.fromarray(band).save(folder / f"{folder.name}_{number:02d}.png")
    return folder


def _reflectances(rng: np.random.Generator) -> Floats:
    """(materials, band) smooth reflectances in [0.03, 0.95]: a level, an edge, and up to two bumps."""
    nm = WAVELENGTHS
    rows = []
    for _ in range(_MATERIALS):
        level, height = rng.uniform(0.05, 0.5), rng.uniform(-0.4, 0.6)
        edge = height / (1.0 + np.exp(-(nm - rng.uniform(430.0, 670.0)) / rng.uniform(8.0, 60.0)))
        bumps = np.zeros_like(nm)
        for _ in range(rng.integers(0, 3)):
            centre, width = rng.uniform(400.0, 700.0), rng.uniform(15.0, 45.0)
            bumps += rng.uniform(-0.3, 0.5) * np.exp(-0.5 * ((nm - centre) / width) ** 2)
        rows.append(np.clip(level + edge + bumps, 0.03, 0.95))
    return np.stack(rows)


def _lamp(kelvin: float) -> Floats:
    """(band,) light of a black body (Planck's law), 1 where it is brightest."""
    metres = WAVELENGTHS * 1e-9
    light: Floats = metres**-5 / np.expm1(1.4388e-2 / (metres * kelvin))
    light /= light.max()
    return light


def _fractal(rng: np.random.Generator, size: int, exponent: float) -> Floats:
    """(size, size) noise in [0, 1] whose amplitude falls with frequency as ``f ** -exponent``."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    amplitude = np.maximum(np.hypot(fy, fx), 1.0 / size) ** -exponent
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * amplitude, s=(size, size))
    scaled: Floats = np.clip(0.5 + noise / (4.0 * noise.std()), 0.0, 1.0)
    return scaled


def _mixture(rng: np.random.Generator, stock: Floats, size: int) -> Floats:
    """(band, size, size): three materials, mixed by fractal noise, one of them in sharp patches."""
    first, second, print_ = stock[rng.choice(len(stock), 3, replace=False)]
    blend = _fractal(rng, size, rng.uniform(1.0, 1.8))
    patches = (_fractal(rng, size, 1.4) > rng.uniform(0.55, 0.9)).astype(float)
    grain = 1.0 - rng.uniform(0.0, 0.4) * _fractal(rng, size, rng.uniform(0.4, 1.0))
    abundances = np.stack([blend * (1 - patches), (1 - blend) * (1 - patches), patches]) * grain
    mixed: Floats = np.einsum("mb,myx->byx", np.stack([first, second, print_]), abundances)
    return mixed


def _frame(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Coordinates (u, v) of all pixels as seen from an object of random place and size: inside in (-1, 1)."""
    angle, (cy, cx) = rng.uniform(0.0, np.pi), rng.uniform(0.0, size, 2)
    height, width = size * rng.uniform(0.08, 0.28, 2)
    y, x = np.mgrid[0.0:size, 0.0:size]
    y, x = y - cy, x - cx
    return (np.cos(angle) * x + np.sin(angle) * y) / width, (np.cos(angle) * y - np.sin(angle) * x) / height


def _ball(rng: np.random.Generator, size: int) -> tuple[NDArray[np.bool_], Floats]:
    """An ellipsoid, lit from the side and matt (Lambert's law)."""
    u, v = _frame(rng, size)
    radius2 = u**2 + v**2
    depth = np.sqrt(np.maximum(1.0 - radius2, 0.0))
    return radius2 < 1.0, np.clip(0.5 * u + 0.3 * v + 0.8 * depth, 0.05, 1.0)


def _box(rng: np.random.Generator, size: int) -> tuple[NDArray[np.bool_], Floats]:
    """A flat rectangle whose light falls off along it."""
    u, v = _frame(rng, size)
    return np.maximum(np.abs(u), np.abs(v)) < 1.0, 0.75 + 0.25 * np.clip(u, -1.0, 1.0)


def _band(rng: np.random.Generator, size: int) -> tuple[NDArray[np.bool_], Floats]:
    """A rectangle woven in stripes."""
    u, v = _frame(rng, size)
    stripes = 0.5 + 0.5 * np.sin(u * rng.uniform(6.0, 30.0))
    return np.maximum(np.abs(u), np.abs(v)) < 1.0, 0.35 + 0.65 * stripes
