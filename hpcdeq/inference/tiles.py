"""Denoise windows of scenes by overlapping tiles, blended."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hpcdeq.cluster.device import check_device_name, choose_device
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.console import say
from hpcdeq.errors import ConfigError
from hpcdeq.models import SparseDenoiser
from hpcdeq.tiling import Window, blend_weights, cells_along, tiles_of

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPES = ("float32", "input")

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings:
    """How a trained model is applied to scenes."""

    overlap: int | None = None
    """Pixels shared by neighbouring tiles, blended with smooth weights; None is a third of a tile, 0 is the paper's way."""
    batch: int = 16
    """Tiles computed at once on a GPU. On a CPU each thread of torch computes one."""
    iterations: int | None = None
    """Most iterations of the solver; None keeps those of the model."""
    tolerance: float | None = None
    """Tolerance of the solver; None keeps that of the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the prior computes in; ``bfloat16`` is up to twice as fast on processors that have it, but its rounding leaves residuals
    near 2e-2: no smaller tolerance is reached."""
    codes: bool = False
    """Whether the sparse codes are kept beside the pixels."""
    dtype: Literal["float32", "input"] = "float32"
    """How pixels are stored: ``input`` keeps the integers and the scale of an input that has them."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    unit_mib: int = 256
    """Largest size of a unit in MiB, its pixels as float32. Tiles that cross its border are computed twice: one in ten of blocks of
    60 that overlap by 20, for units of 1300 x 1300 x 31. Those that are read ahead, computed and written are in memory together."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, got {self.batch}")
        if self.precision not in _PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"overlap must not be negative, got {self.overlap}")
        if self.unit_mib < 1:
            raise ConfigError(f"unit_mib must be at least 1, got {self.unit_mib}")
        check_device_name(self.device)

    def overlap_of(self, model: SparseDenoiser) -> int:
        """Overlap in pixels for the tiles of a model.

        Raises
        ------
        ConfigError
            If it is not smaller than a tile.
        """
        tile = model.settings.block
        overlap = tile // 3 if self.overlap is None else self.overlap
        if overlap >= tile:
            raise ConfigError(f"overlap must be below the model's block of {tile} pixels, got {overlap}")
        return overlap


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


def set_up(model: SparseDenoiser, settings: DenoiseSettings) -> SparseDenoiser:
    """Return the model with its solver set as the settings say, where it is; the one given keeps its settings."""
    changes: dict[str, Any] = {
        k: v
        for k, v in (("iterations", settings.iterations), ("tolerance", settings.tolerance))
        if v is not None
    }
    try:
        solver = replace(model.settings.solver, **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    prepared = copy.copy(model)
    prepared.settings = replace(model.settings, solver=solver)
    prepared.prior_dtype = _PRECISIONS[settings.precision]
    return prepared.eval()


def prepare(model: SparseDenoiser, settings: DenoiseSettings, local_rank: int = 0) -> SparseDenoiser:
    """Return the model as `set_up` does, on the device; processes of a node, told apart by `local_rank`, take its GPUs in turn."""
    return set_up(model, settings).to(choose_device(settings.device, local_rank))


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
) -> Iterator[DenoisedWindow]:
    """Denoise windows of scenes, each by all tiles of its scene that touch it.

    The tiles are those of the whole scene and are added in their order, so that the result for a pixel does not
    depend on the window it is computed in. Batches run across windows and scenes; inputs are taken as they are needed.

    Parameters
    ----------
    model
        From `prepare`.
    inputs
        The windows.
    settings
        Overlap, batch and codes are used here.
    stop
        Looked at before each tile: once asked to stop, no more are begun.

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

    for found in _denoise_each(model, cuts(), settings):
        begun[0].add(found)
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

    def add(self, found: _Tile) -> None:
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


@dataclass(frozen=True, kw_only=True)
class _Tile:
    estimate: Floats
    """(band, y, x)."""
    solution: tuple[float, int, bool]
    """Residual, iterations, converged."""
    codes: Floats | None = None
    """(code, y, x)."""
    support: tuple[int, ...] = ()


def _denoise_each(
    model: SparseDenoiser, cuts: Iterator[Floats], settings: DenoiseSettings
) -> Iterator[_Tile]:
    """Denoise tiles ``(band, y, x)``, in their order: on a GPU in batches, on a CPU each by one thread, as many as torch has.

    Threads with tiles of their own wait for each other at the end only. Those that share every small product wait at each,
    which takes half of the time on cores that others use too.
    """
    if not _on_cpu(model):
        too_large: set[int] = set()
        for _, alike in groupby(
            cuts, key=np.shape
        ):  # the tile of a scene smaller than a block is smaller too
            for batch in _in_batches(alike, settings.batch):
                yield from _denoise_filled(model, batch, settings.batch, settings.codes, too_large)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[Future[list[_Tile]]] = deque()
        for cut in cuts:
            waiting.append(pool.submit(_denoise_batch, model, [cut], settings.codes))
            if len(waiting) == 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # part of what the others set is common to all


def _in_batches(cuts: Iterable[Floats], size: int) -> Iterator[list[Floats]]:
    cuts = iter(cuts)
    while batch := list(islice(cuts, size)):
        yield batch


def _denoise_filled(
    model: SparseDenoiser, cuts: list[Floats], size: int, codes: bool, too_large: set[int]
) -> list[_Tile]:
    """Denoise tiles in batches of one size, filled up, as a GPU rounds by the shape of the batch.

    Where the memory does not suffice the size is halved for these tiles: the result then differs by rounding. Of sizes that are
    noted in ``too_large`` this was said before.
    """
    try:
        found: list[_Tile] = []
        for first in range(0, len(cuts), size):
            batch = cuts[first : first + size]
            found += _denoise_batch(model, batch + batch[-1:] * (size - len(batch)), codes)[: len(batch)]
        return found
    except torch.OutOfMemoryError as error:
        if size == 1:
            raise MemoryError(f"a single tile does not fit the GPU's memory: {error}") from error
    torch.cuda.empty_cache()
    if size not in too_large:
        too_large.add(size)
        say(
            f"a batch of {size} tiles does not fit the GPU's memory: taken in two, as are all that do not fit; --batch {size // 2} "
            "is faster, but denoises again what is there"
        )
    return _denoise_filled(model, cuts, size // 2, codes, too_large)


def _on_cpu(model: SparseDenoiser) -> bool:
    return model.device.type == "cpu"


@torch.inference_mode()
def _denoise_batch(model: SparseDenoiser, cuts: list[Floats], keep_codes: bool) -> list[_Tile]:
    noisy = torch.from_numpy(np.stack(cuts)).to(model.device)
    denoised = model(noisy)
    solved = denoised.solution
    estimates = denoised.estimate.float().cpu().numpy()
    solutions = zip(
        *(x.tolist() for x in (solved.residual, solved.iterations, solved.converged)), strict=True
    )
    tiles = [_Tile(estimate=e, solution=s) for e, s in zip(estimates, solutions, strict=True)]
    if not keep_codes:
        return tiles
    codes = denoised.codes()
    supports = [()] * len(tiles) if codes.support is None else [tuple(s) for s in codes.support.tolist()]
    kept = zip(tiles, codes.values.float().cpu().numpy(), supports, strict=True)
    return [replace(tile, codes=values, support=support) for tile, values, support in kept]


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


def denoise_array(
    model: SparseDenoiser, noisy: NDArray[np.float32], settings: DenoiseSettings | None = None
) -> NDArray[np.float32]:
    """Denoise a scene ``(band, y, x)`` in memory; the numbers are those of `denoise_archive`.

    Raises
    ------
    ValueError
        If the band count is not the model's, or the overlap does not fit its blocks.
    """
    settings = settings or DenoiseSettings()
    if noisy.ndim != 3 or noisy.shape[0] != model.bands:
        raise ValueError(
            f"the scene must be (band, y, x) with the model's {model.bands} bands, got shape {noisy.shape}"
        )
    extent = Window(0, noisy.shape[1], 0, noisy.shape[2])
    (whole,) = denoise_windows(
        prepare(model, settings), [NoisyWindow(extent=extent, window=extent, pixels=noisy)], settings
    )
    return whole.values
