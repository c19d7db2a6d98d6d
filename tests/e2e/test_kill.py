"""SIGKILL at random moments: the same command, run again, finishes the work with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcdeq.archive import open_archive
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings, save_model
from hpcdeq.solvers import Picard
from tests.conftest import add_scene, smooth_scene

# Of each verb. A longer run: HPCDEQ_KILLS=50 bash tests/run.sh tests/e2e/test_kill.py
KILLS = int(os.environ.get("HPCDEQ_KILLS", "8"))
BANDS = 7


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def run(command: list[str], kill_after: float | None = None) -> bool:
    """Run ``hpcdeq``; return whether it ended by itself before it was to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcdeq", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, output
    return True


def kill_and_compare(
    tmp_path: Path,
    command: Callable[[Path], list[str]],
    startup: float,
    left: Callable[[Path], list[str]],
    result: str = "result",
) -> None:
    """Kill runs of ``command(folder)`` KILLS times in all, each started again until it ends; compare every file.

    ``startup`` is the share of a run's time that it needs to begin; ``left(folder)`` names what must not be left over.
    """
    whole = tmp_path / "whole"
    begin = time.monotonic()
    assert run(command(whole))
    seconds = time.monotonic() - begin
    expected = contents(whole / result)
    assert expected
    rng = random.Random(1)
    kills = attempt = 0
    while kills < KILLS:
        attempt += 1
        folder = tmp_path / f"cut{attempt}"
        while kills < KILLS and not run(command(folder), rng.uniform(startup * seconds, seconds)):
            kills += 1
        assert run(command(folder))
        assert contents(folder / result) == expected, f"after {kills} kills"
        assert left(folder) == []


def staging(folder: Path) -> list[str]:
    return [p.name for p in folder.glob("*.staging")]


@pytest.mark.slow
def test_ingest(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(8):
        np.save(raw / f"scene{i}.npy", np.round(smooth_scene(i, 31, 400, 400) * 4000).astype(np.uint16))
    kill_and_compare(
        tmp_path,
        lambda f: ["ingest", str(raw), "--archive", str(f / "result")],
        startup=0.3,
        left=staging,
    )


def train_command(tmp_path: Path) -> Callable[[Path], list[str]]:
    """A small training run on three scenes, in ``run`` of a folder."""
    archive = open_archive(tmp_path / "clean.zarr", create=True)
    for i in range(3):
        add_scene(archive, f"scene{i}", smooth_scene(i, BANDS, 150, 150))
    settings = [
        "model.block=24",
        "model.prior.layers=2",
        "model.prior.filters=6",
        "model.support.size=3",
        "model.solver.iterations=6",
        "model.adjoint.solver.iterations=6",
        "dictionary.atoms=20",
        "dictionary.sparsity=2",
        "dictionary.iterations=2",
        "data.batch=4",
        "data.val_blocks=4",
        "training.pretrain_steps=30",
        "training.steps=30",
        "training.validate_every=10",
        "training.checkpoint_every=5",
    ]

    return lambda f: ["train", f"data.train={archive.path}", f"run={f / 'run'}", *settings]


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    # The model is the result; metrics.jsonl holds times, and is no promise.
    kill_and_compare(
        tmp_path,
        train_command(tmp_path),
        startup=0.4,
        left=lambda f: [p.name for p in (f / "run").glob(".*")],
        result="run/model",
    )


@pytest.mark.slow
def test_train_that_is_asked_to_stop_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    command = train_command(tmp_path)
    assert run(command(tmp_path / "whole"))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcdeq", *command(tmp_path / "cut")], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "validation" in line:  # training has begun, or gone on
                process.send_signal(number)
                break
        said += list(process.stderr)
        assert process.wait() == 75, "".join(said)
        assert f"{number.name} came: stopped after step" in said[-1]
    assert run(command(tmp_path / "cut"))
    assert contents(tmp_path / "cut/run/model") == contents(tmp_path / "whole/run/model")


@pytest.mark.slow
def test_denoise(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    for i in range(3):
        add_scene(archive, f"scene{i}", smooth_scene(i, BANDS, 400, 700))
    torch.manual_seed(0)
    atoms = torch.rand(BANDS, 20)
    settings = ModelSettings(
        block=32,
        prior=CnnSettings(layers=2, filters=16),
        support=SupportSettings(size=3),
        solver=Picard(iterations=6, tolerance=0),
    )
    save_model(
        SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)), tmp_path / "model", {}
    )
    kill_and_compare(
        tmp_path,
        lambda f: [
            "denoise",
            str(archive.path),
            "--model",
            str(tmp_path / "model"),
            "--out",
            str(f / "result"),
        ],
        startup=0.3,
        left=staging,
    )
