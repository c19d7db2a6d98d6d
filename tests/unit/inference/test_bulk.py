"""Archives denoised in shares, by copies, after damage: always the bytes of one undisturbed run."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.archive import Archive
from hpcdeq.inference import (
    DenoiseSettings,
    denoise_archive,
    denoise_share,
    plan,
    plan_archive,
    repair_archive,
    verify,
)
from hpcdeq.inference.plan import ScenePlan, share_of
from hpcdeq.models import save_model
from tests.unit.inference.test_denoise import SETTINGS, small_model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(small_model(), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_UNIT_SHARDS", 1)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def nothing_is_left_over(out: Path) -> bool:
    return not out.with_name(f"{out.name}.staging").exists()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), max_size=6),
    workers=st.integers(1, 20),
)
def test_every_unit_is_in_one_share_and_shares_follow_each_other(
    sizes: list[tuple[int, int]], workers: int
) -> None:
    scenes = [
        ScenePlan(
            name=f"s{i}",
            fingerprint="f",
            height=height,
            width=width,
            shard_shape=(65, 65),
            block=24,
            overlap=8,
        )
        for i, (height, width) in enumerate(sizes)
    ]
    shares = [share_of(scenes, worker, workers) for worker in range(workers)]
    units = [unit for scene in scenes for unit in scene.units()]
    assert [unit for share in shares for unit in share] == units
    if units:
        costs = [sum(unit.cost for unit in share) for share in shares]
        fair = sum(costs) / workers
        assert max(abs(cost - fair) for cost in costs) <= max(unit.cost for unit in units)


@pytest.mark.parametrize("workers", [2, 3, 16])
def test_any_number_of_workers_in_any_order_write_the_same_bytes(
    archive: Archive, model_folder: Path, tmp_path: Path, workers: int
) -> None:
    denoise_archive(archive, model_folder, tmp_path / "one.zarr", SETTINGS)
    out = tmp_path / "many.zarr"
    order = random.Random(workers).sample(range(workers), workers)
    plan_archive(archive, model_folder, out, SETTINGS)
    for worker in order:
        denoise_share(out, worker, workers)
    assert bytes_of(out) == bytes_of(tmp_path / "one.zarr")
    assert nothing_is_left_over(out)


def test_workers_and_copies_at_once_do_no_harm(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    denoise_archive(archive, model_folder, tmp_path / "one.zarr", SETTINGS)
    expected = bytes_of(tmp_path / "one.zarr")
    for attempt in range(5):
        out = tmp_path / f"many{attempt}.zarr"
        plan_archive(archive, model_folder, out, SETTINGS)
        with ThreadPoolExecutor(6) as pool:
            runs = [pool.submit(denoise_share, out, i % 3, 3) for i in range(6)]
        for run in runs:
            run.result()
        assert bytes_of(out) == expected
        assert nothing_is_left_over(out)


@pytest.mark.parametrize("codes", [False, True])
def test_all_damage_is_found_and_mended_and_nothing_else_is_touched(
    archive: Archive, model_folder: Path, tmp_path: Path, codes: bool
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, DenoiseSettings(device="cpu", codes=codes))
    expected = bytes_of(out)
    assert list(verify(out)) == []
    rng = random.Random(0)
    files = sorted(name for name in expected if "/" in name)
    for _ in range(25):
        damaged = rng.sample(files, rng.randint(1, 4))
        untouched = {name: (out / name).stat().st_mtime_ns for name in files if name not in damaged}
        for name in damaged:
            content = bytearray(expected[name])
            match rng.choice(["flip", "cut", "lose"]):
                case "flip":
                    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                    (out / name).write_bytes(content)
                case "cut":
                    (out / name).write_bytes(content[: rng.randrange(len(content))])
                case "lose":
                    (out / name).unlink()
        found = {f"{scene}/{file}" for scene, bad in verify(out) for file in bad}
        assert found == set(damaged)
        repair_archive(out)
        assert bytes_of(out) == expected
        scenes_hit = {name.split("/")[0] for name in damaged}
        assert all(
            (out / name).stat().st_mtime_ns == then
            for name, then in untouched.items()
            if name.split("/")[0] not in scenes_hit
        )
        assert nothing_is_left_over(out)


def test_a_lost_scene_is_found_and_made_again(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    shutil.rmtree(out / "scene1")
    assert [name for name, _ in verify(out)] == ["scene1"]
    repair_archive(out)
    assert bytes_of(out) == expected
