"""Denoise windows of scenes by overlapping tiles, blended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcdeq.cluster.signals import StopRequest
from hpcdeq.inference.applied import DenoiseSettings
from hpcdeq.inference.batches import DenoisedTile, Floats, denoise_tiles
from hpcdeq.models import SparseDenoiser
from hpcdeq.tiling import Window, blend_weights, cells_along, tiles_of


@dataclass(frozen=True, slots=True)
class TileSolution:
    """How well the fixed point of one tile was solved."""

    y0: int
    x0: int
    """First row and column of the tile in its scene."""
    residual: float
    iterations: int
    converged: bool
    support: tuple[int, ...] = ()
    """Atoms that its codes belong to, if codes are kept; none for codes over all atoms."""


@dataclass(frozen=True, kw_only=True)
class DenoisedWindow:
    """What is computed for one window of a scene."""

    values: NDArray[np.float32]
    """(band, y, x)."""
    tiles: list[TileSolution]
    """How each tile that touches the window was solved."""
    codes: NDArray[np.float16] | None
    """(code, y, x) if asked for: of every pixel those that the tile found in whose cell it lies (`hpcdeq.tiling.cells_along`)."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How well the fixed points of some tiles were solved."""

    tiles: int = 0
    converged: int = 0
    iterations: int = 0
    worst_residual: float = 0.0

    @classmethod
    def of(cls, tiles: Collection[TileSolution]) -> Convergence:
        """Sum up tiles."""
        return cls(
            tiles=len(tiles),
            converged=sum(tile.converged for tile in tiles),
            iterations=sum(tile.iterations for tile in tiles),
            worst_residual=max((tile.residual for tile in tiles), default=0.0),
        )

    def __add__(self, other: Convergence) -> Convergence:
        return Convergence(
            tiles=self.tiles + other.tiles,
            converged=self.converged + other.converged,
            iterations=self.iterations + other.iterations,
            worst_residual=max(self.worst_residual, other.worst_residual),
        )


@dataclass(frozen=True, kw_only=True)
class NoisyWindow:
    """A window of a scene to denoise, with the pixels that its tiles need."""

    extent: Window
    """The whole scene."""
    window: Window
    """What to denoise."""
    pixels: Floats
    """(band, y, x) of `reach`."""


def reach(extent: Window, window: Window, block: int, overlap: int) -> Window:
    """Return what must be read of a scene to denoise a window of it: all pixels of the tiles that touch it."""
    tiles = tiles_of(extent.height, extent.width, block, overlap, touching=window)
    return Window(tiles[0].y0, tiles[-1].y1, tiles[0].x0, tiles[-1].x1)


def denoise_windows(
    model: SparseDenoiser,
    inputs: Iterable[NoisyWindow],
    settings: DenoiseSettings,
    stop: StopRequest | None = None,
    tell: Callable[[], None] = lambda: None,
) -> Iterator[DenoisedWindow]:
    """Denoise windows of scenes, each by all tiles of its scene that touch it.

    The tiles are those of the whole scene and are added in their order, so that the result for a pixel does not
    depend on the window it is computed in. Batches run across windows and scenes; inputs are taken as they are needed.

    Parameters
    ----------
    model
        From `hpcdeq.inference.applied.prepare`.
    inputs
        The windows.
    settings
        Overlap, batch and codes are used here.
    stop
        Looked at before each tile: once asked to stop, no more are begun.
    tell
        Called after each tile.

    Yields
    ------
    DenoisedWindow
        For each input, in their order; of those that were not finished before a stop nothing.
    """
    overlap = settings.overlap_of(model)
    begun: deque[_Blend] = deque()

    def cuts() -> Iterator[Floats]:
        for noisy in inputs:
            begun.append(_Blend(model, noisy, overlap, settings.codes))
            for cut in begun[-1].cuts():
                if stop:
                    return
                yield cut

    for found in denoise_tiles(model, cuts(), settings):
        begun[0].add(found)
        tell()
        if begun[0].complete:
            yield begun.popleft().result()


class _Blend:
    """A window whose tiles are being denoised and added up."""

    def __init__(self, model: SparseDenoiser, noisy: NoisyWindow, overlap: int, codes: bool) -> None:
        extent, self._window = noisy.extent, noisy.window
        self._noisy = noisy.pixels
        self._tiles = tiles_of(
            extent.height, extent.width, model.settings.block, overlap, touching=self._window
        )
        self._weights = blend_weights(self._tiles[0].height, self._tiles[0].width, overlap)
        self._total = np.zeros((len(noisy.pixels), self._window.height, self._window.width), np.float32)
        self._weight = np.zeros((self._window.height, self._window.width), np.float32)
        self._codes = _KeptCodes(model, extent, self._window, overlap) if codes else None
        self._solutions: list[TileSolution] = []

    def cuts(self) -> Iterator[Floats]:
        """Pixels ``(band, y, x)`` of each tile."""
        first = self._tiles[0]
        for tile in self._tiles:
            yield self._noisy[(slice(None), *tile.shift(-first.y0, -first.x0).slices)]

    def add(self, found: DenoisedTile) -> None:
        """Add the next tile."""
        tile = self._tiles[len(self._solutions)]
        self._solutions.append(TileSolution(tile.y0, tile.x0, *found.solution, found.support))
        if self._codes is not None and found.codes is not None:
            self._codes.add(tile, found.codes)
        common = tile.intersect(self._window)
        inside = common.shift(-tile.y0, -tile.x0).slices
        target = common.shift(-self._window.y0, -self._window.x0).slices
        self._total[(slice(None), *target)] += self._weights[inside] * found.estimate[(slice(None), *inside)]
        self._weight[target] += self._weights[inside]

    @property
    def complete(self) -> bool:
        return len(self._solutions) == len(self._tiles)

    def result(self) -> DenoisedWindow:
        return DenoisedWindow(
            values=self._total / self._weight,
            tiles=self._solutions,
            codes=None if self._codes is None else self._codes.values,
        )


class _KeptCodes:
    """The codes of a window: of every pixel those of the tile that owns it, as codes cannot be blended."""

    def __init__(self, model: SparseDenoiser, extent: Window, window: Window, overlap: int) -> None:
        self.window = window
        self.values = np.zeros((model.code_count, window.height, window.width), np.float16)
        self._rows, self._columns = (
            cells_along(size, model.settings.block, overlap) for size in (extent.height, extent.width)
        )

    def add(self, tile: Window, codes: Floats) -> None:
        """Keep the codes ``(code, y, x)`` of a tile where it owns the pixels."""
        own = Window(*self._rows[tile.y0], *self._columns[tile.x0]).intersect(self.window)
        if own.height > 0 and own.width > 0:
            source, target = own.shift(-tile.y0, -tile.x0), own.shift(-self.window.y0, -self.window.x0)
            self.values[(slice(None), *target.slices)] = codes[(slice(None), *source.slices)]
