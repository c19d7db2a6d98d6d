"""One self-contained HTML page of a bulk run: the archive as a grid, pictures before and after, tiles that did not converge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from hpcdeq.archive import Archive, Scene
from hpcdeq.archive.layout import CHUNK
from hpcdeq.errors import SceneError
from hpcdeq.inference.ledger import Ledger
from hpcdeq.inference.plan import ScenePlan
from hpcdeq.inference.status import LISTED, SceneStatus, Status
from hpcdeq.studies.page import (
    Figure,
    check_page,
    false_colours,
    png,
    render_page,
    require_libraries,
    rgb_bands,
    white_of,
    write_page,
)
from hpcdeq.tiling import Window, cells_along

MAX_PANELS = 24  # a panel is some 0.1 MB of pictures; the grid holds all scenes
LOOKS = {
    "done": "done",
    "loose": "done, some tiles did not converge",
    "running": "running",
    "pending": "pending",
    "failed": "failed",
}
_EDGES = (3 * CHUNK, 2 * CHUNK, CHUNK)  # pixels shown of a scene: whole chunks, fewer of many bands
_MAX_BYTES = 64 << 20  # of what is shown, with all its bands
_MAP_EDGE = 195  # pixels of a drawing
_GOOD, _BAD, _MISSING = (0, 158, 115), (230, 159, 0), (148, 156, 168)  # the colour-blind tell them apart


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A scene in the grid."""

    name: str
    look: str
    """One of `LOOKS`."""
    percent: int
    """Of its units that are finished."""
    facts: Sequence[str]
    panel: int | None
    """Number of its panel, if it has one."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is shown of one scene."""

    name: str
    look: str
    facts: Sequence[str]
    pictures: Sequence[Figure]
    """Before and after. One that cannot be shown has no address, and its caption says why."""
    map: Figure | None
    """The whole scene: which tiles converged, or which units are finished."""
    shown: Sequence[float]
    """Left, top, width and height of the pictures on the map, in percent; empty if there are none."""


class BulkPage:
    """The page of an output archive, written again and again while the run goes on; nothing else is written.

    Parameters
    ----------
    out
        The output archive.
    file
        The page.

    Raises
    ------
    MissingExtraError
        If a library is not installed that it needs.
    """

    def __init__(self, out: Path, file: Path) -> None:
        require_libraries("the HTML page", "jinja2")
        check_page(file)
        self._out, self._file = Archive(out), file
        self._panels: dict[tuple[ScenePlan | None, SceneStatus], Panel] = {}

    def write(self, status: Status) -> None:
        """Write the page, in one step."""
        job = Ledger(self._out).job()
        plans = {plan.name: plan for plan in job.scenes}
        wanted = [(plans.get(scene.name), scene) for scene in _worth_showing(status.scenes)]
        self._panels = {
            (plan, scene): self._panels.get((plan, scene)) or self._panel(plan, scene, job.archive)
            for plan, scene in wanted
        }
        numbers = {scene.name: number for number, (_, scene) in enumerate(wanted)}
        judged = [scene for scene in status.scenes if scene.converged is not None]
        looks = [_look(scene) for scene in status.scenes]
        page = render_page(
            "bulk.html.j2",
            title=f"Denoising into {self._out.path.name}",
            when=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            status=status,
            tiles=sum(scene.tiles or 0 for scene in judged),
            converged=sum(scene.converged or 0 for scene in judged),
            cells=[_cell(scene, numbers.get(scene.name)) for scene in status.scenes],
            looks=[(look, meaning, looks.count(look)) for look, meaning in LOOKS.items()],
            listed=LISTED,
            panels=list(self._panels.values()),
            settings={"input": job.archive, "model": job.model, "output": self._out.path.absolute()},
        )
        write_page(self._file, page)

    def _panel(self, plan: ScenePlan | None, scene: SceneStatus, source: Path) -> Panel:
        before, after = source / scene.name, self._out.path / scene.name
        folders = {"before": before} | ({"after": after} if scene.state == "done" else {})
        worst, map_ = None, None
        if plan and scene.converged is not None:
            worst, map_ = _tile_map(plan, after)
        elif plan and scene.state != "done":
            map_ = _unit_map(plan, Ledger(self._out))
        pictures, window = _pictures(folders, worst)
        shown: list[float] = []
        if plan and window:
            sizes = (plan.width, plan.height, plan.width, plan.height)
            edges = (window.x0, window.y0, window.width, window.height)
            shown = [100.0 * edge / size for edge, size in zip(edges, sizes, strict=True)]
        return Panel(
            name=scene.name,
            look=_look(scene),
            facts=_facts(scene),
            pictures=pictures,
            map=map_,
            shown=shown,
        )


def _worth_showing(scenes: Sequence[SceneStatus]) -> list[SceneStatus]:
    """Scenes that failed and those that converged worst, half of each if there are many; then others that are done."""
    failed = [scene for scene in scenes if scene.state == "failed"]
    done = [scene for scene in scenes if scene.state == "done"]
    done.sort(key=lambda scene: -scene.unconverged_share)
    half = MAX_PANELS // 2
    loose = [scene for scene in done if scene.unconverged]
    return list(dict.fromkeys([*failed[:half], *loose[:half], *failed, *done]))[:MAX_PANELS]


def _look(scene: SceneStatus) -> str:
    return "loose" if scene.unconverged else scene.state


def _cell(scene: SceneStatus, panel: int | None) -> Cell:
    return Cell(
        name=scene.name,
        look=_look(scene),
        percent=round(100 * scene.finished / (scene.units or 1)),
        facts=_facts(scene),
        panel=panel,
    )


def _facts(scene: SceneStatus) -> list[str]:
    """What is known of a scene, each in a few words."""
    facts = []
    if scene.state in ("running", "failed"):
        facts.append(f"{scene.finished} of {scene.units} units finished")
    if scene.reason is not None:
        facts.append(scene.reason)
    if scene.unconverged:
        facts.append(
            f"{scene.unconverged} of {scene.tiles} tiles did not converge, worst residual {scene.worst:.1e}"
        )
    elif scene.converged is not None:
        facts.append(f"all {scene.tiles} tiles converged")
    if scene.noise:
        facts.append(f"noise about {scene.noise:.0f}/255")
    if scene.masked:
        facts.append(f"{scene.masked} pixels hold no data")
    return [*facts, *scene.remarks]


def _pictures(folders: dict[str, Path], worst: Window | None) -> tuple[list[Figure], Window | None]:
    """Draw the same part of a scene as it lies in some folders; also return which part.

    Parameters
    ----------
    folders
        By what the pictures are called.
    worst
        The tile that converged worst: it is in the middle. Else the middle of the scene is.
    """
    read, failed, window, how = {}, {}, None, ""
    for title, folder in folders.items():
        try:
            scene = Scene(folder)
            window = window or _part(scene, worst)
            bands, how = rgb_bands(scene.wavelengths, scene.shape[0])
            read[title] = _read(scene, window, bands)
        except Exception as error:  # it is damaged or being taken away: codecs raise whatever they like
            failed[title] = str(error)
    captions = {"before": how, "after": "around the worst tile" if worst else "the middle of the scene"}
    white = white_of(*list(read.values())[-1]) if read else 1.0
    figures = [
        Figure(title, false_colours(rgb, white, valid), captions[title])
        for title, (rgb, valid) in read.items()
    ]
    figures += [Figure(title, "", reason) for title, reason in failed.items()]
    return figures, window if read else None


def _part(scene: Scene, around: Window | None) -> Window:
    """Part of a scene that is shown: few chunks, as a chunk is read whole."""
    bands, height, width = scene.shape
    around = around or scene.extent
    edge = next((edge for edge in _EDGES if 4 * bands * edge**2 <= _MAX_BYTES), _EDGES[-1])

    def first(middle: int, size: int) -> int:
        return max(0, min(middle - edge // 2, size - edge)) // CHUNK * CHUNK

    y0, x0 = first((around.y0 + around.y1) // 2, height), first((around.x0 + around.x1) // 2, width)
    return Window(y0, y0 + edge, x0, x0 + edge).intersect(scene.extent)


def _read(scene: Scene, window: Window, bands: list[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read three bands of a part of a scene, and where they hold data.

    Raises
    ------
    SceneError
        If the scene is of another size, or cannot be read there.
    """
    if window.intersect(scene.extent) != window:
        raise SceneError(f"scene {scene.name}: is of {scene.shape[1]} x {scene.shape[2]} pixels now")
    rgb, valid = scene.read(window)[bands], scene.valid_mask(window)
    valid &= np.isfinite(rgb).all(axis=0)
    return np.where(valid, rgb, np.float32(0.0)), valid


def _tile_map(plan: ScenePlan, folder: Path) -> tuple[Window | None, Figure | None]:
    """Draw which tiles of a scene converged; also return the worst of the others."""
    try:
        converged, residual = (
            np.asarray(zarr.open_array(folder / f"tile_{name}", mode="r")[...])
            for name in ("converged", "residual")
        )
    except Exception:  # the scene is damaged or being taken away: codecs raise whatever they like
        return None, None
    bad = converged == 0
    cells = [cells_along(size, plan.block, plan.overlap) for size in (plan.height, plan.width)]
    if bad.shape != tuple(map(len, cells)):
        return None, None
    firsts = [[first for first, _ in along.values()] for along in cells]
    drawing = _drawing(np.where(bad[..., None], _BAD, _GOOD), firsts, plan)
    if not bad.any():
        return None, Figure("tiles", drawing, "all converged")
    badness = np.where(bad, np.nan_to_num(residual, nan=np.inf), -1.0)
    row, column = np.unravel_index(np.argmax(badness), bad.shape)
    y0, x0 = list(cells[0])[row], list(cells[1])[column]
    worst = Window(y0, y0 + plan.block, x0, x0 + plan.block)
    return worst, Figure("tiles", drawing, f"{bad.sum()} of {bad.size} did not converge: orange")


def _unit_map(plan: ScenePlan, ledger: Ledger) -> Figure:
    """Draw which units of a scene are finished."""
    times = ledger.times(plan)
    places = [(unit.window.y0, unit.window.x0) for unit in plan.units()]
    firsts = [sorted({place[axis] for place in places}) for axis in (0, 1)]
    finished = np.array([place in times for place in places]).reshape([len(along) for along in firsts])
    drawing = _drawing(np.where(finished[..., None], _GOOD, _MISSING), firsts, plan)
    return Figure("units", drawing, f"{finished.sum()} of {finished.size} finished: green")


def _drawing(colours: NDArray[np.int_], firsts: Sequence[Sequence[int]], plan: ScenePlan) -> str:
    """Draw a scene in small: rectangles of colours (row, column, 3), whose first rows and columns are given."""
    edge = max(_MAP_EDGE, *colours.shape[:2])
    scale = edge / max(plan.height, plan.width)

    def nearest(along: Sequence[int], size: int) -> NDArray[np.int_]:
        pixels = max(1, round(size * scale))
        found: NDArray[np.int_] = np.searchsorted(
            along, (np.arange(pixels) + 0.5) * size / pixels, side="right"
        )
        return found - 1

    rows, columns = nearest(firsts[0], plan.height), nearest(firsts[1], plan.width)
    return png(colours[rows][:, columns].astype(np.uint8))
