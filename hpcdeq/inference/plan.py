"""Which units an archive is denoised in, and how they are shared among workers: a pure function of what it is told."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from hpcdeq.archive import Scene
from hpcdeq.archive.layout import MAX_EDGE, check_name
from hpcdeq.documents import shortened
from hpcdeq.errors import ConfigError, SceneError
from hpcdeq.inference.applied import AppliedModel
from hpcdeq.inference.tiles import reach
from hpcdeq.tiling import Window, partition

# Of the ledger's files, and in every fingerprint: records of another format are of another plan.
LEDGER_FORMAT = 6
_FINGERPRINT = re.compile(r"[A-Za-z0-9-]{0,64}")


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """What is to be done for one scene."""

    name: str
    fingerprint: str
    """Digest of model, settings and input: all that decides the bytes of the result."""
    bands: int
    height: int
    width: int
    """Of the scene, the latter in pixels."""
    shard_shape: tuple[int, int]
    """(y, x) of a shard in pixels."""
    block: int
    overlap: int
    """Edge of a tile, and the pixels that neighbours share."""
    unit_mib: int
    """Largest size of a unit."""

    def __post_init__(self) -> None:
        # A plan is read back from a ledger, and makes the names of folders, some of which are removed.
        check_name(self.name)
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ConfigError(f"scene {self.name}: {shortened(repr(self.fingerprint))} is no fingerprint")
        sizes = (self.bands, self.height, self.width, *self.shard_shape, self.block, self.unit_mib)
        if min(sizes) < 1 or max(sizes) > MAX_EDGE or not 0 <= self.overlap < self.block:
            raise ConfigError(
                f"scene {self.name}: sizes of a plan are out of bounds: {shortened(repr(self))}"
            )

    @property
    def extent(self) -> Window:
        """The whole scene."""
        return Window(0, self.height, 0, self.width)

    @property
    def unit_shape(self) -> tuple[int, int]:
        """(y, x) of a unit in pixels: as many whole shards as fit its bytes, at least one."""
        edge_y, edge_x = self.shard_shape
        shards = max(1, math.isqrt((self.unit_mib << 20) // (4 * self.bands * edge_y * edge_x)))
        return shards * edge_y, shards * edge_x

    def units(self) -> Iterator[Unit]:
        """Windows of whole shards that cover the scene, row by row."""
        for window in partition(self.height, self.width, *self.unit_shape):
            yield Unit(scene=self, window=window)

    @property
    def unit_count(self) -> int:
        """How many units there are."""
        y, x = self.unit_shape
        return -(-self.height // y) * -(-self.width // x)


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


def plan_of(scene: Scene, applied: AppliedModel) -> ScenePlan:
    """Plan a scene.

    Parameters
    ----------
    scene
        The noisy scene.
    applied
        What denoises it.

    Raises
    ------
    SceneError
        If the scene has not as many bands as the model, or files beside its pixels are missing.
    """
    model, settings = applied.model, applied.settings
    if scene.shape[0] != model.bands:
        raise SceneError(
            f"{scene.shape[0]} bands, but the model knows {model.bands}; train one for this sensor"
        )
    # All that decides the bytes of a denoised scene.
    what = {
        "ledger": LEDGER_FORMAT,
        "weights": applied.weights,
        "model": asdict(model.settings),
        "precision": settings.precision,
        "overlap": applied.overlap,
        "codes": settings.codes,
        "dtype": settings.dtype,
        "units": settings.unit_mib,  # records are of units
        # By which a GPU rounds; who plans cannot know what auto will be.
        "batch": settings.batch_of(model) if settings.device != "cpu" else None,
        "input": scene.digest,
    }
    bands, height, width = scene.shape
    return ScenePlan(
        name=scene.name,
        fingerprint=hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32],
        bands=bands,
        height=height,
        width=width,
        shard_shape=scene.shard_shape,
        block=model.settings.block,
        overlap=applied.overlap,
        unit_mib=settings.unit_mib,
    )


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
    total, before = sum(costs), 0
    mine = []
    for unit, cost in zip(units, costs, strict=True):
        if (2 * before + cost) * workers // (2 * total) == worker:  # by the middle of the unit
            mine.append(unit)
        before += cost
    return mine
