"""Score scenes against clean ones: archives denoised before, or a model on noise that is added here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Archive, Scene
from hpcdeq.console import table
from hpcdeq.errors import HpcdeqError, SceneError
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.metrics import Scores, evaluate_all
from hpcdeq.models import SparseDenoiser
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import noisy_copy

Floats = NDArray[np.float32]
METRICS = ("psnr", "ssim", "sam", "ergas")


@dataclass(frozen=True)
class Row:
    """The scores of one scene at one noise level; of the noisy input too where it is known."""

    scene: str
    sigma: float | None
    """Standard deviation of the noise added here, on the scale of 0 to 255; None if none was."""
    noisy: Scores | None
    denoised: Scores


@dataclass(frozen=True)
class Comparison:
    """A row, and the scenes ``(band, y, x)`` behind it: for pictures."""

    row: Row
    clean: Floats
    noisy: Floats | None
    denoised: Floats
    valid: NDArray[np.bool_]
    """(y, x), False where the clean scene holds no data; such pixels are not scored."""
    wavelengths: NDArray[np.float64] | None


@dataclass(frozen=True)
class Failure:
    """A scene that could not be scored, and why."""

    scene: str
    message: str


def compare_archives(
    clean: Archive,
    denoised: Archive,
    noisy: Archive | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Comparison | Failure]:
    """Score the scenes of ``denoised`` (and of ``noisy``) against those of the same names in ``clean``.

    All of ``clean``, or those of some ``names``.
    """
    for name in clean if names is None else names:
        try:
            scene = clean[name]
            reference = scene.read()
            estimate = _counterpart(scene, denoised)
            before = None if noisy is None else _counterpart(scene, noisy)
            yield _score(scene, None, reference, before, estimate)
        except HpcdeqError as error:
            yield Failure(name, str(error))


def compare_model(
    clean: Archive,
    model: SparseDenoiser,
    sigmas: Sequence[float],
    seed: int = 0,
    settings: DenoiseSettings | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Comparison | Failure]:
    """Add noise to every scene of ``clean``, denoise it, and score both.

    Parameters
    ----------
    clean
        Clean scenes.
    model
        A trained model.
    sigmas
        Noise levels, on the scale of 0 to 255.
    seed
        Seed of the noise, which is that of `degrade_archive` with this seed.
    settings
        How to apply the model.
    names
        Which scenes; None is all.
    """
    for name in clean if names is None else names:
        try:
            scene = clean[name]
            reference = scene.read()
            if scene.shape[0] != model.bands:
                raise SceneError(
                    f"scene {name} has {scene.shape[0]} bands, but the model was trained for {model.bands}; "
                    "train one for this sensor"
                )
            valid = scene.valid_mask()
            for sigma in sigmas:
                noisy = noisy_copy(scene, Gaussian(sigma=sigma), seed)
                noisy[:, ~valid] = 0.0
                yield _score(scene, sigma, reference, noisy, denoise_array(model, noisy, settings))
        except HpcdeqError as error:
            yield Failure(name, str(error))


def _counterpart(clean: Scene, archive: Archive) -> Floats:
    """The pixels of the scene of the same name in another archive."""
    if clean.name not in archive:
        raise SceneError(
            f"scene {clean.name} is not in {archive.path}: not scored; denoise it, then evaluate again"
        )
    other = archive[clean.name]
    if other.shape != clean.shape:
        raise SceneError(
            f"scene {clean.name} is {clean.shape} (band, y, x) in {clean.path.parent}, but {other.shape} in "
            f"{archive.path}; they must be equal: was it made from another version of the scene?"
        )
    return other.read()


def _score(
    scene: Scene, sigma: float | None, clean: Floats, noisy: Floats | None, denoised: Floats
) -> Comparison:
    valid = scene.valid_mask()
    mask = valid if scene.has_mask else None
    try:
        before = None if noisy is None else evaluate_all(clean, noisy, mask)
        row = Row(scene.name, sigma, before, evaluate_all(clean, denoised, mask))
    except ValueError as error:  # too small, or nothing valid in it
        raise SceneError(f"scene {scene.name} cannot be scored: {error}") from error
    return Comparison(row, clean, noisy, denoised, valid, scene.wavelengths)


def means(rows: Iterable[Row]) -> list[Row]:
    """Average the rows over the scenes: one row for every noise level, in order of appearance."""
    groups: dict[float | None, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.sigma, []).append(row)
    return [
        Row(
            "mean",
            sigma,
            _mean([row.noisy for row in group if row.noisy is not None]),
            _mean([row.denoised for row in group]) or group[0].denoised,
        )
        for sigma, group in groups.items()
    ]


def _mean(scores: list[Scores]) -> Scores | None:
    if not scores:
        return None
    return Scores(**{name: float(np.mean([getattr(s, name) for s in scores])) for name in METRICS})


def cells(row: Row) -> list[str]:
    """Format the four metrics of a row, ``noisy > denoised``."""
    digits = {"psnr": 2, "ssim": 4, "sam": 4, "ergas": 2}

    def cell(name: str) -> str:
        after = f"{getattr(row.denoised, name):.{digits[name]}f}"
        return after if row.noisy is None else f"{getattr(row.noisy, name):.{digits[name]}f} > {after}"

    return [cell(name) for name in METRICS]


def as_table(rows: Sequence[Row]) -> str:
    """Return the scores as lines of text, the means last."""
    lines = [(r.scene, "-" if r.sigma is None else f"{r.sigma:g}", *cells(r)) for r in [*rows, *means(rows)]]
    return table(("scene", "sigma", "PSNR dB", "SSIM", "SAM rad", "ERGAS"), lines)


def as_json_values(
    rows: Sequence[Row], failures: Sequence[Failure], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the results as JSON values; a score that is not finite (PSNR of equal scenes) becomes null."""

    def scores(value: Scores | None) -> dict[str, float | None] | None:
        if value is None:
            return None
        return {name: x if math.isfinite(x := float(getattr(value, name))) else None for name in METRICS}

    def plain(row: Row) -> dict[str, Any]:
        return {"sigma": row.sigma, "noisy": scores(row.noisy), "denoised": scores(row.denoised)}

    return {
        "scenes": [{"scene": row.scene, **plain(row)} for row in rows],
        "mean": [plain(row) for row in means(rows)],
        "failures": [asdict(failure) for failure in failures],
        "settings": settings,
    }
