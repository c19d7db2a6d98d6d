"""Archives denoised in shares, by copies, after damage: always the bytes of one undisturbed run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.archive import Archive, Scene, SceneHeader, open_archive
from hpcdeq.archive.layout import FINGERPRINT
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.errors import ArchiveError, ConfigError, FencedError, PreemptedError, SceneError, StorageError
from hpcdeq.inference import (
    DenoiseSettings,
    batches,
    bulk,
    denoise_archive,
    denoise_share,
    plan,
    plan_archive,
    repair_archive,
    verify,
    worker,
)
from hpcdeq.inference.ledger import Complete, Ledger, Record
from hpcdeq.inference.output import Output
from hpcdeq.inference.plan import Unit, share_of
from hpcdeq.inference.tiles import Convergence
from hpcdeq.models import save_model
from hpcdeq.tiling import Window
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.plans import a_plan
from tests.unit.inference.test_denoise import SETTINGS, small_model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(small_model(), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.ScenePlan, "unit_shape", property(lambda scene: scene.shard_shape))


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def is_pixels(name: str) -> bool:
    return name.split("/")[1] in ("radiance", "codes") and "/c/" in name


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
        a_plan(f"s{i}", height=height, width=width, unit_mib=256) for i, (height, width) in enumerate(sizes)
    ]
    shares = [share_of(scenes, number, workers) for number in range(workers)]
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
    for number in order:
        denoise_share(out, number, workers)
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
        touched = {name for name, then in untouched.items() if (out / name).stat().st_mtime_ns != then}
        damaged_scenes = {name.split("/")[0] for name in damaged}
        assert {name.split("/")[0] for name in touched} <= damaged_scenes
        assert not [name for name in touched if is_pixels(name)]
        assert nothing_is_left_over(out)


@pytest.mark.parametrize("lost", ["radiance/c/0/1/0", "valid_mask/c/1/0"])
def test_a_lost_file_of_an_input_changes_no_pixel(model_folder: Path, tmp_path: Path, lost: str) -> None:
    """Units of neighbouring shards read it too; Zarr would give them zeros."""
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    valid = np.ones((585, 70), bool)
    valid[300:330, 10:20] = False
    add_scene(archive, "s", np.where(valid, smooth_scene(0, 7, *valid.shape), 0), valid)
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out, file = tmp_path / "out.zarr", archive.path / "s" / lost
    plan_archive(archive, model_folder, out, SETTINGS)
    file.rename(tmp_path / "kept")
    report = denoise_share(out)
    assert f"{lost}" in report.failed["s"]
    assert open_archive(out).names() == []
    (tmp_path / "kept").rename(file)
    assert denoise_archive(archive, model_folder, out, SETTINGS).done == ["s"]
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")


def _with_mask(archive: Archive, folder: Path) -> None:
    pixels = archive["scene1"].read()
    add_scene(archive, "scene1", pixels, valid=pixels[0] > 0.2)


def _with_other_mask(archive: Archive, folder: Path) -> None:
    add_scene(archive, "scene1", archive["scene1"].read(), valid=np.indices((70, 90))[0] > 5)


def _with_other_attributes(archive: Archive, folder: Path) -> None:
    file = archive.path / "scene1/zarr.json"
    file.write_text(file.read_text().replace('"source": "scene1"', '"source": "another"'))


def _with_other_wavelengths(archive: Archive, folder: Path) -> None:
    zarr.open_group(archive["scene1"].path, mode="r+")["wavelength"][0] = 395.0  # type: ignore[index]


def _with_another_support(archive: Archive, folder: Path) -> None:
    """The same weights."""
    card = json.loads((folder / "model.json").read_text())
    card["settings"]["support"]["size"] = 4
    (folder / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "change",
    [_with_mask, _with_other_mask, _with_other_attributes, _with_other_wavelengths, _with_another_support],
)
def test_what_decides_a_byte_of_the_output_makes_it_anew(
    archive: Archive, model_folder: Path, tmp_path: Path, change: Callable[[Archive, Path], None]
) -> None:
    out = tmp_path / "out.zarr"
    if change is _with_other_mask:
        _with_mask(archive, model_folder)
    denoise_archive(archive, model_folder, out, SETTINGS)
    change(archive, model_folder)
    assert "scene1" in denoise_archive(archive, model_folder, out, SETTINGS).done
    denoise_archive(archive, model_folder, tmp_path / "expected.zarr", SETTINGS)
    assert bytes_of(out) == bytes_of(tmp_path / "expected.zarr")
    assert denoise_archive(archive, model_folder, out, SETTINGS).done == []


@pytest.mark.parametrize("lost", ["shard_checksum", "shard_checksum/c/0/0", "wavelength/c/0", "zarr.json"])
def test_a_scene_of_which_it_cannot_be_told_what_it_holds_is_not_planned(
    archive: Archive, model_folder: Path, tmp_path: Path, lost: str
) -> None:
    path = archive.path / "scene1" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert report.done == ["scene0", "scene2"]
    assert report.failed["scene1"].startswith("scene scene1: ")
    assert lost.partition("/")[0] in report.failed["scene1"]


def test_a_damaged_coordinate_fails_a_scene_alone(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    file = archive.path / "scene1/wavelength/c/0"
    file.write_bytes(file.read_bytes()[:5])
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert report.done == ["scene0", "scene2"]
    assert "cannot read wavelength" in report.failed["scene1"]


def test_a_lost_scene_is_found_and_made_again(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    shutil.rmtree(out / "scene1")
    assert [name for name, _ in verify(out)] == ["scene1"]
    repair_archive(out)
    assert bytes_of(out) == expected


def test_a_disk_that_cannot_be_written_ends_the_run_and_the_same_command_goes_on(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    """The system refuses files over 200 kB to a process, in the midst of the run."""
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out = tmp_path / "out.zarr"
    command = [
        sys.executable,
        "-c",
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "sys.argv[0] = 'hpcdeq'; runpy.run_module('hpcdeq', run_name='__main__')",
        *("denoise", archive.path, "--model", model_folder, "--out", out, "--device", "cpu"),
    ]
    done = subprocess.run([*command, "--overwrite"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("; leave out --overwrite to go on: with it, all begins anew")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "what is finished stays, and the same command goes on" in done.stderr.splitlines()[-1]
    assert 0 < len(open_archive(out)) < len(archive)
    denoise_archive(archive, model_folder, out, SETTINGS)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")
    assert nothing_is_left_over(out)


def test_integers_stay_integers_if_asked_for(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    denoise_archive(archive, model_folder, tmp_path / "float.zarr", SETTINGS)
    settings = DenoiseSettings(device="cpu", dtype="input")
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", settings)
    for name in archive:
        exact = open_archive(tmp_path / "float.zarr")[name]
        whole = open_archive(tmp_path / "whole.zarr")[name]
        assert exact.radiance.dtype == np.float32
        assert whole.radiance.dtype == archive[name].radiance.dtype == np.uint16
        assert whole.scale_factor == archive[name].scale_factor
        expected = np.clip(np.rint(exact.read() / np.float32(whole.scale_factor)), 0, 65535)
        np.testing.assert_array_equal(whole.stored(), expected)
    with pytest.raises(ConfigError, match="dtype must be one of float32, input, got 'int8'"):
        DenoiseSettings(dtype="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_integers_are_cut_off_at_their_bounds(tmp_path: Path, dtype: str) -> None:
    """Those of more than 24 bits at the nearest float32 that is not above, as pixels are float32."""
    bounds = np.iinfo(dtype)
    header = SceneHeader(shape=(1, 1, 5), dtype=np.dtype(dtype), scale_factor=1 / bounds.max)
    draft = open_archive(tmp_path / "a.zarr", create=True).draft("s", header)
    values = np.array([[[-3.0, 0.0, 0.5, 1.0, 3.0]]], np.float32)
    stored = Output._stored(draft.scene, values)
    assert stored.dtype == dtype
    expected = [bounds.min, 0, bounds.max / 2, bounds.max, bounds.max]
    np.testing.assert_allclose(stored[0, 0].astype(float), expected, rtol=1e-6, atol=0.5)


@pytest.mark.parametrize("shape", [(1, 90), (80, 1), (1, 1)])
def test_a_single_row_or_column_is_denoised_and_opens_in_xarray(
    model_folder: Path, tmp_path: Path, shape: tuple[int, int]
) -> None:
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    add_scene(archive, "s", np.full((7, *shape), 0.5, np.float32))
    assert denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS).done == ["s"]
    found = xarray.open_zarr(tmp_path / "out.zarr/s", consolidated=False)
    assert found.radiance.shape == (7, *shape)
    assert "noise_sigma" not in found


def test_noise_that_the_model_was_not_trained_for_is_remarked(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    for sigma in (10, 50):
        clean = 0.3 + 0.4 * smooth_scene(0, 7, 200, 160)
        noise = np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
        add_scene(archive, f"sigma{sigma}", np.clip(clean + noise, 0, 1).astype(np.float32))
    save_model(
        small_model(),
        tmp_path / "model",
        {"config": {"noise": {"kind": "gaussian", "sigma_range": [40, 60]}}},
    )
    denoise_archive(archive, tmp_path / "model", tmp_path / "out.zarr", SETTINGS)
    told = dict(Ledger(Archive(tmp_path / "out.zarr")).all_completed())
    assert told["sigma10"].noise == pytest.approx(10, rel=0.05)
    assert told["sigma50"].noise == pytest.approx(50, rel=0.05)
    assert told["sigma50"].remarks == []
    (remark,) = told["sigma10"].remarks
    assert "its noise is about 10/255, and the model was trained for 40 to 60" in remark
    bands = zarr.open_array(tmp_path / "out.zarr/sigma50/noise_sigma")
    np.testing.assert_allclose(255 * np.asarray(bands), 50, rtol=0.1)


@pytest.mark.parametrize("meanwhile", ["write", "finish"])
def test_a_worker_of_an_older_plan_does_not_publish(
    meanwhile: str, archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a copy that was lost from sight: it comes back when the archive was denoised otherwise meanwhile."""
    out, newer = tmp_path / "out.zarr", DenoiseSettings(device="cpu", iterations=1)
    denoise_archive(archive, model_folder, tmp_path / "expected.zarr", newer)
    plan_archive(archive, model_folder, out, SETTINGS)
    original, slept = getattr(Output, meanwhile), []

    def late(*arguments: object) -> object:
        if not slept:
            slept.append(True)
            denoise_archive(archive, model_folder, out, newer)
        return original(*arguments)

    monkeypatch.setattr(Output, meanwhile, late)
    with pytest.raises(FencedError, match="another plan was made"):
        denoise_share(out)
    assert bytes_of(out) == bytes_of(tmp_path / "expected.zarr")
    ledger = Ledger(Archive(out))
    recorded = {path.name for path in (ledger.folder / "units").glob("*/*")}
    assert recorded <= {plan.fingerprint for plan in ledger.job().scenes}
    denoise_archive(archive, model_folder, out, newer)
    assert nothing_is_left_over(out)


def test_what_another_plan_has_begun_is_swept(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    with monkeypatch.context() as broken:
        broken.setattr(bulk.Ledger, "finished", lambda *_: False)
        denoise_archive(archive, model_folder, out, SETTINGS)  # all units, no scene
    assert len(list(out.with_name("out.zarr.staging").iterdir())) == 3
    plan_archive(archive, model_folder, out, DenoiseSettings(device="cpu", iterations=1))
    assert nothing_is_left_over(out)
    assert not list(out.with_name("out.zarr.ledger").rglob("units/*/*/*.json"))


def _all_units_and_no_scene(
    archive: Archive, model_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(bulk.Ledger, "finished", lambda *_: False)
        denoise_archive(archive, model_folder, out, SETTINGS)


@pytest.mark.parametrize("damage", ["lose", "tear"])
@pytest.mark.parametrize(
    "file", ["zarr.json", "radiance/zarr.json", "wavelength/c/0", "shard_checksum/zarr.json"]
)
def test_a_draft_that_was_half_removed_or_torn_is_gone_on_with(
    archive: Archive,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: str,
) -> None:
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out = tmp_path / "out.zarr"
    _all_units_and_no_scene(archive, model_folder, out, monkeypatch)
    for draft in out.with_name("out.zarr.staging").iterdir():
        (draft / file).unlink() if damage == "lose" else (draft / file).write_bytes(b"")
    report = denoise_archive(archive, model_folder, out, SETTINGS)
    assert report.failed == {}
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")
    assert nothing_is_left_over(out)


def test_a_kill_leaves_no_half_of_a_draft_that_is_swept(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    _all_units_and_no_scene(archive, model_folder, out, monkeypatch)
    drafts = list(out.with_name("out.zarr.staging").iterdir())
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        Archive(out).sweep(())
    assert not any(draft.exists() for draft in drafts)


def test_a_copy_that_completes_a_scene_does_not_break_another_at_it(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes what is half written in the scene while the other writes the checksums."""
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out = tmp_path / "out.zarr"
    _all_units_and_no_scene(archive, model_folder, out, monkeypatch)
    one, other = worker.Worker(out), worker.Worker(out)
    replace, met = Path.replace, []

    def replaced(file: Path, target: Path) -> Path:
        if "shard_checksum" in str(file) and not met:
            met.append(True)
            scene = next(s for s in one.job.scenes if s.name in str(target))
            told = Complete(
                fingerprint="", checksums={}, convergence=Convergence(), masked=0, noise=0.0, remarks=[]
            )
            one.output._record_complete(one.output._draft(scene), scene, told, {})
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", replaced)
    for scene in other.job.scenes:
        other.output.finish(scene)
    assert met
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")


def test_a_copy_that_makes_a_scene_visible_does_not_fail_another_that_looks_for_its_unit(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    _all_units_and_no_scene(archive, model_folder, out, monkeypatch)
    one, other = worker.Worker(out), worker.Worker(out)
    plan = one.job.scenes[1]
    is_written = Output.is_written

    def slow(output: Output, unit: Unit) -> bool:
        one.output.finish(plan)
        return is_written(output, unit)

    def breaks() -> None:
        raise SceneError("taken away")

    monkeypatch.setattr(Output, "is_written", slow)
    assert other.output._unless_done(plan, breaks, next(plan.units())) is None
    assert one.output.is_visible(plan)


def test_a_full_disk_leaves_no_scene_without_the_map_of_its_tiles(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out, rename = tmp_path / "out.zarr", Path.rename

    def full(source: Path, target: Path) -> Path:
        if source.name == "tile_residual":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "rename", full)
        with pytest.raises(StorageError, match="No space left"):
            denoise_archive(archive, model_folder, out, SETTINGS)
    denoise_archive(archive, model_folder, out, SETTINGS)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")
    assert nothing_is_left_over(out)


def test_a_draft_beside_a_damaged_scene_does_not_hinder_its_repair(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    """A copy of a worker, killed before it found that the scene was done, leaves it."""
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    scene = open_archive(out)["scene1"]
    shard = scene.shard_path(next(scene.shards()))
    shard.write_bytes(b"damaged")
    left = Archive(out).shared_path("scene1", scene.attributes[FINGERPRINT])
    (left / "radiance/c/0/0").mkdir(parents=True)
    (left / "radiance/c/0/0/0").write_text("half")
    (left / "strange").write_text("")
    _, report = repair_archive(out)
    assert report.failed == {}
    assert bytes_of(out) == expected
    assert nothing_is_left_over(out)


def test_a_hiccup_of_the_file_system_is_no_failure(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise_archive(archive, model_folder, tmp_path / "expected.zarr", SETTINGS)
    monkeypatch.setattr(worker, "_READ_PAUSES", (0.0, 0.0))
    original, reads = Scene.read, Counter[str]()

    def read(scene: Scene, window: Window) -> object:
        reads[f"{scene.name} {window}"] += 1
        if reads[f"{scene.name} {window}"] < 3:
            raise SceneError("a hiccup")
        return original(scene, window)

    monkeypatch.setattr(Scene, "read", read)
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert report.failed == {}
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(tmp_path / "expected.zarr")


def test_a_scene_that_changes_after_it_was_planned_fails(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    plan_archive(archive, model_folder, out, SETTINGS)
    archive.remove("scene1")
    add_scene(archive, "scene1", smooth_scene(9, 7, 70, 90))
    archive.remove("scene2")
    report = denoise_share(out)
    assert report.done == ["scene0"]
    assert "has changed since the work was planned" in report.failed["scene1"]
    assert "no scene 'scene2'" in report.failed["scene2"]


def test_of_a_scene_that_cannot_be_opened_the_rest_is_not_tried(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_READ_PAUSES", (0.0, 0.0))
    archive, tried = open_archive(tmp_path / "noisy.zarr", create=True), Counter[Window]()
    add_scene(archive, "s", smooth_scene(0, 7, 2600, 30))
    plan_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    archive.remove("s")
    original = worker.Worker._read_once

    def read(run: worker.Worker, unit: Unit) -> object:
        tried[unit.window] += 1
        return original(run, unit)

    monkeypatch.setattr(worker.Worker, "_read_once", read)
    report = denoise_share(tmp_path / "out.zarr")
    assert "no scene 's'" in report.failed["s"]
    assert set(tried.values()) == {3}
    assert len(tried) <= 3  # of ten: those that were read ahead


def test_unmarked_nan_fails_a_scene_alone(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    values = smooth_scene(1, 7, 80, 80)
    values[3, 40, 40] = np.nan
    draft = archive.draft("torn", SceneHeader(shape=values.shape, dtype=np.dtype(np.float32)))
    draft.write(draft.scene.extent, values)
    draft.publish()
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert len(report.done) == 3
    assert "NaN or infinite values" in report.failed["torn"]


def test_asked_to_stop_it_stops_with_what_is_finished_written(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out, original = tmp_path / "out.zarr", bulk.Ledger.write

    def write(ledger: Ledger, unit: plan.Unit, record: Record) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        original(ledger, unit, record)

    with monkeypatch.context() as asked:
        asked.setattr(bulk.Ledger, "write", write)
        with pytest.raises(PreemptedError):
            denoise_archive(archive, model_folder, out, SETTINGS)
    assert 0 < len(list(out.with_name("out.zarr.ledger").rglob("units/*/*/*.json"))) < 30
    denoise_archive(archive, model_folder, out, SETTINGS)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")


def test_asked_to_stop_in_the_midst_of_a_unit_it_does_not_finish_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit may take longer than the time between the signal and the limit."""
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    add_scene(archive, "s", smooth_scene(0, 7, 585, 70))
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", SETTINGS)
    out, original, computed = tmp_path / "out.zarr", batches._denoise_batch, []

    def asks(*tile: Any) -> object:
        computed.append(True)
        if len(computed) == 120:  # the first unit has 68 tiles, the second 72
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(*tile)

    with monkeypatch.context() as asked:
        asked.setattr(batches, "_denoise_batch", asks)
        asked.setattr(torch, "get_num_threads", lambda: 1)
        with pytest.raises(PreemptedError, match="the same command goes on"):
            denoise_archive(archive, model_folder, out, SETTINGS)
    units = list(Ledger(Archive(out)).job().scenes[0].units())
    recorded = [unit for unit in units if Ledger(Archive(out)).read(unit)]
    assert recorded == units[:1]
    assert len(computed) < 130
    denoise_archive(archive, model_folder, out, SETTINGS)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")
    assert nothing_is_left_over(out)


def test_two_inputs_into_one_archive_are_both_looked_after(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    other, out = open_archive(tmp_path / "other.zarr", create=True), tmp_path / "out.zarr"
    add_scene(other, "another", smooth_scene(5, 7, 70, 70))
    denoise_archive(archive, model_folder, out, SETTINGS)
    denoise_archive(other, model_folder, out, SETTINGS)
    assert open_archive(out).names() == ["another", "scene0", "scene1", "scene2"]
    for name in ("another", "scene1"):
        next(iter((out / name / "radiance/c").rglob("0/0/0"))).write_bytes(b"torn")
    assert [name for name, _ in verify(out)] == ["another", "scene1"]
    _, report = repair_archive(out)
    assert report.done == ["another"]
    assert "of another input" in report.failed["scene1"]


def test_a_damaged_ledger_is_mended_too(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected, ledger = bytes_of(out), tmp_path / "out.zarr.ledger"
    (ledger / "complete/scene0.json").write_text("{")
    (ledger / "complete/scene1.json").unlink()
    next((ledger / "units/scene1").rglob("*.json")).write_text("")
    assert list(verify(out)) == [("scene0", []), ("scene1", [])]
    repair_archive(out)
    assert list(verify(out)) == []
    assert bytes_of(out) == expected
    (ledger / "job.json").write_text("")
    with pytest.raises(
        ConfigError, match="is not an archive that hpcdeq denoise wrote: there is no readable"
    ):
        list(verify(out))


def test_a_ledger_names_no_file_outside_a_scene(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    out, precious = tmp_path / "out.zarr", tmp_path / "precious"
    denoise_archive(archive, model_folder, out, SETTINGS)
    precious.mkdir()
    file = tmp_path / "out.zarr.ledger/complete/scene0.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"checksums": {"../../precious/x": 1, str(precious): 2}}))
    _, report = repair_archive(out)
    assert "is not a file of scene scene0" in report.failed["scene0"]
    assert precious.exists()
    assert "scene0" in Archive(out)


def test_a_repair_goes_on_where_an_input_is_gone(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    for name in ("scene0", "scene1"):
        (out / name / "radiance/c/0/0/0").write_bytes(b"damaged")
    shutil.rmtree(archive.path / "scene0")
    _, report = repair_archive(out)
    assert (report.done, list(report.failed)) == (["scene1"], ["scene0"])
    assert "no scene 'scene0'" in report.failed["scene0"]
    assert [name for name, _ in verify(out)] == ["scene0"]
    assert {k: v for k, v in bytes_of(out).items() if not k.startswith("scene0")} == {
        k: v for k, v in expected.items() if not k.startswith("scene0")
    }


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"zarr_format": 3, "node_type": "gro'])
def test_a_damaged_root_is_found_and_mended(
    archive: Archive, model_folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    (out / "zarr.json").unlink()
    if content is not None:
        (out / "zarr.json").write_bytes(content)
    assert list(verify(out)) == [(".", ["zarr.json"])]
    damaged, report = repair_archive(out)
    assert (damaged, report.failed, report.skipped) == ({".": ["zarr.json"]}, {}, archive.names())
    assert bytes_of(out) == expected
    assert list(verify(out)) == []
    assert nothing_is_left_over(out)


def test_an_archive_of_a_newer_schema_is_not_overwritten_by_a_repair(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    zarr.open_group(out, mode="r+").attrs["hpcdeq_schema"] = 7
    before = (out / "zarr.json").read_bytes()
    with pytest.raises(ArchiveError, match="has schema 7"):
        repair_archive(out)
    assert (out / "zarr.json").read_bytes() == before


def test_a_scene_of_an_older_plan_is_verified_until_it_is_replaced(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out, newer = tmp_path / "out.zarr", DenoiseSettings(device="cpu", iterations=1)
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", newer)
    denoise_archive(archive, model_folder, out, DenoiseSettings(device="cpu", codes=True))
    plan_archive(archive, model_folder, out, newer)
    assert list(verify(out)) == []
    (out / "scene1/radiance/c/0/0/0").write_bytes(b"damaged")
    (out / "scene2/zarr.json").unlink()
    assert list(verify(out)) == [("scene1", ["radiance/c/0/0/0"]), ("scene2", ["zarr.json"])]
    _, report = repair_archive(out)  # does what the newer plan left undone
    assert (report.done, report.failed) == (archive.names(), {})
    assert bytes_of(out) == bytes_of(tmp_path / "whole.zarr")
    assert list(verify(out)) == []
    assert nothing_is_left_over(out)


def test_a_scene_that_no_ledger_knows_is_named(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    """As an older version of hpcdeq forgot it when another plan was made."""
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    plan_archive(archive, model_folder, out, DenoiseSettings(device="cpu", iterations=1))
    (tmp_path / "out.zarr.ledger/complete/scene1.json").unlink()
    assert list(verify(out)) == [("scene1", [])]


def test_a_worker_of_an_older_plan_sweeps_nothing_of_a_newer_one(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer plan has a scene more: all that the older one knows of is done."""
    out = tmp_path / "out.zarr"
    plan_archive(archive, model_folder, out, SETTINGS)
    old = worker.Worker(out)
    add_scene(archive, "scene3", smooth_scene(3, 7, 70, 70))
    _all_units_and_no_scene(archive, model_folder, out, monkeypatch)
    for scene in old.job.scenes:
        old.output.finish(scene)
    old.denoise([], StopRequest())
    (draft,) = out.with_name("out.zarr.staging").iterdir()
    assert draft.name.startswith("scene3@")


def test_a_worker_of_an_older_plan_fails_no_scene_of_a_newer_one(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    plan_archive(archive, model_folder, out, SETTINGS)
    old = worker.Worker(out)
    plan_archive(archive, model_folder, out, DenoiseSettings(device="cpu", iterations=1))
    file = archive.path / "scene1/shard_checksum/c/0/0"
    file.rename(tmp_path / "kept")
    old.denoise([unit for scene in old.job.scenes[1:2] for unit in scene.units()], StopRequest())
    assert list(old.report.failed) == ["scene1"]
    assert Ledger(Archive(out)).failures() == {}


def test_other_noise_of_the_same_size_is_denoised_again(tmp_path: Path, model_folder: Path) -> None:
    """The shards of both inputs have equal lengths, as noise does not compress."""
    out = tmp_path / "out.zarr"
    results = []
    for seed in range(2):
        archive = open_archive(tmp_path / f"in{seed}.zarr", create=True)
        add_scene(archive, "scene", np.random.default_rng(seed).random((7, 65, 65)))
        assert denoise_archive(archive, model_folder, out, SETTINGS).done == ["scene"]
        results.append(open_archive(out)["scene"].read())
    assert not np.array_equal(*results)


def test_a_device_that_this_machine_lacks_overwrites_nothing(
    archive: Archive, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    expected = bytes_of(out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        denoise_archive(archive, model_folder, out, DenoiseSettings(device="cuda"), overwrite=True)
    assert bytes_of(out) == expected


def test_what_is_added_to_a_finished_archive_is_shared_by_all_workers(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    before = bytes_of(out)
    for i in range(4):  # the last by name, and less than a half of all
        add_scene(archive, f"zz{i}", smooth_scene(9 + i, 7, 70, 60))
    plan_archive(archive, model_folder, out, SETTINGS)
    reports = [denoise_share(out, worker, 4) for worker in range(4)]
    assert [report.done for report in reports] == [["zz0"], ["zz1"], ["zz2"], ["zz3"]]
    assert {name for report in reports for name in report.skipped} == {"scene0", "scene1", "scene2"}
    assert {name: bytes_of(out)[name] for name in before} == before
