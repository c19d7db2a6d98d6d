"""The main job on real scenes, as a user runs it: ingest, train, degrade, denoise, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcdeq.archive import open_archive
from hpcdeq.cli import app

RECIPE = [
    "model.prior.filters=32",
    "model.support.size=12",
    "model.solver.iterations=8",
    "model.adjoint.solver.iterations=6",
    "dictionary.atoms=128",
    "dictionary.iterations=3",
    "data.batch=4",
    "data.val_blocks=8",
    "training.pretrain_steps=250",
    "training.pretrain_lr=0.002",
    "training.steps=30",
    "training.validate_every=50",
]


def hpcdeq(*arguments: object) -> str:
    """Run a verb; return what it prints on stdout."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_three_commands_denoise_real_scenes(real_data: Path, tmp_path: Path) -> None:
    cave = real_data / "cave"
    train = [
        cave / "train" / name for name in ("beads_ms", "cloth_ms", "stuffed_toys_ms", "fake_and_real_food_ms")
    ]
    hpcdeq("ingest", *train, "--archive", tmp_path / "train.zarr")
    hpcdeq("ingest", cave / "val" / "paints_ms", "--archive", tmp_path / "val.zarr")
    hpcdeq("train", f"data.train={tmp_path / 'train.zarr'}", f"run={tmp_path / 'run'}", *RECIPE)
    hpcdeq("degrade", tmp_path / "val.zarr", "--out", tmp_path / "noisy.zarr", "--sigma", 50)
    hpcdeq(
        "denoise", tmp_path / "noisy.zarr", "--model", tmp_path / "run/model", "--out", tmp_path / "out.zarr"
    )
    scores = json.loads(
        hpcdeq(
            "evaluate",
            tmp_path / "val.zarr",
            "--noisy",
            tmp_path / "noisy.zarr",
            "--denoised",
            tmp_path / "out.zarr",
            "--json",
        )
    )
    (row,) = scores["scenes"]
    assert row["noisy"]["psnr"] == pytest.approx(14.151, abs=0.01)
    assert row["denoised"]["psnr"] > row["noisy"]["psnr"] + 8
    assert row["denoised"]["ssim"] > row["noisy"]["ssim"] + 0.2
    assert open_archive(tmp_path / "out.zarr")["paints_ms"].shape == (31, 512, 512)
