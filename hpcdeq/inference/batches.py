"""Denoise tiles one after the other: on a GPU in batches of one size, on a CPU each by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from hpcdeq.console import say
from hpcdeq.inference.applied import DenoiseSettings
from hpcdeq.models import SparseDenoiser

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DenoisedTile:
    """What is computed for one tile."""

    estimate: Floats
    """(band, y, x)."""
    solution: tuple[float, int, bool]
    """Residual, iterations, converged."""
    codes: Floats | None = None
    """(code, y, x)."""
    support: tuple[int, ...] = ()


def denoise_tiles(
    model: SparseDenoiser, cuts: Iterable[Floats], settings: DenoiseSettings
) -> Iterator[DenoisedTile]:
    """Denoise tiles ``(band, y, x)``, in their order: on a GPU in batches, on a CPU each by one thread, as many as torch has.

    Threads with tiles of their own wait for each other at the end only. Those that share every small product wait at each,
    which takes half of the time on cores that others use too.
    """
    if not _on_cpu(model):
        size, too_large = settings.batch_of(model), set[int]()
        for _, alike in groupby(
            cuts, key=np.shape
        ):  # the tile of a scene smaller than a block is smaller too
            for batch in _in_batches(alike, size):
                yield from _denoise_filled(model, batch, size, settings.codes, too_large)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[Future[list[DenoisedTile]]] = deque()
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
) -> list[DenoisedTile]:
    """Denoise tiles in batches of one size, filled up, as a GPU rounds by the shape of the batch.

    Where the memory does not suffice the size is halved for these tiles: the result then differs by rounding. Of sizes that are
    noted in ``too_large`` this was said before.
    """
    try:
        found: list[DenoisedTile] = []
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
def _denoise_batch(model: SparseDenoiser, cuts: list[Floats], keep_codes: bool) -> list[DenoisedTile]:
    noisy = torch.from_numpy(np.stack(cuts)).to(model.device)
    denoised = model(noisy)
    solved = denoised.solution
    estimates = denoised.estimate.float().cpu().numpy()
    solutions = zip(
        *(x.tolist() for x in (solved.residual, solved.iterations, solved.converged)), strict=True
    )
    tiles = [DenoisedTile(estimate=e, solution=s) for e, s in zip(estimates, solutions, strict=True)]
    if not keep_codes:
        return tiles
    codes = denoised.codes()
    supports = [()] * len(tiles) if codes.support is None else [tuple(s) for s in codes.support.tolist()]
    kept = zip(tiles, codes.values.float().cpu().numpy(), supports, strict=True)
    return [replace(tile, codes=values, support=support) for tile, values, support in kept]
