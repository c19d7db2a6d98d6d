"""The whole path, from raw files to the report page, on scenes small enough for a test."""

import pytest
from typer.testing import CliRunner

from hpcdeq.archive import open_archive
from hpcdeq.cli import app
from hpcdeq.errors import HpcdeqError
from hpcdeq.metrics import Scores
from hpcdeq.studies import demo
from hpcdeq.studies.evaluation import Row

RECIPE = {
    **demo.RECIPE,
    "dictionary": {"atoms": 64, "iterations": 2},
    "training": {**demo.RECIPE["training"], "pretrain_steps": 150, "steps": 10},
}


@pytest.mark.slow
def test_raw_files_to_a_denoised_scene_and_a_page(tmp_path):
    made = demo.run_demo(tmp_path / "demo", RECIPE, size=130)
    assert made.row.noisy.psnr == pytest.approx(14.15, abs=0.05)
    assert made.row.denoised.psnr > made.row.noisy.psnr + 6.0
    assert made.shipped.denoised.psnr > made.row.noisy.psnr + 8.0
    assert "data:image/jpeg" in made.report.read_text()
    assert (tmp_path / "demo" / "run" / "model" / "model.safetensors").is_file()

    digest = open_archive(tmp_path / "demo" / "denoised.zarr")["table_9"].content_sha256
    again = demo.run_demo(tmp_path / "demo", RECIPE, size=130)  # finds all of it done
    assert again.row == made.row
    assert open_archive(tmp_path / "demo" / "denoised.zarr")["table_9"].content_sha256 == digest


@pytest.mark.parametrize(("denoised", "fails"), [(28.0, False), (14.0, True)])
def test_the_verb_fails_when_nothing_got_better(tmp_path, monkeypatch, denoised, fails):
    noisy, after = (Scores(psnr=psnr, ssim=0.5, sam=0.1, ergas=9.0) for psnr in (14.15, denoised))
    row = Row("table_9", None, noisy, after)
    made = demo.DemoResult(row, row, "the table", tmp_path / "report.html")
    monkeypatch.setattr(demo, "run_demo", lambda out: made)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert f"PSNR: 14.15 dB noisy, {denoised:.2f} dB denoised" in done.stdout
    assert "report.html" in done.stdout
    assert isinstance(done.exception, HpcdeqError) == fails
