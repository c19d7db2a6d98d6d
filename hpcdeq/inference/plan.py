"""Which units an archive is denoised in, and how they are shared among workers: a pure function of what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpcdeq.inference.tiles import reach
from hpcdeq.tiling import Window, partition

_UNIT_SHARDS = (
    2  # edge of a unit: fewer tiles cross unit borders, and are computed twice, than with single shards
)


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """What is to be done for one scene."""

    name: str
    fingerprint: str
    """Digest of model, settings and input: all that decides the bytes of the result."""
    height: int
    width: int
    """Of the scene, in pixels."""
    shard_shape: tuple[int, int]
    """(y, x) of a shard in pixels."""
    block: int
    overlap: int
    """Edge of a tile, and the pixels that neighbours share."""

    @property
    def extent(self) -> Window:
        """The whole scene."""
        return Window(0, self.height, 0, self.width)

    def units(self) -> Iterator[Unit]:
        """Windows of whole shards that cover the scene, row by row."""
        edge_y, edge_x = self.shard_shape
        for window in partition(self.height, self.width, _UNIT_SHARDS * edge_y, _UNIT_SHARDS * edge_x):
            yield Unit(scene=self, window=window)

    @property
    def unit_count(self) -> int:
        """How many units there are."""
        edge_y, edge_x = self.shard_shape
        return -(-self.height // (_UNIT_SHARDS * edge_y)) * -(-self.width // (_UNIT_SHARDS * edge_x))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A window of whole shards: what is computed and written at a time, by one worker."""

    scene: ScenePlan
    window: Window

    @property
    def reach(self) -> Window:
        """What must be read of the scene."""
        return reach(self.scene.extent, self.window, self.scene.block, self.scene.overlap)

    @property
    def cost(self) -> int:
        """About how many pixels are computed: those of the window, and of the tiles that cross its border."""
        around = 2 * self.scene.block
        return (self.window.height + around) * (self.window.width + around)


def share_of(scenes: Sequence[ScenePlan], worker: int, workers: int) -> list[Unit]:
    """Return a worker's units: neighbours in the order of the scenes, nearly as costly as those of any other.

    Parameters
    ----------
    scenes
        The whole plan, the same for all workers.
    worker, workers
        Which of how many, from 0.
    """
    units = [unit for scene in scenes for unit in scene.units()]
    costs = [unit.cost for unit in units]
    total, before = sum(costs) or 1, 0
    mine = []
    for unit, cost in zip(units, costs, strict=True):
        if (2 * before + cost) * workers // (2 * total) == worker:  # by the middle of the unit
            mine.append(unit)
        before += cost
    return mine
