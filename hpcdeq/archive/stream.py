"""Training blocks out of an archive: shuffled, augmented, degraded, each shard decoded once a pass."""

from __future__ import annotations

import bisect
import contextlib
import heapq
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive.scene import Scene
from hpcdeq.errors import SceneError
from hpcdeq.noise import Degradation, add_noise, generator, stable_hash
from hpcdeq.tiling import Window

T = TypeVar("T")

OnBadChunk = Literal["stop", "skip"]

_QUEUE = 4  # batches that wait for the consumer
# Last word of a key: what the numbers are for, so that no two uses share a sequence.
_ORDER, _OFFSET, _SHUFFLE = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Blocks to learn from."""

    clean: NDArray[np.float32]
    """(block, band, n, n), data scaled to [0, 1]."""
    noisy: NDArray[np.float32]
    """(block, band, n, n), clean plus noise."""
    sigma: NDArray[np.float32]
    """(block, band) standard deviation of the Gaussian noise, in units of the data."""
    planned: int
    """Blocks of the whole batch, of all ranks together, with those that could not be read: what a mean is over."""


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
    """Random ``n x n`` blocks of the scenes, without replacement within an epoch, for one rank or several.

    An epoch's blocks are the cells of a grid laid over every shard, at an offset drawn for the shard and the epoch; so a
    block never needs two shards, and over the epochs every position of a shard is seen.

    A batch of B blocks is filled by B lanes, one block each. The shards stand in a queue in random order; a lane that has
    used all blocks of its shards takes the next ones from the queue, so that a batch mixes blocks of B random shards. When
    the queue is empty, what is left in the lanes fills the last batches. Which blocks a batch holds is a pure function of
    (seed, epoch): the number of threads, ranks or restarts changes nothing. A rank takes the rows of neighbouring lanes,
    so it reads the shards of its own lanes only, and in the last batches of an epoch now and then one of another rank's.

    A shard is decoded once an epoch. Memory is bounded by twice the shards that a rank's lanes use at a time.

    Parameters
    ----------
    scenes
        Scenes of equal band counts. One smaller than a block, or a shard's remainder thinner than one, is extended by
        reflection to a single block.
    block
        Edge n in pixels.
    batch
        Blocks in a batch, of all ranks together; the last of an epoch may be smaller.
    seed
        Seed of everything random here.
    degradation
        Noise to add.
    augment
        Flip and rotate blocks (the 8 symmetries of the square).
    shuffle_shards
        Shards whose blocks are mixed, at least; a lane uses ``shuffle_shards / batch`` at a time, rounded up.
    workers
        Threads that decode and degrade.
    rank, world_size
        Which of how many equal parts of every batch to give.
    on_bad_chunk
        ``stop`` raises the error of a shard that cannot be read; ``skip`` leaves its blocks out, see `left_out`.

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
        rank: int = 0,
        world_size: int = 1,
        on_bad_chunk: OnBadChunk = "stop",
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
        self.rank, self.world_size = rank, world_size
        self.on_bad_chunk = on_bad_chunk
        self.left_out: set[str] = set()
        """Why blocks were left out: one error for each shard that could not be read."""
        self._keys = [stable_hash(scene.name) for scene in self.scenes]
        self._scales = [scene.scale_factor for scene in self.scenes]
        self._shards = [(i, shard) for i, scene in enumerate(self.scenes) for shard in scene.shards()]

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks of one epoch, the same for every epoch."""
        return sum(self._sizes)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, the same for every rank."""
        return -(-self.blocks_per_epoch // self.batch)

    def order(self, epoch: int, start: int = 0) -> Iterator[list[BlockId]]:
        """This rank's blocks of each batch of an epoch, from batch ``start`` on."""
        for _, part in self._planned(epoch, start):
            yield [block for block, _ in part]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's part of the batches of an epoch from number ``start`` on; shards that only earlier ones need are not read.

        Where there are more ranks than blocks a part is empty. Decoding runs ahead in threads; closing the iterator stops them.

        Raises
        ------
        SceneError
            If a chunk is damaged, and bad chunks are not to be skipped.
        """
        with ThreadPoolExecutor(self.workers, "hpcdeq-batch") as pool:

            def produce() -> Iterator[Future[Batch]]:
                for planned, part in self._parts(epoch, start):
                    yield pool.submit(self._batch, epoch, planned, part)

            with contextlib.closing(_ahead(produce)) as futures:
                for future in futures:
                    yield future.result()

    @cached_property
    def _sizes(self) -> list[int]:
        """Blocks of each shard."""
        n = self.block
        return [_cells(shard.height, n) * _cells(shard.width, n) for _, shard in self._shards]

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

    def _planned(self, epoch: int, start: int) -> Iterator[tuple[int, list[tuple[BlockId, int]]]]:
        """Size of each batch from ``start`` on, and this rank's blocks of it, each with the batch that its shard is kept until."""
        plan = _Plan(self._sizes, self.batch, self.shuffle_shards, generator(self.seed, epoch, _ORDER))
        used: dict[int, list[BlockId]] = {}
        for batch in range(start, self.batches_per_epoch):
            rows = plan.rows(batch)
            first, last = (rank * len(rows) // self.world_size for rank in (self.rank, self.rank + 1))
            part = []
            for group, index in rows[first:last]:
                if group not in used:
                    used[group] = self._mixed(epoch, group, plan.groups[group])
                part.append((used[group][index], plan.until[group]))
            yield len(rows), part
            for over in [group for group in used if plan.until[group] <= batch + 1]:
                del used[over]

    def _mixed(self, epoch: int, group: int, shards: list[int]) -> list[BlockId]:
        """Blocks of some shards in random order."""
        blocks = [block for i in shards for block in self._blocks(epoch, *self._shards[i])]
        return [blocks[i] for i in generator(self.seed, epoch, group, _SHUFFLE).permutation(len(blocks))]

    def _parts(self, epoch: int, start: int) -> Iterator[tuple[int, list[tuple[BlockId, NDArray[Any]]]]]:
        """Size of each batch, and this rank's blocks of it with their pixels; shards are decoded ahead of their use."""
        lanes = -(-self.batch // self.world_size)
        most = 2 * lanes * -(-self.shuffle_shards // self.batch)
        shards: dict[tuple[int, Window], _Decoding] = {}
        waiting: deque[tuple[int, list[BlockId]]] = deque()
        planned = self._planned(epoch, start)
        with ThreadPoolExecutor(self.workers, "hpcdeq-decode") as pool:
            for batch in range(start, self.batches_per_epoch):
                while not waiting or len(shards) < most:
                    size, part = next(planned, (0, []))
                    if size == 0:
                        break
                    for block, until in part:
                        if (key := (block.scene, block.shard)) not in shards:
                            pixels = pool.submit(self.scenes[block.scene].stored, block.shard)
                            shards[key] = _Decoding(pixels, until)
                    waiting.append((size, [block for block, _ in part]))
                size, blocks = waiting.popleft()
                found = [(b, self._pixels(shards[b.scene, b.shard].pixels, b)) for b in blocks]
                yield size, [(block, pixels) for block, pixels in found if pixels is not None]
                for over in [key for key, shard in shards.items() if shard.until <= batch + 1]:
                    del shards[over]

    def _pixels(self, shard: Future[NDArray[Any]], block: BlockId) -> NDArray[Any] | None:
        """Pixels of a block, or None if its shard cannot be read and is to be left out."""
        try:
            pixels = shard.result()
        except SceneError as error:
            if self.on_bad_chunk == "stop":
                raise
            self.left_out.add(str(error))
            return None
        return pixels[(slice(None), *block.window.shift(-block.shard.y0, -block.shard.x0).slices)]

    def _batch(self, epoch: int, planned: int, blocks: list[tuple[BlockId, NDArray[Any]]]) -> Batch:
        n, bands = self.block, self.scenes[0].shape[0]
        clean, noisy = np.empty((2, len(blocks), bands, n, n), np.float32)
        sigma = np.empty((len(blocks), bands), np.float32)
        for i, (block, pixels) in enumerate(blocks):
            key = (self.seed, epoch, self._keys[block.scene], block.window.y0, block.window.x0)
            # Copied out of its shard first: a turned block read from cold memory takes twice as long.
            turned = _symmetry(_extend(pixels.copy(), n), block.symmetry)
            np.multiply(turned, np.float32(self._scales[block.scene]), out=clean[i], dtype=np.float32)
            _, sigma[i] = add_noise(clean[i], self.degradation, key, out=noisy[i])
        return Batch(clean=clean, noisy=noisy, sigma=sigma, planned=planned)


@dataclass(frozen=True, slots=True)
class _Decoding:
    pixels: Future[NDArray[Any]]
    until: int
    """The batch from which on nothing needs them."""


class _Plan:
    """Which blocks the batches of an epoch hold: see `PatchStream`.

    Parameters
    ----------
    sizes
        Blocks of each shard.
    batch
        Blocks in a batch: the number of lanes.
    mixed
        Shards whose blocks are mixed, at least.
    rng
        Draws the order of the shards.
    """

    def __init__(self, sizes: list[int], batch: int, mixed: int, rng: np.random.Generator) -> None:
        at_a_time = -(-mixed // batch)
        visit = rng.permutation(len(sizes)).tolist()
        self.groups = [visit[i : i + at_a_time] for i in range(0, len(visit), at_a_time)]
        """Shards that a lane uses at a time."""
        self._batch = batch
        self._lanes: list[list[tuple[int, int]]] = [[] for _ in range(batch)]  # (first batch, group)
        ends = []
        free = [(0, lane) for lane in range(batch)]
        for group, shards in enumerate(self.groups):
            begin, lane = heapq.heappop(free)
            self._lanes[lane].append((begin, group))
            ends.append(begin + sum(sizes[i] for i in shards))
            heapq.heappush(free, (ends[-1], lane))
        self._full = free[0][0]
        """Batches before the first lane has no more blocks."""
        last = sorted(free)
        self._rest = [(lane, i) for i in range(self._full, max(ends)) for end, lane in last if end > i]
        self.until = [end if end <= self._full else sum(sizes) for end in ends]
        """The batch from which on a group is not needed."""

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(group, number of the block in it) of a batch, neighbouring lanes next to each other."""
        if batch < self._full:
            return [self._at(lane, batch) for lane in range(self._batch)]
        begin = (batch - self._full) * self._batch
        return [self._at(*place) for place in sorted(self._rest[begin : begin + self._batch])]

    def _at(self, lane: int, place: int) -> tuple[int, int]:
        used = self._lanes[lane]
        begin, group = used[bisect.bisect_right(used, place, key=lambda item: item[0]) - 1]
        return group, place - begin


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
        # At the end of the interpreter it stands still already, and Python 3.13 would wait for it for ever.
        if not sys.is_finalizing():
            thread.join()
