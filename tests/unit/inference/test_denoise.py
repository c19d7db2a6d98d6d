from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr

from hpcdeq.archive import Archive, open_archive
from hpcdeq.archive.layout import FINGERPRINT
from hpcdeq.archive.validate import check_scene
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.errors import ConfigError, SceneError
from hpcdeq.inference import DenoiseSettings, batches, bulk, denoise_archive, denoise_array, plan
from hpcdeq.inference.applied import prepare
from hpcdeq.inference.ledger import Record
from hpcdeq.inference.tiles import NoisyWindow, denoise_windows, reach
from hpcdeq.models import (
    CnnSettings,
    ModelSettings,
    SparseDenoiser,
    SupportSettings,
    load_model,
    save_model,
)
from hpcdeq.solvers import Anderson, Broyden, Picard
from hpcdeq.tiling import Window, partition, tiles_of
from tests.conftest import add_scene, smooth_scene

SETTINGS = DenoiseSettings(device="cpu")


def small_model(**changes: object) -> SparseDenoiser:
    torch.manual_seed(0)
    settings = replace(
        ModelSettings(
            block=24,
            prior=CnnSettings(layers=2, filters=6),
            support=SupportSettings(size=3),
            solver=Picard(iterations=3, tolerance=0),
        ),
        **changes,  # type: ignore[arg-type]
    )
    atoms = torch.rand(7, 20)
    return SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)).eval()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(small_model(), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.mark.parametrize("overlap", [0, 8, None])
@pytest.mark.parametrize("shape", [(50, 70), (24, 24), (10, 80), (5, 7), (25, 49)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"map": "full", "solver": Anderson(tolerance=1e-2)},
        {"solver": Broyden(tolerance=1e-2), "support": SupportSettings(size=3, method="somp")},
    ],
    ids=["fast-picard", "full-anderson", "fast-somp-broyden"],
)
def test_the_result_does_not_depend_on_how_the_work_is_cut(
    shape: tuple[int, int], overlap: int | None, changes: dict[str, object]
) -> None:
    noisy = smooth_scene(0, 7, *shape)
    extent = Window(0, shape[0], 0, shape[1])
    whole = denoise_array(small_model(**changes), noisy, DenoiseSettings(device="cpu", overlap=overlap))
    assert whole.shape == noisy.shape
    assert np.isfinite(whole).all()
    for batch, step in [(1, 13), (3, 30), (7, 70)]:
        settings = DenoiseSettings(device="cpu", overlap=overlap, batch=batch)
        model = prepare(small_model(**changes), settings)
        for window in partition(*shape, step, step):
            around = reach(extent, window, model.settings.block, settings.overlap_of(model))
            pixels = noisy[(slice(None), *around.slices)]
            (part,) = denoise_windows(
                model, [NoisyWindow(extent=extent, window=window, pixels=pixels)], settings
            )
            assert np.array_equal(part.values, whole[(slice(None), *window.slices)])


def test_without_overlap_a_scene_of_whole_blocks_is_the_model_on_its_blocks() -> None:
    noisy = smooth_scene(1, 7, 48, 72)
    denoised = denoise_array(small_model(), noisy, DenoiseSettings(device="cpu", overlap=0))
    blocks = torch.from_numpy(
        np.stack([noisy[:, y : y + 24, x : x + 24] for y in (0, 24) for x in (0, 24, 48)])
    )
    with torch.inference_mode():
        expected = small_model()(blocks).estimate.numpy()
    for i, (y, x) in enumerate([(y, x) for y in (0, 24) for x in (0, 24, 48)]):
        assert np.array_equal(denoised[:, y : y + 24, x : x + 24], expected[i])


def test_an_archive_is_denoised_as_its_arrays_are(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert report.done == archive.names()
    out = open_archive(tmp_path / "out.zarr")
    for name in archive:
        noisy, denoised = archive[name], out[name]
        expected = denoise_array(load_model(model_folder), noisy.read(), SETTINGS)
        assert np.array_equal(denoised.read(), expected)
        np.testing.assert_array_equal(denoised.wavelengths, noisy.wavelengths)
        assert denoised.attributes["source"] == name
        assert denoised.shard_shape == noisy.shard_shape
    again = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert (again.done, again.skipped) == ([], archive.names())
    assert not (tmp_path / "out.zarr.staging").exists()


def test_masked_pixels_stay_masked(tmp_path: Path, model_folder: Path) -> None:
    archive = open_archive(tmp_path / "masked.zarr", create=True)
    valid = np.ones((80, 90), bool)
    valid[10:20, 30:60] = False
    add_scene(archive, "s", smooth_scene(0, 7, 80, 90), valid)
    denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    scene = open_archive(tmp_path / "out.zarr")["s"]
    assert np.array_equal(scene.valid_mask(), valid)
    assert (scene.read()[:, ~valid] == 0).all()


@pytest.mark.parametrize("codes", [False, True], ids=["pixels", "codes"])
def test_a_killed_run_goes_on_and_never_shows_half_a_scene(
    archive: Archive, model_folder: Path, tmp_path: Path, codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(plan.ScenePlan, "unit_shape", property(lambda scene: scene.shard_shape))
    settings = DenoiseSettings(device="cpu", codes=codes)
    denoise_archive(archive, model_folder, tmp_path / "whole.zarr", settings)
    written: list[tuple[str, Window]] = []
    original = bulk.Ledger.write

    def counted(ledger: bulk.Ledger, unit: plan.Unit, record: Record) -> None:
        written.append((unit.scene.name, unit.window))
        if len(written) == 2:
            raise Killed
        original(ledger, unit, record)

    monkeypatch.setattr(bulk.Ledger, "write", counted)
    with pytest.raises(Killed):
        denoise_archive(archive, model_folder, tmp_path / "cut.zarr", settings)
    # Later units may be under way already when one fails.
    assert written[1][0] not in open_archive(tmp_path / "cut.zarr")
    denoise_archive(archive, model_folder, tmp_path / "cut.zarr", settings)
    # Two units of the first scene: one was finished before the kill, and is not computed again.
    assert written.count(written[0]) == 1
    assert {written.count(unit) for unit in written[1:]} <= {1, 2}
    whole, cut = open_archive(tmp_path / "whole.zarr"), open_archive(tmp_path / "cut.zarr")
    assert all(np.array_equal(whole[n].shard_checksums, cut[n].shard_checksums) for n in archive)
    if codes:
        for name in archive:
            sides = [zarr.open_group(a.path / name, mode="r") for a in (whole, cut)]
            for array in ("codes", "support", "cell_y", "cell_x", "dictionary"):
                assert np.array_equal(sides[0][array][...], sides[1][array][...])  # type: ignore[index]


def test_a_finished_unit_whose_shard_is_lost_is_computed_again(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    first = {n: open_archive(out)[n].content_sha256 for n in archive}
    scene = open_archive(out)["scene0"]
    draft = open_archive(out).shared_draft("scene0", scene.header(), scene.attributes[FINGERPRINT])
    (out / "scene0").rename(tmp_path / "gone")
    assert draft.path.is_dir()  # the ledger says all is done, but the draft is empty
    denoise_archive(archive, model_folder, out, SETTINGS)
    assert {n: open_archive(out)[n].content_sha256 for n in archive} == first


def test_other_settings_recompute(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(archive, model_folder, out, SETTINGS)
    report = denoise_archive(archive, model_folder, out, DenoiseSettings(device="cpu", iterations=1))
    assert report.done == archive.names()
    report = denoise_archive(
        archive, model_folder, out, DenoiseSettings(device="cpu", iterations=1), overwrite=True
    )
    assert report.done == archive.names()


def test_a_bad_scene_is_named_and_the_others_are_finished(
    archive: Archive, model_folder: Path, tmp_path: Path
) -> None:
    add_scene(archive, "other", smooth_scene(0, 5, 70, 70))
    damaged = archive["scene1"].shard_path(next(archive["scene1"].shards()))
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    report = denoise_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    assert report.done == ["scene0", "scene2"]
    assert "5 bands, but the model knows 7" in report.failed["other"]
    assert "scene1: cannot read rows" in report.failed["scene1"]
    assert open_archive(tmp_path / "out.zarr").names() == ["scene0", "scene2"]


def test_wrong_settings_are_refused(archive: Archive, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the archive that is read"):
        denoise_archive(archive, model_folder, archive.path, SETTINGS)
    with pytest.raises(ConfigError, match="below the model's block of 24 pixels, got 24"):
        denoise_archive(archive, model_folder, tmp_path / "o", DenoiseSettings(overlap=24))
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        DenoiseSettings(batch=0)
    with pytest.raises(ConfigError, match="iterations must be at least 1"):
        denoise_archive(archive, model_folder, tmp_path / "o", DenoiseSettings(iterations=0))
    with pytest.raises(ConfigError, match="not one of auto, cpu, cuda"):
        denoise_archive(archive, model_folder, tmp_path / "o", DenoiseSettings(device="tpux"))
    with pytest.raises(ValueError, match="model's 7 bands"):
        denoise_array(small_model(), np.zeros((3, 9, 9), np.float32), SETTINGS)


def test_settings_do_not_change_the_model_they_are_given() -> None:
    model, noisy = small_model(), smooth_scene(0, 7, 30, 30)
    before = denoise_array(model, noisy, SETTINGS)
    other = denoise_array(model, noisy, DenoiseSettings(device="cpu", iterations=1))
    assert not np.array_equal(other, before)
    assert np.array_equal(denoise_array(model, noisy, SETTINGS), before)


def test_16_bits_give_nearly_the_same_whatever_the_batch() -> None:
    noisy = smooth_scene(0, 7, 60, 50)
    exact = denoise_array(small_model(), noisy, SETTINGS)
    one, many = (
        denoise_array(small_model(), noisy, replace(SETTINGS, precision="bfloat16", batch=batch))
        for batch in (1, 16)
    )
    assert np.array_equal(one, many)
    assert 0 < np.abs(one - exact).max() < 0.02 * np.abs(exact).max()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16, got 'float8'"):
        DenoiseSettings(precision="float8")  # type: ignore[arg-type]


def test_each_scene_keeps_a_map_of_how_its_tiles_were_solved(archive: Archive, tmp_path: Path) -> None:
    # A tolerance that some tiles reach in time and some do not.
    settings = replace(SETTINGS, overlap=8, iterations=4, tolerance=0.017)
    save_model(small_model(solver=Picard(tolerance=1e-3), b=1.0), tmp_path / "model", {})
    report = denoise_archive(archive, tmp_path / "model", tmp_path / "out.zarr", settings)
    tiles = 0
    for scene in archive.scenes():
        group = zarr.open_group(tmp_path / "out.zarr" / scene.name, mode="r")
        rows, columns, residual, iterations, converged = (
            np.asarray(group[f"tile_{name}"]) for name in ("y", "x", "residual", "iterations", "converged")
        )
        expected = tiles_of(*scene.shape[1:], 24, 8, touching=scene.extent)
        assert {(t.y0, t.x0) for t in expected} == {(y, x) for y in rows for x in columns}
        assert residual.shape == iterations.shape == converged.shape == (len(rows), len(columns))
        assert np.array_equal(residual <= np.float32(0.017), converged.astype(bool))
        assert (iterations[converged == 0] == 4).all()
        tiles += residual.size
    assert report.convergence.tiles == tiles, "tiles that units share are counted once"
    assert 0 < report.convergence.converged < tiles


@pytest.mark.parametrize("map_", ["fast", "full"])
def test_codes_are_kept_and_those_of_the_fast_map_rebuild_the_pixels(
    archive: Archive, tmp_path: Path, map_: str
) -> None:
    model = small_model(map=map_, mu=5.0)
    save_model(model, tmp_path / "m", {})
    settings = DenoiseSettings(device="cpu", overlap=0, codes=True)
    report = denoise_archive(archive, tmp_path / "m", tmp_path / "out.zarr", settings)
    scene = open_archive(tmp_path / "out.zarr")[archive.names()[0]]
    tree = xarray.open_zarr(scene.path, consolidated=False)
    assert tree.codes.dims == ("code", "y", "x")
    assert report.pixel_bytes == sum(4 * np.prod(archive[name].shape) for name in archive)
    with torch.inference_mode():
        noisy = torch.from_numpy(archive[scene.name].read()[None, :, :24, :24])
        codes = model(noisy).codes()
    np.testing.assert_allclose(tree.codes.values[:, :24, :24], codes.values[0], rtol=1e-3, atol=1e-6)
    if map_ == "full":  # V over all atoms
        assert tree.codes.shape[0] == model.atoms.shape[1]
        assert (tree.codes.values == 0).mean() > 0.2
        with pytest.raises(SceneError, match="has codes of a full map"):
            scene.decode()
        return
    assert codes.support is not None
    assert tree.support.dims == ("tile_y", "tile_x", "code")
    assert tree.support.values[0, 0].tolist() == codes.support[0].tolist()
    assert 0 < report.code_bytes < report.pixel_bytes
    pixels, decoded = scene.read(), scene.decode()
    alone = (
        slice(None),
        slice(0, 96),
        slice(0, 96),
    )  # the last tile of a row or column overlaps the one before
    np.testing.assert_allclose(decoded[alone], pixels[alone], rtol=0, atol=2e-3)
    part = Window(10, 33, 5, 50)
    assert np.array_equal(scene.decode(part), decoded[(slice(None), *part.slices)])


def test_of_overlapping_tiles_each_pixel_has_the_codes_of_its_owner(archive: Archive, tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m", {})
    settings = DenoiseSettings(device="cpu", overlap=8, codes=True)
    denoise_archive(archive, tmp_path / "m", tmp_path / "out.zarr", settings)
    scene = open_archive(tmp_path / "out.zarr")[archive.names()[0]]
    noisy = archive[scene.name].read()
    with torch.inference_mode():
        first = small_model()(torch.from_numpy(noisy[None, :, :24, :24])).estimate[0].numpy()
    np.testing.assert_allclose(scene.decode(Window(0, 20, 0, 20)), first[:, :20, :20], rtol=0, atol=2e-3)
    error = np.abs(scene.decode() - scene.read())
    assert error.mean() < 0.05  # unblended, but near


def test_lost_and_damaged_codes_are_named(archive: Archive, tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m", {})
    denoise_archive(archive, tmp_path / "m", tmp_path / "out.zarr", DenoiseSettings(device="cpu", codes=True))
    out = open_archive(tmp_path / "out.zarr")
    assert list(check_scene(out["scene1"])) == []
    file = out["scene1"].shard_path(Window(0, 65, 0, 65), "codes")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert "cannot be decoded" in str(next(check_scene(out["scene1"])))
    file.unlink()
    assert "codes/c/0/0/0 is missing; denoise it again" in str(next(check_scene(out["scene1"])))


def test_codes_change_no_pixel_and_are_asked_of_models_that_have_them(
    archive: Archive, tmp_path: Path
) -> None:
    save_model(small_model(), tmp_path / "m", {})
    save_model(small_model(map="prior"), tmp_path / "prior", {})
    for codes in (False, True):
        settings = DenoiseSettings(device="cpu", codes=codes)
        denoise_archive(archive, tmp_path / "m", tmp_path / f"{codes}.zarr", settings)
    with_codes, without = (open_archive(tmp_path / f"{codes}.zarr") for codes in (True, False))
    for name in archive.names():
        assert with_codes[name].content_sha256 == without[name].content_sha256
    with pytest.raises(SceneError, match="has no codes; denoise it with --codes"):
        without[archive.names()[0]].decode()
    with pytest.raises(ConfigError, match="is a prior alone and has no codes"):
        denoise_archive(archive, tmp_path / "prior", tmp_path / "x.zarr", DenoiseSettings(codes=True))


def test_every_batch_of_a_gpu_has_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, on the CPU: the last batch is filled up, and what fills it is dropped."""
    noisy = smooth_scene(3, 7, 60, 70)
    model, settings = small_model(), DenoiseSettings(device="cpu", batch=5)
    expected = denoise_array(model, noisy, settings)
    shapes = []
    original = batches._denoise_batch

    def counted(model: SparseDenoiser, cuts: list[np.ndarray], keep_codes: bool) -> list[object]:
        shapes.append(len(cuts))
        return original(model, cuts, keep_codes)

    monkeypatch.setattr(batches, "_denoise_batch", counted)
    monkeypatch.setattr(batches, "_on_cpu", lambda model: False)
    assert np.array_equal(denoise_array(model, noisy, settings), expected)
    assert set(shapes) == {5}
    shapes.clear()
    assert np.array_equal(denoise_array(model, noisy, DenoiseSettings(device="cpu")), expected)
    assert shapes == [100]  # 100 x 24 x 24 pixels, nearly 16 x 60 x 60


@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "as-on-a-gpu"])
@pytest.mark.parametrize("asked_at", [1, 14, 20, 31, 10_000])
def test_a_stop_is_seen_between_tiles_and_drops_what_is_not_finished(
    monkeypatch: pytest.MonkeyPatch, asked_at: int, on_cpu: bool
) -> None:
    noisy, settings = smooth_scene(3, 7, 60, 70), DenoiseSettings(device="cpu", batch=4)
    extent = Window(0, 60, 0, 70)
    windows = [NoisyWindow(extent=extent, window=extent, pixels=noisy)] * 3
    stop, original, computed = StopRequest(), batches._denoise_batch, 0

    def asks(model: SparseDenoiser, cuts: list[np.ndarray], keep_codes: bool) -> list[object]:
        nonlocal computed
        computed += len(cuts)
        if computed >= asked_at:
            stop.signal = signal.SIGUSR2
        return original(model, cuts, keep_codes)

    monkeypatch.setattr(batches, "_denoise_batch", asks)
    monkeypatch.setattr(batches, "_on_cpu", lambda model: on_cpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = list(denoise_windows(small_model(), windows, settings, stop))
    each = len(tiles_of(60, 70, 24, 8))
    assert each == 16
    if asked_at == 10_000:
        assert len(found) == 3
    else:
        assert computed <= asked_at + 4  # those that wait for the one thread, or the rest of a batch
        assert len(found) == computed // each
    expected = denoise_array(small_model(), noisy, settings)
    assert all(np.array_equal(window.values, expected) for window in found)


def test_a_batch_that_does_not_fit_the_memory_is_taken_in_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a GPU with room for two tiles would have it."""
    noisy, model = smooth_scene(3, 7, 60, 70), small_model()
    settings = DenoiseSettings(device="cpu", batch=5)
    expected = denoise_array(model, noisy, settings)
    original = batches._denoise_batch

    def small(model: SparseDenoiser, cuts: list[np.ndarray], keep_codes: bool) -> list[object]:
        if len(cuts) > room:
            raise torch.OutOfMemoryError("no room")
        return original(model, cuts, keep_codes)

    monkeypatch.setattr(batches, "_denoise_batch", small)
    monkeypatch.setattr(batches, "_on_cpu", lambda model: False)
    room = 2
    assert np.array_equal(denoise_array(model, noisy, settings), expected)
    (said,) = capsys.readouterr().err.splitlines()  # once, though each batch of five met it
    assert said == (
        "a batch of 5 tiles does not fit the GPU's memory: taken in two, as are all that do not fit; --batch 2 is faster, "
        "but denoises again what is there"
    )
    room = 0
    with pytest.raises(MemoryError, match="a single tile does not fit"):
        denoise_array(model, noisy, settings)
