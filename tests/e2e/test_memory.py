"""A scene of usual size goes through a worker of 4 GiB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from hpcdeq.archive import SceneHeader, open_archive
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings, save_model
from hpcdeq.solvers import Picard

_LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))  # all that is not a file's mapping
sys.argv[0] = "hpcdeq"
runpy.run_module("hpcdeq", run_name="__main__")
"""


def test_a_scene_of_1300_px_and_one_of_37_by_61_go_through_4_gib(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    for name, height, width in (("large", 1300, 1300), ("odd", 37, 61)):
        header = SceneHeader(shape=(31, height, width), dtype=np.dtype(np.uint16), scale_factor=1 / 65535)
        draft = archive.draft(name, header)
        for window in draft.scene.shards():
            noise = np.random.default_rng(0).integers(20000, 30000, (31, window.height, window.width))
            draft.write(window, noise.astype(np.uint16))
        draft.publish()
    atoms = torch.rand(31, 60)
    settings = ModelSettings(
        prior=CnnSettings(layers=2, filters=4),
        support=SupportSettings(size=3, method="centroid_omp"),
        solver=Picard(iterations=1, tolerance=0),
    )
    save_model(SparseDenoiser(settings, atoms / atoms.norm(dim=0)), tmp_path / "model", {})
    out = tmp_path / "out.zarr"
    done = subprocess.run(
        [
            *(sys.executable, "-c", _LIMITED, "denoise", archive.path, "--model", tmp_path / "model"),
            *("--out", out, "--device", "cpu", "--overlap", "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    denoised = open_archive(out)
    assert denoised["large"].shape == (31, 1300, 1300)
    assert denoised["odd"].shape == (31, 37, 61)
    assert all(np.isfinite(scene.read()).all() for scene in denoised.scenes())
