"""The paper's Figures 6 to 8 on the user's scenes, and pictures of what the methods make of one: as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcdeq.studies.cells import Cell, Comparison, Look, Store
from hpcdeq.studies.method import Method
from hpcdeq.studies.page import blank_figure, write_figure

_STYLES = {
    "DEQ-fast": ("#d1495b", "o", "-"),
    "DEQ-full": ("#8a4fb0", "s", "-"),
    "DU-fast": ("#2a7f9e", "o", "--"),
    "DU-full": ("#6a8d2f", "s", "--"),
}
_GREY = "#8b93a0"

CAPTIONS = {
    "blocks": "Figure 6 of the paper, here: PSNR against the edge of a block; blocks side by side",
    "iterations": "Figure 7 of the paper, here: PSNR against the solver's iterations, all of which are taken",
    "parameters": "Figure 8 of the paper, here: learnt numbers",
    "spectra": "Spectra of a dim, a middling and a bright pixel of the first scene, clean (black) and by each method",
    "errors": "The first scene and its mean absolute error over the bands; white is half of the noise's standard deviation",
}


def draw_all(
    folder: Path,
    store: Store,
    by_block: Mapping[int, Comparison],
    by_iterations: Mapping[int, Comparison],
    methods: Sequence[Method],
    shown: Sequence[Cell],
) -> dict[str, Path]:
    """Draw the figures for which something is known, each as PNG and SVG.

    Returns
    -------
    dict
        The SVG files by their names, those of `CAPTIONS`.
    """
    figures = {
        "blocks": _curves(store, by_block, "edge of a block, pixels", log=False),
        "iterations": _curves(store, by_iterations, "iterations", log=True),
        "parameters": _parameters(methods),
    }
    looks = [(cell.method.title, look) for cell in shown if (look := store.look(cell)) is not None]
    if looks:
        sigma = shown[0].sigma
        figures |= {"spectra": _spectra(looks, sigma), "errors": _errors(looks, sigma)}
    return {
        name: write_figure(folder / name, figure) for name, figure in figures.items() if figure is not None
    }


def _curves(store: Store, comparisons: Mapping[int, Comparison], label: str, *, log: bool) -> Any:
    points: dict[str, dict[int, list[float]]] = {}
    for x, comparison in comparisons.items():
        for cell in comparison.cells():
            if (found := store.get(cell)) is not None:
                points.setdefault(cell.method.title, {}).setdefault(x, []).append(found.scores.psnr)
    if not points:
        return None
    canvas, ((axes,),) = blank_figure(6.4, 4.0)
    for title, values in points.items():
        xs = sorted(values)
        colour, marker, line = _STYLES.get(title, (_GREY, "^", ":"))
        means = [float(np.mean(values[x])) for x in xs]
        axes.plot(xs, means, line, color=colour, marker=marker, markersize=4, linewidth=1.6, label=title)
    if log:
        axes.set_xscale("log")
    axes.set_xticks(list(comparisons), [str(x) for x in comparisons])
    axes.minorticks_off()
    axes.set_xlabel(label)
    sigma = next(iter(comparisons.values())).sigmas[0]
    axes.set_ylabel(f"PSNR, dB (sigma {sigma:g})")
    axes.grid(color="#e4e7ec", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return canvas


def _parameters(methods: Sequence[Method]) -> Any:
    counts = {m.title: m.parameters for m in methods if m.parameters}
    if not counts:
        return None
    canvas, ((axes,),) = blank_figure(6.4, 0.9 + 0.34 * len(counts))
    titles = sorted(counts, key=lambda title: counts[title] or 0)
    bars = axes.barh(
        titles,
        [(counts[t] or 0) / 1e6 for t in titles],
        color=[_STYLES.get(t, (_GREY, "", ""))[0] for t in titles],
    )
    axes.bar_label(bars, labels=[f"{(counts[t] or 0) / 1e6:.3f}" for t in titles], padding=4, fontsize=9)
    axes.set_xlabel("learnt numbers, millions")
    axes.margins(x=0.15)
    return canvas


def _spectra(looks: Sequence[tuple[str, Look]], sigma: float) -> Any:
    first = looks[0][1]
    if not len(first.points):
        return None
    shown = [(title, look) for title, look in looks if title != "noisy"]
    columns = len(first.points)
    canvas, (axes,) = blank_figure(3.6 * columns, 3.6, columns)
    palette = _palette(len(shown))
    for i in range(columns):
        plot = axes[i]
        for (title, look), colour in zip(shown, palette, strict=True):
            plot.plot(
                look.axis, look.spectra[i], color=colour, linewidth=1.1, label=title if i == 0 else None
            )
        plot.plot(
            first.axis,
            first.clean_spectra[i],
            color="black",
            linewidth=1.8,
            label="clean" if i == 0 else None,
        )
        y, x = first.points[i]
        plot.set_title(f"row {y}, column {x}", fontsize=9)
        plot.set_xlabel("band" if first.axis[0] == 1 else "wavelength, nm")
    axes[0].set_ylabel(f"radiance, scaled (sigma {sigma:g})")
    canvas.legend(loc="outside lower center", ncols=min(6, len(shown) + 1), frameon=False, fontsize=8)
    return canvas


def _errors(looks: Sequence[tuple[str, Look]], sigma: float) -> Any:
    columns = min(6, len(looks))
    rows = -(-len(looks) // columns)
    canvas, axes = blank_figure(2.1 * columns, 4.5 * rows, columns, 2 * rows)
    for plot in axes.flat:
        plot.axis("off")
    for i, (title, look) in enumerate(looks):
        row, column = 2 * (i // columns), i % columns
        axes[row, column].imshow(look.colours)
        axes[row, column].set_title(title, fontsize=9)
        axes[row + 1, column].imshow(look.error, cmap="magma", vmin=0, vmax=255)
    return canvas


def _palette(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["turbo"](x) for x in np.linspace(0.05, 0.95, max(count, 1))][:count]
