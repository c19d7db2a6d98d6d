"""How far a run is: read of the ledger, whatever the workers do meanwhile, and without a trace."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import zarr
from typer.testing import CliRunner

from hpcdeq.archive import Archive
from hpcdeq.archive.layout import FINGERPRINT
from hpcdeq.cli import app
from hpcdeq.errors import ConfigError
from hpcdeq.inference import (
    DenoiseSettings,
    denoise_archive,
    denoise_share,
    plan,
    plan_archive,
    repair_archive,
)
from hpcdeq.inference.ledger import Complete, Job, Ledger, Record
from hpcdeq.inference.plan import ScenePlan
from hpcdeq.inference.status import SceneStatus, Status, Watch, status_of
from hpcdeq.inference.tiles import Convergence
from hpcdeq.models import save_model
from hpcdeq.solvers import Anderson
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.test_denoise import small_model

SETTINGS = DenoiseSettings(device="cpu", overlap=0)
NOW = 1_800_000_000.0
runner = CliRunner()


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.ScenePlan, "unit_shape", property(lambda scene: scene.shard_shape))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(small_model(solver=Anderson(iterations=4, tolerance=0.15)), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture
def planned(archive: Archive, model_folder: Path, tmp_path: Path) -> Path:
    """An output archive of which nothing is computed yet: scenes of 2, 1 and 1 units."""
    plan_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    return tmp_path / "out.zarr"


def states(out: Path) -> dict[str, tuple[str, int]]:
    return {scene.name: (scene.state, scene.finished) for scene in status_of(out).scenes}


def damage(archive: Archive, name: str, shard: str) -> None:
    file = archive.path / name / "radiance" / "c" / "0" / shard
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


# Runs


def test_a_scene_is_pending_then_running_then_done(planned: Path) -> None:
    assert states(planned) == {"scene0": ("pending", 0), "scene1": ("pending", 0), "scene2": ("pending", 0)}
    seen = set()
    for worker in range(16):
        denoise_share(planned, worker, 16)
        for scene in status_of(planned).scenes:
            records = planned.with_name("out.zarr.ledger").glob(f"units/{scene.name}/*/*.json")
            finished = len(list(records))
            visible = scene.name in Archive(planned)
            assert scene.finished == finished
            assert scene.state == ("done" if visible else "running" if finished else "pending")
            seen.add((scene.name, scene.state))
    assert {("scene0", "running"), ("scene0", "done"), ("scene2", "pending")} <= seen
    status = status_of(planned)
    assert (status.left, status.seconds_left, status.tiles_left) == (0, 0.0, 0)
    assert str(status).startswith("3 scenes: 3 done, 0 running, 0 pending, 0 failed; 4 of 4 units, ")
    assert str(status).endswith("nothing left to do")


def test_tiles_and_those_that_converged_are_those_beside_the_pixels(planned: Path) -> None:
    denoise_share(planned)
    for scene in status_of(planned).scenes:
        stored = zarr.open_group(planned / scene.name, mode="r")
        converged = stored["tile_converged"][...]
        assert 0 < converged.sum() < converged.size
        assert (scene.tiles, scene.converged) == (converged.size, converged.sum())
        assert scene.worst == pytest.approx(stored["tile_residual"][...].max())
        assert scene.unconverged == converged.size - converged.sum()


@pytest.mark.parametrize("given", [True, False], ids=["setting", "model"])
def test_a_fixed_number_of_steps_is_not_called_unconverged(
    archive: Archive, tmp_path: Path, given: bool
) -> None:
    solver = Anderson(iterations=3, tolerance=0.15 if given else 0.0)
    save_model(small_model(solver=solver), tmp_path / "model", {})
    settings = replace(SETTINGS, tolerance=0.0 if given else None)
    denoise_archive(archive, tmp_path / "model", tmp_path / "out.zarr", settings)
    status = status_of(tmp_path / "out.zarr")
    assert {(scene.state, scene.converged, scene.worst) for scene in status.scenes} == {("done", None, None)}
    assert status.concerns() == []


def test_a_damaged_scene_failed_and_the_others_are_done(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    add_scene(archive, "other", smooth_scene(0, 5, 70, 70))  # of another sensor: it cannot be planned
    add_scene(archive, "long", smooth_scene(0, 7, 800, 40))
    damage(archive, "long", "2/0")
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    status = status_of(out)
    assert status.states == {"done": 3, "running": 0, "pending": 0, "failed": 2}
    assert (status.left, status.tiles_left) == (0, 0)
    long, other = (scene for scene in status.scenes if scene.state == "failed")
    assert "5 bands" in str(other.reason)
    assert (long.finished, long.units) == (2, 3)
    assert "cannot read rows" in str(long.reason)
    assert [row[0] for row in status.concerns()[0].rows] == ["long", "other"]


def test_a_scene_that_left_the_archive_is_not_done_until_it_is_mended(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise_share(planned)
    shutil.rmtree(planned / "scene1")
    watch = Watch(planned)
    (scene,) = (scene for scene in watch.look().scenes if scene.state != "done")
    assert (scene.name, scene.state, scene.remarks) == ("scene1", "running", ())
    later = time.time() + 100
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)  # by then it should have been moved into the archive
        (scene,) = (scene for scene in watch.look().scenes if scene.state != "done")
        assert "hpcdeq repair" in scene.remarks[0]
    repair_archive(planned)
    assert watch.look().states["done"] == 3


@pytest.mark.usefixtures("_at_now")
def test_a_scene_that_is_there_by_an_older_plan_has_not_left_the_archive(tmp_path: Path) -> None:
    scene = a_plan("a", 120, 100)
    ledger = made_up(tmp_path, scene)
    complete(ledger, replace(scene, fingerprint="older"), 900)
    record(ledger, scene, {0: 30, 1: 30})
    (seen,) = status_of(ledger.out.path).scenes
    assert (seen.state, seen.remarks) == ("running", ())


def test_masked_pixels_and_remarks_are_told(tmp_path: Path, archive: Archive) -> None:
    valid = smooth_scene(0, 1, 90, 80)[0] > 0.3
    add_scene(archive, "holed", smooth_scene(1, 7, 90, 80), valid)
    save_model(small_model(), tmp_path / "model", {"config": {"noise": {"kind": "gaussian", "sigma": 250.0}}})
    denoise_archive(archive, tmp_path / "model", tmp_path / "out.zarr", SETTINGS)
    holed = status_of(tmp_path / "out.zarr").scenes[0]
    assert holed.masked == (~valid).sum()
    assert holed.masked_share == pytest.approx((~valid).mean())


# Rates, of records made up


def made_up(tmp_path: Path, *scenes: ScenePlan) -> Ledger:
    """A ledger of scenes that do not exist, and of a model that is gone."""
    archive = Archive(tmp_path / "out.zarr")
    archive.path.mkdir()
    archive.staging.mkdir()
    ledger = Ledger(archive)
    ledger.begin(Job(tmp_path / "in.zarr", tmp_path / "gone", DenoiseSettings(), scenes))
    return ledger


def a_plan(name: str, height: int, width: int) -> ScenePlan:
    """Units of 100 x 100 pixels; a unit of full size has 25 tiles."""
    return ScenePlan(
        bands=7,
        name=name,
        fingerprint=f"of-{name}",
        height=height,
        width=width,
        shard_shape=(100, 100),
        block=20,
        overlap=0,
        unit_mib=256,
    )


def record(ledger: Ledger, scene: ScenePlan, ages: dict[int, float]) -> None:
    """Record units of a scene, by their number, so many seconds ago."""
    for number, unit in enumerate(scene.units()):
        if number in ages:
            ledger.write(unit, Record(checksums={}, tiles=[]))
            file = (
                ledger.folder
                / f"units/{scene.name}/{scene.fingerprint}/{unit.window.y0}-{unit.window.x0}.json"
            )
            os.utime(file, (NOW - ages[number], NOW - ages[number]))


def complete(ledger: Ledger, scene: ScenePlan, age: float, **solved: float) -> None:
    """Record a scene as complete so many seconds ago, and make it visible."""
    convergence = Convergence(**{"tiles": 100, "converged": 100, "iterations": 900, **solved})  # type: ignore[arg-type]
    what = Complete(
        fingerprint=scene.fingerprint, checksums={}, convergence=convergence, masked=0, noise=0.0, remarks=[]
    )
    ledger.complete(scene.name, what)
    os.utime(ledger.folder / f"complete/{scene.name}.json", (NOW - age, NOW - age))
    zarr.create_group(ledger.out.path / scene.name, attributes={FINGERPRINT: scene.fingerprint})


@pytest.fixture
def _at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.mark.usefixtures("_at_now")
def test_the_rate_is_that_of_the_last_ten_minutes_from_the_first_record_in_them(tmp_path: Path) -> None:
    scene = a_plan("a", 400, 400)
    ledger = made_up(tmp_path, scene)
    record(ledger, scene, {0: 5000, 1: 601, 2: 40, 3: 30, 4: 20, 5: 10})
    status = status_of(ledger.out.path)
    assert status.tiles_per_second == pytest.approx(
        3 * 25 / 40
    )  # that of 40 s ago was begun nobody knows when
    assert status.pixels_per_second == pytest.approx(3 * 100 * 100 / 40)
    assert status.tiles_left == 10 * 25
    assert status.seconds_left == pytest.approx(10 * 40 / 3)
    assert "1.875 tiles/s (0.00075 Mpixel/s), 2 min left" in str(status)


@pytest.mark.usefixtures("_at_now")
def test_units_count_by_their_size_and_scenes_that_are_done_count_too(tmp_path: Path) -> None:
    """Units of the first scene: 100 x 100 and 20 x 100 pixels."""
    uneven, done, old, waiting, failed = (a_plan(n, 120, 100) for n in ("u", "d", "o", "w", "x"))
    ledger = made_up(tmp_path, uneven, done, old, waiting, failed)
    record(ledger, done, {0: 100, 1: 60})
    complete(ledger, done, 60)
    record(ledger, old, {0: 900, 1: 800})
    complete(ledger, old, 800)
    record(ledger, uneven, {1: 50})
    record(ledger, failed, {1: 20})
    ledger.fail("x", "broken")
    status = status_of(ledger.out.path)
    assert status.pixels_per_second == pytest.approx(3 * 20 * 100 / 100)
    assert status.tiles_per_second == pytest.approx(3 * 5 / 100)
    assert status.tiles_left == 25 + 30
    assert {scene.name: scene.state for scene in status.scenes} == {
        "d": "done", "o": "done", "u": "running", "w": "pending", "x": "failed",
    }  # fmt: skip


@pytest.mark.usefixtures("_at_now")
@pytest.mark.parametrize("ages", [{}, {0: 5}, {0: 900, 1: 700}], ids=["none", "one", "long ago"])
def test_of_too_few_records_no_rate_is_made(tmp_path: Path, ages: dict[int, float]) -> None:
    scene = a_plan("a", 400, 400)
    ledger = made_up(tmp_path, scene)
    record(ledger, scene, ages)
    status = status_of(ledger.out.path)
    assert (status.tiles_per_second, status.seconds_left) == (0.0, None)
    assert str(status).endswith(f"{len(ages)} of 16 units, time left unknown")


@pytest.mark.usefixtures("_at_now")
def test_clocks_that_run_ahead_make_no_nonsense(tmp_path: Path) -> None:
    scene = a_plan("a", 400, 400)
    ledger = made_up(tmp_path, scene)
    record(ledger, scene, {0: -20, 1: -30, 2: -40})
    assert status_of(ledger.out.path).tiles_per_second == pytest.approx(2 * 25 / 20)


# Harmless and cheap


def traces(folder: Path) -> dict[Path, tuple[int, int, int]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")
    }


def test_nothing_is_written(planned: Path) -> None:
    for options in ([], ["--json"]):
        before = traces(planned.parent)
        assert runner.invoke(app, ["status", str(planned), *options]).exit_code == 0
        assert traces(planned.parent) == before
        denoise_share(planned, 0, 2)


def test_it_may_look_at_any_moment_while_workers_write(planned: Path) -> None:
    watch, done = Watch(planned), 0
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(denoise_share, planned, worker % 2, 2) for worker in range(4)]
        while not all(run.done() for run in runs):
            for status in (watch.look(), status_of(planned)):
                assert len(status.scenes) == 3
                assert status.states["failed"] == 0
                assert all(scene.finished <= scene.units for scene in status.scenes)
                assert status.states["done"] >= done
                done = status.states["done"]
    for run in runs:
        run.result()
    assert watch.look().left == status_of(planned).left == 0


@pytest.mark.parametrize("what", ["units", "complete", "archive"])
def test_what_vanishes_after_it_was_listed_is_not_there(
    planned: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    denoise_share(planned, 0, 2)
    done = status_of(planned).states["done"]
    ledger = planned.with_name("out.zarr.ledger")
    real: Callable[[Ledger], set[str]] = Ledger.begun

    def begun(self: Ledger) -> set[str]:
        """List, and then all is taken away."""
        found = real(self)
        for folder in ledger.glob("units/*") if what == "units" else ():
            shutil.rmtree(folder)
        return found

    def completed(self: Ledger, scene: str) -> None:
        """It is read too late."""
        return

    def fingerprint(self: Archive, name: str) -> None:
        """Likewise."""
        return

    monkeypatch.setattr(Ledger, "begun", begun)
    if what == "complete":
        monkeypatch.setattr(Ledger, "completed", completed)
    if what == "archive":
        monkeypatch.setattr(Archive, "fingerprint", fingerprint)
    status = status_of(planned)
    assert status.states["done"] == (done if what == "units" else 0)
    assert status.states["failed"] == 0


def test_what_nobody_has_begun_is_not_read_and_what_is_done_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [a_plan(f"s{i:03}", 120, 100) for i in range(50)]
    ledger = made_up(tmp_path, *scenes)
    for scene in scenes[:5]:
        record(ledger, scene, {0: 900, 1: 900})
        complete(ledger, scene, 900)
    record(ledger, scenes[5], {0: 30})
    read: list[str] = []
    for name in ("times", "completed", "completed_at"):
        real = getattr(Ledger, name)

        def spy(self: Ledger, scene: ScenePlan | str, real: Callable[..., object] = real) -> object:
            read.append(scene if isinstance(scene, str) else scene.name)
            return real(self, scene)

        monkeypatch.setattr(Ledger, name, spy)
    watch = Watch(ledger.out.path)
    assert watch.look().states == {"done": 5, "running": 1, "pending": 44, "failed": 0}
    assert set(read) == {f"s{i:03}" for i in range(6)}
    read.clear()
    assert watch.look().states["done"] == 5
    assert set(read) == {"s005"}
    shutil.rmtree(ledger.out.path / "s000")
    assert watch.look().states["done"] == 4


def test_a_new_plan_makes_what_was_done_pending(archive: Archive, planned: Path, model_folder: Path) -> None:
    denoise_share(planned)
    watch = Watch(planned)
    assert watch.look().left == 0
    plan_archive(archive, model_folder, planned, replace(SETTINGS, iterations=2))
    assert watch.look().states["pending"] == 3


# Command line


def test_without_a_ledger_the_call_is_wrong(tmp_path: Path) -> None:
    done = runner.invoke(app, ["status", str(tmp_path / "none.zarr")])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2
    assert "none.zarr.ledger" in str(done.exception)


def test_each_reason_lists_twenty_scenes_and_says_how_many_more(tmp_path: Path) -> None:
    scenes = [a_plan(f"s{i:03}", 120, 100) for i in range(30)]
    ledger = made_up(tmp_path, *scenes)
    for i, scene in enumerate(scenes):
        complete(ledger, scene, 900, converged=99 - i, worst_residual=0.5)
    for i in range(21):
        ledger.fail(f"f{i:03}", f"reason {i}")
    done = runner.invoke(app, ["status", str(ledger.out.path)])
    assert done.exit_code == 0
    first, _, *failed, _, loose_title, loose_columns, worst = done.stdout.splitlines()[:29]
    assert first == "51 scenes: 30 done, 0 running, 0 pending, 21 failed; 60 of 60 units, nothing left to do"
    assert failed[0] == "21 failed:"
    assert [line.split() for line in failed[2:4]] == [
        ["f000", "0", "of", "0", "reason", "0"],
        ["f001", "0", "of", "0", "reason", "1"],
    ]
    assert failed[-1] == "and 1 more (--json lists all)"
    assert len(failed) == 2 + 20 + 1
    assert loose_title == "30 with tiles that did not converge:"
    assert loose_columns.split() == ["scene", "tiles", "of", "all", "worst", "residual"]
    assert worst.split() == ["s029", "30", "of", "100", "30.0", "%", "5.0e-01"]
    assert done.stdout.splitlines()[-1] == "and 10 more (--json lists all)"


def test_json_has_all_scenes_and_these_keys(tmp_path: Path) -> None:
    scenes = [a_plan(f"s{i:03}", 120, 100) for i in range(30)]
    ledger = made_up(tmp_path, *scenes)
    complete(ledger, scenes[0], 900, converged=99, worst_residual=float("inf"))
    ledger.fail("s001", "broken")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    done = runner.invoke(app, ["status", str(ledger.out.path), "--json"])
    told = json.loads(done.stdout, parse_constant=refuse)
    assert done.exit_code == 0
    assert list(told) == [
        "states", "left", "units", "finished", "tiles_left", "tiles_per_second", "pixels_per_second", "seconds_left",
        "scenes",
    ]  # fmt: skip
    assert told["states"] == {"done": 1, "running": 0, "pending": 28, "failed": 1}
    assert (told["left"], told["tiles_left"], told["seconds_left"]) == (28, 28 * 30, None)
    assert told["scenes"][0] == {
        "name": "s000", "state": "done", "pixels": 12000, "units": 2, "finished": 2, "reason": None, "tiles": 100,
        "converged": 99, "worst": None, "masked": 0, "noise": 0.0, "remarks": [],
    }  # fmt: skip
    assert told["scenes"][1] | {"reason": None} == {
        "name": "s001", "state": "failed", "pixels": 12000, "units": 2, "finished": 0, "reason": None, "tiles": None,
        "converged": None, "worst": None, "masked": None, "noise": None, "remarks": [],
    }  # fmt: skip
    assert told["scenes"][1]["reason"] == "broken"
    assert len(told["scenes"]) == 30


def test_watching_says_a_line_at_each_look_and_ends_when_nothing_is_left(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = iter(range(2))
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        denoise_share(planned, next(workers), 2)

    monkeypatch.setattr(time, "sleep", sleep)
    done = runner.invoke(app, ["status", str(planned), "--watch"])
    assert done.exit_code == 0, done.exception
    assert pauses == [10.0, 10.0]
    first, second, *last = done.stdout.splitlines()
    assert "3 scenes: 0 done, 0 running, 3 pending" in first
    assert "; 1 of 4 units" in second
    assert last[0].startswith("3 scenes: 3 done")


def test_the_worst_are_first_and_what_is_fine_is_no_concern() -> None:
    def scene(name: str, converged: int, masked: int = 0) -> SceneStatus:
        return SceneStatus(
            name=name, state="done", pixels=1000, units=1, finished=1, tiles=10, converged=converged, worst=0.1,
            masked=masked,
        )  # fmt: skip

    scenes = [scene("a", 9), scene("b", 10, masked=1), scene("c", 2), scene("d", 10, masked=500)]
    status = Status(scenes=scenes, tiles_per_second=0.0, pixels_per_second=0.0, tiles_left=0)
    loose, holed = status.concerns()
    assert [row[0] for row in loose.rows] == ["c", "a"]
    assert loose.rows[0] == ("c", "8 of 10", "80.0 %", "1.0e-01")
    assert [tuple(row) for row in holed.rows] == [("d", "500", "50.0 %"), ("b", "1", "below 0.1 %")]
