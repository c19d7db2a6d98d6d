"""Units of whole shards, their costs, and what makes a plan another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.errors import SceneError
from hpcdeq.inference import DenoiseSettings
from hpcdeq.inference.applied import AppliedModel, set_up
from hpcdeq.inference.plan import ScenePlan, Unit, plan_of, share_of
from hpcdeq.models import SparseDenoiser
from hpcdeq.tiling import Window, tiles_of
from tests.unit.inference.plans import a_plan
from tests.unit.inference.test_denoise import small_model

SCENE = a_plan(bands=31, height=1300, width=1300, shard_shape=(130, 130), block=60, overlap=20, unit_mib=32)


@dataclass
class Stored:
    """What a plan is told of a stored scene."""

    name: str = "s"
    shape: tuple[int, int, int] = (7, 90, 80)
    shard_shape: tuple[int, int] = (65, 66)
    digest: str = "of the input"


@pytest.fixture(scope="module")
def model() -> SparseDenoiser:
    return small_model()


def plan(
    model: SparseDenoiser, stored: object = Stored(), weights: str = "w", **settings: object
) -> ScenePlan:
    chosen = DenoiseSettings(**settings)  # type: ignore[arg-type]
    applied = AppliedModel(model=set_up(model, chosen), settings=chosen, card={"weights_sha256": weights})
    return plan_of(stored, applied)  # type: ignore[arg-type]


@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    shard=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    bands=st.integers(1, 300),
    mib=st.integers(1, 64),
)
def test_units_are_as_many_whole_shards_as_fit_their_size(
    height: int, width: int, shard: tuple[int, int], bands: int, mib: int
) -> None:
    scene = replace(SCENE, height=height, width=width, shard_shape=shard, bands=bands, unit_mib=mib)
    y, x = scene.unit_shape
    shards = y // shard[0]
    assert (y, x) == (shards * shard[0], shards * shard[1])
    of_a_shard = 4 * bands * shard[0] * shard[1]  # bytes, as float32
    assert shards == 1 or shards**2 * of_a_shard <= mib * 2**20
    assert (shards + 1) ** 2 * of_a_shard > mib * 2**20
    units = list(scene.units())
    assert scene.unit_count == len(units)
    owners = np.zeros((height, width), int)
    for unit in units:
        assert unit.scene is scene
        assert (unit.window.y0 % y, unit.window.x0 % x) == (0, 0)
        owners[unit.window.slices] += 1
    assert (owners == 1).all()
    assert scene.extent == Window(0, height, 0, width)


def test_a_unit_reads_all_tiles_that_touch_it_and_costs_about_as_many_pixels() -> None:
    for unit in replace(SCENE, unit_mib=256).units():
        tiles = tiles_of(1300, 1300, 60, 20, touching=unit.window)
        assert unit.reach == Window(
            min(t.y0 for t in tiles),
            max(t.y1 for t in tiles),
            min(t.x0 for t in tiles),
            max(t.x1 for t in tiles),
        )
    # Where it has neighbours on all sides, and its tiles reach far out of it.
    unit = Unit(scene=replace(SCENE, height=5000, width=5000), window=Window(1255, 2600, 1255, 2610))
    assert (unit.reach.y0, unit.reach.y1) == (1200, 2620)
    read = unit.reach.height * unit.reach.width
    assert read < unit.cost < 1.1 * read
    # Shares are only fair if small units are not taken for cheap ones: a single pixel costs the tiles around it.
    assert Unit(scene=SCENE, window=Window(0, 1, 0, 1)).cost > 60 * 60


def test_a_plan_says_of_a_scene_what_its_workers_need(model: SparseDenoiser) -> None:
    found = plan(model, overlap=5, unit_mib=3)
    assert found == ScenePlan(
        name="s",
        fingerprint=found.fingerprint,
        bands=7,
        height=90,
        width=80,
        shard_shape=(65, 66),
        block=24,
        overlap=5,
        unit_mib=3,
    )
    assert plan(model).overlap == 24 // 3
    assert len(found.fingerprint) == 32
    int(found.fingerprint, 16)


def test_a_scene_of_another_sensor_is_not_planned(model: SparseDenoiser) -> None:
    with pytest.raises(SceneError, match=r"^5 bands, but the model knows 7; train one for this sensor$"):
        plan(model, Stored(shape=(5, 90, 80)))


def others(model: SparseDenoiser) -> Iterator[ScenePlan]:
    yield plan(model)
    yield plan(model, Stored(digest="of another input"))
    yield plan(model, weights="other")
    other = small_model()
    other.settings = replace(other.settings, block=25)  # type: ignore[assignment]
    yield plan(other, overlap=8)
    yield plan(model, precision="bfloat16")
    yield plan(model, overlap=7)
    yield plan(model, codes=True)
    yield plan(model, dtype="input")
    yield plan(model, unit_mib=255)
    yield plan(model, batch=17)
    yield plan(model, batch=1)
    yield plan(model, device="cpu")


def test_all_that_decides_a_byte_or_a_record_makes_another_plan(model: SparseDenoiser) -> None:
    found = list(others(model))
    assert len({scene.fingerprint for scene in found}) == len(found)
    assert found == list(others(model)), "and the same makes the same"


def test_what_decides_no_byte_makes_the_same_plan(model: SparseDenoiser) -> None:
    """The name and the place of a scene, the device as far as it is known, and on a CPU the batch."""
    same = plan(model).fingerprint
    assert plan(model, Stored(name="renamed")).fingerprint == same
    assert plan(model, overlap=8).fingerprint == same, "that of None"
    assert plan(model, device="cuda").fingerprint == same
    assert plan(model, device="cpu").fingerprint == plan(model, device="cpu", batch=5).fingerprint


def test_shares_are_cut_by_cost_at_the_middle_of_a_unit() -> None:
    """Of nine units of equal cost."""
    scene = replace(SCENE, height=390, width=390, unit_mib=1)
    assert len({unit.cost for unit in scene.units()}) == 1
    assert [len(share_of([scene], worker, 3)) for worker in range(3)] == [3, 3, 3]
    assert [len(share_of([scene], worker, 2)) for worker in range(2)] == [4, 5], (
        "the middle one begins the second"
    )
    assert [len(share_of([scene], worker, 18)) for worker in range(18)] == [0, 1] * 9
    assert share_of([], 0, 4) == share_of([], 3, 4) == []
