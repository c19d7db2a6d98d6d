"""A scene as ICVL ships them (MATLAB v7.3, 31 x 1392 x 1300), at full size: ingested and denoised in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcdeq.archive import open_archive
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings, save_model
from hpcdeq.solvers import Picard
from tests.conftest import smooth_scene

GIB = 1 << 20  # in the kB of /proc


def write_icvl(path: Path, scene: np.ndarray) -> None:
    """Write (band, y, x) values as MATLAB writes ``rad``: axes reversed, a user block, class attributes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        rad = file.create_dataset(
            "rad", data=scene.transpose(0, 2, 1), chunks=(1, 87, 82), compression="gzip", compression_opts=1
        )
        rad.attrs["MATLAB_class"] = np.bytes_("double")
        bands = file.create_dataset("bands", data=np.linspace(400, 700, 31)[:, None])
        bands.attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM")


def peak_memory(*command: str) -> int:
    """Run ``hpcdeq`` and return its largest resident size in kB; it must succeed."""
    code = (
        "import sys; from hpcdeq.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_full_scene_is_ingested_and_denoised_within_4_gib(tmp_path: Path) -> None:
    scene = np.round(smooth_scene(0, 31, 1300, 1392) * 4095).astype(np.float32)
    write_icvl(tmp_path / "bgu_0403-1419-1.mat", scene)
    archive = tmp_path / "icvl.zarr"
    ingest = peak_memory("ingest", str(tmp_path / "bgu_0403-1419-1.mat"), "--archive", str(archive))
    stored = open_archive(archive)["bgu_0403-1419-1"]
    assert stored.shape == (31, 1300, 1392)
    np.testing.assert_allclose(stored.wavelengths, np.linspace(400, 700, 31))
    np.testing.assert_allclose(stored.read(), scene / 4095, atol=1e-6)

    torch.manual_seed(0)
    atoms = torch.rand(31, 64)
    settings = ModelSettings(
        prior=CnnSettings(layers=2, filters=16),
        support=SupportSettings(size=8),
        solver=Picard(iterations=3),
    )
    save_model(
        SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)), tmp_path / "model", {}
    )
    out = tmp_path / "out.zarr"
    denoise = peak_memory("denoise", str(archive), "--model", str(tmp_path / "model"), "--out", str(out))
    denoised = open_archive(out)["bgu_0403-1419-1"]
    assert denoised.shape == stored.shape
    assert np.isfinite(denoised.read()).all()
    assert ingest < 1 * GIB, f"ingest needed {ingest / GIB:.2f} GiB"
    assert denoise < 4 * GIB, f"denoise needed {denoise / GIB:.2f} GiB"
