import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcdeq.archive import SceneHeader, open_archive
from hpcdeq.cli import app
from hpcdeq.errors import ConfigError, PartialFailureError
from hpcdeq.noise import Gaussian
from hpcdeq.studies import evaluation
from hpcdeq.studies.degrade import degrade_archive
from hpcdeq.studies.demo_scenes import WAVELENGTHS, make_scene
from hpcdeq.studies.evaluation import (
    Failure,
    as_json_values,
    as_table,
    compare_archives,
    compare_model,
    means,
)
from hpcdeq.studies.report import gather, render

runner = CliRunner()


def add(archive, name, values, wavelengths=WAVELENGTHS, mask=None):
    header = SceneHeader(
        shape=values.shape, dtype=np.dtype(np.float32), wavelengths=wavelengths, has_mask=mask is not None
    )
    draft = archive.draft(name, header)
    for window in draft.scene.shards():
        draft.write(window, values[(slice(None), *window.slices)])
        if mask is not None:
            draft.write_mask(window, mask[window.slices])
    draft.publish()


def scene(seed):
    return (make_scene(seed, 40) / 65535.0).astype(np.float32)


@pytest.fixture
def archives(tmp_path):
    """A clean archive of two scenes, a noisy copy, and one with a tenth of the noise."""
    clean, denoised = (open_archive(tmp_path / f"{n}.zarr", create=True) for n in ("clean", "denoised"))
    for seed in (1, 2):
        add(clean, f"table_{seed}", scene(seed))
    degrade_archive(clean, tmp_path / "noisy.zarr", Gaussian(sigma=50.0), seed=0)
    noisy = open_archive(tmp_path / "noisy.zarr")
    for name in clean:
        add(denoised, name, 0.9 * clean[name].read() + 0.1 * noisy[name].read())
    return clean, noisy, denoised


class Halver:
    """A stand-in for a model: what it returns is its input, nearer to zero."""

    bands = 31


@pytest.fixture
def halver(monkeypatch):
    monkeypatch.setattr(evaluation, "denoise_array", lambda model, noisy, settings: 0.5 * noisy)
    return Halver()


def test_a_tenth_of_the_noise_is_20_db_better(archives):
    clean, noisy, denoised = archives
    rows = [item.row for item in compare_archives(clean, denoised, noisy)]
    assert [row.scene for row in rows] == ["table_1", "table_2"]
    for row in rows:
        assert row.noisy.psnr == pytest.approx(14.151, abs=0.1)
        assert row.denoised.psnr == pytest.approx(row.noisy.psnr + 20.0, abs=1e-3)


def test_a_scene_that_is_missing_or_misshapen_is_named_and_the_others_go_on(archives, tmp_path):
    clean, _, _ = archives
    other = open_archive(tmp_path / "other.zarr", create=True)
    add(other, "table_1", scene(1)[:, :20])
    add(clean, "table_3", scene(3))
    add(other, "table_3", scene(3))
    first, second, third = compare_archives(clean, other)
    assert isinstance(first, Failure)
    assert "(31, 20, 40)" in first.message
    assert isinstance(second, Failure)
    assert "table_2 is not in" in second.message
    assert math.isinf(third.row.denoised.psnr)


def test_masked_pixels_are_left_out(tmp_path):
    clean, denoised = (open_archive(tmp_path / f"{n}.zarr", create=True) for n in ("clean", "denoised"))
    mask = np.ones((40, 40), bool)
    mask[:, :15] = False
    add(clean, "holed", scene(1), mask=mask)
    estimate = scene(1) + 0.1
    estimate[:, ~mask] = 7.0
    add(denoised, "holed", estimate)
    (compared,) = compare_archives(clean, denoised)
    assert compared.row.denoised.psnr == pytest.approx(20.0, abs=1e-3)


def test_a_scene_too_small_to_score_is_a_failure(tmp_path):
    clean = open_archive(tmp_path / "clean.zarr", create=True)
    add(clean, "tiny", scene(1)[:, :5, :5])
    (failure,) = compare_archives(clean, clean)
    assert "tiny cannot be scored" in failure.message


def test_the_noise_of_a_model_run_is_that_of_a_degraded_archive(archives, halver):
    clean, noisy, _ = archives
    compared = list(compare_model(clean, halver, [30.0, 50.0]))
    assert [(c.row.scene, c.row.sigma) for c in compared] == [
        ("table_1", 30.0), ("table_1", 50.0), ("table_2", 30.0), ("table_2", 50.0),
    ]  # fmt: skip
    assert np.array_equal(compared[1].noisy, noisy["table_1"].read())


def test_a_model_for_another_sensor_is_a_failure_of_the_scene(archives, halver):
    halver.bands = 10
    failures = list(compare_model(archives[0], halver, [50.0]))
    assert "has 31 bands, but the model was trained for 10" in failures[0].message


def test_means_are_over_the_scenes_of_one_noise_level(archives, halver):
    rows = [c.row for c in compare_model(archives[0], halver, [30.0, 50.0])]
    low, high = means(rows)
    assert (low.sigma, high.sigma) == (30.0, 50.0)
    assert low.noisy.psnr == pytest.approx((rows[0].noisy.psnr + rows[2].noisy.psnr) / 2)
    assert as_table(rows).splitlines()[-1].startswith("mean")


def test_json_has_null_where_a_score_is_not_finite(archives):
    clean, _, _ = archives
    rows = [c.row for c in compare_archives(clean, clean)]
    values = json.loads(json.dumps(as_json_values(rows, [], {}), allow_nan=False))
    assert values["scenes"][0]["denoised"]["psnr"] is None
    assert values["scenes"][0]["noisy"] is None
    assert values["mean"][0]["denoised"]["ssim"] == pytest.approx(1.0)


def test_the_page_holds_everything_and_needs_nothing(archives):
    clean, noisy, denoised = archives
    results = gather(compare_archives(clean, denoised, noisy), 2, pictures=True)
    results.failures.append(Failure("<lost>", "is gone"))
    page = render(results, {"clean": "clean.zarr"}, "A test")
    assert page.count("data:image/jpeg") == 2 * 4
    assert page.count("data:image/svg") == 2
    assert "640, 550, 460 nm" in page
    assert "&lt;lost&gt;" in page
    assert 'src="http' not in page
    assert "href" not in page


def test_a_page_without_noisy_scenes_wavelengths_or_panels(tmp_path):
    clean = open_archive(tmp_path / "clean.zarr", create=True)
    add(clean, "plain", scene(1)[:2], wavelengths=None)
    results = gather(compare_archives(clean, clean), 1, pictures=True)
    page = render(results, {}, "A test")
    assert page.count("data:image/jpeg") == 3
    assert "bands 2, 2, 1 as red" in page


def test_evaluate_prints_a_table_and_writes_the_page(archives, tmp_path):
    clean, noisy, denoised = archives
    page = tmp_path / "out" / "report.html"
    arguments = [
        str(clean.path),
        "--denoised",
        str(denoised.path),
        "--noisy",
        str(noisy.path),
        "--html",
        str(page),
    ]
    done = runner.invoke(app, ["evaluate", *arguments])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["scene", "table_1", "table_2", "mean"]
    assert page.read_text().startswith("<!doctype html>")


def test_evaluate_ends_in_a_partial_failure_after_the_results(archives):
    clean, _, denoised = archives
    add(clean, "unseen", scene(3))
    done = runner.invoke(app, ["evaluate", str(clean.path), "--denoised", str(denoised.path), "--json"])
    assert isinstance(done.exception, PartialFailureError)
    assert [f["scene"] for f in json.loads(done.stdout)["failures"]] == ["unseen"]


def test_a_table_of_nothing_is_not_printed(archives, tmp_path):
    clean, _, _ = archives
    none = open_archive(tmp_path / "none.zarr", create=True)
    done = runner.invoke(app, ["evaluate", str(clean.path), "--denoised", str(none.path)])
    assert isinstance(done.exception, PartialFailureError)
    assert done.stdout == ""
    assert "scene table_1 is not in" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --denoised"),
        (["--denoised", "a", "--model", "b"], "give one of --denoised"),
        (["--model", "b", "--noisy", "c"], "--noisy goes with --denoised"),
        (["--model", "b", "--sigma", "30,x"], "'30,x'"),
        (["--model", "b", "--sigma", "0"], "'0'"),
        (["--model", "b", "--sigma", "nan"], "'nan'"),
    ],
)
def test_wrong_options_are_usage_errors(archives, arguments, message):
    done = runner.invoke(app, ["evaluate", str(archives[0].path), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
