"""Training blocks out of an archive: shuffled, augmented, degraded, each shard decoded once a pass."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from hpcdeq.archive.scene import Scene
from hpcdeq.noise import Degradation, add_noise, generator, stable_hash
from hpcdeq.tiling import Window

T = TypeVar("T")

_QUEUE = 4  # batches that wait for the consumer
# Last word of a key: what the numbers are for, so that no two uses share a sequence.
_ORDER, _OFFSET = 1, 2


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Blocks to learn from."""

    clean: NDArray[np.float32]
    """(block, band, n, n), data scaled to [0, 1]."""
    noisy: NDArray[np.float32]
    """(block, band, n, n), clean plus noise."""
    sigma: NDArray[np.float32]
    """(block, band) standard deviation of the Gaussian noise, in units of the data."""


@dataclass(frozen=True, slots=True)
class BlockId:
    """Where a block lies, which its noise is drawn from, and how it is turned."""

    scene: int
    """Index into the stream's scenes."""
    shard: Window
    window: Window
    symmetry: int
    """Which of the 8 symmetries of the square is applied; 0 is none."""


class PatchStream:
    """Random ``n x n`` blocks of the scenes, without replacement within an epoch.

    An epoch's blocks are the cells of a grid laid over every shard, at an offset drawn for the shard and the epoch; so a
    block never needs two shards, and over the epochs every position of a shard is seen. Which blocks, in which order,
    with which noise, is a pure function of (seed, epoch): the number of threads, ranks or restarts changes nothing.

    Shards are visited in random order and decoded once; the blocks of ``shuffle_shards`` consecutive ones, of
    random scenes, are shuffled together. Memory is bounded by twice that many decoded shards.

    Parameters
    ----------
    scenes
        Scenes of equal band counts. One smaller than a block, or a shard's remainder thinner than one, is extended by
        reflection to a single block.
    block
        Edge n in pixels.
    batch
        Blocks in a batch; the last of an epoch may be smaller.
    seed
        Seed of everything random here.
    degradation
        Noise to add.
    augment
        Flip and rotate blocks (the 8 symmetries of the square).
    shuffle_shards
        Shards whose blocks are shuffled together.
    workers
        Threads that decode and degrade.

    Raises
    ------
    ValueError
        If there is no scene, or the band counts differ.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        block: int,
        batch: int,
        seed: int,
        degradation: Degradation,
        augment: bool = True,
        shuffle_shards: int = 16,
        workers: int = 2,
    ) -> None:
        bands = {scene.shape[0] for scene in scenes}
        if len(bands) != 1:
            raise ValueError(
                f"the scenes of a stream must have one band count, got {sorted(bands) or 'no scene'}"
            )
        self.scenes = list(scenes)
        self.block = block
        self.batch = batch
        self.seed = seed
        self.degradation = degradation
        self.augment = augment
        self.shuffle_shards = shuffle_shards
        self.workers = workers
        self._keys = [stable_hash(scene.name) for scene in self.scenes]
        self._scales = [scene.scale_factor for scene in self.scenes]
        self._shards = [(i, shard) for i, scene in enumerate(self.scenes) for shard in scene.shards()]

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks of one epoch, the same for every epoch."""
        return sum(
            _cells(shard.height, self.block) * _cells(shard.width, self.block) for _, shard in self._shards
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        return -(-self.blocks_per_epoch // self.batch)

    def order(self, epoch: int) -> Iterator[list[BlockId]]:
        """Blocks of an epoch in the order they are used, one list for each group of shards decoded together."""
        rng = generator(self.seed, epoch, _ORDER)
        visit = rng.permutation(len(self._shards))
        for begin in range(0, len(visit), self.shuffle_shards):
            group = [self._shards[i] for i in visit[begin : begin + self.shuffle_shards]]
            blocks = [block for scene, shard in group for block in self._blocks(epoch, scene, shard)]
            yield [blocks[i] for i in rng.permutation(len(blocks))]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from number ``start`` on; shards that only earlier ones need are not decoded.

        Decoding runs ahead in threads; closing the iterator stops them.
        """
        with ThreadPoolExecutor(self.workers, "hpcdeq-batch") as pool:

            def produce() -> Iterator[Future[Batch]]:
                for part in self._parts(epoch, start * self.batch):
                    yield pool.submit(self._batch, epoch, part)

            with contextlib.closing(_ahead(produce)) as futures:
                for future in futures:
                    yield future.result()

    def _blocks(self, epoch: int, scene: int, shard: Window) -> Iterator[BlockId]:
        n = self.block
        rng = generator(self.seed, epoch, self._keys[scene], shard.y0, shard.x0, _OFFSET)
        dy, dx = (int(rng.integers(size % n + 1)) if size > n else 0 for size in (shard.height, shard.width))
        rows, columns = _cells(shard.height, n), _cells(shard.width, n)
        symmetries = rng.integers(8 if self.augment else 1, size=(rows, columns)).tolist()
        for row in range(rows):
            for column in range(columns):
                y, x = shard.y0 + dy + row * n, shard.x0 + dx + column * n
                window = Window(y, min(y + n, shard.y1), x, min(x + n, shard.x1))
                yield BlockId(scene, shard, window, symmetries[row][column])

    def _parts(self, epoch: int, skip: int) -> Iterator[list[tuple[BlockId, NDArray[Any]]]]:
        """Decoded blocks of each batch, from block ``skip`` of the epoch on."""
        pending: list[tuple[BlockId, NDArray[Any]]] = []
        for decoded in self._decoded(epoch, skip):
            pending += decoded
            while len(pending) >= self.batch:
                yield pending[: self.batch]
                del pending[: self.batch]
            # Copies, so that a few left-over blocks do not keep their shards in memory.
            pending = [(block, pixels.copy()) for block, pixels in pending]
        if pending:
            yield pending

    def _decoded(self, epoch: int, skip: int) -> Iterator[list[tuple[BlockId, NDArray[Any]]]]:
        """Decode group by group, the next one while the blocks of this one are used."""
        with ThreadPoolExecutor(1, "hpcdeq-decode") as pool:
            ahead: Future[list[tuple[BlockId, NDArray[Any]]]] | None = None
            for group in self.order(epoch):
                if skip >= len(group):
                    skip -= len(group)
                    continue
                upcoming = pool.submit(self._decode, group[skip:])
                skip = 0
                if ahead is not None:
                    yield ahead.result()
                ahead = upcoming
            if ahead is not None:
                yield ahead.result()

    def _decode(self, blocks: list[BlockId]) -> list[tuple[BlockId, NDArray[Any]]]:
        needed = list(dict.fromkeys((block.scene, block.shard) for block in blocks))
        reads = [delayed(self.scenes[scene].stored)(shard) for scene, shard in needed]
        decoded = compute(*reads, scheduler="threads", num_workers=self.workers)
        shards = dict(zip(needed, decoded, strict=True))
        return [
            (b, shards[b.scene, b.shard][(slice(None), *b.window.shift(-b.shard.y0, -b.shard.x0).slices)])
            for b in blocks
        ]

    def _batch(self, epoch: int, blocks: list[tuple[BlockId, NDArray[Any]]]) -> Batch:
        n, bands = self.block, self.scenes[0].shape[0]
        clean, noisy = np.empty((2, len(blocks), bands, n, n), np.float32)
        sigma = np.empty((len(blocks), bands), np.float32)
        for i, (block, pixels) in enumerate(blocks):
            key = (self.seed, epoch, self._keys[block.scene], block.window.y0, block.window.x0)
            # Copied out of its shard first: a turned block read from cold memory takes twice as long.
            turned = _symmetry(_extend(pixels.copy(), n), block.symmetry)
            np.multiply(turned, np.float32(self._scales[block.scene]), out=clean[i], dtype=np.float32)
            _, sigma[i] = add_noise(clean[i], self.degradation, key, out=noisy[i])
        return Batch(clean=clean, noisy=noisy, sigma=sigma)


def _cells(size: int, block: int) -> int:
    return max(1, size // block)


def _extend(pixels: NDArray[Any], n: int) -> NDArray[Any]:
    """Extend (band, y, x) pixels by reflection to n x n."""
    _, height, width = pixels.shape
    if (height, width) == (n, n):
        return pixels
    return np.pad(pixels, ((0, 0), (0, n - height), (0, n - width)), mode="symmetric")


def _symmetry(pixels: NDArray[Any], which: int) -> NDArray[Any]:
    """One of the 8 symmetries of the square, on the last two axes."""
    turned = np.rot90(pixels, which % 4, axes=(1, 2))
    return turned[:, :, ::-1] if which >= 4 else turned


def _ahead(produce: Callable[[], Iterator[T]]) -> Generator[T]:
    """Run an iterator in a thread, a bounded number of items ahead; its errors are raised here."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(maxsize=_QUEUE)
    stopped = threading.Event()

    def put(item: T | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def run() -> None:
        try:
            for item in produce():
                put(item)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=run, name="hpcdeq-stream", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
