"""`hpcdeq submit scale` with processes of this machine, and under mpirun: what is measured, and that it is measured once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from hpcdeq.archive import Archive
from hpcdeq.errors import ConfigError
from hpcdeq.models import save_model
from hpcdeq.studies.scaling.exchanges import listen
from hpcdeq.studies.scaling.points import Effort, sizes_of, train_points
from hpcdeq.studies.scaling.results import SHARES, Result
from hpcdeq.studies.scaling.study import Study, measure
from hpcdeq.timing import measuring
from hpcdeq.training.loop import Trainer
from tests.conftest import alone
from tests.distributed.test_dictionary import mpirun
from tests.unit.inference.test_denoise import small_model

SETTINGS = [
    *(
        "device=cpu",
        "model.block=20",
        "model.prior.layers=3",
        "model.prior.filters=8",
        "model.support.size=3",
    ),
    *(
        "model.b=1",
        "model.prior.norm=conv",
        "dictionary.atoms=20",
        "dictionary.sparsity=2",
        "dictionary.iterations=2",
    ),
    *("data.batch=4", "data.workers=1"),
]


def scale(*words: str | Path, start: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(start or []), sys.executable, "-m", "hpcdeq", "submit", "scale", *map(str, words)],
        env=alone() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def train(archive: Archive, out: Path, *words: str) -> list[str | Path]:
    effort = ["--steps", "2", "--repeats", "2", "--warmup", "1", "--out", out]
    return ["train", f"data.train={archive.path}", *SETTINGS, *effort, *words]


def results(out: Path) -> dict[tuple[str, int, int], Result]:
    return {(r.series, r.world): r for r in Study(out).results()}


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("points/*/result.json")}


@pytest.mark.slow
def test_training_is_measured_once_by_each_engine_and_size(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = train(
        archive,
        out,
        "--sizes",
        "1x1,1x2",
        "--engines",
        "ddp,zero1",
        "--cluster",
        "local",
        "--trace",
        "--modes",
        "strong",
    )
    done = scale(*words)
    assert done.returncode == 0, done.stderr
    found = results(out)
    engines = ("defaults, DDP", "defaults, ZeRO-1")
    assert set(found) == {(e, w) for e in engines for w in (1, 2)}
    for (_, world), result in found.items():
        assert len(result.seconds) == 2
        assert result.amount == 4
        assert result.largest_part == 4 / world
        assert set(result.shares) == set(SHARES["train"])
        assert all(seconds >= 0 for seconds in result.shares.values())
        assert result.shares["forward"] > 0
        assert result.shares["backward solve"] > 0
        assert world == 1 or result.shares["communication"] > 0
        assert result.iterations["forward"].least <= result.iterations["forward"].mean
        assert result.iterations["backward"].most > 0
        assert bool(result.exchanges) == (world > 1)
        assert (world == 1) == (result.no_mpi is None)
        assert sum(host.processes for host in result.hosts) == world
        assert 0 < result.start_seconds < result.job_seconds
        assert result.peak_bytes > 50 << 20
        assert "submit scale train" in result.command
    # Every gradient is exchanged once in a step; DDP does so parameter by parameter.
    gradients = 4 * sum(p.numel() for p in _model_of(out))
    assert gradients <= sum(found["defaults, DDP", 2].exchanged) < gradients + 64
    assert json.loads(next(out.glob("points/*/trace.json")).read_text())["traceEvents"]
    assert not list(out.rglob("work.*")), "what the runs wrote is removed"
    # One point is lost, as a kill half way would have it: it alone is measured again.
    before = times(out)
    lost = next(path for path in before if "zero-1-1x2" in str(path))
    lost.unlink()
    done = scale(*words)
    assert done.returncode == 0, done.stderr
    after = times(out)
    assert set(after) == set(before)
    assert {path for path in after if after[path] != before[path]} == {lost}


def _model_of(out: Path) -> list[torch.Tensor]:
    from hpcdeq.config import TrainConfig
    from hpcdeq.models import SparseDenoiser

    config = TrainConfig.model_validate(Study(out).points()[0].what["config"])
    atoms = torch.eye(7, 20)
    return [p for p in SparseDenoiser(config.model, atoms).parameters() if p.requires_grad]


@pytest.mark.slow
def test_bulk_denoising_is_measured_by_its_workers(archive: Archive, tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "model", {})
    out, other = tmp_path / "study", tmp_path / "other"
    other.mkdir()
    done = scale(
        *(
            "denoise",
            archive.path,
            "--model",
            tmp_path / "model",
            "--out",
            out,
            "--sizes",
            "1x1,1x2",
            "--repeats",
            "2",
        ),
        *(
            "--cluster",
            "local",
            "--modes",
            "strong",
            "--unit-mib",
            "1,256",
            "--storage",
            other,
            "--device",
            "cpu",
        ),
    )
    assert done.returncode == 0, done.stderr
    found = Study(out).results()
    assert sorted((r.unit_mib, r.world) for r in found) == [(1, 1), (1, 2), (256, 1), (256, 2)]
    megapixels = sum(scene.shape[1] * scene.shape[2] for scene in archive.scenes()) / 1e6
    for result in found:
        assert result.amount == pytest.approx(megapixels)
        assert sum(unit.pixels for unit in result.units) >= 2e6 * megapixels, "two repeats, and borders twice"
        assert set(result.shares) == set(SHARES["denoise"])
        assert sum(result.shares.values()) == pytest.approx(sum(result.seconds) / 2, rel=0.2)
        assert megapixels / result.world <= result.largest_part <= megapixels
        assert {unit.worker for unit in result.units} == set(range(result.world))
        assert {transfer.what for transfer in result.transfers} == {"read", "write"}
        assert str(other) in result.series
    assert len(found[0].units) != len(found[-1].units), "smaller units are more"
    assert list(other.iterdir()) == [], "what was denoised is removed"


@pytest.mark.slow
def test_processes_that_mpirun_started_compare_with_mpi(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = train(archive, out, "--sizes", "1x1,1x2", "--modes", "strong", "--cluster", "debug")
    done = scale(*words, start=mpirun(2))
    assert done.returncode == 0, done.stderr
    assert "left out, as this is 2 process(es): train defaults, DDP, 1 x 1" in done.stderr
    (result,) = results(out).values()
    assert result.world == 2
    assert result.no_mpi is None
    assert {e.library for e in result.exchanges} == {"torch", "mpi"}


def test_what_is_exchanged_is_listed_and_timed() -> None:
    exchanged = listen()
    patched = distributed.all_reduce
    assert listen() is exchanged
    assert distributed.all_reduce is patched, "once a process"
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        exchanged.clear()
        distributed.all_reduce(torch.ones(100))
        distributed.broadcast(torch.ones(10, dtype=torch.float64), src=0)
        with measuring(one_at_a_time=True) as clock:
            distributed.all_reduce(torch.ones(3), async_op=True).wait()
            gathered = [torch.empty(5)]
            distributed.all_gather(gathered, torch.ones(5))
        assert exchanged.all_reduces == [400, 12]
        assert exchanged.others == [80, 20]
        assert len(clock.seconds("communication")) == 3, "the wait for its end too"
        assert len(clock.seconds("waiting")) == 2
        assert torch.equal(gathered[0], torch.ones(5))
    finally:
        distributed.destroy_process_group()


def test_what_cannot_be_measured_here_is_said_before_anything_is_written(
    archive: Archive, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    done = scale(*train(archive, out, "--sizes", "1x1,2x1", "--cluster", "local"))
    assert done.returncode == 2, done.stderr
    assert "--nodes must be 1" in done.stderr
    assert not out.exists()
    if shutil.which("sbatch") is None and "SLURM_CONF" not in os.environ:
        done = scale(*train(archive, out, "--sizes", "1x1", "--time", "10"))
        assert done.returncode == 1
        assert "sbatch is not on PATH" in done.stderr
        assert not out.exists()


def test_a_point_that_fails_does_not_keep_the_others_from_being_measured(
    archive: Archive, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    words = train(archive, out, "--sizes", "1x1", "--cluster", "local", "--vary", "model.support.size=99,3")
    done = scale(*words)
    assert done.returncode == 3, done.stderr
    assert "not measured: train defaults, DDP, model.support.size=99, 1 x 1" in done.stderr
    assert "support.size must be below the number of bands (7)" in done.stderr
    assert [result.series for result in Study(out).results()] == ["defaults, DDP, model.support.size=3"]


def test_a_damaged_result_is_named(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = train(archive, out, "--sizes", "1x1", "--cluster", "local")
    (point,) = train_points(
        [], [*map(str, words[1 : 2 + len(SETTINGS)])], ["ddp"], [], sizes_of("1x1"), ("strong",), Effort()
    )
    study = Study(out)
    study.add(point, "a command")
    (study.folder(point) / "result.json").write_text('{"work": "tr')
    with pytest.raises(ConfigError, match=r"result.json is damaged.*remove its folder"):
        study.results()


def test_a_storage_that_is_not_there_is_named_before_anything_is_written(
    archive: Archive, tmp_path: Path
) -> None:
    save_model(small_model(), tmp_path / "model", {})
    words = (
        "denoise",
        archive.path,
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "study",
        "--modes",
        "strong",
    )
    done = scale(*words, "--cluster", "local", "--sizes", "1x1", "--storage", tmp_path / "none")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "none").exists()


def test_steps_that_cannot_be_taken_are_not_measured(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Trainer, *batch: object) -> str:
        self.at.skipped += 1
        return "not finite"

    monkeypatch.setattr(Trainer, "step", step)
    for name in os.environ.keys() - alone().keys():
        monkeypatch.delenv(name)
    settings = [f"data.train={archive.path}", *SETTINGS]
    points = train_points([], settings, ["ddp"], [], sizes_of("1x1"), ("strong",), Effort())
    study = Study(tmp_path / "study")
    study.add(points[0], "a command")
    with pytest.raises(ConfigError, match="begin from a trained model"):
        measure(study.out, [points[0].name], trace=False)
    assert study.results() == []
    assert not list(study.out.rglob("work.*"))
