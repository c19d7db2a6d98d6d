"""Make all pictures of the documentation: python docs/pictures/make.py [folder]

Of a generated scene and the models that come along, by what `import hpcdeq` offers: make them again when the models change.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

import hpcdeq
from hpcdeq.console import result, say
from hpcdeq.metrics import mpsnr
from hpcdeq.noise import Gaussian, add_noise
from hpcdeq.studies.demo_scenes import WAVELENGTHS, make_scene
from hpcdeq.studies.page import rgb_bands, stretched, typical_points, white_of, write_whole

SEED, SIZE, SIGMA = 18, 128, 50.0
MODELS = ("du-fast", "deq-fast", "du-full", "deq-full")
SHOWN = "deq-fast"  # in the pictures of one model: it is solved to a tolerance, of which there is a map
DPI = 110
GREY, COLOUR = "#9aa3ae", "#d1495b"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Study:
    """A scene, with noise and without."""

    clean: Floats
    noisy: Floats
    denoised: dict[str, xarray.Dataset]
    """By model."""

    def colours(self, scene: Floats) -> NDArray[Any]:
        """False colours (y, x, 3), with the stretch of the clean scene."""
        bands, _ = rgb_bands(WAVELENGTHS, len(scene))
        valid = np.ones(scene.shape[1:], bool)
        return stretched(scene[bands], white_of(self.clean[bands], valid), valid)

    def title(self, name: str, scene: Floats) -> str:
        """Name and PSNR."""
        return f"{name}\n{mpsnr(self.clean, scene):.2f} dB"

    def pixels(self, model: str) -> Floats:
        """(band, y, x) denoised by a model."""
        found: Floats = self.denoised[model].radiance.values
        return found


def main(folder: Path) -> None:
    """Make the pictures."""
    study = denoise_by_all()
    for draw in (before_after, spectra, convergence, models):
        path = folder / f"{draw.__name__}.png"
        write_whole(path, _png(draw(study)))
        result(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def denoise_by_all() -> Study:
    """Add noise to a generated scene, and denoise it by each of the models."""
    clean = (make_scene(SEED, SIZE) / 65535).astype(np.float32)
    noisy, _ = add_noise(clean, Gaussian(sigma=SIGMA), (SEED,))
    given = xarray.DataArray(
        noisy, dims=("band", "y", "x"), coords={"wavelength": ("band", WAVELENGTHS, {"units": "nm"})}
    )
    denoised = {}
    for name in MODELS:
        say(name)
        denoised[name] = hpcdeq.denoise(given, name, device="cpu")
    return Study(clean, noisy, denoised)


def before_after(study: Study) -> Figure:
    """Clean, noisy and denoised, in false colours."""
    canvas, panels = _canvas(7.6, 3.0, 3)
    shown = {f"noisy, sigma {SIGMA:g}/255": study.noisy, f"denoised by {SHOWN}": study.pixels(SHOWN)}
    _show(panels[0], study.colours(study.clean), f"clean\n{SIZE} x {SIZE} pixels, {len(study.clean)} bands")
    for panel, (name, scene) in zip(panels[1:], shown.items(), strict=True):
        _show(panel, study.colours(scene), study.title(name, scene))
    _without_axes(panels)
    return canvas


def spectra(study: Study) -> Figure:
    """Spectra of a dim, a middling and a bright pixel."""
    canvas, panels = _canvas(9.0, 3.2, 3)
    points = typical_points(study.clean, np.ones((SIZE, SIZE), bool))
    found = study.pixels(SHOWN)
    for panel, (y, x), kind in zip(panels, points, ("dim", "middling", "bright"), strict=True):
        panel.plot(WAVELENGTHS, study.noisy[:, y, x], ".", color=GREY, markersize=5, label="noisy")
        panel.plot(WAVELENGTHS, study.clean[:, y, x], color="black", linewidth=1.2, label="clean")
        panel.plot(WAVELENGTHS, found[:, y, x], color=COLOUR, linewidth=1.8, label=SHOWN)
        panel.set_title(f"a {kind} pixel: row {y}, column {x}", fontsize=9)
        panel.set_xlabel("wavelength, nm", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e4e7ec", linewidth=0.8)
    panels[0].set_ylabel("radiance, scaled to [0, 1]", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return canvas


def convergence(study: Study) -> Figure:
    """How each tile of the scene was solved."""
    canvas, panels = _canvas(9.6, 3.4, 3)
    found = study.denoised[SHOWN]
    _show(panels[0], study.colours(study.pixels(SHOWN)), f"denoised by {SHOWN}")
    block = int(SIZE - found.tile_y.values[-1])
    edges = [[*(found[axis].values + 0.0), found[axis].values[-1] + block] for axis in ("tile_x", "tile_y")]
    solver = hpcdeq.load_model(SHOWN).network.settings.solver
    share = 100 * float(found.tile_converged.mean())
    _draw_map(canvas, panels[1], edges, found.tile_iterations, f"iterations, at most {solver.iterations}")
    _draw_map(canvas, panels[2], edges, found.tile_residual, "relative residual", norm=LogNorm())
    canvas.suptitle(f"{share:.0f} % of the tiles reach the tolerance of {solver.tolerance:g}", fontsize=9)
    for panel in panels:
        panel.set_xlabel("x, pixels", fontsize=8)
    panels[0].set_ylabel("y, pixels", fontsize=8)
    return canvas


def models(study: Study) -> Figure:
    """What the four models make of the scene, and where they err."""
    canvas, rows = _canvas(8.8, 3.7, 1 + len(MODELS), 2)
    _show(rows[0, 0], study.colours(study.clean), "clean\n")
    _show(rows[1, 0], study.colours(study.noisy), f"noisy: {mpsnr(study.clean, study.noisy):.2f} dB")
    for above, below, name in zip(*rows[:, 1:], MODELS, strict=True):
        scene = study.pixels(name)
        _show(above, study.colours(scene), study.title(name, scene))
        error = np.abs(scene - study.clean).mean(axis=0)
        drawn = below.imshow(error, cmap="magma", vmin=0, vmax=SIGMA / 255 / 4, interpolation="nearest")
    _without_axes(rows)
    bar = canvas.colorbar(drawn, ax=rows[1, :], shrink=0.9, extend="max", pad=0.01)
    bar.set_label("mean |error| of the bands", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return canvas


def _show(panel: Any, colours: NDArray[Any], title: str) -> None:
    panel.imshow(colours, interpolation="nearest")
    panel.set_title(title, fontsize=9)


def _draw_map(
    canvas: Figure, panel: Any, edges: Any, values: xarray.DataArray, title: str, **style: Any
) -> None:
    drawn = panel.pcolormesh(*edges, values.values, **style)
    panel.set_aspect("equal")
    panel.invert_yaxis()
    panel.set_title(title, fontsize=9)
    canvas.colorbar(drawn, ax=panel, shrink=0.75).ax.tick_params(labelsize=8)


def _without_axes(panels: NDArray[Any]) -> None:
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])


def _canvas(width: float, height: float, columns: int, rows: int = 1) -> tuple[Figure, Any]:
    canvas = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    panels = canvas.subplots(rows, columns)
    for panel in panels.flat:
        panel.tick_params(labelsize=8)
    return canvas, panels


def _png(canvas: Figure) -> bytes:
    """A small PNG: 128 colours are enough for these."""
    drawn, small = io.BytesIO(), io.BytesIO()
    canvas.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _folder(arguments: Sequence[str]) -> Path:
    return Path(arguments[0]) if arguments else Path(__file__).parent


if __name__ == "__main__":
    main(_folder(sys.argv[1:]))
