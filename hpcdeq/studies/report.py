"""One self-contained HTML page of an evaluation: table, false-colour pictures, spectra, settings."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.console import progress, say
from hpcdeq.studies import page
from hpcdeq.studies.evaluation import Comparison, Failure, Row, cells, means
from hpcdeq.studies.page import (
    Figure,
    blank_figure,
    data_uri,
    false_colours,
    jpeg,
    middle,
    render_page,
    rgb_bands,
    typical_points,
    white_of,
)

MAX_PANELS = 12  # a panel is some 0.5 MB of pictures; the table holds all rows
MAX_EDGE = 400  # pixels shown of a scene: its centre, not shrunk, as shrinking would hide the noise
COLOURS = ("#d1495b", "#2a7f9e", "#6a8d2f")

CONVENTIONS = {
    "PSNR": "mean over bands of 10 log10(1 / mean squared error), in dB, data in [0, 1]; higher is better",
    "SSIM": "mean over bands; Gaussian window of 11 pixels, sigma 1.5, data range 1; higher is better",
    "SAM": "mean over pixels of the angle between both spectra, zero ones left out, in radians; lower is better",
    "ERGAS": "100 x root mean square over bands of (RMSE / mean of the band); lower is better",
}


@dataclass(frozen=True)
class Panel:
    """What is shown of one row."""

    row: Row
    figures: list[Figure]
    markers: list[dict[str, Any]]
    """Where the spectra were taken: left and top in percent of the picture, and a colour."""
    spectra: str
    """Data URI."""
    note: str


def require_libraries() -> None:
    """Raise MissingExtraError if the report cannot be made: call it before the long work."""
    page.require_libraries("the HTML report", "matplotlib", "jinja2")


def make_panel(comparison: Comparison) -> Panel:
    """Draw the pictures and spectra of a comparison."""
    full = comparison.clean.shape[1:]
    c = _centre(comparison)
    bands, how = rgb_bands(c.wavelengths, len(c.clean))
    white = white_of(c.clean[bands], c.valid)

    def colour(title: str, scene: NDArray[np.float32], caption: str) -> Figure:
        return Figure(title, false_colours(scene[bands], white, c.valid), caption)

    row = c.row
    before = "" if row.noisy is None else f"{row.noisy.psnr:.2f} dB"
    figures = [colour("clean", c.clean, how)]
    if c.noisy is not None:
        figures.append(colour("noisy", c.noisy, before))
    figures.append(colour("denoised", c.denoised, f"{row.denoised.psnr:.2f} dB"))
    figures.append(_error_picture(c))
    points = typical_points(c.clean, c.valid)
    height, width = c.valid.shape
    markers = [
        {"left": 100 * (x + 0.5) / width, "top": 100 * (y + 0.5) / height, "colour": colour_}
        for (y, x), colour_ in zip(points, COLOURS, strict=False)
    ]
    cropped = (height, width) != full
    note = f"shown: the {width} x {height} pixels in the middle of {full[1]} x {full[0]}" if cropped else ""
    return Panel(row, figures, markers, _spectra(c, points), note)


@dataclass(frozen=True)
class Results:
    """An evaluation, without the scenes themselves."""

    rows: list[Row]
    failures: list[Failure]
    panels: list[Panel]


def gather(compared: Iterable[Comparison | Failure], total: int, pictures: bool) -> Results:
    """Go through all comparisons, one scene in memory at a time; failures are told at once."""
    results = Results([], [], [])
    for item in progress(compared, total, "evaluate"):
        if isinstance(item, Failure):
            say(f"failed {item.scene}: {item.message}")
            results.failures.append(item)
            continue
        results.rows.append(item.row)
        if pictures and len(results.panels) < MAX_PANELS:
            results.panels.append(make_panel(item))
    return results


def render(results: Results, settings: dict[str, Any], title: str) -> str:
    """Return the page."""
    return render_page(
        "report.html.j2",
        title=title,
        rows=results.rows,
        means=means(results.rows),
        cells=cells,
        failures=results.failures,
        panels=results.panels,
        settings=settings,
        conventions=CONVENTIONS,
    )


def _centre(c: Comparison) -> Comparison:
    cut = middle(c.valid.shape, MAX_EDGE)
    noisy = None if c.noisy is None else c.noisy[cut]
    return Comparison(c.row, c.clean[cut], noisy, c.denoised[cut], c.valid[cut], c.wavelengths)


def _error_picture(c: Comparison) -> Figure:
    from matplotlib import colormaps

    error = np.abs(c.denoised - c.clean).mean(axis=0)
    top = max(float(np.quantile(error[c.valid], 0.995)) if c.valid.any() else 1.0, 1e-6)
    coloured = colormaps["magma"](np.clip(error / top, 0.0, 1.0))[..., :3]
    return Figure(
        "error", jpeg(np.where(c.valid[..., None], coloured, 0.5)), f"|denoised - clean|, bright: {top:.3f}"
    )


def _spectra(c: Comparison, points: list[tuple[int, int]]) -> str:
    axis = np.arange(1, len(c.clean) + 1) if c.wavelengths is None else c.wavelengths
    canvas, (plots,) = blank_figure(9.0, 2.6, max(len(points), 1))
    for plot, (y, x), colour in zip(plots, points, COLOURS, strict=False):
        if c.noisy is not None:
            plot.plot(axis, c.noisy[:, y, x], ".", color="#b8b8b8", markersize=4, label="noisy")
        plot.plot(axis, c.clean[:, y, x], color="#333333", linewidth=1.2, label="clean")
        plot.plot(axis, c.denoised[:, y, x], color=colour, linewidth=1.8, label="denoised")
        plot.set_xlabel("band" if c.wavelengths is None else "wavelength, nm", fontsize=8)
        plot.legend(frameon=False, fontsize=7)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", buffer.getvalue())
